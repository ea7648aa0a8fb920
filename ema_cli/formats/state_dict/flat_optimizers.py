"""State of an optimizer with flat names beside the weights: ``optimizer.state.w.exp_avg``, ``adam.m.w``.

Input -> output: the shapes of all tensors by name -> the prefix of each group of names that is such a state.

A name alone proves nothing. A group is recognized by a name that says so together with its structure: moments, as
``torch/optim`` calls them, or tensors with the names and the shapes of the weights; without such a name, by moments
alone, or by two tensors ``m`` and ``v`` (``mu`` and ``nu``) for each weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from ema_cli.formats.state_dict.training_names import OF_OPTIMIZERS, is_training_state

Shapes = Mapping[str, tuple[int, ...] | None]
"""By name; ``None`` if it is unknown."""
_PAIRS = (("m", "v"), ("mu", "nu"))
"""The two moments of Adam, as hand-written optimizers and JAX call them."""
_MOST_PARTS = 32
"""Parts of a name that is examined, between dots."""
_MOST_PREFIXES = 256


def find_flat_optimizers(shapes: Shapes) -> dict[str, list[str]]:
    """Return the names of each state of an optimizer, by its prefix; nothing if nothing trained is beside it."""
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(_prefix(name), []).append(name)
    groups.pop("", None)
    if len(groups) > _MOST_PREFIXES:
        return {}
    trained = {prefix: _trained(names, shapes) for prefix, names in groups.items()}
    found = {prefix for prefix, names in trained.items() if _has_moments(prefix, names)}
    doubtful = {prefix for prefix, names in trained.items() if prefix not in found and _may_be(prefix, names, shapes)}
    if doubtful:
        taken = {name for prefix in found | doubtful for name in groups[prefix]}
        weights = _weights({name: shape for name, shape in shapes.items() if name not in taken})
        found |= {prefix for prefix in doubtful if _repeat(prefix, trained[prefix], shapes, weights)}
    taken = {name for prefix in found for name in groups[prefix]}
    return {prefix: groups[prefix] for prefix in found} if found and _trained(shapes.keys() - taken, shapes) else {}


def repeat_names(shapes: Shapes, weights: Shapes) -> bool:
    """Whether each tensor of a part has the name and the shape of a weight, with more parts around it."""
    return _repeat("", list(shapes), shapes, _weights(weights))


def _prefix(name: str) -> str:
    """Return a name up to the first part that is named as state of the training; the first part if there is none."""
    first, dot, _ = name.partition(".")
    if not is_training_state(name):
        return first if dot else ""
    above = name.split(".", _MOST_PARTS)[:-1]
    last = next((number for number, part in enumerate(above) if is_training_state(part)), 0)
    return ".".join(above[: last + 1])


def _is_named(prefix: str) -> bool:
    return is_training_state(prefix.rpartition(".")[2])


def _has_moments(prefix: str, trained: list[str]) -> bool:
    """Whether a group has moments; whether it has nothing else if its name does not say what it is."""
    moments = (not OF_OPTIMIZERS.isdisjoint(name.split(".")) for name in trained)
    return any(moments) if _is_named(prefix) else bool(trained) and all(moments)


def _may_be(prefix: str, trained: list[str], shapes: Shapes) -> bool:
    return bool(trained) and (_is_named(prefix) or any(_are_pairs(prefix, trained, pair, shapes) for pair in _PAIRS))


def _trained(names: Iterable[str], shapes: Shapes) -> list[str]:
    """Return the names of tensors with more than one element."""
    return [name for name in names if (shape := shapes[name]) is not None and math.prod(shape) > 1]


def _are_pairs(prefix: str, trained: list[str], pair: tuple[str, str], shapes: Shapes) -> bool:
    """Whether each tensor is one of two moments, and the other has the same shape."""
    first, second = (f"{prefix}.{moment}." for moment in pair)
    for name in trained:
        here, there = (first, second) if name.startswith(first) else (second, first)
        if not name.startswith(here) or shapes.get(there + name.removeprefix(here)) != shapes[name]:
            return False
    return bool(trained)


def _weights(shapes: Shapes) -> set[tuple[str, object]]:
    """Return name and shape of each weight, with and without the first part of its name."""
    return {(inner, shape) for name, shape in shapes.items() for inner in (name, name.partition(".")[2])}


def _repeat(prefix: str, trained: list[str], shapes: Shapes, weights: Collection[tuple[str, object]]) -> bool:
    """Whether each tensor of a group has the name and the shape of a weight."""
    return all(any((inner, shapes[name]) in weights for inner in _inner(name, prefix)) for name in trained)


def _inner(name: str, prefix: str) -> Iterator[str]:
    """Yield what may be the name of a weight in a name: its end, with or without its last part."""
    pieces = name.removeprefix(f"{prefix}.").split(".", _MOST_PARTS)
    for begin in range(len(pieces)):
        yield ".".join(pieces[begin:])
        if begin < len(pieces) - 1:
            yield ".".join(pieces[begin:-1])
