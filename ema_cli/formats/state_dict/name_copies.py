"""Flat names that repeat the names of the weights: ``ema_optimizer.state.fc.weight.ema_params`` beside ``fc.weight``.

Such a group is an average, or state of an optimizer, that was saved with flat names. torchtitan saves its averages so.
A group is recognized by its structure: every tensor has the name of a weight in the middle of its own name, and the
shape of that weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ema_cli.formats.state_dict.flat_optimizers import find_flat_optimizers
from ema_cli.formats.state_dict.leaf_kinds import is_trained
from ema_cli.formats.state_dict.trainer_averages import is_average
from ema_cli.formats.state_dict.training_names import is_training_state
from ema_cli.formats.state_dict.tree import Repeated, Tensor, named, shapes_of
from ema_cli.formats.torch.objects import TensorRef

_MOST_GROUPS = 256
_MOST_ENDINGS = 16
"""Different prefixes and suffixes in one group."""
_MOST_PARTS = 32
"""Parts of a name that is examined, between dots; a longer one repeats no name."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Around:
    """What is around the name of a weight."""

    before: str
    behind: str


def nested_copies(root: dict[object, object]) -> dict[object, object]:
    """Return a mapping in which flat copies of its weights, and state of optimizers, are below their first part."""
    root = _with_nested_optimizers(root)
    flat: dict[str, Tensor] = {name: leaf for name, leaf in named(root).items() if isinstance(leaf, Tensor)}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, leaf in flat.items():
        first, dot, rest = name.partition(".")
        if dot and rest and first not in root:
            groups.setdefault(first, {})[rest] = leaf
    if not 1 < len(groups) + (len(flat) > sum(map(len, groups.values()))) <= _MOST_GROUPS:
        return root
    copies = {first: group for first, group in groups.items() if _is_copy(first, group, flat)}
    copied = {f"{first}.{rest}" for first, group in copies.items() for rest in group}
    others = {name: value for name, value in root.items() if name not in copied}
    return others | {first: Repeated(group) for first, group in copies.items()} if copies else root


def _with_nested_optimizers(root: dict[object, object]) -> dict[object, object]:
    """Return a mapping in which flat names of optimizer state are below its prefix."""
    shapes = shapes_of({name: leaf for name, leaf in named(root).items() if isinstance(leaf, Tensor)})
    found = {prefix: names for prefix, names in find_flat_optimizers(shapes).items() if prefix not in root}
    taken = {name for names in found.values() for name in names}
    others = {name: value for name, value in root.items() if name not in taken}
    return others | {
        prefix: Repeated({name.removeprefix(f"{prefix}."): root[name] for name in names})
        for prefix, names in found.items()
    }


def names_of_weights(group: Tensors, weights: Tensors) -> dict[str, str] | None:
    """Return the names of the weights that a copy repeats, by its own names; ``None`` if it is not one copy of them."""
    found: dict[str, str] = {}
    around: _Around | None = None
    for name, tensor in group.items():
        if not is_trained(tensor):
            continue
        around = around or _find_around(name, tensor, weights)
        weight = _inner(name, around) if around else None
        if weight is None or not _are_alike(tensor, weights.get(weight)):
            return None
        found[name] = weight
    return found or None


def _is_copy(first: str, group: Tensors, flat: Tensors) -> bool:
    """Whether all trained tensors of a group repeat weights; without a suffix only if the group is named as a copy."""
    known: set[_Around] = set()
    is_named = is_average(first) or is_training_state(first)
    trained = {name: tensor for name, tensor in group.items() if is_trained(tensor)}
    for name, tensor in trained.items():
        if any(_are_alike(tensor, flat.get(_inner(name, around) or "")) for around in known):
            continue
        around = _find_around(name, tensor, flat, first)
        if around is None or not (around.behind or is_named) or len(known) == _MOST_ENDINGS:
            return False
        known.add(around)
    return bool(trained)


def _find_around(name: str, tensor: Tensor, weights: Tensors, group: str = "") -> _Around | None:
    """Return what is around the longest name of a weight outside ``group`` in ``name``."""
    pieces = name.split(".")
    if len(pieces) > _MOST_PARTS:
        return None
    for length in range(len(pieces), 0, -1):
        for begin in range(len(pieces) - length + 1):
            inner = ".".join(pieces[begin : begin + length])
            outside = not group or not inner.startswith(f"{group}.")
            if outside and _are_alike(tensor, weights.get(inner)):
                before, behind = pieces[:begin], pieces[begin + length :]
                return _Around("".join(f"{part}." for part in before), "".join(f".{part}" for part in behind))
    return None


def _inner(name: str, around: _Around) -> str | None:
    """Return the part of a name inside ``around``."""
    if not (name.startswith(around.before) and name.endswith(around.behind)):
        return None
    return name[len(around.before) : len(name) - len(around.behind)] or None


def _are_alike(tensor: Tensor, weight: Tensor | None) -> bool:
    return isinstance(tensor, TensorRef) and isinstance(weight, TensorRef) and tensor.shape == weight.shape


def are_repeated(group: Tensors, weights: Tensors) -> bool:
    """Whether all tensors of a group have the name and the shape of a weight."""
    return all(_are_alike(tensor, weights.get(name)) for name, tensor in group.items())
