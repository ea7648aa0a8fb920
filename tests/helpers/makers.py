"""Makers of checkpoint files, real and hostile, and readers of the bytes of their tensors."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from ema_cli.formats.open import open_checkpoint
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import Extent, LayoutPool, Located
from ema_cli.storage.strided_read import read_elements

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


class Tagged(torch.Tensor):
    """A tensor subclass."""


def open_file(path: Path, *, key: str | tuple[str, ...] = (), strip_prefix: str | None = "") -> Checkpoint:
    """Open a checkpoint as the program does, by default without touching the names."""
    return open_checkpoint(
        path, pool=LayoutPool(), keys=(key,) if isinstance(key, str) else key, strip_prefix=strip_prefix
    )


def whole(located: Located) -> Extent:
    """Return a tensor that is stored in one piece."""
    assert isinstance(located, Extent)
    return located


def read_all(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Read every tensor through its extent: ``{name: (torch dtype, shape, bytes)}``; then close the file."""
    found = {}
    with closing(checkpoint.index):
        for extent in checkpoint.index:
            out = np.zeros(extent.layout.nbytes, dtype=np.uint8)
            read_elements(extent, 0, out)
            layout = extent.layout
            found[layout.name] = (f"torch.{layout.dtype.torch_name}", layout.shape, out.tobytes())
    return found


def read_file(path: Path, *, key: str | tuple[str, ...] = ()) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Open a checkpoint and read every tensor in it."""
    return read_all(open_file(path, key=key))


def expected(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the result that ``read_all`` must give for tensors that a framework loaded."""
    return {name: (str(value.dtype), tuple(value.shape), tensor_bytes(value)) for name, value in tensors.items()}


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements of a tensor in C order as bytes."""
    plain = tensor.detach().as_subclass(torch.Tensor).contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return a tensor of any element type from random bytes (booleans are 0 or 1)."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape).to(torch.bool)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def every_kind() -> dict[str, torch.Tensor]:
    """Return tensors of every element type, memory layout and sharing that ``torch.save`` writes."""
    torch.manual_seed(0)
    tensors = {f"kind.{dtype}": random_tensor(dtype, 3, 4) for dtype in DTYPES}
    base = torch.randn(6, 8)
    parameter = torch.nn.Parameter(torch.randn(3, 3))
    attributed = torch.nn.Parameter(torch.randn(2))
    attributed.sharding = "none"  # type: ignore[attr-defined]
    tagged = torch.randn(4).as_subclass(Tagged)
    tagged.note = "a subclass with an attribute"  # type: ignore[attr-defined]
    tensors |= {
        "scalar": torch.tensor(1.5),
        "scalar.int": torch.tensor(7),
        "empty": torch.empty(0),
        "empty.rows": torch.empty(0, 5, dtype=torch.bfloat16),
        "empty.columns": base[:, 8:],
        "base": base,
        "tied": base,
        "view.rows": base[2:4],
        "view.element": base[5, 7],
        "view.columns": base[:, 3:5],
        "view.steps": base[::2, 1::3],
        "view.flat": base.view(-1)[5:17],
        "view.unsqueezed": base.unsqueeze(0)[:, None],
        "transposed": torch.randn(5, 7).t(),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "expanded.scalar": torch.tensor(2.0).expand(2, 2),
        "unfolded": torch.arange(9.0).unfold(0, 4, 2),
        "half.transposed": torch.randn(9, 2).half().t(),
        "parameter": parameter,
        "parameter.tied": parameter,
        "parameter.attribute": attributed,
        "frozen": torch.nn.Parameter(torch.randn(2, 2), requires_grad=False),
        "subclass": tagged,
        "buffer": torch.nn.Buffer(torch.randn(3)),
        "ünï.cødé": torch.randn(1),
    }
    return tensors


def save(path: Path, value: object, *, protocol: int = 2, legacy: bool = False) -> Path:
    """Save as ``torch.save`` does, in the zip format or the one before 1.6."""
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return path


def rezip(
    path: Path, target: Path, *, method: int = zipfile.ZIP_STORED, replaced: Mapping[str, bytes | None] | None = None
) -> Path:
    """Pack an archive again with the standard library; ``replaced`` gives records new bytes, or drops them."""
    changes = {**(replaced or {})}
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            data = changes.pop(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
        for name, added in changes.items():
            if added is not None:
                new.writestr(f"{old.namelist()[0].partition('/')[0]}/{name}", added)
    return target


def archive(path: Path, pickle: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """Write a zip checkpoint around any pickle."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", pickle)
        for key, data in (records or {}).items():
            made.writestr(f"archive/data/{key}", data)
        made.writestr("archive/version", b"3\n")
    return path


def overwrite(path: Path, data: bytes | bytearray) -> Path:
    """Replace the bytes of a file."""
    path.write_bytes(data)
    return path


def safetensors_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    """Write a safetensors file around any header."""
    return overwrite(path, len(header).to_bytes(8, "little") + header + data)


def fifo(path: Path) -> Path:
    """Make a FIFO that nothing writes to."""
    os.mkfifo(path)
    return path
