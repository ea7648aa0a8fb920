"""The search for the model's weights in the nested values of a training checkpoint.

Input -> output: the inert value of a pickle -> ``StateDict`` (the tensors by name, and the key of the weights).

The rule, in order: the given ``--key``; a child with a usual name (``state_dict``, ``model``, ...); a pickled module;
the only child with tensors; the top level if it has tensors; else the same one level deeper. Optimizers, schedulers
and the like are never searched. A trainer's own average (``ema``) is used only if there are no raw weights. If two
children could be the model, the checkpoint is refused, and the message names them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.trainer_layouts import (
    AVERAGED_MODEL_NOTE,
    COUNTER,
    RAW_BESIDE_AVERAGE,
    USUAL_IN_LIGHTNING,
    USUAL_NAMES,
    is_average,
    is_averaged_model,
    is_parameter,
    may_be_weights,
    note_on_choice,
    refuse_placeholders,
)
from ema_cli.formats.state_dict.tree import Tensor, follow, is_module, join, leaves, named, parts
from ema_cli.formats.structure import NoWeights
from ema_cli.formats.torch.objects import QUANTIZE_LATER, TensorRef, UnsupportedTensor
from ema_cli.text import quoted, safe_text, shortlist

_SEARCH_DEPTH = 3
_USUAL_DEPTH = 8
"""Levels below a child with a usual name that are searched for tensors (Megatron nests its layers)."""
_OTHER_DEPTH = 2
"""The same below a child with any other name."""
_MOST_ENTRIES = 1000
"""Entries of a list that are examined."""
_KINDS = {list: "a list", tuple: "a tuple", str: "a string", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """The weights of a checkpoint."""

    key: str
    """Dotted path to them, empty for the top level."""
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]
    """Names of everything beside or among them that is not a tensor of the model."""
    notes: tuple[str, ...]
    """Warnings about the choice."""


def find_state_dict(root: object, key: str | None = None) -> StateDict:
    """Return the weights in ``root``.

    Args:
        root: the value of the pickle.
        key: dotted path to the weights, ``.`` for the top level; ``None`` to find them.

    Raises:
        UsageError: there are no tensors under ``key``.
        InputRefused: there are no weights, or several candidates.

    """
    if key is not None:
        return _at_key(root, "" if key == "." else key)
    found = _WeightSearch().run(root)
    if found is None:
        raise NoWeights(f"no state dict found: {_contents(root)}")
    refuse_placeholders(root, found.tensors)
    return found


def _contents(root: object) -> str:
    """Describe a checkpoint without weights."""
    nameless = [quoted(name) for name, value in named(root).items() if _hides_weights(value)]
    if nameless:
        return f"the tensors in {shortlist(nameless)} are a list, without names"
    names = [quoted(name) for name in named(root)]
    keys = f" with the {'key' if len(names) == 1 else 'keys'} {shortlist(names)}" if names else ""
    return f"the file holds {_kind(root)}{keys}"


def _kind(value: object) -> str:
    """Return the type of a value in words."""
    match value:
        case dict():
            return "a dictionary" if value else "an empty dictionary"
        case Inert(kind=Global() as kind):
            return f"an object of the class {safe_text(str(kind))}"
        case TensorRef() | UnsupportedTensor():
            return "a single tensor"
    return _KINDS.get(type(value), "an object")


class _WeightSearch:
    """Searches for the weights. Each value is examined once, however often the pickle shares it."""

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
        if RAW_BESIDE_AVERAGE in holding and USUAL_IN_LIGHTNING in holding:
            raw = _chosen(join(path, RAW_BESIDE_AVERAGE), children[RAW_BESIDE_AVERAGE])
            return _child(raw, node, RAW_BESIDE_AVERAGE, note=note_on_choice(RAW_BESIDE_AVERAGE, [USUAL_IN_LIGHTNING]))
        usual = next((name for name in USUAL_NAMES if self._holds_tensors(children.get(name), _USUAL_DEPTH)), None)
        if usual is not None and self._is_checkpoint_itself(children[usual]):
            found = self._best_of(join(path, usual), children[usual], depth - 1)
            return found and _child(found, node, usual, note=note_on_choice(usual, averages))
        if usual is not None:
            chosen = _chosen(join(path, usual), children[usual])
            return _child(chosen, node, usual, note=note_on_choice(usual, averages))
        own = [name for name, value in children.items() if isinstance(value, Tensor)]
        candidates = [name for name in holding if name not in averages] or averages
        weights = [name for name in own if is_parameter(name, children[name])]
        if not candidates:
            return _chosen(path, node) if weights or (own and len(own) == len(parts(node))) else None
        if len(candidates) > 1 or weights:
            names = shortlist(quoted(join(path, name)) for name in [*candidates, *weights])
            raise InputRefused(
                f"holds several models, or parts of one: {names}",
                hint="choose one with --key NAME, or take all of them with --key .",
            )
        found = self._best_of(join(path, candidates[0]), children[candidates[0]], depth - 1)
        return found and _child(found, node, candidates[0], note=note_on_choice(candidates[0], averages))

    def _is_checkpoint_itself(self, node: object) -> bool:
        """Whether ``node`` has weights beside an optimizer or an average, and no tensors directly in it."""
        if is_module(node) or any(isinstance(child, Tensor) for child in self._children(node).values()):
            return False
        return len(self._children(node)) < len(named(node)) or any(map(is_average, self._children(node)))

    def _children(self, node: object) -> dict[str, object]:
        """Return the parts of ``node`` that may be weights."""
        known = self._candidates.get(id(node))
        if known is None:
            known = {name: value for name, value in named(node).items() if may_be_weights(name, value)}
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


def _child(found: StateDict, node: object, name: str, *, note: str) -> StateDict:
    """Return weights that were found under ``name`` of ``node``, with the names of everything beside them."""
    beside = [_spelled(other) for other in parts(node) if other != name]
    return replace(found, ignored=(*beside, *found.ignored), notes=(*filter(None, [note]), *found.notes))


def _spelled(key: object) -> str:
    """Return a key as text; of a key that is not a scalar, which may be large, only the type."""
    return str(key) if key is None or isinstance(key, str | int | float | bytes) else f"<{type(key).__name__}>"


def _chosen(path: str, node: object) -> StateDict:
    """Return the tensors below ``node`` by dotted names, in order, and the names of everything else.

    A mapping at the top level is a whole checkpoint, which may have an optimizer beside the weights.
    """
    beside: list[str] = []
    if not path and not is_module(node):
        everything = named(node)
        node = {name: value for name, value in everything.items() if may_be_weights(name, value)}
        beside = [name for name in everything if name not in node]
    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves(node):
        if _hides_weights(leaf):
            raise _in_a_list(name, leaf)
        if not name or not isinstance(leaf, Tensor):
            beside.append(name)
        elif name in tensors:
            raise InputRefused(f"holds two tensors with the name {quoted(name)}")
        else:
            tensors[name] = leaf
    return _without_counter(StateDict(key=path, tensors=tensors, ignored=tuple(beside), notes=()))


def _without_counter(found: StateDict) -> StateDict:
    """Remove the counter of an ``AveragedModel`` from its weights, so that they lose their prefix, with a warning."""
    if not is_averaged_model(found.tensors):
        return found
    others = {name: tensor for name, tensor in found.tensors.items() if name != COUNTER}
    return replace(found, tensors=others, ignored=(*found.ignored, COUNTER), notes=(*found.notes, AVERAGED_MODEL_NOTE))


def _hides_weights(leaf: object) -> bool:
    """Whether a list among the weights holds tensors or state dicts. Scalars such as losses do not count."""
    entries = leaf.entries if isinstance(leaf, Inert) else leaf
    if not isinstance(entries, list | tuple):
        return False
    return any(
        isinstance(value, Tensor) and is_parameter("", value)
        for entry in entries[:_MOST_ENTRIES]
        for value in (entry, *named(entry).values())
    )


def _in_a_list(name: str, leaf: object) -> InputRefused:
    """Return the refusal of a list of tensors among the weights: quantized modules keep their codes in one."""
    if isinstance(leaf, list | tuple) and any(isinstance(e, UnsupportedTensor) and e.is_quantized for e in leaf):
        return InputRefused(f"is quantized: {quoted(name)} holds codes, which cannot be averaged", hint=QUANTIZE_LATER)
    return InputRefused(f"holds tensors in a list, without names: {quoted(name)}")


def _at_key(root: object, key: str) -> StateDict:
    found = _chosen(key, follow(root, key) if key else root)
    refuse_placeholders(root, found.tensors)
    if not found.tensors:
        keys = shortlist(quoted(name) for name in named(root)) or "no string keys"
        raise UsageError(f"there are no tensors under --key {quoted(key or '.')}", hint=f"the top level has {keys}")
    return found
