"""The tensors of a model by layer: groups from the first parts of their names, each with its drift."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from string import digits

from ema_cli.naming import natural_key
from ema_cli.record import record
from ema_cli.report.model import Tensor
from ema_cli.text import regex

FEWEST, MOST = 4, 60
"""Layers of a model, whatever its names are; fewer only if it has fewer tensors."""
_PARTS = regex(r"[^./]+")
_FLAT_PARTS = regex(r"[^._:/-]+")
"""Parts of a name with neither dots nor slashes."""
_SEPARATORS = "._:/-"


@record
class TensorGroup:
    """The tensors of a layer, or of some neighboring layers."""

    label: str
    """What their names begin with: ``model.layers.12``; of several layers ``model.layers.12 … 15``."""
    tensors: tuple[Tensor, ...]
    """In model order."""
    beginning: str
    """What all their names begin with, with the separator behind it, and what a row need not repeat."""


def group_tensors(tensors: Sequence[Tensor]) -> list[TensorGroup]:
    """Return the tensors by layer, in model order; those that differ in their last number in order of it.

    A layer is the beginning of a name up to the first number: ``model.layers.12``, ``layer1.0``, ``conv1``; without a
    number, the name without its last part: ``model.norm``. If there are fewer than 4, layers are divided at the next
    number; if there are more than 60, neighbors are put together.
    """
    named: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        named[tensor.name].append(tensor)
    layers = _in_order(_layers(list(named)))
    merged = _merged(layers) if len(layers) > MOST else [[one] for one in layers]
    return [_group({layer: [t for name in layers[layer] for t in named[name]] for layer in some}) for some in merged]


def group_drift(tensors: Iterable[Tensor]) -> float | None:
    """Return the drift of several tensors together: ``sqrt(sum (drift * norm)^2 / sum norm^2)``.

    Tensors without a drift and tied ones do not count; ``None`` if no tensor counts.
    """
    counted = [one for one in tensors if one.drift is not None and one.tied_to is None and math.isfinite(one.drift)]
    norms = [one.norm if one.norm is not None and math.isfinite(one.norm) else 0.0 for one in counted]
    largest = max(map(abs, norms), default=0.0)
    weights = [norm / largest for norm in norms] if largest else [1.0] * len(counted)
    if not counted:
        return None
    moved = math.hypot(*(weight * (one.drift or 0.0) for weight, one in zip(weights, counted, strict=True)))
    return moved / math.hypot(*weights)


def _group(layers: Mapping[str, list[Tensor]]) -> TensorGroup:
    """Make a group of some layers with the tensors of each."""
    names = list(layers)
    tensors = tuple(tensor for inside in layers.values() for tensor in inside)
    whole = len(names) > 1 or any(tensor.name == names[0] for tensor in tensors)
    shared = _before_last(names[0]) if whole else names[0]
    beginning = _beginning(shared, [tensor.name for tensor in tensors])
    label = f"{names[0]} … {names[-1].removeprefix(beginning)}" if len(names) > 1 else names[0]
    return TensorGroup(label=label, tensors=tensors, beginning=beginning)


def _beginning(shared: str, names: Sequence[str]) -> str:
    """Return the beginning of names, with the separators behind it, as far as all of them have it."""
    rest = names[0][len(shared) :]
    longer = shared and names[0][: len(names[0]) - len(rest.lstrip(_SEPARATORS))]
    return next(found for found in (longer, shared, "") if all(name.startswith(found) for name in names))


def _layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the beginnings of names, each with the names that have it."""
    for numbers in range(1, max(map(len, map(_ends, names)), default=0) + 1):
        layers: dict[str, list[str]] = defaultdict(list)
        for name in names:
            layers[_layer(name, numbers)].append(name)
        if len(layers) >= FEWEST:
            return layers
    return {name: [name] for name in names}


def _layer(name: str, numbers: int) -> str:
    """Return the beginning of a name up to the given number of numbers in it, else without its last part."""
    ends = _ends(name)
    starts = [0, *ends]
    parts = [name[start:end].lstrip(_SEPARATORS) for start, end in zip(starts, ends, strict=False)]
    pure = [end for part, end in zip(parts, ends, strict=True) if part.isdecimal()]
    numbered = pure or [end for part, end in zip(parts, ends, strict=True) if part[-1:].isdecimal()]
    if len(numbered) >= numbers:
        return name[: numbered[numbers - 1]]
    return name[: max([*ends[:-1][-1:], *numbered[-1:], 0])] or name


def _ends(name: str) -> list[int]:
    """Return where each part of a name ends."""
    parts = (_PARTS if re.search("[./]", name) else _FLAT_PARTS).finditer(name)
    return [part.end() for part in parts]


def _before_last(name: str) -> str:
    """Return a name without its last part."""
    return name[: [0, *_ends(name)[:-1]][-1]]


def _in_order(layers: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return layers in the order of the model, but those that differ in their last number alone in order of it."""
    alike: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        alike[layer.rstrip(digits)].append(layer)
    ordered = {stem: iter(sorted(inside, key=natural_key)) for stem, inside in alike.items()}
    return {layer: layers[layer] for layer in (next(ordered[one.rstrip(digits)]) for one in layers)}


def _merged(layers: Iterable[str]) -> list[list[str]]:
    """Put neighbors below one parent together, where there are most of them, until at most ``MOST`` groups remain."""
    parents = {layer: layer for layer in layers}
    while len(set(parents.values())) > MOST:
        parents = {layer: _before_last(parent) for layer, parent in parents.items()}
    siblings: dict[str, list[str]] = defaultdict(list)
    for layer, parent in parents.items():
        siblings[parent].append(layer)
    groups = {parent: [[layer] for layer in inside] for parent, inside in siblings.items()}
    while sum(map(len, groups.values())) > MOST:
        widest = max(groups, key=lambda parent: len(groups[parent]))
        size = len(groups[widest][0]) + 1
        groups[widest] = [siblings[widest][k : k + size] for k in range(0, len(siblings[widest]), size)]
    return [some for inside in groups.values() for some in inside]
