"""What is said about a checkpoint in which no weights were found: what it holds instead, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from ema_cli.errors import InputRefused, Proposal
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.found_weights import hides_weights
from ema_cli.formats.state_dict.leaf_kinds import is_numpy_array
from ema_cli.formats.state_dict.trainer_layouts import is_optimizer_state, may_be_weights
from ema_cli.formats.state_dict.tree import Tensor, is_module, leaves, named, numbered, unnamed
from ema_cli.formats.state_dict.unnamed_parts import AS_STRINGS, unnamed_below
from ema_cli.formats.structure import NoWeights
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.text import plural, quoted, safe_text, shortlist

_MOST_PARTS = 16
"""Parts of a list that are examined."""
_MOST_LEAVES = 5000
_KINDS = {list: "a list", tuple: "a tuple", str: "a string", int: "a number", float: "a number"}
_AS_TENSORS = "save tensors: torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)"
_SAVE = "torch.save(model.state_dict(), path)"


def no_weights(root: object) -> InputRefused:
    """Return the refusal of a checkpoint without weights."""
    entries = dict(islice(numbered(root).items(), _MOST_PARTS))
    if entries and isinstance(root, list | tuple):
        counts = {id(entry): _tensor_count(entry) for entry in {id(one): one for one in entries.values()}.values()}
        holding = [number for number, entry in entries.items() if counts[id(entry)] and may_be_weights("", entry)]
        if holding:
            described = [f"{number}: {_described(entry, counts[id(entry)])}" for number, entry in entries.items()]
            return _of_parts(root, described, holding)
    arrays = [name for name, leaf in islice(leaves(root), _MOST_LEAVES) if is_numpy_array(leaf)]
    if arrays:
        return only_arrays(arrays)
    if unnamed(root) and not named(root) and any(unnamed_below("", root)):
        keys = shortlist(quoted(key) for key, _ in unnamed(root))
        return NoWeights(f"no state dict found: the keys are not strings: {keys}", hint=AS_STRINGS)
    if is_optimizer_state(root):
        return NoWeights("no state dict found: the file holds the state of an optimizer", hint="name the weights")
    hint = f"save the weights: {_SAVE}" if isinstance(root, Inert) or any(map(_is_object, named(root).values())) else ""
    return NoWeights(f"no state dict found: {_contents(root)}", hint=hint)


def only_arrays(names: Sequence[str]) -> InputRefused:
    """Return the refusal of a checkpoint with numpy arrays in place of tensors."""
    listed = shortlist(map(quoted, names))
    return InputRefused(f"holds {plural(len(names), 'numpy array')} and no tensors: {listed}", hint=_AS_TENSORS)


def _of_parts(root: list[object] | tuple[object, ...], described: list[str], holding: list[str]) -> InputRefused:
    """Return the refusal of a list or tuple of which some parts hold weights."""
    return InputRefused(
        f"holds {_kind(root)} of {plural(len(root), 'part')}: {shortlist(described)}",
        hint=f"choose one with --key {holding[0]}",
        proposals=[Proposal(reason=f"part {number} holds weights", changes={"key": (number,)}) for number in holding],
    )


def _described(value: object, count: int) -> str:
    if is_module(value):
        return f"a module with {plural(count, 'tensor')}"
    return f"{_kind(value)} with {plural(count, 'tensor')}" if count and isinstance(value, dict) else _kind(value)


def _tensor_count(value: object) -> int:
    """Return the number of tensors with names, of the first values that a part has."""
    return sum(bool(name) and isinstance(leaf, Tensor) for name, leaf in islice(leaves(value), _MOST_LEAVES))


def _contents(root: object) -> str:
    """Describe a checkpoint without weights."""
    nameless = [quoted(name) for name, value in named(root).items() if hides_weights(value)]
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


def _is_object(value: object) -> bool:
    """Whether a value is an object of a class that the pickle names, and no plain data."""
    return isinstance(value, Inert) and isinstance(value.state, dict) and not value.items
