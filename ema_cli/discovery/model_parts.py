"""Parts of one checkpoint: ranks, shards and layers look like a series, but their average is no model.

Checkpoints are parts if their paths differ only in the number after a word such as ``rank`` or ``shard``. The part of
one rank in each of several checkpoints is a part too, if the other ranks are beside it. Different steps inside, or
``--steps``, show that numbers that seem to count parts count checkpoints.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.deepspeed import PIPELINE_LAYER
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import Location, absolute, names_in
from ema_cli.text import quoted, shortlist

_PART = re.compile(
    r"(?<![a-z])(?P<word>(?:mp_|tp_|pp_|dp_|model_)?ranks?|(?:model_)?parts?|shards?|layers?|stages?|consolidated|tp|pp"
    r"|mp)[=_.-]{0,2}(?P<number>[0-9]+)(?![0-9a-z])"
    r"|(?<![0-9])(?P<shard>[0-9]+)[-_]of[-_][0-9]+(?![0-9])|(?<![a-z])model(?P<split>[0-9]+)-mp[0-9]+(?![0-9a-z])",
    re.IGNORECASE,
)
_NAMES = {
    "part": "parts",
    "layer": "layers of a model",
    "stage": "stages",
    "shard": "shards of a model",
    "consolidated": "tensor-parallel parts of a model",
}
_JOINED_BY = (
    (r"consolidated", "transformers' convert_llama_weights_to_hf.py (--input_dir, --model_size, --output_dir)"),
    (r"layer_\d+-model_|model_states", "DeepSpeed's ds_to_universal.py or the script of the training framework"),
    (r"model_world_size_\d+_rank", "python -m verl.model_merger merge"),
    (r"model_part|-shard\d", "python -m metaseq.scripts.reshard_fsdp"),
    (r"(?:mp|tp|pp)_rank", "Megatron-LM's tools/checkpoint/convert.py"),
)
"""What joins the parts with such names."""
_DEEPEST = 2
"""Parts of a path, from its end, beside which other parts are searched: the file, and its folder."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A number in a path that may be that of a part."""

    kind: str
    number: str
    whole: tuple[str, str]
    """The path without the number, which all parts of one checkpoint share."""


def refuse_parts(checkpoints: Sequence[Checkpoint], options: Options) -> None:
    """Refuse checkpoints that are parts of one.

    Raises:
        InputRefused: saying what they are, and what joins them.

    """
    for checkpoint in checkpoints:
        if PIPELINE_LAYER.fullmatch(checkpoint.path.name):
            name = quoted(str(checkpoint.path))
            raise InputRefused(f"{name} is one layer of a pipeline-parallel model", hint=_hint(checkpoint.path.name))
    if options.steps is not None:
        return
    wholes: dict[tuple[str, str], dict[str, Checkpoint]] = defaultdict(dict)
    for checkpoint in checkpoints:
        for part in _parts(absolute(checkpoint.path)):
            wholes[part.whole].setdefault(part.number, checkpoint)
    for whole, found in wholes.items():
        if len(found) > 1 and not _are_a_series(list(found.values())):
            paths = [str(checkpoint.path) for checkpoint in found.values()]
            raise _refusal(whole, f"{shortlist(map(quoted, paths))} are")
    _refuse_lone_parts(checkpoints)


def _parts(path: str) -> Iterator[_Part]:
    for found in _PART.finditer(path):
        group = next(name for name in ("number", "shard", "split") if found[name])
        word = (found["word"] or "shard").lower().rpartition("_")[2]
        kind = word.removesuffix("s") if group == "number" else "shard"
        yield _Part(kind, found[group], (path[: found.start(group)], path[found.end(group) :]))


def _are_a_series(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether all have a step inside, and all of these differ."""
    steps = {checkpoint.steps[0] for checkpoint in checkpoints if checkpoint.steps}
    return len(steps) == len(checkpoints)


def _refuse_lone_parts(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse one part of each checkpoint: another part is beside it, and was not named."""
    listed: dict[Location, set[str]] = {}
    for checkpoint in checkpoints:
        location = checkpoint.path
        for _ in range(_DEEPEST):
            parts = list(_parts(location.name))
            if parts and location.parent not in listed:
                listed[location.parent] = _names(location.parent)
            for part in parts:
                beside = sorted(name for name in listed[location.parent] if _is_other(name, part))
                if beside:
                    message = f"{quoted(str(checkpoint.path))} is, like {quoted(beside[0])} beside it,"
                    raise _refusal(part.whole, message, kind=part.kind)
            location = location.parent


def _names(folder: Location) -> set[str]:
    try:
        return set(names_in(folder))
    except OSError:
        return set()


def _is_other(name: str, part: _Part) -> bool:
    return any(other.whole == part.whole and other.number != part.number for other in _parts(name))


def _refusal(whole: tuple[str, str], are: str, kind: str = "") -> InputRefused:
    begin, end = whole
    kind = kind or next(part.kind for part in _parts(f"{begin}0{end}") if part.whole == whole)
    what = _NAMES.get(kind, f"the parts of single ranks ({kind})" if kind != "rank" else "the parts of single ranks")
    name = f"{begin.rpartition('/')[2]}0{end.partition('/')[0]}"
    message = f"{are} {what if ' are' in are else what}: parts of one checkpoint, not a series"
    return InputRefused(message, hint=_hint(name))


def _hint(name: str) -> str:
    joined_by = next((tool for pattern, tool in _JOINED_BY if re.search(pattern, name, re.IGNORECASE)), "")
    join = joined_by or "the tool of the trainer that wrote them"
    return f"join the parts of each checkpoint first, with {join}"
