"""One file of a rank, which ``torch.save`` wrote: the inert value of its pickle, and where its tensors are."""

from __future__ import annotations

import hashlib
import struct

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.structure import refusal_of
from ema_cli.formats.torch.declared_storages import DeclaredStorages
from ema_cli.formats.torch.first_bytes import looks_like_zip
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.formats.torch.tensor_locations import locate_tensor
from ema_cli.formats.torch.zip_archive import RESAVE, Archive
from ema_cli.formats.torch.zip_format import LARGEST_PICKLE, parse_pickle, refuse_other_kinds
from ema_cli.storage.checksums import RecordTable
from ema_cli.storage.extents import TensorLayout

_STEP_CODES = {"F64": "d", "F32": "f", "I64": "q", "I32": "i"}


class RankFile:
    """An open file of a rank.

    Raises:
        InputRefused: it is missing, or was not written by ``torch.save``; every message names the file.

    """

    def __init__(self, folder: Folder, name: str, *, shown: str = "") -> None:
        self.name = shown or name
        self.number = folder.open(name)
        self.source = folder.sources[self.number]
        try:
            self._archive = self._open()
            self._pickle = self._archive.read("data.pkl", most=LARGEST_PICKLE)
        except InputRefused as refused:
            raise refusal_of(self.name, refused) from refused
        self.digest = hashlib.sha256(self._pickle).digest()

    def _open(self) -> Archive:
        size = self.source.size()
        if not size:
            raise InputRefused("is empty")
        if not looks_like_zip(self.source.read(0, min(4, size))):
            raise InputRefused(
                "is not a zip archive of torch.save, so the weights in it cannot be located",
                hint=f"if it is complete, save it again: {RESAVE}",
            )
        archive = Archive(self.source)
        refuse_other_kinds(archive)
        return archive

    def parse(self) -> tuple[object, DeclaredStorages]:
        """Return the inert value of the pickle, and the storages that it declares.

        Raises:
            InputRefused: it is damaged.

        """
        try:
            return parse_pickle(self._pickle)
        except InputRefused as refused:
            raise refusal_of(self.name, refused) from refused

    def compare(self, declared: DeclaredStorages) -> None:
        """Compare the sizes of the declared storages with the file; then forget the pickle, which is not needed again.

        Raises:
            InputRefused: they differ: the file is truncated or damaged.

        """
        self._pickle = b""
        try:
            declared.compare(self._archive.storage_bytes)
        except InputRefused as refused:
            raise refusal_of(self.name, refused) from refused

    def locate(self, name: str, tensor: TensorRef) -> tuple[TensorLayout, int]:
        """Return the layout of a tensor, and the byte of the file where it begins.

        Raises:
            UnreadableTensor: it is not plain numbers of a supported type.
            InputRefused: it is not in the file.

        """
        begin, size = self._archive.storage(tensor.storage.key)
        layout, inside = locate_tensor(name, tensor, size)
        return layout, begin + inside

    def storage(self, key: str) -> tuple[int, int]:
        """Return the byte offset and the size of a storage."""
        return self._archive.storage(key)

    def number_at(self, value: object) -> float | None:
        """Return a number of Python, or the number in a tensor of one element; ``None`` for anything else."""
        if type(value) in (int, float):
            return float(value)  # type: ignore[arg-type]
        dtype = BY_TORCH_NAME.get(value.dtype_name) if isinstance(value, TensorRef) else None
        if not isinstance(value, TensorRef) or dtype is None or value.shape or dtype.name not in _STEP_CODES:
            return None
        try:
            _, offset = self.locate("step", value)
        except InputRefused as refused:
            raise self.refusal(f'has a damaged "step": it {refused.message}') from refused
        raw = self.source.read(offset, dtype.itemsize)
        return float(struct.unpack(f"<{_STEP_CODES[dtype.name]}", raw)[0])

    def checksums(self) -> RecordTable:
        """Return the checksums of the storages that were located."""
        return self._archive.checksums()

    def refusal(self, message: str, hint: str = "") -> InputRefused:
        """Return the refusal of this file."""
        return refusal_of(self.name, InputRefused(message, hint=hint))
