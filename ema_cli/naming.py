"""Names: natural order, the training step in a series of file names, the names of outputs. Pure text.

The number in a single name may be no step (``resnet50.pth``, ``yolov8n.pt``), so steps are read from the series: either
a word before the number marks it as a step, or it is the only part of the names that differs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DIGITS = re.compile(r"(\d+)")
_STEP_WORD = re.compile(r"(?<![a-z])(?:steps?|iter(?:ation)?s?|updates?|it)[=_-]?(\d+)(?!\d)", re.IGNORECASE)
_EPOCH_WORD = re.compile(r"(?<![a-z])(?:epochs?|ep)[=_-]?(\d+)(?!\d)", re.IGNORECASE)
_SUFFIXES = re.compile(r"(?:\.(?:pt|pth|ckpt|bin|tar|safetensors))+$", re.IGNORECASE)
_DEEPEST_NUMBER = 3
"""Parts of the path of a single file, counted from its end, that are searched for a number."""
_BATCH_NORM = re.compile(r"(?:^|\.)running_(?:mean|var)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedStep:
    """A step read from a name."""

    value: int
    unit: str
    """``step`` or ``epoch``."""


def is_batch_norm_statistic(tensor: str) -> bool:
    """Whether a tensor is a BatchNorm running mean or variance, by the name that torch gives it."""
    return _BATCH_NORM.search(tensor) is not None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts ``ckpt_2`` before ``ckpt_10``; different names have different keys."""
    parts = _DIGITS.split(name)
    return (*((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p), (-1, 0, name))


def steps_from_names(names: Sequence[str]) -> list[NamedStep | None]:
    """Return the step in each name of a series: a file name, or ``checkpoint-500/model.bin``."""
    stems = [_SUFFIXES.sub("", name) for name in names]
    spelled = [_spelled(stem) for stem in stems]
    if len(stems) < 2 or (all(spelled) and len(set(spelled)) > 1):  # noqa: PLR2004 - a series has two names
        return [None] * len(stems) if _starts_again(stems) else spelled
    return _varying_number(stems) or [named or bare for named, bare in zip(spelled, _by_likeness(stems), strict=True)]


def _starts_again(stems: Sequence[str]) -> bool:
    """Whether the steps begin again in every epoch, so that they do not order the series."""
    found = [(_EPOCH_WORD.findall(stem), _STEP_WORD.findall(stem)) for stem in stems]
    if not all(epochs and steps for epochs, steps in found):
        return False
    pairs = sorted((int(epochs[-1]), int(steps[-1])) for epochs, steps in found)
    return [step for _, step in pairs] != sorted(step for _, step in pairs)


def _spelled(stem: str) -> NamedStep | None:
    """Return the step with a word before its number; a step is preferred to an epoch."""
    for unit, pattern in (("step", _STEP_WORD), ("epoch", _EPOCH_WORD)):
        found = pattern.findall(stem)
        if found:
            return NamedStep(value=int(found[-1]), unit=unit)
    return None


def _by_likeness(stems: Sequence[str]) -> list[NamedStep | None]:
    """Return the steps of names that are equal to other names except for their numbers."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for position, stem in enumerate(stems):
        alike.setdefault(tuple(_DIGITS.split(stem)[::2]), []).append(position)
    steps: list[NamedStep | None] = [None] * len(stems)
    for positions in alike.values():
        for position, step in zip(positions, _varying_number([stems[p] for p in positions]) or [], strict=False):
            steps[position] = step
    return steps


def _varying_number(stems: Sequence[str]) -> list[NamedStep | None] | None:
    """Return the last whole number that differs, if the names are equal except for their numbers.

    If several numbers differ, the last is a step only if it increases with the others (``checkpoint_3_5000``: epoch
    and update).
    """
    split = [_DIGITS.split(stem) for stem in stems]
    skeleton = split[0][::2]
    if any(parts[::2] != skeleton for parts in split):
        return None
    whole = [before != "." and after != "." for before, after in zip(["", *skeleton[1:]], skeleton[1:], strict=False)]
    columns = list(zip(*([int(number) for number in parts[1::2]] for parts in split), strict=True))
    differing = [column for column, is_whole in zip(columns, whole, strict=True) if is_whole and len(set(column)) > 1]
    if not differing or [row[-1] for row in sorted(zip(*differing, strict=True))] != sorted(differing[-1]):
        return None
    return [NamedStep(value=number, unit="step") for number in differing[-1]]


def distinct_names(paths: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Return the shortest unique ends of paths, without suffixes, that also differ from the names ``taken``.

    The names do not depend on the location or format of the run: ``run/ckpt_1.pt`` and ``run/ckpt_2.pt`` are
    ``ckpt_1`` and ``ckpt_2``; ``run/1/model.bin`` and ``run/2/model.bin`` are ``1/model`` and ``2/model``. The name of
    a single path is long enough to have a number: ``checkpoint-500/model``.
    """
    deepest = max((_bare(path).count("/") for path in paths), default=0) + 1
    names: list[str] = []
    for depth in range(min(name_depth(taken), deepest), deepest + 1):
        names = [name_of(path, depth) for path in paths]
        alone = len(names) == 1 and not taken and depth < _DEEPEST_NUMBER and not _DIGITS.search(names[0])
        if len({*names, *taken}) == len(names) + len(taken) and not alone:
            break
    return names


def name_of(path: str, depth: int) -> str:
    """Return the last ``depth`` parts of a path, without the suffix."""
    return "/".join(_bare(path).strip("/").split("/")[-depth:])


def name_depth(names: Sequence[str]) -> int:
    """Return how many parts the longest of some names has, at least one."""
    return 1 + max((name.count("/") for name in names), default=0)


def _bare(path: str) -> str:
    """Return a path without its suffix, with undecodable bytes escaped so that it can be stored as text."""
    return _SUFFIXES.sub("", os.path.normpath(path)).encode(errors="backslashreplace").decode()


OUTPUT_FIELDS = ("method", "decay", "one_minus_decay", "half_life", "sigma_rel", "label")
"""Fields in braces in the name of an output."""
RUN_FIELDS = ("run", "name")
"""Further fields: the folder of a run, and its name."""


def fields_in(template: str) -> list[str]:
    """Return the fields in the template of an output's name."""
    return [field for field in OUTPUT_FIELDS if f"{{{field}}}" in template]


def fill_output_name(template: str, values: Mapping[str, object]) -> str:
    """Return a name with its fields filled in: ``ema_{decay}.safetensors`` -> ``ema_0.999.safetensors``.

    A field without a value is left unchanged. Braces in a value are not filled again.
    """

    def fill(found: re.Match[str]) -> str:
        value = values.get(found.group(1))
        if value is None:
            return found.group()
        return f"{value:.12g}" if isinstance(value, float) else str(value)

    return re.sub(r"\{(\w+)\}", fill, template)


def run_fields(run: str) -> dict[str, object]:
    """Return the values of ``{run}`` and ``{name}`` for a run folder; in the name, ``..`` is resolved."""
    return {"run": run, "name": Path(os.path.abspath(run)).name}  # noqa: PTH100 - resolve() would follow links


def report_name(output: str) -> str:
    """Return the name of the report beside an output: ``ema.safetensors`` -> ``ema.report.json``."""
    return f"{output.removesuffix('.safetensors')}.report.json"
