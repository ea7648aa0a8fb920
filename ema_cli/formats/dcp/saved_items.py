"""The items that the metadata of a torch.distributed.checkpoint folder declare: tensors in chunks, other objects."""

from __future__ import annotations

from ema_cli.record import record

Sizes = tuple[int, ...]
TreePath = tuple[str, ...]
"""Names from the top of a nested state dict to a tensor."""


@record
class ByteRange:
    """The bytes of an item: a range of a file of the folder."""

    file: str
    offset: int
    length: int


@record
class Chunk:
    """A rectangle of a tensor that was saved separately."""

    origin: Sizes
    """Index in the tensor of its first element."""
    shape: Sizes
    stored: ByteRange


@record
class SavedTensor:
    """A whole tensor; its chunks tile it."""

    dtype_name: str
    """The torch name."""
    shape: Sizes
    chunks: tuple[Chunk, ...]
    """Those that have elements, in the order of their origins."""


@record
class SavedItems:
    """Everything that a folder declares, by flat name, in the order of the state dict."""

    items: dict[str, SavedTensor | ByteRange]
    """Tensors; of every other object its bytes."""
    paths: dict[str, TreePath]
    """The path of each item in the nested state dict, where it was recorded."""
    ends: dict[str, int]
    """The least size of each file, by name."""
    reshaped: frozenset[str]
    """Tensors that Megatron stored in a shape that is not theirs."""
