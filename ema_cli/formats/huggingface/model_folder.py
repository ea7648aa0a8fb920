"""Folders in the layout of Hugging Face: a model, an adapter, or a pipeline of several models, which is refused.

A configuration may say that the weights are quantized: ``config.json`` with a ``quantization_config``, at the top or
in the part of one model of several, or a file of the quantizer. Sources: ``transformers/quantizers``, AutoGPTQ,
AutoAWQ, TensorRT Model Optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from ema_cli.errors import InputRefused, NothingMatched, Proposal
from ema_cli.formats.file_names import TRAINER_STATE
from ema_cli.formats.folder import Folder
from ema_cli.formats.huggingface.trainer_files import add_trainer_files
from ema_cli.formats.huggingface.weight_names import (
    Weights,
    files_of_weights,
    find_weights,
    holds_weights,
    weights_of_index,
)
from ema_cli.formats.json_text import JsonError, read_config
from ema_cli.formats.members import read_only_member
from ema_cli.formats.structure import Keys, Structure
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import literal, open_source
from ema_cli.text import quoted, regex, shortlist

_CONFIG = "config.json"
_QUANTIZATION = "quantization_config"
_QUANTIZER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_PIPELINE_INDEX = "model_index.json"
_COMPONENT = regex(r"(?:unet|transformer|vae|text_encoder|controlnet|prior|image_encoder)(?:_(?:ema|lora|[0-9]))?")


def is_model_folder(folder: Folder) -> bool:
    """Whether the files of a folder are one model."""
    return holds_weights(folder.files)


def read_model_folder(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read a model of one file or of several.

    Raises:
        InputRefused: there are several models, or the files cannot be used or do not fit together.

    """
    return _read_weights(folder, find_weights(folder.files), keys, pool)


def read_indexed_model(folder: Folder, index: str, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the model whose index of shards has this name, whatever else is in the folder.

    Raises:
        InputRefused: the files cannot be used or do not fit together.

    """
    return _read_weights(folder, weights_of_index(index), keys, pool)


def _read_weights(folder: Folder, weights: Weights, keys: Keys, pool: LayoutPool) -> Structure:
    if weights.sharded:
        from ema_cli.formats.huggingface.sharded_model import read_shards  # noqa: PLC0415

        structure = read_shards(folder, weights, keys, pool)
    else:
        structure = read_only_member(folder, weights.files[0], keys, pool)
    from ema_cli.formats.weights_beside import add_weights_beside  # noqa: PLC0415 - not for single files

    structure = add_weights_beside(folder, structure, copies=files_of_weights(folder.files))
    return replace(add_trainer_files(folder, structure, pool), stem=weights.model, quantized=_quantization(folder))


def is_pipeline(folder: Folder) -> bool:
    """Whether a folder has the parts of a diffusion pipeline, each in its own folder."""
    trained = any(TRAINER_STATE.search(name) for name in folder.files)
    return _PIPELINE_INDEX in folder.files or (trained and any(_COMPONENT.fullmatch(name) for name in folder.folders))


def refuse_pipeline(folder: Folder, _keys: Keys, _pool: LayoutPool) -> NoReturn:
    """Refuse a pipeline, naming its parts.

    Raises:
        InputRefused: always.

    """
    parts = sorted(name for name in folder.folders if _COMPONENT.fullmatch(name)) or ["unet"]
    run = literal(folder.location.parent)
    proposals = [
        Proposal(reason="average each model by itself", changes={"paths": (f"{run}/*/{part}",)}) for part in parts
    ]
    raise InputRefused(f"is a pipeline of several models: {shortlist(map(quoted, parts))}", proposals=proposals)


def _quantization(folder: Folder) -> str:
    """Return how a folder says that its weights are quantized, in words that continue its name; empty if not.

    A configuration that cannot be used is ignored: the weights can be read without it.

    Raises:
        InputChanged: it changes while it is read, or the system cannot read it.

    """
    own = next((name for name in _QUANTIZER_FILES if name in folder.files), None)
    if own is not None:
        return f"has {quoted(own)}"
    if _CONFIG not in folder.files:
        return ""
    config = _read_config(folder)
    for part in (config, *config.values()):
        found = part.get(_QUANTIZATION) if isinstance(part, dict) else None
        if isinstance(found, dict):
            return f"has a {_QUANTIZATION} in {quoted(_CONFIG)}{_method(found)}"
    return ""


def _method(found: Mapping[str, object]) -> str:
    method = found.get("quant_method")
    return f" (method {quoted(method)})" if isinstance(method, str) else ""


def _read_config(folder: Folder) -> dict[str, object]:
    try:
        with open_source(folder.location / _CONFIG) as source:
            return read_config(source)
    except (InputRefused, NothingMatched, JsonError):
        return {}
