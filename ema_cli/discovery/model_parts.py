"""Parts of one checkpoint: ranks, shards and layers look like a series, but their average is no model.

Checkpoints are parts if their paths differ only in the number after a word such as ``rank`` or ``shard``. One rank of
each of several checkpoints is a part too, if the other ranks are beside it. Different steps inside show that numbers
that seem to count parts count checkpoints, and so does ``--steps``, unless a known format has such names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ema_cli.errors import InputRefused
from ema_cli.formats.deepspeed.rank_names import is_pipeline_layer
from ema_cli.formats.file_names import counts_steps
from ema_cli.formats.structure import ONE_SHARD
from ema_cli.formats.torch_ranks.rank_file_names import is_rank_file
from ema_cli.options.average import Options
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import Location, absolute, names_in
from ema_cli.text import quoted, regex, shortlist

_PART = regex(
    r"(?<![a-z])(?P<word>(?:mp_|tp_|pp_|dp_|model_)?ranks?|(?:model_)?parts?|shards?|layers?|stages?|consolidated|tp|pp"
    r"|mp|s?dp)[=_.-]{0,2}(?P<number>[0-9]+)(?![0-9a-z])"
    r"|(?<![0-9])(?P<shard>[0-9]+)[-_]of[-_][0-9]+(?![0-9])|(?<![a-z])model(?P<split>[0-9]+)-mp[0-9]+(?![0-9a-z])",
    re.IGNORECASE,
)
_NAMES = {
    "consolidated": "tensor-parallel parts",
    "tp": "tensor-parallel parts",
    "pp": "stages of a pipeline",
    "mp": "model-parallel parts",
    "dp": "data-parallel shards",
    "sdp": "data-parallel shards",
}
"""What the numbers after a word count, if it is not the word itself."""
_UNSURE = ("part", "layer", "stage")
"""Words that also name parts of a training: one of them in each checkpoint is no reason to refuse it."""
_JOINED_BY = (
    (r"consolidated", "transformers' convert_llama_weights_to_hf.py (--input_dir, --model_size, --output_dir)"),
    (r"layer_\d+-model_|model_states", "DeepSpeed's ds_to_universal.py or the script of the training framework"),
    (r"model_world_size_\d+_rank", "python -m verl.model_merger merge"),
    (r"model_part|-shard\d", "python -m metaseq.scripts.reshard_fsdp"),
    (r"(?:mp|tp|pp)_rank", "Megatron-LM's tools/checkpoint/convert.py"),
)
"""What joins the parts with such names."""


@record
class _Part:
    """What the parts of one checkpoint share."""

    word: str
    """``rank``, ``shard`` and the like."""
    begin: str
    """The path before the number of the part."""
    end: str

    @property
    def plural(self) -> str:
        """What the parts are."""
        return _NAMES.get(self.word, f"{self.word}s")

    @property
    def tool(self) -> str:
        """What joins them, if their name is that of a known format: then they are certainly parts."""
        return _tool(f"{self.begin.rpartition('/')[2]}0{self.end.partition('/')[0]}")


def refuse_parts(checkpoints: Sequence[Checkpoint], options: Options) -> None:
    """Refuse checkpoints that are parts of one.

    Raises:
        InputRefused: saying what they are, and what joins them.

    """
    for checkpoint in checkpoints:
        if is_pipeline_layer(checkpoint.path.name):
            name = quoted(str(checkpoint.path))
            message = f"{name} is a part of a checkpoint: one layer of a pipeline-parallel model"
            raise InputRefused(message, hint=_join_with(_tool(checkpoint.path.name)))
    checkpoints = [checkpoint for checkpoint in checkpoints if not _has_all_ranks(checkpoint)]
    wholes: dict[_Part, dict[str, Checkpoint]] = defaultdict(dict)
    for checkpoint in checkpoints:
        for number, part in _parts(absolute(checkpoint.path)):
            wholes[part].setdefault(number, checkpoint)
    for part, found in wholes.items():
        if len(found) > 1 and not _are_a_series(list(found.values())) and (part.tool or options.steps is None):
            paths = shortlist(quoted(str(checkpoint.path)) for checkpoint in found.values())
            hint = _hint(part, *found.values())
            raise InputRefused(f"{paths} are {part.plural} of one checkpoint, not a series", hint=hint)
    _refuse_single_parts(checkpoints, options)


def _has_all_ranks(checkpoint: Checkpoint) -> bool:
    """Whether a file of the first rank stands for a checkpoint that was read from the files of all ranks."""
    return len(checkpoint.index.sources) > 1 and is_rank_file(checkpoint.path.name)


def _parts(path: str) -> Iterator[tuple[str, _Part]]:
    """Yield the numbers in a path that may be those of parts."""
    for found in _PART.finditer(path):
        group = next(name for name in ("number", "shard", "split") if found[name])
        if group == "shard" and counts_steps(path[: found.start(group)]):
            continue
        word = (found["word"] or "shard").lower().rpartition("_")[2].removesuffix("s")
        yield found[group], _Part(word=word, begin=path[: found.start(group)], end=path[found.end(group) :])


def _are_a_series(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether all have a step inside, and all of these differ."""
    first = [checkpoint.steps[0] for checkpoint in checkpoints if checkpoint.steps]
    return len({(step.unit, step.value) for step in first}) == len(checkpoints)


