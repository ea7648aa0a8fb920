"""``--format dcp``: the averages in a folder of ``torch.distributed.checkpoint``.

``.metadata`` and files of at most 5 GB: ``__0_0.distcp``, ``__0_1.distcp``, ... Each chunk of a tensor is an archive of
``torch.save``. Tied tensors are written once per name, as ``dcp.save`` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ema_cli.errors import UsageError
from ema_cli.formats.dcp.chunk_sizes import cut
from ema_cli.formats.dcp.dcp_names import METADATA, data_name
from ema_cli.formats.dcp.metadata_pickle import build_metadata
from ema_cli.formats.dcp.saved_items import ByteRange, Chunk, SavedTensor, TreePath
from ema_cli.formats.torch.tensor_archive import tensor_archive
from ema_cli.options.output_options import DEFAULT_SHARD_BYTES
from ema_cli.records.files import Checksum, FileRole, Place, PlacedFile, PlacedTensor, Placement, SideFile
from ema_cli.records.plan import PlannedTensor
from ema_cli.records.series import Checkpoint
from ema_cli.text import quoted


def place_in_dcp(tensors: Sequence[PlannedTensor], paths: Mapping[str, TreePath]) -> Placement:
    """Return the files of the folder, and where the tensors are in them.

    Args:
        tensors: of the output.
        paths: of tensors that are not at the top level of the state dict, as ``saved_paths`` returns them.

    Raises:
        UsageError: two tensors would have one name.

    """
    files = _Files()
    saved: dict[TreePath, SavedTensor] = {}
    placed = []
    for tensor in tensors:
        chunks = [files.add(tensor, origin, shape) for origin, shape in cut(tensor.shape, tensor.dtype.itemsize)]
        dtype, shape = tensor.dtype, tensor.shape
        saved[paths.get(tensor.name, (tensor.name,))] = SavedTensor(
            dtype_name=dtype.torch_name, shape=shape, chunks=tuple(chunk for chunk, _ in chunks)
        )
        places = tuple(place for _, place in chunks)
        placed.append(PlacedTensor(begin=tensor.offset, shape=shape, itemsize=dtype.itemsize, places=places))
    _refuse_equal_names(saved, len(tensors))
    metadata = build_metadata(saved)
    index = SideFile(name=METADATA, role=FileRole.INDEX, nbytes=len(metadata), content=metadata)
    return Placement(files=files.finish(), tensors=tuple(placed), folder=True, beside=(index,))


def _refuse_equal_names(paths: Iterable[TreePath], count: int) -> None:
    names = Counter(map(".".join, paths))
    if len(names) < count:
        twice = quoted(names.most_common(1)[0][0])
        raise UsageError(f"--format dcp: two tensors would have the name {twice}", hint="-o ema.safetensors")


def saved_paths(checkpoint: Checkpoint) -> Mapping[str, TreePath]:
    """Return the path of each tensor in the state dict that a DCP folder was saved from; nothing for other formats."""
    if not checkpoint.paths:
        return {}
    names = (layout.name for layout in checkpoint.index.layouts)
    return dict(zip(names, checkpoint.paths, strict=True))


class _Files:
    """The files so far: each is filled up to 5 GB."""

    def __init__(self) -> None:
        self._files: list[PlacedFile] = []
        self._begin()

    def _begin(self) -> None:
        self._name = data_name(len(self._files))
        self._nbytes = 0
        self._given: list[tuple[int, bytes]] = []
        self._checksums: list[Checksum] = []

    def add(self, tensor: PlannedTensor, origin: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Chunk, Place]:
        """Add the archive of a chunk; return the chunk, and the place of its data."""
        archive = tensor_archive(tensor.dtype, shape)
        if self._given and self._nbytes + archive.nbytes > DEFAULT_SHARD_BYTES:
            self._end()
        begin = self._nbytes
        data = begin + len(archive.head)
        self._given += [(begin, archive.head), (data + archive.data_bytes, archive.tail)]
        if archive.crc32_fields:
            fields = tuple(begin + field for field in archive.crc32_fields)
            self._checksums.append(Checksum(begin=data, nbytes=archive.data_bytes, fields=fields))
        self._nbytes += archive.nbytes
        stored = ByteRange(file=self._name, offset=begin, length=archive.nbytes)
        place = Place(file=len(self._files), offset=data, origin=origin, shape=shape, strides=None)
        return Chunk(origin=origin, shape=shape, stored=stored), place

    def _end(self) -> None:
        self._files.append(
            PlacedFile(
                name=self._name,
                nbytes=self._nbytes,
                given=tuple(self._given),
                checksums=tuple(self._checksums),
            )
        )
        self._begin()

    def finish(self) -> tuple[PlacedFile, ...]:
        """Return all files."""
        self._end()
        return tuple(self._files)
