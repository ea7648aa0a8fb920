"""Find the model's weights, and the step, in the nested values of a training checkpoint.

Input -> output: the inert value of a pickle -> ``StateDict`` (names to tensors, and where they lay).

The rule, in order: the ``--key`` that was asked for; a child of the usual name (``state_dict``, ``model``, ...); a
pickled module; the top level if it holds tensors; else the same one level deeper. Subtrees of optimizers,
schedulers and the like are never looked into. An average kept by the trainer (``ema``) is used only when there are
no raw weights. Two children that could both be the model are refused, with their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.inert_values import Inert
from ema_cli.formats.torch_objects import TensorRef, UnsupportedTensor
from ema_cli.records import FoundStep
from ema_cli.text import quoted, shortlist

Tensor = TensorRef | UnsupportedTensor

_USUAL = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "model_state",
)
_AVERAGES = re.compile(r"(?:^|[_.])(?:ema|swa|averaged?)(?:[_.]|$)", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(r"optim|scheduler|scaler|rng|dataloader|callbacks|loops|grad", re.IGNORECASE)
_STEP_KEYS = (
    "global_step",
    "global_steps",
    "step",
    "iteration",
    "num_updates",
    "iter",
    "train_state.step",
    "updates",
)
_EPOCH_KEYS = ("epoch",)
_DEEPEST = 64
_MOST_LEAVES = 2_000_000
_SEARCH_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """The weights that were chosen in a checkpoint."""

    key: str
    """Dotted path to them, empty for the top level."""
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]
    """What lies beside or among them and is not a tensor of the model."""
    notes: tuple[str, ...]
    """What the user should know about the choice."""


def find_state_dict(root: object, key: str | None = None) -> StateDict:
    """Return the weights in ``root``.

    Args:
        root: the value of the pickle.
        key: dotted path to the weights, ``.`` for the top level; ``None`` to detect it.

    Raises:
        UsageError: there is nothing under ``key``.
        InputRefused: no weights were found, or several that could be meant.

    """
    if key is not None:
        return _at_key(root, "" if key == "." else key)
    level = [("", root)]
    for _ in range(_SEARCH_DEPTH):
        for path, node in level:
            found = _best_of(path, node)
            if found is not None:
                return found
        level = [child for path, node in level for child in _children(path, node)]
    raise InputRefused("holds no tensors under string keys", hint="see what it holds with: ema-avg inspect FILE -v")


def find_steps(root: object) -> tuple[tuple[FoundStep, ...], dict[str, TensorRef]]:
    """Return the steps that stand in ``root`` as numbers, best first, and those that are zero-dimensional tensors."""
    found: list[FoundStep] = []
    tensors: dict[str, TensorRef] = {}
    for unit, keys in (("step", _STEP_KEYS), ("epoch", _EPOCH_KEYS)):
        for key in keys:
            value = _follow(root, key)
            if isinstance(value, TensorRef) and value.shape == ():
                tensors[key] = value
            elif (number := _whole_number(value)) is not None:
                found.append(FoundStep(value=number, unit=unit, source=f"inside: {key}"))
    return tuple(found), tensors


def _whole_number(value: object) -> int | None:
    """Return a step from a Python or a numpy integer; negative ones mark stripped files."""
    if isinstance(value, Inert) and str(value.kind).endswith("multiarray.scalar") and len(value.args) == 2:  # noqa: PLR2004
        raw = value.args[1]
        value = int.from_bytes(raw, "little", signed=True) if isinstance(raw, bytes) and len(raw) <= 8 else None  # noqa: PLR2004
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def _best_of(path: str, node: object) -> StateDict | None:
    """Return the weights among the children of ``node``, or in ``node`` itself; ``None`` to look deeper."""
    children = {name: child for name, child in _mapping(node).items() if _holds_tensors(child)}
    averages = [name for name in children if _AVERAGES.search(name)]
    raw = [name for name in children if name not in averages]
    usual = [name for name in _USUAL if name in raw]
    if usual:
        return _child(path, node, usual[0], note=_unused_averages(averages))
    if _is_module(node):
        return _chosen(path, node)
    own = [name for name, value in _mapping(node).items() if isinstance(value, Tensor)]
    candidates = raw or averages
    if not candidates:
        return _chosen(path, node) if own else None
    weights = [name for name in own if _is_weight(name, _mapping(node)[name])]
    if len(candidates) > 1 or weights:
        names = shortlist(quoted(_join(path, name)) for name in [*candidates, *weights])
        raise InputRefused(
            f"holds several models, or parts of one: {names}",
            hint="choose one with --key NAME, or take all of them together with --key .",
        )
    if raw:
        return _child(path, node, raw[0], note=_unused_averages(averages))
    note = f"the only weights are the trainer's own average {quoted(averages[0])}: this averages averages"
    return _child(path, node, averages[0], note=note)


def _unused_averages(averages: list[str]) -> str:
    if not averages:
        return ""
    names = shortlist(quoted(name) for name in averages)
    return f"the raw weights are used, not the trainer's own average {names} (--key chooses that)"


def _is_weight(name: str, value: object) -> bool:
    """Whether a tensor beside a model could be part of it: not a counter, a loss or a random state."""
    scalar = isinstance(value, TensorRef) and value.shape == ()
    return not scalar and not _NOT_WEIGHTS.search(name)


def _child(path: str, node: object, name: str, *, note: str) -> StateDict:
    items = node.items if isinstance(node, Inert) else node
    beside = [str(other) for other in items if other != name] if isinstance(items, dict) else []
    found = _chosen(_join(path, name), _mapping(node)[name])
    return replace(found, ignored=(*beside, *found.ignored), notes=(note,) if note else ())


def _chosen(path: str, node: object) -> StateDict:
    tensors, ignored = _flatten(node, top_level=not path)
    return StateDict(key=path, tensors=tensors, ignored=tuple(ignored), notes=())


def _at_key(root: object, key: str) -> StateDict:
    node = _follow(root, key) if key else root
    found = _chosen(key, node)
    if not found.tensors:
        there = shortlist(quoted(name) for name in _mapping(root)) or "nothing by name"
        raise UsageError(f"there are no tensors under --key {quoted(key or '.')}", hint=f"the top level holds {there}")
    return found


def _follow(root: object, key: str) -> object:
    """Return what lies at a dotted path, taking the longest name that matches at each level; ``None`` if nothing."""
    mapping = _mapping(root)
    if key in mapping:
        return mapping[key]
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        child = mapping.get(".".join(parts[:length]))
        if child is not None:
            return _follow(child, ".".join(parts[length:]))
    return None


def _children(path: str, node: object) -> Iterator[tuple[str, object]]:
    for name, child in _mapping(node).items():
        if not _NOT_WEIGHTS.search(name) and (_mapping(child) or _is_module(child)):
            yield _join(path, name), child


def _holds_tensors(node: object) -> bool:
    """Whether ``node`` is a module or a mapping with tensors in it or one level below (nested state dicts)."""
    if isinstance(node, Inert) and _is_module(node):
        return True
    values = _mapping(node).values()
    if any(isinstance(value, Tensor) for value in values):
        return True
    return any(isinstance(leaf, Tensor) for value in values for leaf in _mapping(value).values())


def _mapping(node: object) -> dict[str, object]:
    """Return the string-keyed items of ``node``, without what is known not to be weights."""
    items = node.items if isinstance(node, Inert) else node
    if not isinstance(items, dict):
        return {}
    return {name: value for name, value in items.items() if isinstance(name, str) and _may_be_weights(name, value)}


def _may_be_weights(name: str, value: object) -> bool:
    return isinstance(value, Tensor) or not _NOT_WEIGHTS.search(name)


def _is_module(node: object) -> bool:
    return isinstance(node, Inert) and isinstance(node.state, dict) and "_parameters" in node.state


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _flatten(root: object, *, top_level: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors below ``root`` under dotted names, in order, and the names of all else.

    Args:
        root: a mapping or a module.
        top_level: ``root`` is a whole checkpoint, where an optimizer may lie beside the weights.

    """
    tensors: dict[str, Tensor] = {}
    ignored: list[str] = []
    for path, leaf in _leaves("", root, ()):
        if len(tensors) + len(ignored) > _MOST_LEAVES:
            raise InputRefused(f"holds more than {_MOST_LEAVES:,} values")
        if not isinstance(leaf, Tensor) or (top_level and _NOT_WEIGHTS.search(path.partition(".")[0]) and "." in path):
            ignored.append(path)
        elif path in tensors:
            raise InputRefused(f"two tensors are called {quoted(path)}")
        else:
            tensors[path] = leaf
    return tensors, ignored


