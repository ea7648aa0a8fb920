"""The weights under ``--key``: one part with its bare names, or several, each under its own prefix.

A key is a dotted path through mappings, modules, and lists by number; or the beginning of flat names. Where a part
repeats the names of the weights with a suffix, as an average with flat names does, its tensors get the names of the
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ema_cli.errors import UsageError
from ema_cli.formats.state_dict.found_weights import FoundWeights, weights_below
from ema_cli.formats.state_dict.leaf_kinds import is_numpy_array
from ema_cli.formats.state_dict.missing_weights import only_arrays
from ema_cli.formats.state_dict.name_copies import names_of_weights
from ema_cli.formats.state_dict.trainer_averages import key_flag
from ema_cli.formats.state_dict.trainer_layouts import is_optimizer_state
from ema_cli.formats.state_dict.training_names import is_training_state
from ema_cli.formats.state_dict.tree import Tensor, follow, join, named, numbered
from ema_cli.formats.structure import Keys
from ema_cli.naming import did_you_mean
from ema_cli.text import quoted, shortlist

Weights = Callable[[], dict[str, Tensor]]
"""Returns the weights that are found without a key; empty if there are none."""


def weights_at(root: object, keys: Keys, weights: Weights) -> FoundWeights:
    """Return the tensors under ``keys``: of several, each with its key in front of its names.

    Raises:
        UsageError: there are no tensors under a key, or one key is below another.
        InputRefused: tensors have no names, or there are numpy arrays instead.

    """
    if len(keys) == 1:
        return _part(root, "" if keys[0] == "." else keys[0], weights)
    _refuse_overlap(keys)
    parts = [_part(root, key, weights, single=True) for key in keys]
    return FoundWeights(
        key=", ".join(keys),
        tensors={
            join(part.key, name) if name else part.key: tensor
            for part in parts
            for name, tensor in part.tensors.items()
        },
        ignored=tuple(join(part.key, name) for part in parts for name in part.ignored),
        among=tuple((join(part.key, name), value) for part in parts for name, value in part.among),
        unnamed=tuple(one for part in parts for one in part.unnamed),
    )


def _part(root: object, key: str, weights: Weights, *, single: bool = False) -> FoundWeights:
    """Return the tensors under one key, or with ``single`` the one tensor at it, without a name."""
    value = _value_at(root, key) if key else root
    if single and isinstance(value, Tensor):
        return FoundWeights(key=key, tensors={"": value})
    found = weights_below(key, value)
    arrays = [name for name, leaf in found.among if is_numpy_array(leaf)]
    if not found.tensors and arrays:
        raise only_arrays(arrays)
    if not found.tensors:
        raise _nothing_under(root, key, value)
    known = names_of_weights(found.tensors, weights()) if key else None
    if known is None or all(name.endswith(weight) for name, weight in known.items()):  # only a prefix: the part's own
        return found
    others = [name for name in found.tensors if name not in known]
    name, weight = next(iter(known.items()))
    return replace(
        found,
        tensors={weight: found.tensors[name] for name, weight in known.items()},
        ignored=(*found.ignored, *others),
        renamed=f"the tensors under {quoted(key)} have the names of the weights: {quoted(name)} is {quoted(weight)}",
    )


def _nothing_under(root: object, key: str, value: object) -> UsageError:
    """Return the error about a key that is not there, is spelled otherwise, or is the state of an optimizer."""
    names = [str(name) for name in named(root) or numbered(root)]
    hint = f"the top level has {shortlist(map(quoted, names)) or 'no string keys'}"
    message = f"there are no tensors under --key {quoted(key or '.')}"
    if value is not None and is_optimizer_state(value):
        message = f"--key {quoted(key)} is state of the optimizer, not weights"
    elif value is not None and is_training_state(key.rpartition(".")[2]):
        message = f"--key {quoted(key)} is state of the training, not weights"
    elif value is None:
        hint = f"{_nearest_keys(root, key)} {hint}".lstrip()
    return UsageError(message, hint=hint)


def _nearest_keys(root: object, key: str) -> str:
    """Return a hint with the keys that are spelled like one that is not there; empty if none is."""
    pieces = key.split(".")
    beginnings = (".".join(pieces[:count]) for count in reversed(range(1, len(pieces))))
    above = next((beginning for beginning in beginnings if follow(root, beginning) is not None), "")
    wrong, *below = (key.removeprefix(f"{above}.") if above else key).split(".")

    def spelled(name: str) -> str:
        whole = ".".join([join(above, name), *below])
        return key_flag(whole if follow(root, whole) is not None else join(above, name))

    return did_you_mean(wrong, named(follow(root, above) if above else root), shown=spelled)


def _value_at(root: object, key: str) -> object:
    """Return the value at a path, or the tensors with flat names that begin with it."""
    value = follow(root, key)
    pieces = key.split(".")
    for length in range(len(pieces) - 1, -1, -1):
        if value is not None:
            break
        above = follow(root, ".".join(pieces[:length])) if length else root
        beginning = ".".join([*pieces[length:], ""])
        value = {
            name.removeprefix(beginning): leaf
            for name, leaf in named(above).items()
            if name.startswith(beginning) and name != beginning
        } or None
    return value


def _refuse_overlap(keys: Keys) -> None:
    for number, key in enumerate(keys):
        others = (*keys[:number], *keys[number + 1 :])
        other = next((one for one in others if f"{key}.".startswith(f"{one}.")), None)
        if other is not None or key in ("", "."):
            within = f"is below --key {quoted(other)}" if other is not None else "is the whole checkpoint"
            raise UsageError(f"--key {quoted(key)} {within}: name each part once", hint="leave out one of the two")
