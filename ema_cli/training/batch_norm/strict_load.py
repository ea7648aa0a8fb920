"""Load weights into a model, all of them: every difference between the two is reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.state_dict.prefixes import without_module_wrappers
from ema_cli.text import plural, quoted, shortlist
from ema_cli.training.batch_norm.norm_layers import COUNT
from ema_cli.training.batch_norm.stored_weights import StoredWeights

_MOST_SHOWN = 20
"""Names of each kind in a message."""
_AVERAGED_MODELS = "n_averaged"
"""The counter of ``torch.optim.swa_utils.AveragedModel``, beside the weights of its model."""


@torch.no_grad()
def load_strictly(model: nn.Module, weights: StoredWeights) -> None:
    """Copy every tensor of ``weights`` into the model, each into the type and device that it has there.

    The counters ``num_batches_tracked`` may be missing, as in files of old versions of torch; of tied tensors, all
    names but one.

    Raises:
        InputRefused: tensors are missing, unexpected, or have another shape.
        UsageError: the model is sharded or has layers without shapes, or its ``state_dict()`` returns copies.

    """
    own = _tensors_of_state(model)
    stored = {name: weights.same_as.get(name, name) for name in own}
    present = {name: kept for name, kept in stored.items() if kept in weights.shapes}
    differences = list(_differences(own, present, weights))
    if differences:
        hint = _prefix_hint(set(own), set(weights.shapes))
        raise InputRefused("\n".join([f"{weights.label} does not fit the model:", *differences]), hint=hint)
    for name, kept in present.items():
        weights.copy_to(kept, own[name])


def _tensors_of_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of the model's ``state_dict()``, which are its own, by names without wrappers.

    Raises:
        UsageError: one of them has no shape yet, is sharded, or is not the model's own.

    """
    lazy = [name for name, tensor in _all_tensors(model) if is_lazy(tensor)]
    if lazy:
        raise UsageError(
            f"the model has layers that get their shapes from the first batch ({shortlist(map(quoted, lazy))})",
            hint="run a batch through the model before you return it",
        )
    if any(hasattr(tensor, "to_local") for _, tensor in _all_tensors(model)):
        raise UsageError("the model is sharded over processes", hint="give the model before fully_shard")
    places = {tensor.data_ptr() for _, tensor in _all_tensors(model)}
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    copies = [quoted(name) for name, value in state.items() if value.numel() and value.data_ptr() not in places]
    if copies:
        raise UsageError(f"the state_dict() of the model returns copies: {shortlist(copies)}")
    return {without_module_wrappers(name): value for name, value in state.items()}


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _differences(own: Mapping[str, torch.Tensor], present: Mapping[str, str], weights: StoredWeights) -> Iterator[str]:
    """Yield a line for each kind of difference."""
    loaded = {own[name].data_ptr() for name in present if own[name].numel()}
    missing = [
        name
        for name, tensor in own.items()
        if name not in present and name.rpartition(".")[2] != COUNT and tensor.data_ptr() not in loaded
    ]
    unexpected = [name for name in weights.shapes if name not in own and name != _AVERAGED_MODELS]
    shapes = [
        f"{quoted(name)} {weights.shapes[kept]} instead of {tuple(own[name].shape)}"
        for name, kept in present.items()
        if weights.shapes[kept] != tuple(own[name].shape)
    ]
    yield from _line("missing", [quoted(name) for name in missing])
    yield from _line("not in the model", [quoted(name) for name in unexpected])
    yield from _line("of another shape", shapes)


def _line(kind: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"  {plural(len(names), 'tensor')} {kind}: {shortlist(names, most=_MOST_SHOWN)}"


def _prefix_hint(own: set[str], stored: set[str]) -> str:
    """Return what to do if all names differ by one prefix alone."""
    for longer, shorter in ((stored, own), (own, stored)):
        first = min(longer, default="")
        ends = (first[len(first) - len(name) :] for name in shorter if first.endswith(f".{name}"))
        prefix = first.removesuffix(next(ends, first))
        if prefix and {name.removeprefix(prefix) for name in longer} == shorter:
            if longer is stored:
                return f"--strip-prefix {quoted(prefix)}"
            return f"the names in the model begin with {quoted(prefix)}: return the module inside"
    return ""
