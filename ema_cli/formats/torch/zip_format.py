"""The zip format of ``torch.save`` (since 1.6): one pickle, and one uncompressed record per storage.

The archive holds ``<root>/data.pkl``, ``<root>/data/<key>`` and, in newer files, ``byteorder``.
Reference: ``torch/serialization.py``.
"""

from __future__ import annotations

import hashlib

from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.reader import read_pickle
from ema_cli.formats.inert_pickle.values import PickleError, Reduce
from ema_cli.formats.state_dict.find_weights import StateDict, find_state_dict
from ema_cli.formats.state_dict.steps import read_steps
from ema_cli.formats.structure import Keys, Structure
from ema_cli.formats.torch.declared_storages import DeclaredStorages
from ema_cli.formats.torch.objects import TensorRef, reduce
from ema_cli.formats.torch.tensor_locations import locate_tensors
from ema_cli.formats.torch.zip_archive import RESAVE, Archive
from ema_cli.records.garbage import without_collections
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

LARGEST_PICKLE = 100_000_000
"""Bytes; 100,000 tensors with the state of Adam take a third."""
_LONGEST_ORDER = 16


@without_collections()
def read_torch_zip(source: ByteSource, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a zip checkpoint; equal pickles are parsed once per ``pool``.

    Raises:
        InputRefused: it is truncated, compressed, big-endian, TorchScript, or inconsistent.

    """
    archive = Archive(source)
    refuse_other_kinds(archive)
    pickle = archive.read("data.pkl", most=LARGEST_PICKLE)
    digest = hashlib.sha256(pickle).digest()
    root, chosen, declared = pool.remember(("pickle", digest, keys), lambda: _parse(pickle, keys))
    archive.announce({t.storage.key: None for t in chosen.tensors.values() if isinstance(t, TensorRef)})
    located = locate_tensors(chosen.tensors, archive.storage, pool, (digest, keys))
    declared.compare(archive.storage_bytes)
    return Structure(
        format="torch zip",
        layouts=located.layouts,
        offsets=located.offsets,
        digest=digest,
        records={0: archive.checksums()},
        key=chosen.key,
        steps=tuple(read_steps(root, source, archive.storage)),
        ignored=chosen.ignored,
        unreadable=located.unreadable,
        choice=chosen.choice,
        warnings=chosen.warnings,
        dropped=chosen.dropped,
    )


def _parse(pickle: bytes, keys: Keys) -> tuple[object, StateDict, DeclaredStorages]:
    root, declared = parse_pickle(pickle)
    return root, find_state_dict(root, keys), declared


def parse_pickle(
    pickle: bytes, storages: DeclaredStorages | None = None, *, reduce: Reduce = reduce
) -> tuple[object, DeclaredStorages]:
    """Return the inert value of a pickle of ``torch.save``, and the storages that it declares.

    Args:
        pickle: the bytes.
        storages: takes the storages.
        reduce: returns the values of the calls in the pickle.

    Raises:
        InputRefused: it is damaged, or contradicts itself.

    """
    declared = DeclaredStorages() if storages is None else storages
    try:
        return read_pickle(pickle, reduce=reduce, persistent_load=declared.load)[0], declared
    except PickleError as error:
        raise InputRefused(f"has a damaged pickle: {error}") from error


def refuse_other_kinds(archive: Archive) -> None:
    """Refuse archives of torch that are TorchScript or big-endian.

    Raises:
        InputRefused: it is such an archive.

    """
    if "constants.pkl" in archive:
        raise InputRefused(
            "is a TorchScript archive, not a checkpoint",
            hint="save its weights: torch.save(torch.jit.load(path).state_dict(), path)",
        )
    if "byteorder" in archive:
        order = archive.read("byteorder", most=_LONGEST_ORDER)
        if order != b"little":
            raise InputRefused(
                f"holds {quoted(order.decode('ascii', 'replace'))}-endian data; only little-endian is supported",
                hint=f"save it again on a little-endian machine: {RESAVE}",
            )
