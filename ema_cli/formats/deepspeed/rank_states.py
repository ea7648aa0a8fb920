"""The states of all ranks of a checkpoint, opened, parsed and compared: of one save, complete, of one element type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from ema_cli.dtypes import DType
from ema_cli.errors import InputRefused
from ema_cli.formats.deepspeed.model_states import ModelStates, model_states_in
from ema_cli.formats.deepspeed.optimizer_states import OptimizerStates, optimizer_states_in
from ema_cli.formats.deepspeed.rank_file import RankFile
from ema_cli.formats.deepspeed.rank_names import RankNames
from ema_cli.formats.folder import Folder
from ema_cli.formats.structure import refusal_of
from ema_cli.formats.torch.declared_storages import DeclaredStorages
from ema_cli.record import record
from ema_cli.text import plural, shortlist

States = TypeVar("States")
Value = TypeVar("Value")

_MOST_KNOWN = 8
"""Different pickles that are kept; those of ranks often differ only in the name of a device."""
_MOST_STORAGES = 1 << 15
"""Declared by a pickle that is kept."""
_MOST_FLAT = 2_000_000
ONE_SAVE = "name a checkpoint that all ranks finished; leave out this one, or remove files of another save from it"


@record
class Flat:
    """The flat tensors of one rank."""

    sizes: tuple[int, ...]
    """Elements of each."""
    begins: tuple[int, ...]
    """The byte of the file where each begins."""
    file: RankFile


@record
class Partitions:
    """The flat tensors of all ranks."""

    ranks: tuple[Flat, ...]
    stage: int
    dtype: DType
    paddings: tuple[tuple[int, ...], ...]


class Parsed(Generic[States]):
    """Parses the pickles of the ranks, equal ones once."""

    def __init__(self, read: Callable[[object], States]) -> None:
        self._read = read
        self._known: dict[bytes, tuple[States, DeclaredStorages]] = {}

    def of(self, file: RankFile) -> States:
        """Return what the file of a rank says.

        Raises:
            InputRefused: it is damaged or of another kind.

        """
        known = self._known.get(file.digest)
        if known is None:
            root, declared = file.parse()
            try:
                known = self._read(root), declared
            except InputRefused as refused:
                raise refusal_of(file.name, refused) from refused
            if len(self._known) < _MOST_KNOWN and len(declared.by_key) <= _MOST_STORAGES:
                self._known[file.digest] = known
        states, declared = known
        file.compare(declared)
        return states


def missing_ranks(names: Mapping[int, str], kind: str) -> str:
    """Return which files are missing, if the numbers of the ranks have a gap; empty if they have none."""
    if not names:
        return f"is incomplete: it has no {kind} of the ranks, which hold the weights"
    missing = [str(rank) for rank in range(min(max(names) + 1, 2 * len(names))) if rank not in names]
    if not missing:
        return ""
    held = f"of {plural(len(names), 'rank')} up to rank {max(names)}"
    return f"is incomplete: it has {kind} {held}, but none of rank {shortlist(missing)}"


def read_partitions(folder: Folder, names: Mapping[int, str]) -> Partitions:
    """Open the optimizer states of all ranks.

    Raises:
        InputRefused: they are incomplete, damaged, or contradict each other.

    """
    parsed = Parsed(optimizer_states_in)
    first: OptimizerStates | None = None
    ranks: list[Flat] = []
    dtypes: dict[DType, str] = {}
    steps: dict[float, str] = {}
    for name in names.values():
        file = RankFile(folder, name)
        states = parsed.of(file)
        first = first or states
        _compare(first, states, file, len(names))
        if len(states.flat) * len(names) > _MOST_FLAT:
            raise file.refusal(f"has {len(states.flat):,} flat tensors, more than {_MOST_FLAT:,} on all ranks")
        ranks.append(_flat(file, states, dtypes))
        step = file.number_at(states.step)
        if step is not None:
            steps.setdefault(step, name)
    _refuse_two(steps, "step {:,.0f}")
    _refuse_two(dtypes, "the element type {0.torch_name}")
    if first is None or not dtypes:
        raise InputRefused("has optimizer states without weights")
    return Partitions(ranks=tuple(ranks), stage=first.stage, dtype=next(iter(dtypes)), paddings=first.paddings)


def _compare(first: OptimizerStates, states: OptimizerStates, file: RankFile, ranks: int) -> None:
    """Compare the states of a rank with those of the first, and with the number of files."""
    if states.count is not None and states.count != ranks:
        raise file.refusal(
            f"is one of {plural(states.count, 'partition')}, but the folder has {plural(ranks, 'file')}", hint=ONE_SAVE
        )
    if (states.stage, states.paddings, len(states.flat)) != (first.stage, first.paddings, len(first.flat)):
        raise file.refusal("contradicts the optimizer states of the first rank", hint=ONE_SAVE)


def _flat(file: RankFile, states: OptimizerStates, dtypes: dict[DType, str]) -> Flat:
    """Locate the flat tensors of a rank, and add their element types."""
    sizes, begins = [], []
    for number, tensor in enumerate(states.flat):
        try:
            layout, begin = file.locate(f"flat tensor {number}", tensor)
        except InputRefused as refused:
            raise file.refusal(f"cannot be used: its flat tensor {number} {refused.message}") from refused
        if len(layout.shape) != 1 or layout.strides is not None:
            raise file.refusal(f"is damaged: its flat tensor {number} has the shape {list(layout.shape)}")
        if layout.elements:
            dtypes.setdefault(layout.dtype, file.name)
        sizes.append(layout.elements)
        begins.append(begin)
    return Flat(sizes=tuple(sizes), begins=tuple(begins), file=file)


def _refuse_two(found: Mapping[Value, str], form: str) -> None:
    """Refuse ranks that differ in a value, which maps to the first file with it."""
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise InputRefused(
            f"mixes the ranks of two saves: {first} is of {form.format(one)}, {second} of {form.format(other)}",
            hint=ONE_SAVE,
        )


class RankModels:
    """The model states of all ranks, opened one after the other; those of the first rank say what there is.

    Raises:
        InputRefused: the states of the first rank cannot be used.

    """

    def __init__(self, folder: Folder, ranks: RankNames) -> None:
        self._folder = folder
        self._names = names = list(ranks.model_states.values()) or [ranks.model]
        self.count = len(names)
        """The number of files."""
        self.file = RankFile(folder, names[0])
        """Of the first rank."""
        self.root, declared = self.file.parse()
        try:
            self.first: ModelStates = model_states_in(self.root)
        except InputRefused as refused:
            raise refusal_of(names[0], refused) from refused
        self.file.compare(declared)

    def all(self) -> Iterator[tuple[RankFile, ModelStates]]:
        """Yield the files and states of all ranks, compared with the first.

        Raises:
            InputRefused: they cannot be used, or are of another save.

        """
        yield self.file, self.first
        parsed = Parsed(self._like_first)
        for name in self._names[1:]:
            file = RankFile(self._folder, name)
            states = parsed.of(file)
            if states.step != self.first.step:
                _refuse_two({self.first.step: self._names[0], states.step: name}, "step {}")
            if (states.groups, states.frozen) != (self.first.groups, self.first.frozen):
                raise file.refusal("declares other parameters than the first rank", hint=ONE_SAVE)
            yield file, states

    def _like_first(self, root: object) -> ModelStates:
        """Return the states of another rank: they share what equals the first's, and have only buffers of the model."""
        states, first = model_states_in(root), self.first
        same = states.groups == first.groups and states.frozen == first.frozen
        return replace(
            states,
            groups=first.groups if same else states.groups,
            frozen=first.frozen if same else states.frozen,
            module={name: tensor for name, tensor in states.module.items() if name in first.buffers},
            shared=(),
        )
