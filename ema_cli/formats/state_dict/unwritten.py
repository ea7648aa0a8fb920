"""What a checkpoint holds besides the weights that are written: averages, other copies, and trained tensors.

Input -> output: ``FoundWeights`` -> sentences: statements about the choice, warnings about it, and what is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ema_cli.errors import RunWarning
from ema_cli.formats.state_dict.flat_optimizers import repeat_names
from ema_cli.formats.state_dict.found_weights import FoundWeights
from ema_cli.formats.state_dict.leaf_kinds import is_matrix, is_trained, is_trained_number
from ema_cli.formats.state_dict.leaves_among import WEIGHTS_DROPPED, describe_state, warn_of_leaves
from ema_cli.formats.state_dict.name_copies import are_repeated, names_of_weights
from ema_cli.formats.state_dict.prefixes import without_wrappers
from ema_cli.formats.state_dict.trainer_averages import (
    AVERAGED_MODEL_NOTE,
    COUNTERS,
    RAW_BESIDE_AVERAGE,
    SWAPPED,
    USUAL_IN_LIGHTNING,
    describe_beside,
    is_average,
    is_copy,
    is_of_another_model,
    is_swapped,
    key_flag,
    warn_of_average,
    warn_of_swap,
)
from ema_cli.formats.state_dict.trainer_layouts import is_optimizer_state, may_be_weights
from ema_cli.formats.state_dict.training_names import has_no_matrices, is_record, is_training_state
from ema_cli.formats.state_dict.tree import Repeated, Tensor, join, named, numbered, shapes_of, unnamed
from ema_cli.formats.state_dict.unnamed_parts import unnamed_below, warn_of_unnamed
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.record import record
from ema_cli.text import plural, quoted, shortlist

_MOST_KEYS = 3
_MOST_VALUES = 20_000
_DEEPEST = 8


@record
class Unwritten:
    """What is not written, in sentences."""

    choice: tuple[str, ...]
    """Which weights were taken, and what else there is."""
    warnings: tuple[str, ...]
    """Warnings about the choice."""
    dropped: tuple[RunWarning, ...]
    """Warnings about trained numbers that are not in the output."""


def describe_unwritten(found: FoundWeights, *, by_key: bool) -> Unwritten:
    """Return what is beside and among the weights; what is beside a key that the user gave is no news."""
    dropped = [*warn_of_leaves(found.among), *warn_of_unnamed(found.unnamed)]
    choice = [*filter(None, [found.renamed]), *describe_state(found.among)]
    if by_key:
        return Unwritten(choice=tuple(choice), warnings=tuple(_of_averaged_model(found)), dropped=tuple(dropped))
    seen = set[int]()
    groups = [_Beside.of(path, value, seen) for path, value in _parts_beside(found)]
    averages = [group for group in groups if group.is_average and group.tensors]
    raw = found.key.rpartition(".")[2] == RAW_BESIDE_AVERAGE
    if raw:
        averages += [group for group in groups if group.name == USUAL_IN_LIGHTNING]
    weights = without_wrappers(found.tensors)
    foreign = [group for group in averages if _are_of_another_model(group.tensors, weights)]
    averages = [group for group in averages if group not in foreign]
    others = [group for group in groups if group.is_missed(weights) and group not in averages]
    copies = [group for group in others if group.repeats(weights)]
    missed = [group for group in others if not (group.is_repeated or group in copies)]
    dropped[:0] = _dropped_beside(found.key, [*missed, *foreign])
    warnings = [*_of_averaged_model(found), *_of_averages(found, groups)]
    if not warnings or raw:
        beside = [(group.path, "by its name an average", group.is_named) for group in averages]
        beside += [(group.path, "the same names", group.is_named) for group in copies]
        choice[:0] = filter(None, [describe_beside(found.key, beside)])
    return Unwritten(choice=tuple(choice), warnings=tuple(warnings), dropped=tuple(dropped))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Beside:
    """A part of the checkpoint beside the weights."""

    path: str
    name: str
    tensors: dict[str, Tensor]
    """Those that may have been trained."""
    counters: frozenset[str]
    may_be_trained: bool
    is_repeated: bool
    """Whether its flat names repeat those of the weights."""
    is_average: bool
    is_state_by_name: bool
    """Whether its name says that it is state of the training, or a record, although it has layers."""
    is_named: bool
    """Whether ``--key`` can choose it: its tensors have names."""
    has_unnamed: bool
    """Whether tensors of it are under keys that are not strings."""

    @classmethod
    def of(cls, path: str, value: object, seen: set[int]) -> _Beside:
        name = path.rpartition(".")[2]
        average = is_average(name) and not isinstance(value, Tensor)
        repeated = isinstance(value, Repeated) and not (is_training_state(name) or is_optimizer_state(value))
        by_name = is_record(name) or is_training_state(name)
        trained = not is_average(name) and not by_name and (repeated or may_be_weights(name, value))
        tensors = list(_trained(name, value, seen, averages=average)) if average or trained else []
        if by_name and not isinstance(value, Tensor | Repeated) and not is_optimizer_state(value):
            tensors = list(_trained(name, value, set(), averages=False))
            matrices = [inner for inner, tensor, _ in tensors if is_matrix(tensor)]
            trained = any(has_no_matrices(name) or inner.rpartition(".")[2] == "weight" for inner in matrices)
        return cls(
            path=path,
            name=name,
            tensors={name: tensor for name, tensor, _ in tensors},
            is_named=not any(in_list for _, _, in_list in tensors),
            has_unnamed=bool(tensors) and any(unnamed_below("", value)),
            counters=frozenset(COUNTERS) & named(value).keys(),
            may_be_trained=trained,
            is_repeated=repeated,
            is_average=average,
            is_state_by_name=by_name,
        )

    def is_missed(self, weights: dict[str, Tensor]) -> bool:
        """Whether it is trained; what is state by its name must have other tensors than the weights have."""
        if not (self.tensors and self.may_be_trained):
            return False
        may_be_state = self.is_state_by_name and not has_no_matrices(self.name)
        return not (may_be_state and repeat_names(shapes_of(self.tensors), shapes_of(weights)))

    def repeats(self, weights: dict[str, Tensor]) -> bool:
        """Whether these are another copy of the weights, such as the best ones so far or those of a teacher.

        Names and shapes alone may as well be those of a second model, as of two critics: the copy must be called one,
        or be stored in the same place. A list has no names: the shapes are those of the weights, as of the master
        copies in float32.
        """
        if not self.is_named:
            return not self.has_unnamed and _shapes(self.tensors) <= _shapes(weights)
        is_called_copy = any(map(is_copy, self.path.split(".")))
        if not (is_called_copy or set(self.tensors.values()) <= set(weights.values())):
            return False
        if are_repeated(self.tensors, weights):
            return True
        return names_of_weights(self.tensors, weights) is not None and len(self.tensors) > 1


def averages_another_model(average: object, weights: Mapping[str, Tensor]) -> bool:
    """Whether a value that is called an average is that of another model than these weights."""
    tensors = {name: tensor for name, tensor, _ in _trained("", average, set(), averages=True)}
    return _are_of_another_model(tensors, weights)


def _are_of_another_model(average: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Judge by the matrices; shapes of shards and of sparse tensors say nothing."""
    if any(isinstance(tensor, UnsupportedTensor) for tensor in weights.values()):
        return False
    return is_of_another_model(_matrices(average), _matrices(weights))


