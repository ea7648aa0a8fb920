"""The structure of a checkpoint of DeepSpeed whose weights are float32 partitions in the files of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from ema_cli.errors import InputRefused
from ema_cli.formats.deepspeed.joined_weights import (
    FrozenParameters,
    Joined,
    Places,
    WholeTensor,
    join,
    locate_in_model,
)
from ema_cli.formats.deepspeed.model_states import ModelStates
from ema_cli.formats.deepspeed.rank_file import RankFile
from ema_cli.formats.deepspeed.rank_names import RankNames
from ema_cli.formats.deepspeed.rank_states import ONE_SAVE, Partitions, RankModels, missing_ranks, read_partitions
from ema_cli.formats.deepspeed.universal import locate_parameter, open_parameters
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import joint_digest
from ema_cli.formats.state_dict.found_weights import weights_below
from ema_cli.formats.state_dict.steps import read_steps
from ema_cli.formats.state_dict.tree import named
from ema_cli.formats.state_dict.unwritten import Unwritten, describe_unwritten
from ema_cli.formats.structure import Structure
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted

Twin = tuple[str, int, int]
"""A tensor that another rank has too: its name, the number of the file, the byte where it begins."""
_STAGE_3 = 3
_MODULE = "module"
_OF_DEEPSPEED = frozenset(
    {
        *("buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments"),
        *("shared_params", "lr_scheduler", "data_sampler", "random_ltd", "ds_config", "universal_checkpoint_info"),
    }
)
"""What DeepSpeed stores beside the model. Other tensors beside it are from the user."""


class NoPartitions(InputRefused):
    """A checkpoint has no optimizer states, or not those of all ranks."""


def read_partitioned(folder: Folder, ranks: RankNames, pool: LayoutPool) -> Structure:
    """Read the structure of the partitions of all ranks, and of what is not trained from the model states.

    Raises:
        NoPartitions: files of ranks are missing.
        InputRefused: a file cannot be used, or they contradict each other.

    """
    missing = missing_ranks(ranks.optimizer_states, "optimizer states")
    if missing:
        raise NoPartitions(missing, hint=ONE_SAVE)
    partitions = read_partitions(folder, ranks.optimizer_states)
    split = partitions.stage == _STAGE_3
    _refuse_other_ranks(ranks, split=split)
    models = RankModels(folder, ranks)
    states, places = models.first, Places(partitions)
    others, unreadable = locate_in_model(states, models.file, places, whole=not split)
    used = [flat.file for flat in partitions.ranks]
    twins = list[Twin]()
    whole = {one.name: one for one in others}
    others += _frozen(models, states, places, used, lambda file, own: twins.extend(_twins(whole, file, own)))
    joined = pool.remember(
        _key(states, partitions, others, places), lambda: join(states, partitions, others, places.files)
    )
    return replace(
        _structure(models, joined, places, used),
        format=f"DeepSpeed ZeRO-{partitions.stage}, {plural(len(partitions.ranks), 'rank')}",
        unreadable=tuple(unreadable),
        choice=(_choice(partitions, states),),
        second_copy="" if split else f'"module" in {quoted(ranks.model)}',
        twins=tuple(_numbered(twins, joined)),
    )


def read_universal(folder: Folder, ranks: RankNames, pool: LayoutPool) -> Structure:
    """Read the structure of a universal checkpoint: trained parameters, and other tensors from the model states.

    Raises:
        InputRefused: a file is missing or cannot be used.

    """
    models = RankModels(folder, ranks)
    states, places, used = models.first, Places(), list[RankFile]()
    others = []
    for name, shape, file, tensor in open_parameters(folder, states.trained):
        others.append(locate_parameter(name, shape, file, tensor, places))
        used.append(file)
    found, unreadable = locate_in_model(states, models.file, places, whole=bool(ranks.model))
    others += [*found, *_frozen(models, states, places, used)]
    key = ("DeepSpeed universal", states.shared, tuple(states.module), tuple(others), tuple(places.files))
    joined = pool.remember(key, lambda: join(states, None, others, places.files))
    return replace(
        _structure(models, joined, places, used),
        format=f"DeepSpeed universal, {plural(len(states.trained), 'file')}",
        unreadable=tuple(unreadable),
        choice=('the weights are those of "zero/*/fp32.pt"',),
        second_copy='"module" in the model states',
    )


def _frozen(
    models: RankModels,
    states: ModelStates,
    places: Places,
    used: list[RankFile],
    on_rank: Callable[[RankFile, ModelStates], None] = lambda *_: None,
) -> Iterator[WholeTensor]:
    """Open the model states of all ranks, and return the parameters that are not trained."""
    frozen = FrozenParameters(states, places)
    for file, own in models.all():
        frozen.add(file, own, models.count)
        used.append(file)
        if file is not models.file:
            on_rank(file, own)
    return frozen.tensors()


def _twins(whole: Mapping[str, WholeTensor], file: RankFile, states: ModelStates) -> Iterator[Twin]:
    """Yield the places of the buffers in the model states of another rank.

    Raises:
        InputRefused: it has other buffers than the first rank.

    """
    for name, tensor in states.module.items():
        first = whole.get(name)
        if first is None or not isinstance(tensor, TensorRef):
            continue
        layout, begin = file.locate(name, tensor)
        if (layout.dtype, layout.shape, layout.strides) != (first.dtype, first.shape, first.strides):
            raise file.refusal(f"has another buffer {quoted(name)} than the first rank", ONE_SAVE)
        yield name, file.number, begin


def _numbered(twins: Iterable[Twin], joined: Joined) -> Iterator[tuple[int, int, int]]:
    numbers = {layout.name: number for number, layout in enumerate(joined.layouts)} if twins else {}
    return ((numbers[name], file, begin) for name, file, begin in twins)


def _structure(models: RankModels, joined: Joined, places: Places, used: list[RankFile]) -> Structure:
    beside = _beside(models.root)
    return Structure(
        format="",
        layouts=joined.layouts,
        offsets=places.offsets(joined),
        files=joined.files,
        records={file.number: file.checksums() for file in used},
        digest=joint_digest(file.digest for file in used),
        key="fp32",
        steps=tuple(read_steps(models.root, models.file.source, models.file.storage)),
        ignored=tuple(name for name in named(models.root) if name != _MODULE),
        warnings=beside.warnings,
        dropped=beside.dropped,
    )


def _refuse_other_ranks(ranks: RankNames, *, split: bool) -> None:
    """Refuse a stage that contradicts the names of the files, and ranks without model states."""
    if split == bool(ranks.model):
        stage = "3" if split else "2 or lower"
        name = ranks.model or next(iter(ranks.model_states.values()))
        raise InputRefused(f"has optimizer states of ZeRO stage {stage}, but {quoted(name)}", hint=ONE_SAVE)
    if split and ranks.model_states.keys() != ranks.optimizer_states.keys():
        models, optimizers = len(ranks.model_states), plural(len(ranks.optimizer_states), "rank")
        raise InputRefused(f"has model states of {models:,} ranks, but optimizer states of {optimizers}", hint=ONE_SAVE)


def _key(states: ModelStates, partitions: Partitions, others: list[WholeTensor], places: Places) -> tuple[object, ...]:
    """Return what determines the pieces of all tensors."""
    sizes = tuple(flat.sizes for flat in partitions.ranks)
    shapes = (states.groups, states.shared, tuple(states.module))
    of_ranks = (partitions.stage, partitions.dtype.name, partitions.paddings, sizes)
    return ("DeepSpeed", of_ranks, shapes, tuple(others), tuple(places.files))


def _choice(partitions: Partitions, states: ModelStates) -> str:
    held = f"{partitions.dtype.torch_name} partitions in {plural(len(partitions.ranks), 'file')} of optimizer states"
    instead = "" if partitions.stage == _STAGE_3 else ', not "module"'
    frozen = plural(len(states.frozen), "parameter")
    others = f"; {frozen} not in training from the model states" if states.frozen else ""
    return f"the weights are the {held}{instead}{others}"


def _beside(root: object) -> Unwritten:
    """Return what the user stored beside the model."""
    members = {name: value for name, value in named(root).items() if name not in _OF_DEEPSPEED}
    found = weights_below(_MODULE, members.get(_MODULE)).below("", members, _MODULE)
    return describe_unwritten(found, by_key=False)
