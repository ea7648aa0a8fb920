"""Checkpoint folders of other programs, recognized by the names in them.

Sources: ``tf.train.Checkpoint`` and ``tf.saved_model``; the checkpoint format guide of Orbax (``manifest.ocdbt``,
``_METADATA``, ``_CHECKPOINT_METADATA``); ``megatron/core/dist_checkpointing/strategies/zarr.py``; zarr version 2
(``.zarray``); coremltools (``.mlpackage``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import SUFFIXES, is_numbered
from ema_cli.formats.folder import Folder
from ema_cli.formats.foreign_formats import CONVERT_LATER, TENSORFLOW_STEP, ForeignFile
from ema_cli.formats.structure import Keys
from ema_cli.record import record
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import regex

_TENSORFLOW_DATA = regex(r"(.+)\.data-\d{5}-of-\d{5}")
_ORBAX = {"manifest.ocdbt", "_CHECKPOINT_METADATA", "orbax.checkpoint"}
_MOST_INNER = 4
"""Folders inside that are listed."""


@record
class ForeignFolder:
    """A layout that is not read."""

    kind: str
    """With its article."""
    next_step: str
    recognize: Callable[[Folder], bool]
    """Whether a folder has this layout, judged by names alone."""


def foreign_folder(folder: Folder) -> ForeignFolder | None:
    """Return the layout of another program that a folder has; ``None`` if it has none that is known."""
    return next((known for known in _LAYOUTS if known.recognize(folder)), None)


def is_foreign_folder(folder: Folder) -> bool:
    """Whether a folder is a checkpoint of another program."""
    return foreign_folder(folder) is not None


def refuse_foreign_folder(folder: Folder, _keys: Keys, _pool: LayoutPool) -> NoReturn:
    """Refuse a checkpoint folder of another program.

    Raises:
        InputRefused: always.

    """
    known = foreign_folder(folder)
    raise ForeignFile(known.kind, known.next_step) if known else InputRefused("has changed")


def _is_tensorflow(folder: Folder) -> bool:
    """Whether a folder has data files of TensorFlow with their index, and no checkpoints of torch beside them."""
    stems = {found[1] for name in folder.files if (found := _TENSORFLOW_DATA.fullmatch(name))}
    return any(f"{stem}.index" in folder.files for stem in stems) and not any(
        name.lower().endswith(SUFFIXES) for name in folder.files
    )


def _is_orbax(folder: Folder) -> bool:
    """Whether a folder has the files of Orbax, or is numbered and has a folder inside with them."""
    if _ORBAX & folder.files:
        return True
    return is_numbered(folder.location.name) and any(_ORBAX & inner.files for inner in _inner(folder))


def _is_zarr(folder: Folder) -> bool:
    """Whether the folders inside are arrays of zarr, as Megatron Core and T5X write them."""
    named = {"common.pt", "metadata.json", "checkpoint"} & folder.files
    return bool(named) and any(".zarray" in inner.files for inner in _inner(folder))


def _inner(folder: Folder) -> Iterator[Folder]:
    """Yield the first folders inside that can be listed."""
    for name in sorted(folder.folders)[:_MOST_INNER]:
        with suppress(InputRefused):
            yield folder.inside(name)


_LAYOUTS = (
    ForeignFolder(
        kind="a TensorFlow SavedModel",
        next_step=TENSORFLOW_STEP,
        recognize=lambda folder: bool({"saved_model.pb", "saved_model.pbtxt"} & folder.files),
    ),
    ForeignFolder(kind="a TensorFlow checkpoint", next_step=TENSORFLOW_STEP, recognize=_is_tensorflow),
    ForeignFolder(
        kind="an Orbax checkpoint (JAX)",
        next_step="write its arrays to safetensors with orbax.checkpoint, as shown by: ema-avg help formats",
        recognize=_is_orbax,
    ),
    ForeignFolder(
        kind="a checkpoint of zarr arrays (Megatron Core or T5X)",
        next_step="convert it with Megatron-LM: --ckpt-convert-format torch_dist --ckpt-convert-save FOLDER",
        recognize=_is_zarr,
    ),
    ForeignFolder(
        kind="a Core ML package",
        next_step=CONVERT_LATER,
        recognize=lambda folder: "Manifest.json" in folder.files and "Data" in folder.folders,
    ),
)