def _leaves(path: str, node: object, above: tuple[int, ...]) -> Iterator[tuple[str, object]]:
    """Walk depth first, in order. What contains itself, or lies too deep, is a leaf."""
    members = None if id(node) in above or len(above) > _DEEPEST else _members(node)
    if members is None:
        yield path, node
        return
    for name, child in members:
        yield from _leaves(_join(path, name), child, (*above, id(node)))


def _members(node: object) -> list[tuple[str, object]] | None:
    """Return the named parts of a module or a mapping; ``None`` for anything else."""
    if isinstance(node, Inert) and isinstance(node.state, dict) and _is_module(node):
        return list(_module_members(node.state))
    mapping = node.items if isinstance(node, Inert) and node.items else node
    if not isinstance(mapping, dict):
        return None
    return [(name, value) for name, value in mapping.items() if isinstance(name, str)]


def _module_members(state: dict[object, object]) -> Iterator[tuple[str, object]]:
    """Yield what ``nn.Module.state_dict`` would: parameters, persistent buffers, then the submodules."""
    transient = state.get("_non_persistent_buffers_set")
    skipped = transient.entries if isinstance(transient, Inert) else []
    if isinstance(transient, Inert) and transient.args and isinstance(transient.args[0], list):
        skipped = transient.args[0]
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in _mapping_of(state.get(group)).items():
            if isinstance(name, str) and value is not None and not (group == "_buffers" and name in skipped):
                yield name, value


def _mapping_of(value: object) -> dict[object, object]:
    items = value.items if isinstance(value, Inert) else value
    return items if isinstance(items, dict) else {}
