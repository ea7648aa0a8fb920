"""Nested checkpoints as torch loads them, compared whole."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.helpers.series import same_bits


def leaves_of(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every leaf of nested mappings and lists, with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves_of(inner, f"{path}.{key}".strip("."))
    elif isinstance(value, list | tuple) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from leaves_of(inner, f"{path}.{number}".strip("."))
    else:
        yield path, value


def alike(one: object, other: object) -> bool:
    """Whether two leaves are the same: of a tensor type, shape, strides, device and bits."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.stride() == other.stride() and type(one) is type(other) and same_bits(one, other)
    return type(one) is type(other) and bool(one == other)


def different(one: object, other: object) -> set[str]:
    """Return the paths of the leaves in which two checkpoints differ; they must have the same paths in one order."""
    pairs = list(zip(leaves_of(one), leaves_of(other), strict=True))
    assert [path for (path, _), _ in pairs] == [path for _, (path, _) in pairs]
    return {path for (path, value), (_, its) in pairs if not alike(value, its)}


def averaged(states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the averages of floating-point tensors, in float64 and rounded once; of the others the last."""
    found: dict[str, torch.Tensor] = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            found[name] = last
            continue
        total = weights[0] * states[0][name].double()
        for state, weight in zip(states[1:], weights[1:], strict=True):
            total = total + weight * state[name].double()
        found[name] = total.to(last.dtype)
    return found


def how_it_loads(path: Path) -> str:
    """Return what ``weights_only=True`` does with a file: the name of the error, or nothing."""
    try:
        torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        return type(error).__name__
    return ""


def changed_records(one: Path, other: Path) -> set[str]:
    """Return the names of the records in which two archives of one directory differ, which both are intact."""
    with zipfile.ZipFile(one) as left, zipfile.ZipFile(other) as right:
        assert left.testzip() is None
        assert right.testzip() is None
        assert left.namelist() == right.namelist()
        return {name for name in left.namelist() if left.read(name) != right.read(name)}


def differing_bytes(one: Path, other: Path, allowed: Collection[range] = ()) -> list[int]:
    """Return the bytes in which two files of one size differ, outside of some ranges."""
    left, right = one.read_bytes(), other.read_bytes()
    assert len(left) == len(right)
    found = [at for at, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
    return [at for at in found if not any(at in inside for inside in allowed)]


def load_all(path: Path) -> Any:
    """Load a checkpoint of our own, whatever it holds."""
    return torch.load(path, weights_only=False)
