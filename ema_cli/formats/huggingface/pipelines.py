"""Folders that are several models, each in a folder of its own: a diffusion pipeline. They are refused in words."""

from __future__ import annotations

import re
from typing import NoReturn

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import TRAINER_STATE
from ema_cli.formats.folder import Folder
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import quoted, shortlist

_INDEX = "model_index.json"
_COMPONENT = re.compile(r"(?:unet|transformer|vae|text_encoder|controlnet|prior|image_encoder)(?:_(?:ema|lora|[0-9]))?")


def is_pipeline(folder: Folder) -> bool:
    """Whether the parts of a diffusion pipeline lie in a folder."""
    trained = any(TRAINER_STATE.search(name) for name in folder.files)
    return _INDEX in folder.files or (trained and any(_COMPONENT.fullmatch(name) for name in folder.folders))


def refuse_pipeline(folder: Folder, _key: str | None, _pool: LayoutPool) -> NoReturn:
    """Refuse a pipeline, naming its parts.

    Raises:
        InputRefused: always.

    """
    parts = sorted(name for name in folder.folders if _COMPONENT.fullmatch(name)) or ["unet"]
    raise InputRefused(
        f"is a pipeline of several models: {shortlist(map(quoted, parts))}",
        hint=f"average each by itself: ema-avg '{folder.location.parent}/*/{parts[0]}' -o {parts[0]}.safetensors",
    )
