"""The BatchNorm layers of a model with running statistics, and the pass over data that recomputes these.

The semantics are those of ``torch.optim.swa_utils.update_bn``: reset, then the cumulative average over the batches of
their means and unbiased variances, with every module in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ema_cli.formats.state_dict.prefixes import without_module_wrappers

MEAN, VARIANCE, COUNT = "running_mean", "running_var", "num_batches_tracked"
STATISTICS = (MEAN, VARIANCE, COUNT)


@dataclass(frozen=True, kw_only=True)
class NormLayer:
    """A BatchNorm layer with running statistics."""

    module: _BatchNorm
    names: tuple[str, ...]
    """The names of the module, at least one: a shared module has several."""

    def tensor_names(self, statistic: str) -> list[str]:
        """Return the names of one of ``STATISTICS`` in a checkpoint."""
        return [f"{name}.{statistic}" if name else statistic for name in self.names]

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return the buffers of the layer by the names in ``STATISTICS``."""
        found = {name: getattr(self.module, name) for name in STATISTICS}
        return {name: buffer for name, buffer in found.items() if buffer is not None}

    def copied(self) -> dict[str, torch.Tensor]:
        """Return copies of the buffers that ``statistics`` returns."""
        return {name: buffer.clone() for name, buffer in self.statistics().items()}

    def restore(self, statistics: Mapping[str, torch.Tensor]) -> None:
        """Put statistics into the layer, given by the names in ``STATISTICS``."""
        for name, buffer in self.statistics().items():
            buffer.copy_(statistics[name])

    @property
    def batches(self) -> int:
        """The number of batches in the statistics."""
        count = self.module.num_batches_tracked
        return 0 if count is None else int(count)


def norm_layers(model: nn.Module) -> list[NormLayer]:
    """Return the BatchNorm layers with running statistics, a shared one once."""
    found: dict[_BatchNorm, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            found.setdefault(module, []).append(without_module_wrappers(name))
    return [NormLayer(module=module, names=tuple(names)) for module, names in found.items()]


def other_norms(model: nn.Module) -> dict[str, int]:
    """Return how many other layers the model has that a user may think of: by class, with ``name -> count``."""
    kinds = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
    found: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, kinds):
            name = type(module).__name__
            found[name] = found.get(name, 0) + 1
    return found


def other_statistics(model: nn.Module, layers: Sequence[NormLayer]) -> dict[str, nn.Module]:
    """Return the modules with running statistics that are none of these layers, and are not recomputed, by name."""
    own = {layer.module for layer in layers}
    return {
        without_module_wrappers(name): module
        for name, module in model.named_modules()
        if module not in own and isinstance(getattr(module, MEAN, None), torch.Tensor)
    }


@contextmanager
def recomputing(model: nn.Module, layers: Sequence[NormLayer]) -> Iterator[None]:
    """Reset the statistics of layers and let forward passes accumulate them, inside a ``with`` block.

    A layer that ``train()`` of the model keeps in evaluation mode also keeps its statistics, which it applies; torch
    would reset them. After the block every module has its own mode and momentum again, and all other buffers their
    values; after an error, the statistics too.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer.module, layer.module.momentum) for layer in layers]
    buffers = list(_other_buffers(model, layers))
    before = [layer.copied() for layer in layers]
    try:
        model.train()
        for layer in layers:
            layer.module.momentum = None
            if layer.module.training:
                layer.module.reset_running_stats()
            elif layer.module.num_batches_tracked is not None:
                layer.module.num_batches_tracked.zero_()
        with torch.no_grad():
            yield
    except BaseException:
        for layer, statistics in zip(layers, before, strict=True):
            layer.restore(statistics)
        raise
    finally:
        for module, momentum in momenta:
            module.momentum = momentum
        for anything, mode in modes:
            anything.training = mode
        for owner, name, buffer, value in buffers:
            owner._buffers[name] = buffer.copy_(value)  # noqa: SLF001 - no public way replaces a buffer as it was


def _other_buffers(
    model: nn.Module, layers: Sequence[NormLayer]
) -> Iterator[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    """Yield the buffers that are no statistics of these layers, each with its module, its name and a copy."""
    own = {id(buffer) for layer in layers for buffer in layer.statistics().values()}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in own:
                yield module, name, buffer, buffer.detach().clone()
