"""Which contents a result has that was computed while the inputs changed: the old, the new, or a mix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tests.faults.forms import load_safetensors
from tests.faults.runs import Ended
from tests.faults.stage import Arrays, Stage
from tests.faults.tamper import IN_PLACE

_REFUSED = (3, 4, 7)
"""Exit statuses of a run that noticed a change: refused, changed, missing."""
_WARNING = "was replaced or removed"


def judge(stage: Stage, mode: str, kind: str, ended: Ended, *, surely: bool) -> list[str]:
    """Return the problems after a change; ``surely`` if it came before the last check of the inputs."""
    succeeded = ended.status in ((0, 1) if mode == "diff" else (0,))
    allowed = (*_REFUSED, 10) if mode == "verify" else _REFUSED
    if not succeeded:
        left = sorted(path.name for path in stage.out.iterdir())
        return [
            *([f"ended with {ended.status}: {ended.stderr}"] if ended.status not in allowed else []),
            *([f"failed and left {left}"] if left else []),
        ]
    if mode == "verify":
        return ["verified, although the old contents are gone"] if surely and kind in IN_PLACE else []
    return _of_one_age(stage, mode, kind, ended, surely=surely)


def _of_one_age(stage: Stage, mode: str, kind: str, ended: Ended, *, surely: bool) -> list[str]:
    """Return the problems of a result: each checkpoint was read entirely before or entirely after its change."""
    read = stage.read(mode)
    ages = [[stage.old[path], stage.load(path)] for path in read]
    fits = [
        choice
        for choice in product((1, 0), repeat=len(read))
        if _is_of(mode, ended, stage, [versions[age] for versions, age in zip(ages, choice, strict=True)])
    ]
    if not fits:
        return ["the result has neither the old contents nor the new"]
    if any(all(choice) for choice in fits) or not surely:
        return []
    if kind in IN_PLACE:
        return ["the result has the old contents, which were gone"] if kind != "grow" else ["growth was not noticed"]
    return [] if _WARNING in ended.stderr else [f"does not warn that old contents were read: {ended.stderr}"]


def _is_of(mode: str, ended: Ended, stage: Stage, contents: list[Arrays | None]) -> bool:
    """Return whether a result is the reference average of these contents."""
    known = [arrays for arrays in contents if arrays is not None]
    if len(known) < len(contents) or len({frozenset(arrays) for arrays in known}) > 1:
        return False
    if mode == "diff":
        reported = {tensor["name"]: tensor["max_abs"] for tensor in json.loads(ended.stdout)["tensors"]}
        a, b = known
        return reported == {name: float(np.max(np.abs(a[name].astype(float) - b[name].astype(float)))) for name in b}
    result = {name: tensor.numpy() for name, tensor in load_safetensors(stage.out / "ema.safetensors").items()}
    return result.keys() == known[-1].keys() and all(
        np.array_equal(result[name], _folded([arrays[name] for arrays in known])) for name in result
    )


def _folded(series: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the average with a decay of one half: its weights are powers of two, and exact."""
    count = len(series)
    weights = [0.5 ** min(count - 1, count - number) for number in range(count)]
    total = np.zeros(series[0].shape)
    for weight, array in zip(weights, series, strict=True):
        total = total + weight * array.astype(np.float64)
    return total.astype(np.float32)
