"""The structure of one file. Its format is recognized by its first bytes, whatever its name."""

from __future__ import annotations

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.piece_header import refuse_lone_piece
from ema_cli.formats.safetensors import looks_like_safetensors, read_safetensors
from ema_cli.formats.structure import Keys, Structure, refuse_keys
from ema_cli.formats.torch.first_bytes import looks_like_pickle, looks_like_zip
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.source import ByteSource

_HEAD_BYTES = 512


def read_file(source: ByteSource, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint file.

    Args:
        source: the file.
        keys: dotted paths to the weights in a nested checkpoint; empty to find them.
        pool: shares layouts between the checkpoints of a run.

    Raises:
        InputRefused: it cannot be used; the message continues the name of the file.

    """
    head = _head(source)
    if not head:
        raise InputRefused("is empty")
    if looks_like_safetensors(head):
        if keys:
            raise refuse_keys("is a safetensors file: --key does not apply, as its tensors are not nested")
        structure = read_safetensors(source, pool)
        refuse_lone_piece(structure, source.name)
        return structure
    if looks_like_zip(head):
        from ema_cli.formats.torch.zip_format import read_torch_zip  # noqa: PLC0415 - only the format that there is

        return read_torch_zip(source, keys, pool)
    if looks_like_pickle(head):
        from ema_cli.formats.torch.legacy_format import read_torch_legacy  # noqa: PLC0415

        return read_torch_legacy(source, keys, pool)
    from ema_cli.formats.foreign_archives import foreign_tar, is_tar  # noqa: PLC0415
    from ema_cli.formats.foreign_formats import foreign_file  # noqa: PLC0415

    raise foreign_tar(source) if is_tar(head) else foreign_file(head, source.name)


def is_flat(source: ByteSource) -> bool:
    """Whether the format of a file has no nested tensors."""
    return looks_like_safetensors(_head(source))


def _head(source: ByteSource) -> bytes:
    return source.read(0, min(_HEAD_BYTES, source.size()))
