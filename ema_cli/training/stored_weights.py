"""Weights to load into a model: of a checkpoint of any format, read in pieces, or of a state dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from ema_cli.errors import UsageError
from ema_cli.formats.state_dict.prefixes import strip_prefixes
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import Located
from ema_cli.storage.strided_read import read_block
from ema_cli.text import quoted

_PIECE_ELEMENTS = 1 << 20
Shape = tuple[int, ...]


class StoredWeights(ABC):
    """Tensors by name."""

    label: str
    """For messages."""
    shapes: Mapping[str, Shape]
    same_as: Mapping[str, str]
    """The names of tensors that are stored once, under another name: ``{name: name of the stored tensor}``."""

    @abstractmethod
    def copy_to(self, name: str, target: torch.Tensor) -> None:
        """Copy a tensor into another of its shape, converted to the type of that."""


class CheckpointWeights(StoredWeights):
    """The tensors of an open checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.label = quoted(str(checkpoint.path))
        layouts = checkpoint.index.layouts
        self.shapes = {layout.name: layout.shape for layout in layouts}
        self.same_as = {name: kept for name, kept in checkpoint.metadata.items() if kept in self.shapes}
        self._index = checkpoint.index
        self._positions = {layout.name: position for position, layout in enumerate(layouts)}

    def copy_to(self, name: str, target: torch.Tensor) -> None:
        """Copy a tensor, piece by piece; raise ``InputChanged`` if it cannot be read."""
        extent = self._index.extent(self._positions[name])
        elements = extent.layout.elements
        if not target.is_contiguous():
            target.copy_(_read(extent, 0, elements).view(target.shape))
            return
        flat = target.view(-1)
        for start in range(0, elements, _PIECE_ELEMENTS):
            count = min(_PIECE_ELEMENTS, elements - start)
            flat[start : start + count].copy_(_read(extent, start, count))


class StateDictWeights(StoredWeights):
    """The tensors of a state dict."""

    def __init__(self, state: Mapping[str, object]) -> None:
        self.label = "the state dict"
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise UsageError("the state dict has no tensors", hint="give a path, or what model.state_dict() returns")
        bare = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
        names = strip_prefixes(list(tensors), None, bare=bare).names
        self._tensors = dict(zip(names, tensors.values(), strict=True))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.same_as = {}

    def copy_to(self, name: str, target: torch.Tensor) -> None:
        """Copy a tensor."""
        target.copy_(self._tensors[name])


def _read(extent: Located, start: int, count: int) -> torch.Tensor:
    """Return elements of a tensor, flat, in their own type."""
    dtype: torch.dtype = getattr(torch, extent.layout.dtype.torch_name)
    return torch.from_numpy(read_block(extent, start, count)).view(dtype)
