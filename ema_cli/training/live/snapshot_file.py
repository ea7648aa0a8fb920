"""The file of a snapshot: tensors written one by one, complete or not at all; sharded ones by all processes together.

Of a sharded model (DTensor) every process gathers each tensor, the first process of the mesh writes it, and all return
when the file has its name, or raise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import OutputError
from ema_cli.formats.open import look_at
from ema_cli.formats.safetensors import build_header
from ema_cli.formats.structure import writable_name
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import quoted
from ema_cli.write.file import OutputFile
from ema_cli.write.held_signals import held_signals
from ema_cli.write.lock import output_lock
from ema_cli.write.publish import Writing
from ema_cli.write.writable import check_writable

_PIECE_BYTES = 1 << 24


def write_snapshot(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], *, force: bool
) -> None:
    """Write tensors of any device and strides; replace a snapshot, and any other file only with ``force``.

    Raises:
        ema_cli.errors.OutputError: a tensor or the file cannot be written; nothing was changed.
        ema_cli.errors.OutputLocked: another process writes the file.

    """
    header, ordered = build_header([_layout(path, name, tensor) for name, tensor in tensors.items()], metadata)
    mesh = _mesh_of(tensors.values())
    writes = mesh is None or not any(mesh.get_coordinate())
    with _together(mesh):
        if writes:
            _prepare(path, force=force)
    whole = (_whole(tensors[layout.name]) for layout in ordered)
    with _together(mesh, whole):
        if writes:
            _write(path, header, sum(layout.nbytes for layout in ordered), whole)


def _layout(path: Path, name: str, tensor: torch.Tensor) -> TensorLayout:
    dtype = BY_TORCH_NAME.get(str(tensor.dtype).removeprefix("torch."))
    reason = _why_unwritable(tensor) or ("" if writable_name(name) else "has a name that cannot be written")
    if dtype is None or reason:
        reason = reason or f"has the type {tensor.dtype}, which safetensors cannot hold"
        raise OutputError(f"{quoted(str(path))} cannot be written: tensor {quoted(name)} {reason}")
    return TensorLayout(name=name, dtype=dtype, shape=tuple(tensor.shape), strides=None)


def _why_unwritable(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "is on the meta device, and has no numbers"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "is sparse or nested"
    is_sharded = hasattr(tensor, "full_tensor")
    if not is_sharded and type(tensor.detach()) is not torch.Tensor:
        return f"is a {type(tensor).__name__}, not plain numbers"
    return ""


def _prepare(path: Path, *, force: bool) -> None:
    with Writing(path):
        check_writable(path)
        if path.exists() and not force and not _is_snapshot(path):
            raise OutputError(
                f"{quoted(str(path))} exists and is not a snapshot of a live EMA",
                hint="choose another name, or replace it with force=True",
            )


def _is_snapshot(path: Path) -> bool:
    found = look_at(path)
    return found is not None and found.is_snapshot


def _write(path: Path, header: bytes, data_bytes: int, tensors: Iterable[torch.Tensor]) -> None:
    """Write tensors in the order of their data, and stop without a trace at a signal that ends the program."""
    with held_signals() as came, output_lock(path), ExitStack() as unpublished:
        file = OutputFile(path, header, data_bytes)
        unpublished.callback(file.discard)
        file.open()
        offset = 0
        for tensor in tensors:
            data = _bytes_of(tensor)
            for begin in range(0, len(data), _PIECE_BYTES):
                if came:
                    return
                file.write(offset + begin, data[begin : begin + _PIECE_BYTES])
            offset += len(data)
        file.finish()
        file.publish()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in C order: those of a contiguous one on the CPU themselves."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is, and a sharded one gathered from all processes of its mesh, on the mesh's device."""
    mesh = getattr(tensor, "device_mesh", None)
    return tensor if mesh is None else tensor.to(mesh.device_type).full_tensor()  # type: ignore[attr-defined]


def _mesh_of(tensors: Iterable[torch.Tensor]) -> Any:  # noqa: ANN401 - DeviceMesh; torch.distributed may be missing
    """Return the largest mesh that a tensor is sharded over; ``None`` if none is."""
    meshes = [mesh for tensor in tensors if (mesh := getattr(tensor, "device_mesh", None)) is not None]
    return max(meshes, key=lambda mesh: mesh.size(), default=None)


@contextmanager
def _together(mesh: Any, rest: Iterable[object] = ()) -> Iterator[None]:  # noqa: ANN401 - DeviceMesh
    """Raise an error in the block on every process of the mesh, after what is left to gather together.

    Raises:
        ema_cli.errors.OutputError: another process failed.
        Exception: as in the block.

    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if mesh is None:
            raise
        failure = error
    if mesh is None:
        return
    for _ in rest:
        pass
    words = _from_first(mesh, None if failure is None else (str(failure), getattr(failure, "hint", "")))
    if failure is not None:
        raise failure
    if words is not None:
        raise OutputError(f"the first process could not save the snapshot: {words[0]}", hint=words[1])


def _from_first(mesh: Any, words: tuple[str, str] | None) -> tuple[str, str] | None:  # noqa: ANN401 - DeviceMesh
    """Return what the first process of the mesh gives, on all its processes: along one dimension after the other."""
    distributed = sys.modules["torch.distributed"]
    given = [words]
    for dimension in range(mesh.ndim):
        distributed.broadcast_object_list(given, group=mesh.get_group(dimension), group_src=0)
    return given[0]
