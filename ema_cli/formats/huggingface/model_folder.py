"""A folder of Hugging Face's layout: a model, an adapter or a part of a pipeline, perhaps saved by a trainer."""

from __future__ import annotations

from dataclasses import replace

from ema_cli.formats.folder import Folder
from ema_cli.formats.huggingface.quantized_config import quantization_in
from ema_cli.formats.huggingface.sharded_model import read_shards
from ema_cli.formats.huggingface.trainer import with_what_lies_beside
from ema_cli.formats.huggingface.weight_names import find_weights, holds_weights
from ema_cli.formats.members import read_only_member
from ema_cli.formats.structure import Structure
from ema_cli.storage.extents import LayoutPool


def is_model_folder(folder: Folder) -> bool:
    """Whether the files of a folder are one model."""
    return holds_weights(folder.files)


def read_model_folder(folder: Folder, key: str | None, pool: LayoutPool) -> Structure:
    """Read a model of one file or of several.

    Raises:
        InputRefused: there are several models, or the files cannot be used or do not fit together.

    """
    weights = find_weights(folder.files)
    if weights.sharded:
        structure = read_shards(folder, weights, key, pool)
    else:
        structure = read_only_member(folder, weights.files[0], key, pool)
    return replace(
        with_what_lies_beside(folder, structure, pool), stem=weights.model, quantized=quantization_in(folder)
    )
