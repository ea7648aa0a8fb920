"""Find the model's weights in the nested values of a training checkpoint.

Input -> output: the inert value of a pickle -> ``StateDict`` (names to tensors, and where they lay).

The rule, in order: the ``--key`` that was asked for; a child of the usual name (``state_dict``, ``model``, ...); a
pickled module; the one child that holds tensors; the top level if it holds tensors; else the same one level deeper.
Subtrees of optimizers, schedulers and the like are never looked into. An average kept by the trainer (``ema``) is
used only when there are no raw weights. Two children that could both be the model are refused, with their names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ema_cli.dtypes import BY_TORCH_NAME, Kind
from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.inert_pickle.values import Inert
from ema_cli.formats.state_dict.trainer_layouts import (
    COUNTER,
    OF_AVERAGED_MODEL,
    RAW_BESIDE_AVERAGE,
    RAW_USUALLY,
    is_average,
    is_averaged_model,
    note_on_choice,
)
from ema_cli.formats.state_dict.tree import Tensor, follow, is_module, join, leaves, named, parts
from ema_cli.formats.state_dict.zero3 import refuse_placeholders
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.text import quoted, shortlist

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
_NOT_WEIGHTS = re.compile(
    r"optim|scheduler|(?:^|[_.])(?:(?:grad_|amp_|loss_)?scaler|rng|dataloader|callbacks|loops|grads?|gradients?)(?:[_.\d]|s?$)",
    re.IGNORECASE,
)
_SEARCH_DEPTH = 3
_USUAL_DEPTH = 8
"""Levels below a child of the usual name where its first tensor is looked for (Megatron nests its layers)."""
_LOOKED_AT = 1000
"""Entries of a list that are looked at."""
_OTHER_DEPTH = 2
"""The same below a child of any other name."""


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
    found = _Search().run(root)
    if found is None:
        raise InputRefused(f"holds no tensors under string keys; {_what_else(root)}")
    refuse_placeholders(root, found.tensors)
    return found


def _what_else(root: object) -> str:
    """Say what a checkpoint without weights holds; averages in a list have lost the names of their tensors."""
    nameless = [quoted(name) for name, value in named(root).items() if _hides_weights(value)]
    if nameless:
        return f"those in {shortlist(nameless)} are a list, where they have no names"
    return f"at the top level there is {shortlist(quoted(name) for name in named(root)) or 'nothing by name'}"


class _Search:
    """Looks for the weights. Each value is looked at once, however often the pickle shares it."""

    def __init__(self) -> None:
        self._candidates: dict[int, dict[str, object]] = {}
        self._holds: dict[tuple[int, int], bool] = {}

    def run(self, root: object) -> StateDict | None:
        level = {id(root): ("", root)}
        seen = set(level)
        for _ in range(_SEARCH_DEPTH):
            for path, node in level.values():
                found = self._best_of(path, node, _USUAL_DEPTH)
                if found is not None:
                    return found
            level = {
                id(child): (join(path, name), child)
                for path, node in level.values()
                for name, child in self._children(node).items()
                if id(child) not in seen and parts(child)
            }
            seen.update(level)
        return None

    def _best_of(self, path: str, node: object, depth: int) -> StateDict | None:
        """Return the weights among the children of ``node``, or in ``node`` itself; ``None`` to look deeper."""
        if is_module(node) or depth == 0:
            return _chosen(path, node)
        children = self._children(node)
        holding = [name for name, child in children.items() if self._holds_tensors(child, _OTHER_DEPTH)]
        averages = [name for name in holding if is_average(name)]
        if RAW_BESIDE_AVERAGE in holding and RAW_USUALLY in holding:
            raw = _chosen(join(path, RAW_BESIDE_AVERAGE), children[RAW_BESIDE_AVERAGE])
            return _child(raw, node, RAW_BESIDE_AVERAGE, note=note_on_choice(RAW_BESIDE_AVERAGE, [RAW_USUALLY]))
        usual = next((name for name in _USUAL if self._holds_tensors(children.get(name), _USUAL_DEPTH)), None)
        if usual is not None and self._is_checkpoint_itself(children[usual]):
            found = self._best_of(join(path, usual), children[usual], depth - 1)
            return found and _child(found, node, usual, note=note_on_choice(usual, averages))
        if usual is not None:
            chosen = _chosen(join(path, usual), children[usual])
            return _child(chosen, node, usual, note=note_on_choice(usual, averages))
        own = [name for name, value in children.items() if isinstance(value, Tensor)]
        candidates = [name for name in holding if name not in averages] or averages
        weights = [name for name in own if _is_weight(name, children[name])]
        if not candidates:
            return _chosen(path, node) if weights or (own and len(own) == len(parts(node))) else None
        if len(candidates) > 1 or weights:
            names = shortlist(quoted(join(path, name)) for name in [*candidates, *weights])
            raise InputRefused(
                f"holds several models, or parts of one: {names}",
                hint="choose one with --key NAME, or take all of them together with --key .",
            )
        found = self._best_of(join(path, candidates[0]), children[candidates[0]], depth - 1)
        return found and _child(found, node, candidates[0], note=note_on_choice(candidates[0], averages))

    def _is_checkpoint_itself(self, node: object) -> bool:
        """Whether weights lie in ``node`` beside an optimizer or an average, and not directly in it."""
        if is_module(node) or any(isinstance(child, Tensor) for child in self._children(node).values()):
            return False
        return len(self._children(node)) < len(named(node)) or any(map(is_average, self._children(node)))

    def _children(self, node: object) -> dict[str, object]:
        """Return the parts of ``node`` that may be weights."""
        known = self._candidates.get(id(node))
        if known is None:
            known = {name: value for name, value in named(node).items() if _may_be_weights(name, value)}
            self._candidates[id(node)] = known
        return known

    def _holds_tensors(self, node: object, depth: int) -> bool:
        """Whether ``node`` is a module, or holds a tensor at most ``depth`` levels below itself."""
        if is_module(node):
            return True
        if depth == 0 or not parts(node):
            return False
        known = self._holds.get((id(node), depth))
        if known is None:
            children = self._children(node).values()
            known = any(isinstance(child, Tensor) or self._holds_tensors(child, depth - 1) for child in children)
            self._holds[id(node), depth] = known
        return known


def _is_weight(name: str, value: object) -> bool:
    """Whether a tensor beside a model could be part of it: not a counter, a loss or a random state."""
    scalar = isinstance(value, TensorRef) and value.shape == ()
    return not scalar and not _NOT_WEIGHTS.search(name)


def _may_be_weights(name: str, value: object) -> bool:
    return isinstance(value, Tensor) or not (_NOT_WEIGHTS.search(name) or _only_counts(value))


def _only_counts(value: object) -> bool:
    """Whether all tensors of a mapping are single integers, such as the ``train_state`` of a trainer."""
    members = named(value).values()
    tensors = [member for member in members if isinstance(member, Tensor)]
    return bool(tensors) and all(_is_count(tensor) for tensor in tensors) and not any(map(parts, members))


def _is_count(tensor: Tensor) -> bool:
    dtype = BY_TORCH_NAME.get(tensor.dtype_name) if isinstance(tensor, TensorRef) and tensor.shape == () else None
    return dtype is not None and dtype.kind is Kind.INTEGER


def _child(found: StateDict, node: object, name: str, *, note: str) -> StateDict:
    """Return weights that were found under ``name`` of ``node``, with what lies beside them."""
    beside = [_spelled(other) for other in parts(node) if other != name]
    return replace(found, ignored=(*beside, *found.ignored), notes=(*filter(None, [note]), *found.notes))


def _spelled(key: object) -> str:
    """Return a key as text; what is no scalar may be large, so only its type is told."""
    return str(key) if key is None or isinstance(key, str | int | float | bytes) else f"<{type(key).__name__}>"


def _chosen(path: str, node: object) -> StateDict:
    """Return the tensors below ``node`` under dotted names, in order, and the names of all else.

    A mapping at the top level is a whole checkpoint, where an optimizer may lie beside the weights.
    """
    beside: list[str] = []
    if not path and not is_module(node):
        everything = named(node)
        node = {name: value for name, value in everything.items() if _may_be_weights(name, value)}
        beside = [name for name in everything if name not in node]
    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves(node):
        if _hides_weights(leaf):
            raise InputRefused(f"holds tensors in a list, where they have no names: {quoted(name)}")
        if not name or not isinstance(leaf, Tensor):
            beside.append(name)
        elif name in tensors:
            raise InputRefused(f"two tensors are called {quoted(name)}")
        else:
            tensors[name] = leaf
    return _without_counter(StateDict(key=path, tensors=tensors, ignored=tuple(beside), notes=()))


def _without_counter(found: StateDict) -> StateDict:
    """Take the counter of an ``AveragedModel`` out of its weights, so that they lose their prefix, and tell of it."""
    if not is_averaged_model(found.tensors):
        return found
    others = {name: tensor for name, tensor in found.tensors.items() if name != COUNTER}
    return replace(found, tensors=others, ignored=(*found.ignored, COUNTER), notes=(*found.notes, OF_AVERAGED_MODEL))


def _hides_weights(leaf: object) -> bool:
    """Whether a list among the weights holds tensors, or state dicts; numbers such as losses do not count."""
    entries = leaf.entries if isinstance(leaf, Inert) else leaf
    if not isinstance(entries, list | tuple):
        return False
    return any(
        isinstance(value, Tensor) and _is_weight("", value)
        for entry in entries[:_LOOKED_AT]
        for value in (entry, *named(entry).values())
    )


def _at_key(root: object, key: str) -> StateDict:
    found = _chosen(key, follow(root, key) if key else root)
    refuse_placeholders(root, found.tensors)
    if not found.tensors:
        there = shortlist(quoted(name) for name in named(root)) or "nothing by name"
        raise UsageError(f"there are no tensors under --key {quoted(key or '.')}", hint=f"the top level holds {there}")
    return found
