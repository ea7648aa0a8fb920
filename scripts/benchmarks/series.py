"""Checkpoints to measure with: made when they are needed, deleted afterwards unless they are to be kept."""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from .measure import Settings, note

_MARKED_BYTES = 1 << 18


class Series(NamedTuple):
    """Checkpoints that differ by their numbers only."""

    checkpoints: int
    tensors: int
    elements: int
    """Of each tensor."""
    suffix: str = ".safetensors"
    dtype: torch.dtype = torch.float32
    sparse: bool = False
    """Zeros and a number in each block of the fold, float32, which take 1/64 of their room on the disk."""

    def data_bytes(self) -> int:
        """Return the bytes of the tensors of one checkpoint."""
        return self.tensors * self.elements * self.dtype.itemsize


@contextmanager
def on_disk(series: Series, settings: Settings) -> Iterator[list[Path]]:
    """Make the checkpoints, or reuse existing ones; delete new ones unless they are to be kept."""
    name = f"{dtype_name(series.dtype)}-{series.tensors}x{series.elements}{'-sparse' * series.sparse}{series.suffix}"
    folder = settings.folder / name
    folder.mkdir(exist_ok=True)
    paths = [folder / f"step_{i:03}{series.suffix}" for i in range(series.checkpoints)]
    missing = [i for i, path in enumerate(paths) if not (path.exists() and _fits(path.stat().st_size, series))]
    try:
        _make(series, paths, missing)
        yield paths
    finally:
        if not settings.keep:
            for i in missing:
                paths[i].unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _fits(file_bytes: int, series: Series) -> bool:
    return 0 < file_bytes - series.data_bytes() < 65_536 + 1024 * series.tensors


def _make(series: Series, paths: Sequence[Path], missing: Sequence[int]) -> None:
    names = [f"layers.{n}.weight" for n in range(series.tensors)]
    base = torch.randn(0 if series.sparse or not missing else series.tensors, series.elements)
    if missing:
        note(f"making {len(missing)} checkpoints in {paths[0].parent}")
    for i in missing:
        if series.sparse:
            _write_sparse(paths[i], names, series.elements * 4, 1 + 0.001 * i)
            continue
        state = {name: (row * (1 + 0.001 * i)).to(series.dtype) for name, row in zip(names, base, strict=True)}
        if series.suffix in (".pt", ".pth"):
            torch.save(state, paths[i], _use_new_zipfile_serialization=series.suffix == ".pt")
        else:
            save_file(state, paths[i])


def _write_sparse(path: Path, names: Sequence[str], tensor_bytes: int, number: float) -> None:
    """Write one ``number`` per 256 KiB: checkpoints of zeros alone are constants, which are compared block by block."""
    places = {name: [n * tensor_bytes, (n + 1) * tensor_bytes] for n, name in enumerate(names)}
    entries = {k: {"dtype": "F32", "shape": [tensor_bytes // 4], "data_offsets": place} for k, place in places.items()}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    size = 8 + len(header) + len(names) * tensor_bytes
    os.truncate(path, size)
    with path.open("r+b", buffering=0) as file:
        for position in range(8 + len(header), size, _MARKED_BYTES):
            os.pwrite(file.fileno(), struct.pack("<f", number), position)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of an element type."""
    return str(dtype).removeprefix("torch.")