def _refuse_single_parts(checkpoints: Sequence[Checkpoint], options: Options) -> None:
    """Refuse one part of each checkpoint: another part is beside it, and was not named."""
    named = {absolute(checkpoint.path) for checkpoint in checkpoints}
    listed: dict[Location, set[str]] = {}
    for checkpoint in checkpoints:
        path = checkpoint.path
        for part, name, other in (*_others(path, "", listed), *_others(path.parent, path.name, listed)):
            if absolute(other) not in named and (part.tool or options.steps is None):
                message = f"{quoted(str(path))} is one of several {part.plural} of a checkpoint"
                raise InputRefused(f"{message}: {quoted(name)} is beside it", hint=_hint(part, checkpoint))


def _others(location: Location, inner: str, listed: dict[Location, set[str]]) -> Iterator[tuple[_Part, str, Location]]:
    """Yield the other parts beside a file, or beside a folder that contain a file called ``inner`` too."""
    for number, part in _parts(location.name):
        if part.word in _UNSURE:
            continue
        for name in sorted(_names(location.parent, listed)):
            if any(found == part and other != number for other, found in _parts(name)):
                beside = location.parent / name
                if not inner:
                    yield part, name, beside
                elif inner in _names(beside, listed):
                    yield part, name, beside / inner


def _names(folder: Location, listed: dict[Location, set[str]]) -> set[str]:
    """Return the names in a folder, which is listed once; nothing if it cannot be."""
    if folder not in listed:
        try:
            listed[folder] = set(names_in(folder))
        except OSError:
            listed[folder] = set()
    return listed[folder]


def _hint(part: _Part, *checkpoints: Checkpoint) -> str:
    if any(ONE_SHARD in reason for checkpoint in checkpoints for _, reason in checkpoint.unreadable):
        folders = dict.fromkeys(quoted(str(checkpoint.path.parent)) for checkpoint in checkpoints)
        return f"name the folder with the files of all ranks: {shortlist(folders)}"
    by_hand = "" if part.tool else "; if each is a whole checkpoint of a series, give the steps with --steps"
    return f"{_join_with(part.tool)}{by_hand}"


def _join_with(tool: str) -> str:
    return f"join the parts of each checkpoint first, with {tool or 'the tool of the trainer that wrote them'}"


def _tool(name: str) -> str:
    return next((tool for pattern, tool in _JOINED_BY if re.search(pattern, name, re.IGNORECASE)), "")
