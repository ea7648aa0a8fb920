"""Names: natural order, checkpoints in messages and metadata, outputs, and the nearest of a misspelt one. Pure text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from heapq import nlargest
from itertools import islice
from pathlib import Path

from ema_cli.text import regex, without_secrets

_DIGITS = regex(r"(\d+)")
_DEEPEST_NUMBER = 3
"""Parts of the path of a single file, counted from its end, that are searched for a number."""
_MOST_NAMES = 200_000
"""Names that are examined for one that is near; all of it takes about a second."""
_MOST_COMPARED = 200
"""Names that are compared letter by letter."""
_MUCH_FARTHER = 0.15
"""Less similar than the nearest name by this, a name is not meant."""
_LONGEST_END = 60
"""Characters at both ends of a long name that are compared."""
_BATCH_NORM = regex(r"(?:^|\.)running_(?:mean|var)$")


def is_batch_norm_statistic(tensor: str) -> bool:
    """Whether a tensor is a BatchNorm running mean or variance, by the name that torch gives it."""
    return _BATCH_NORM.search(tensor) is not None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts ``ckpt_2`` before ``ckpt_10``; different names have different keys."""
    parts = _DIGITS.split(name)
    return (*((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p), (-1, 0, name))


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
    """Return a path without its suffix and without secrets, undecodable bytes escaped so that it can be stored."""
    from ema_cli.name_numbers import SUFFIXES  # noqa: PLC0415 - a help page names no checkpoint

    return without_secrets(SUFFIXES.sub("", os.path.normpath(path)).encode(errors="backslashreplace").decode())


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
    """Return the values of ``{run}`` and ``{name}`` for a run folder; in the name, ``..`` is resolved.

    The name has no secrets, as it becomes the name of a file; the folder is an address.
    """
    return {"run": run, "name": Path(os.path.abspath(without_secrets(run, whole=True))).name}  # noqa: PTH100 - resolve() would follow links


def safetensors_name(name: str) -> str:
    """Return the name of an output with the suffix that it must have: ``ema.pt`` -> ``ema.safetensors``."""
    return f"{re.sub(r'[.][A-Za-z]+$', '', name)}.safetensors"


def report_name(output: str) -> str:
    """Return the name of the report beside an output: ``ema.safetensors`` -> ``ema.report.json``."""
    return f"{output.removesuffix('.safetensors')}.report.json"


def nearest(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the names that ``name`` may be a misspelling of, the nearest first; capital letters do not matter.

    They have at least the similarity ``cutoff``, from 0 to 1, that ``difflib`` measures, and are about as near as the
    nearest. The time is bounded: of very many names, those are compared that share the most at their beginning and end.
    """
    by_form: dict[str, str] = {}
    for one in islice(known, _MOST_NAMES):
        by_form.setdefault(_form(one), one)
    form = _form(name)
    matcher = SequenceMatcher(b=form, autojunk=False)
    forms: Iterable[str] = by_form
    if len(by_form) > _MOST_COMPARED:
        forms = nlargest(_MOST_COMPARED, by_form, key=lambda other: _shared(form, other))
    ranked = [(_similarity(matcher, other, cutoff), by_form[other]) for other in forms]
    ranked.sort(key=lambda one: (-one[0], natural_key(one[1])))
    least = max(cutoff, ranked[0][0] - _MUCH_FARTHER) if ranked else cutoff
    return [one for similarity, one in ranked[:most] if similarity >= least]


def _similarity(matcher: SequenceMatcher[str], other: str, cutoff: float) -> float:
    """Return the similarity to the other name; 0 if it is below the cut-off, which is mostly faster to know."""
    matcher.set_seq1(other)
    near = matcher.real_quick_ratio() >= cutoff and matcher.quick_ratio() >= cutoff
    return matcher.ratio() if near else 0.0


def did_you_mean(name: str, known: Iterable[str], *, shown: Callable[[str], str] = str) -> str:
    """Return a hint with the nearest of the names that there are, as ``shown``; empty if none is near."""
    found = [shown(one) for one in nearest(name, known)]
    listed = " or ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))
    return f"did you mean {listed}?" if found else ""


def _form(name: str) -> str:
    """Return a name as it is compared."""
    return (name if len(name) <= 2 * _LONGEST_END else name[:_LONGEST_END] + name[-_LONGEST_END:]).lower()


def _shared(one: str, other: str) -> int:
    """Return how many characters two names share at their beginning and at their end."""
    pairs = ((one, other), (one[::-1], other[::-1]))
    return sum(len(os.path.commonprefix(pair)) for pair in pairs)  # noqa: RUF071 - letter by letter is right here
