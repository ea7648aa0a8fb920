"""Open one checkpoint file: recognise its format by its first bytes, read its structure, clean its names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.formats.prefixes import strip_prefixes
from ema_cli.formats.safetensors import looks_like_safetensors, read_safetensors
from ema_cli.formats.structure import Structure
from ema_cli.formats.torch_legacy import looks_like_pickle, read_torch_legacy
from ema_cli.formats.torch_zip import read_torch_zip
from ema_cli.formats.zip_archive import looks_like_zip
from ema_cli.records import Checkpoint
from ema_cli.storage.extents import LayoutPool, TensorIndex
from ema_cli.storage.source import ByteSource, FileSource
from ema_cli.text import quoted

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
"""What checkpoint files are called, where a folder is searched for them."""
_HEAD_BYTES = 512
_VERBS = ("contradicts", "declares", "has", "holds", "is", "names", "refers")
"""A reason that begins with one of these goes on after the name of the file; any other after a colon."""
_TAR_MAGIC = slice(257, 262)


def open_checkpoint(
    path: Path, *, pool: LayoutPool, key: str | None = None, strip_prefix: str | None = None
) -> Checkpoint:
    """Read the structure of a checkpoint file; the file stays open for the fold.

    Args:
        path: a file in any supported format, whatever its name.
        pool: where layouts are shared between the checkpoints of a run.
        key: dotted path to the weights in a nested checkpoint; ``None`` to find them.
        strip_prefix: prefix to take off the names; ``None`` for those of known wrappers.

    Raises:
        NothingMatched: there is no such file.
        InputRefused: it cannot be used; the message names the file and the reason.

    """
    source = FileSource(path)
    try:
        structure = _read_structure(source, key, pool)
        names, stripped = strip_prefixes([layout.name for layout in structure.layouts], strip_prefix)
    except EmaAvgError as refused:
        source.close()
        if isinstance(refused, InputRefused):
            verb = refused.message.partition(" ")[0] in _VERBS
            raise InputRefused(
                f"{quoted(str(path))}{'' if verb else ':'} {refused.message}", hint=refused.hint
            ) from refused
        raise
    except BaseException:
        source.close()
        raise
    layouts = structure.layouts
    if stripped:
        layouts = tuple(replace(layout, name=name) for layout, name in zip(layouts, names, strict=True))
    index = TensorIndex(source, pool.intern(layouts), structure.offsets)
    return Checkpoint(
        path=path,
        format=structure.format,
        index=index,
        key=structure.key,
        stripped=stripped,
        steps=structure.steps,
        fingerprint=f"{source.size()}-{source.version}-{structure.digest.hex()[:32]}",
        metadata=structure.metadata or {},
        ignored=structure.ignored,
        notes=structure.notes,
    )


def is_flat(path: Path) -> bool:
    """Whether a file is of a format whose tensors are not nested.

    Raises:
        NothingMatched: there is no such file.
        InputRefused: it cannot be opened.

    """
    with FileSource(path) as source:
        return looks_like_safetensors(source.read(0, min(_HEAD_BYTES, source.size())))


def _read_structure(source: ByteSource, key: str | None, pool: LayoutPool) -> Structure:
    head = source.read(0, min(_HEAD_BYTES, source.size()))
    if not head:
        raise InputRefused("is empty")
    if looks_like_safetensors(head):
        if key is not None:
            raise InputRefused("is a safetensors file, whose tensors are not nested: --key does not apply")
        return read_safetensors(source, pool)
    if looks_like_zip(head):
        return read_torch_zip(source, key, pool)
    if looks_like_pickle(head):
        return read_torch_legacy(source, key, pool)
    if head[_TAR_MAGIC] == b"ustar":
        raise InputRefused("is a tar archive, as torch wrote before 0.2", hint="load and save it with a newer torch")
    raise InputRefused(f"is not a checkpoint: it begins with {head[:8]!r}")
