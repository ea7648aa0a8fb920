"""``.metadata`` of a torch.distributed.checkpoint folder, written without torch.

Input -> output: the tensors with their chunks -> a pickle of torch's ``Metadata``, with the fields of ``dcp.save`` for
these tensors. Two fields differ from save to save there, the folder and a random id, and are empty here, so the same
tensors give the same bytes. torch 2.6 reads it, too, which is the oldest that is supported.
Source: ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``, version 1.0.0.
"""

from __future__ import annotations

import pickle  # for the names of the opcodes only
from collections.abc import Mapping

from ema_cli.formats.dcp.saved_items import Chunk, SavedTensor, Sizes, TreePath
from ema_cli.formats.torch.pickle_writer import PickleWriter

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_STRIDED, _CONTIGUOUS = "torch.strided", "_MEM_FORMAT_ENCODING"


def build_metadata(tensors: Mapping[TreePath, SavedTensor]) -> bytes:
    """Return the bytes of ``.metadata``; the flat name of a tensor is its path, joined by dots."""
    flat = {".".join(path): path for path in tensors}
    made = _MetadataWriter()
    made.begin(_METADATA, "Metadata")
    made.field("state_dict_metadata")
    made.begin_mapping()
    for name, path in flat.items():
        made.text(name)
        made.tensor(tensors[path])
    made.end_mapping()
    made.field("planner_data")
    made.begin_mapping()
    for name, path in flat.items():
        made.text(name)
        made.texts(path)
    made.end_mapping()
    made.field("storage_data")
    made.begin_mapping()
    for name, path in flat.items():
        for number, chunk in enumerate(tensors[path].chunks):
            made.place(name, number, chunk)
    made.end_mapping()
    made.field("storage_meta")
    made.storage_meta()
    made.field("version")
    made.text("1.0.0")
    made.end()
    return made.finish()


class _MetadataWriter(PickleWriter):
    """Writes the objects; a string, a size or a class is written once and then recalled."""

    def begin_mapping(self) -> None:
        self.add(pickle.EMPTY_DICT, pickle.MARK)

    def end_mapping(self) -> None:
        self.add(pickle.SETITEMS)

    def begin(self, module: str, name: str) -> None:
        """Begin an object; its fields follow."""
        self.name(module, name)
        self.add(pickle.EMPTY_TUPLE, pickle.NEWOBJ)
        self.begin_mapping()

    def field(self, name: str) -> None:
        """Begin a field; its value follows."""
        self.text(name)

    def end(self) -> None:
        self.end_mapping()
        self.add(pickle.BUILD)

    def texts(self, texts: TreePath) -> None:
        self.add(pickle.MARK)
        for text in texts:
            self.text(text)
        self.add(pickle.TUPLE)

    def size(self, sizes: Sizes) -> None:
        """Push a ``torch.Size``."""
        if not self.recall(sizes):
            self.name("torch", "Size")
            self.numbers(sizes)
            self.add(pickle.TUPLE1, pickle.REDUCE)
            self.keep(sizes)

    def tensor(self, tensor: SavedTensor) -> None:
        self.begin(_METADATA, "TensorStorageMetadata")
        self.field("properties")
        self._properties(tensor.dtype_name)
        self.field("size")
        self.size(tensor.shape)
        self.field("chunks")
        self.add(pickle.EMPTY_LIST, pickle.MARK)
        for chunk in tensor.chunks:
            self.begin(_METADATA, "ChunkStorageMetadata")
            self.field("offsets")
            self.size(chunk.origin)
            self.field("sizes")
            self.size(chunk.shape)
            self.end()
        self.add(pickle.APPENDS)
        self.end()

    def place(self, name: str, number: int, chunk: Chunk) -> None:
        """Push the index of a chunk, and where its bytes are."""
        self.begin(_METADATA, "MetadataIndex")
        self.field("fqn")
        self.text(name)
        self.field("index")
        self.number(number)
        self.field("offset")
        self.size(chunk.origin)
        self.end()
        self.begin(_FILESYSTEM, "_StorageInfo")
        self.field("relative_path")
        self.text(chunk.stored.file)
        self.field("offset")
        self.number(chunk.stored.offset)
        self.field("length")
        self.number(chunk.stored.length)
        self.end()

    def storage_meta(self) -> None:
        self.begin(_METADATA, "StorageMeta")
        for name in ("checkpoint_id", "save_id", "load_id"):
            self.field(name)
            self.add(pickle.NONE)
        self.field("modules")
        self.add(pickle.EMPTY_LIST)
        self.end()

    def _properties(self, dtype_name: str) -> None:
        self.name(_METADATA, "TensorProperties")
        self.add(pickle.EMPTY_TUPLE, pickle.NEWOBJ, pickle.MARK)
        self.name("torch", dtype_name)
        self._shared("torch.serialization", "_get_layout", "torch.strided")
        self.add(pickle.NEWFALSE)
        self._shared(_METADATA, "_MEM_FORMAT_ENCODING", 0)
        self.add(pickle.NEWFALSE, pickle.TUPLE, pickle.BUILD)

    def _shared(self, module: str, name: str, argument: str | int) -> None:
        """Push the value that a function returns for an argument."""
        if not self.recall((name, argument)):
            self.name(module, name)
            if isinstance(argument, str):
                self.text(argument)
            else:
                self.number(argument)
            self.add(pickle.TUPLE1, pickle.REDUCE)
            self.keep((name, argument))
