"""Files with weights beside those of a checkpoint folder: ``2_Dense/model.safetensors``, ``mm_projector.bin``.

A folder is read as one model. What else is in it is not averaged, and is reported if it has trained tensors of other
names than the model: a second copy of the model, or an average of it, is no part that is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice

from ema_cli.errors import EmaAvgError, RunWarning
from ema_cli.formats.file import read_file
from ema_cli.formats.file_names import TRAINER_STATE, is_numbered, is_weights
from ema_cli.formats.folder import Folder
from ema_cli.formats.state_dict.leaves_among import WEIGHTS_DROPPED
from ema_cli.formats.state_dict.trainer_averages import is_average
from ema_cli.formats.structure import Structure
from ema_cli.formats.torch.zip_directory import ZipDirectory
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, open_source
from ema_cli.text import plural, quoted, regex, shortlist

_MOST_FILES = 8
"""Files that are opened, in the folder and one level below, each."""
_MOST_FOLDERS = 16
"""Folders that are listed."""
_OTHER_SUFFIXES = (".pkl", ".pickle", ".npz")
"""Of files that hold weights by chance: they are opened here, and not searched for elsewhere."""
_ARRAY_OF_LAYER = regex(r"(?:.*[./_])?(?:weight|kernel)\.npy")
"""The name in an archive of numpy of the matrix of a layer."""
_OTHER_FORMS = regex(r"(?:consolidated|pytorch_model_fsdp|global_step)[_.\d]")
"""The same model in another form: Llama's and Mistral's own, FSDP, DeepSpeed."""


def add_weights_beside(folder: Folder, structure: Structure, *, copies: Collection[str] = ()) -> Structure:
    """Return the structure of a model in a folder with a warning about other weights in that folder, if there are any.

    Args:
        folder: its files that were opened belong to the model.
        structure: of the model.
        copies: names of files that are another copy of the model.

    """
    names = {layout.name for layout in structure.layouts}
    found = []
    for name, location in _candidates(folder, copies):
        count = _new_tensors(location, names)
        if count:
            found.append(f"{quoted(name)} ({plural(count, 'tensor')})")
    if not found:
        return structure
    warning = RunWarning(
        code=WEIGHTS_DROPPED,
        message=f"beside the weights there are files with tensors that are not in the output: {shortlist(found)}",
        hint="average these files by themselves, with the same options",
    )
    return replace(structure, dropped=(*structure.dropped, warning))


def _candidates(folder: Folder, copies: Collection[str]) -> Iterator[tuple[str, Location]]:
    """Yield name and location of a few files that may hold other weights, in the folder and one level below."""
    unread = [name for name in sorted(folder.files) if name not in folder.opened and name not in copies]
    files = [name for name in unread if _may_be_part(name)]
    yield from ((name, folder.location / name) for name in files[:_MOST_FILES])
    yield from islice(_below(folder), _MOST_FILES)


def _below(folder: Folder) -> Iterator[tuple[str, Location]]:
    """Yield name and location of the first file with weights of each folder one level below."""
    inner = [name for name in sorted(folder.folders) if not name.startswith(".") and _is_unknown(name)]
    for name in inner[:_MOST_FOLDERS]:
        try:
            inside = folder.inside(name)
        except EmaAvgError:
            continue
        weights = next((file for file in sorted(inside.files) if _may_be_part(file)), None)
        if weights is not None:
            yield f"{name}/{weights}", inside.location / weights


def _may_be_part(name: str) -> bool:
    """Whether a file may hold weights of a part of the model, judged by its name."""
    return (is_weights(name) or name.lower().endswith(_OTHER_SUFFIXES)) and _is_unknown(name)


def _is_unknown(name: str) -> bool:
    """Whether a file or folder may be a part of the model, judged by its name: no state, average or checkpoint."""
    known = _OTHER_FORMS.match(name) or TRAINER_STATE.search(name) or is_average(name.partition(".")[0])
    return not (known or is_numbered(name))


def _new_tensors(location: Location, names: Collection[str]) -> int:
    """Return the number of trained tensors of a file that are not in the model; 0 if it is not a checkpoint."""
    try:
        with open_source(location) as source:
            if location.name.lower().endswith(".npz"):
                return sum(_ARRAY_OF_LAYER.fullmatch(name) is not None for name in ZipDirectory(source).names)
            layouts = read_file(source, (), LayoutPool()).layouts
    except EmaAvgError:
        return 0
    return sum(layout.dtype.averaged and layout.elements > 1 and layout.name not in names for layout in layouts)