def _matrices(tensors: Mapping[str, Tensor]) -> Counter[tuple[int, ...]]:
    return _shapes({name: tensor for name, tensor in tensors.items() if is_matrix(tensor)})


def _shapes(tensors: Mapping[str, Tensor]) -> Counter[tuple[int, ...]]:
    return Counter(tensor.shape for tensor in tensors.values() if isinstance(tensor, TensorRef))


def _trained(whole: str, value: object, seen: set[int], *, averages: bool) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield the trained tensors below the value called ``whole``: name, tensor, whether it is in a list or numbered.

    Values ``seen`` are not examined; without ``averages``, those inside averages are not, either.
    """
    todo: list[tuple[str, object, int, bool]] = [("", value, 0, False)]
    while todo and len(seen) < _MOST_VALUES:
        name, node, depth, in_list = todo.pop()
        if isinstance(node, Tensor):
            if is_trained(node) or is_trained_number(name or whole, node):
                yield name, node, in_list
            continue
        if id(node) in seen or depth > _DEEPEST:
            continue
        seen.add(id(node))
        listed = numbered(node)
        members = [*(listed or named(node)).items(), *unnamed(node)]
        nameless = bool(listed) or (len(members) > len(named(node)))
        todo.extend(
            (join(name, part), member, depth + 1, in_list or nameless)
            for part, member in reversed(members)
            if may_be_weights(part, member)
            and not is_record(part)
            and (averages or isinstance(member, Tensor) or not is_average(part))
        )


def _parts_beside(found: FoundWeights) -> Iterator[tuple[str, object]]:
    """Yield path and value of what is beside the weights; of a list of mappings or modules each entry.

    Composer keeps the states of its algorithms as pairs of a name and a mapping: of those each part.
    """
    for path, value in found.beside:
        entries = numbered(value) if may_be_weights(path.rpartition(".")[2], value) else {}
        if any(map(named, entries.values())):
            yield from ((join(path, number), entry) for number, entry in entries.items())
        elif any(map(_named_state, entries.values())):
            for number, entry in entries.items():
                yield from ((join(path, f"{number}.1.{name}"), part) for name, part in _named_state(entry).items())
        else:
            yield path, value


def _named_state(entry: object) -> dict[str, object]:
    """Return the parts of a mapping that is in a pair with its name; nothing for anything else."""
    match entry:
        case (str(), state) | [str(), state]:
            return named(state)
    return {}


def _dropped_beside(key: str, groups: Sequence[_Beside]) -> Iterator[RunWarning]:
    """Yield the warning about what is trained beside the weights and not written."""
    if not groups:
        return
    parts = [f"{quoted(group.path)} ({plural(len(group.tensors), 'tensor')})" for group in groups]
    named_groups = [group.path for group in groups if group.is_named]
    both = " ".join(map(key_flag, [key, *named_groups[:_MOST_KEYS]]))
    yield RunWarning(
        code=WEIGHTS_DROPPED,
        message=f"beside the weights there are tensors that are not in the output: {shortlist(parts)}",
        hint=(f"{both} averages each under its own prefix; " if key and named_groups else "")
        + f"{key_flag(key)} alone says that the others are not wanted",
    )


def _of_averaged_model(found: FoundWeights) -> Iterator[str]:
    if found.counter == "n_averaged":
        yield AVERAGED_MODEL_NOTE


def _of_averages(found: FoundWeights, groups: Sequence[_Beside]) -> Iterator[str]:
    """Yield the warning if the chosen weights are an average themselves."""
    chosen = found.key.rpartition(".")[2]
    by_name = {group.name: group for group in groups}
    swapped = by_name.get(SWAPPED)
    if swapped is not None and is_swapped(chosen, by_name, swapped.counters):
        yield warn_of_swap(found.key, swapped.path)
    elif any(map(is_average, found.key.split("."))) and found.counter != "n_averaged":
        yield warn_of_average(found.key)
