"""The format of ``torch.save`` before 1.6: five pickles, then each storage after its length.

The pickles are a magic number, the protocol, the system (byte order), the object, and the list of storage keys. A
storage is an int64 count of its elements, and their bytes. Reference: ``_legacy_save`` in ``torch/serialization.py``.
"""

from __future__ import annotations

import gc
import hashlib

from ema_cli.errors import InputRefused
from ema_cli.formats.foreign_formats import ForeignFile
from ema_cli.formats.inert_pickle.reader import read_pickle
from ema_cli.formats.inert_pickle.values import PickleError, PickleTruncated
from ema_cli.formats.state_dict.find_weights import find_state_dict
from ema_cli.formats.state_dict.steps import read_steps
from ema_cli.formats.structure import Keys, Structure
from ema_cli.formats.torch.declared_storages import DeclaredStorages
from ema_cli.formats.torch.objects import reduce
from ema_cli.formats.torch.storages import element_bytes
from ema_cli.formats.torch.tensor_locations import locate_tensors
from ema_cli.formats.torch.zip_archive import RESAVE
from ema_cli.formats.torch.zip_format import LARGEST_PICKLE
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.source import ByteSource

_SAVE_WEIGHTS = "if you trust it: load it with the program that wrote it, and save its state dict with torch.save"
MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_FIRST_READ, _SECOND_READ = 1 << 20, 16 << 20
"""Nearly all pickles fit into the first read. Larger ones are parsed again after each read, so reads grow."""
_COUNT_BYTES = 8


def read_torch_legacy(source: ByteSource, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint in the format before torch 1.6.

    Raises:
        InputRefused: it is of another kind, truncated, big-endian, or inconsistent.

    """
    stream = _PickleStream(source, DeclaredStorages())
    root, found = _read_pickles(source, stream)

    def find_storage(key: str) -> tuple[int, int]:
        if key not in found:
            raise InputRefused("refers to a storage that it does not hold")
        return found[key]

    chosen = find_state_dict(root, keys)
    digest = hashlib.sha256(stream.consumed).digest()
    located = locate_tensors(chosen.tensors, find_storage, pool, (digest, keys))
    return Structure(
        format="torch legacy",
        layouts=located.layouts,
        offsets=located.offsets,
        digest=digest,
        key=chosen.key,
        steps=tuple(read_steps(root, source, find_storage)),
        ignored=chosen.ignored,
        unreadable=located.unreadable,
        choice=chosen.choice,
        warnings=chosen.warnings,
        dropped=chosen.dropped,
    )


def read_legacy_storages(source: ByteSource, storages: DeclaredStorages) -> tuple[object, dict[str, tuple[int, int]]]:
    """Return the inert value of a checkpoint, and the place and size of every storage; ``storages`` declares them.

    Raises:
        InputRefused: as ``read_torch_legacy`` does.

    """
    return _read_pickles(source, _PickleStream(source, storages))


def _read_pickles(source: ByteSource, stream: _PickleStream) -> tuple[object, dict[str, tuple[int, int]]]:
    if stream.next() != MAGIC:
        raise ForeignFile("a bare pickle", _SAVE_WEIGHTS)
    if stream.next() != _PROTOCOL:
        raise InputRefused("has an unknown version of the torch format before 1.6")
    system = stream.next()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputRefused("holds big-endian data; only little-endian is supported", hint=f"convert it: {RESAVE}")
    root = stream.next()
    return root, _find_storages(source, stream)


class _PickleStream:
    """The pickles at the start of a file, one after the other; only the bytes that they need are read."""

    def __init__(self, source: ByteSource, storages: DeclaredStorages) -> None:
        self._source = source
        self._data = source.read(0, min(_FIRST_READ, source.size()))
        self.position = 0
        self.storages = storages

    @property
    def consumed(self) -> bytes:
        """The bytes that were parsed."""
        return self._data[: self.position]

    def next(self) -> object:
        """Return the value of the next pickle."""
        while True:
            try:
                value, self.position = read_pickle(
                    self._data, self.position, reduce=reduce, persistent_load=self.storages.load
                )
            except PickleTruncated:
                pass  # and release the values before reading more
            except PickleError as error:
                raise InputRefused(f"has a damaged pickle: {error}") from error
            else:
                return value
            self._read_more()

    def _read_more(self) -> None:
        have, size = len(self._data), self._source.size()
        if have == size:
            raise InputRefused("is truncated: it ends inside its pickle")
        if have >= LARGEST_PICKLE:
            raise InputRefused(f"has a pickle of more than {LARGEST_PICKLE:,} bytes")
        gc.collect()  # values may contain themselves
        self._data += self._source.read(have, min(max(4 * have, _SECOND_READ), LARGEST_PICKLE, size) - have)


def _find_storages(source: ByteSource, stream: _PickleStream) -> dict[str, tuple[int, int]]:
    """Return place and size of every storage by key, found by their lengths; the last must end where the file ends."""
    keys = stream.next()
    if not isinstance(keys, list):
        raise InputRefused("has a damaged list of storages")
    position = stream.position
    found: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = stream.storages.by_key.get(key) if isinstance(key, str) else None
        itemsize = element_bytes(storage.kind) if storage else None
        if storage is None or itemsize is None or storage.key in found:
            raise InputRefused("has a damaged list of storages")
        if position + _COUNT_BYTES > source.size():
            raise InputRefused("is truncated: storages are missing at its end")
        count = int.from_bytes(source.read(position, _COUNT_BYTES), "little", signed=True)
        position += _COUNT_BYTES
        if count < 0 or position + count * itemsize > source.size():
            raise InputRefused("is truncated: storages are missing at its end")
        found[storage.key] = position, count * itemsize
        position += count * itemsize
    if position != source.size():
        raise InputRefused(f"has {source.size() - position:,} bytes after its last storage")
    stream.storages.compare(lambda key: found[key][1] if key in found else None)
    return found
