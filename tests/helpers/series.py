"""Series of real checkpoints, written by torch and safetensors themselves, and their reference averages."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
Save = Callable[[State, Path], None]


def save_zip(state: State, path: Path) -> None:
    """Save as ``torch.save`` does since 1.6."""
    torch.save(state, path)


def save_legacy(state: State, path: Path) -> None:
    """Save as ``torch.save`` did before 1.6."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


FORMATS: dict[str, tuple[str, Save]] = {
    "zip": (".pt", save_zip),
    "legacy": (".pt", save_legacy),
    "safetensors": (".safetensors", lambda state, path: save_file(state, path, {"format": "pt"})),
}


def write_series(folder: Path, states: Sequence[State], *, form: str = "zip") -> list[Path]:
    """Write ``ckpt_100``, ``ckpt_200``, ... in a format; return their paths, oldest first."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix, save = FORMATS[form]
    paths = [folder / f"ckpt_{100 * number}{suffix}" for number in range(1, len(states) + 1)]
    for state, path in zip(states, paths, strict=True):
        save(state, path)
    return paths


def write_one(path: Path, value: Any = 1.0, **others: Any) -> Path:
    """Write a nested checkpoint with one small tensor, and ``others`` at its top level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"w": torch.full((2,), float(value))}, **others}, path)
    return path


def random_states(count: int, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> list[State]:
    """Return states of one model with shapes of every kind: matrix, vector, scalar, empty."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (37, 29), "layer.bias": (29,), "scale": (), "empty": (0, 3)}
    source = dtype if dtype.is_complex else torch.float64

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=source).to(dtype)

    return [{name: tensor(shape) for name, shape in shapes.items()} for _ in range(count)]


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor in float64, complex ones as pairs. Every type fits exactly."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return np.asarray(real.to(torch.float64).numpy())


def reference_average(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return ``sum_i w_i theta_i`` in float64, each product and each sum rounded, in order."""
    total = np.asarray(weights[0] * to_numpy(tensors[0]))
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = np.asarray(total + weight * to_numpy(tensor))
    return total


def load(path: Path | str) -> State:
    """Read an output with the official library."""
    return dict(load_file(path))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have one type, one shape and the same bytes: -0.0 is not 0.0 here."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    return a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))


def data_section(path: Path | str) -> bytes:
    """Return the bytes of a safetensors file after its header."""
    raw = Path(path).read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def open_files() -> int:
    """Return the number of files and folders that this process has open.

    Sockets do not count: connections of other tests to their servers may end meanwhile.
    """
    opened = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            opened += str(descriptor.readlink()).startswith("/")
    return opened


def write_sparse(path: Path, **elements: int) -> Path:
    """Write float32 tensors of zeros that take no room on the disk and no time: a run over them can be interrupted."""
    ends = list(accumulate(4 * count for count in elements.values()))
    entries = {
        name: {"dtype": "F32", "shape": [count], "data_offsets": [end - 4 * count, end]}
        for (name, count), end in zip(elements.items(), ends, strict=True)
    }
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + ends[-1])
    return path
