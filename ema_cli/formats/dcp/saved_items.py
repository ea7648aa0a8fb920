"""What a torch.distributed.checkpoint folder declares to hold: tensors in chunks, other objects, and their places."""

from __future__ import annotations

from dataclasses import dataclass

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where an item lies: a range of bytes of a file of the folder."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A rectangle of a tensor that was saved by itself."""

    origin: Sizes
    shape: Sizes
    stored: Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTensor:
    """A tensor, whole; its chunks tile it."""

    dtype_name: str
    """The torch name."""
    shape: Sizes
    chunks: tuple[Chunk, ...]
    """Those that have elements, in the order of their origins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Everything that a folder declares to hold, by flat name, in the order of the state dict."""

    items: dict[str, SavedTensor | Stored]
    """Tensors; and of every other object its place."""
    paths: dict[str, tuple[str, ...]]
    """Where each lay in the nested state dict, as far as that was written down."""
    ends: dict[str, int]
    """How far each file must reach, by its name."""
    reshaped: frozenset[str]
    """Tensors that Megatron stored in another shape than they have."""
