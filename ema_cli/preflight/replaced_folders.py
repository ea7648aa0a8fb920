"""Which folders a run may replace: outputs of this program, with the report beside them that lists their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ema_cli.errors import EmaAvgError, NothingMatched, OutputError
from ema_cli.formats.open import look_at
from ema_cli.formats.own_outputs import is_as_reported, marked, output_without_metadata
from ema_cli.records.files import FileRole, is_weights
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.records.reported_output import Output
from ema_cli.report.beside import load_report, report_path
from ema_cli.storage.locations import Location
from ema_cli.text import quoted, shortlist
from ema_cli.write.old_folder import OldFolder, describe_entries, examine_old_folder
from ema_cli.write.publish import Writing
from ema_cli.write.temp_names import is_nonempty_folder

NO_REPORT = "without a readable report beside it"
_SHOWN = 8
"""Names of foreign files in a message."""


def find_replaced(plan: Plan) -> Mapping[Path, OldFolder]:
    """Return the folders that the outputs of a plan replace, with what happens to each file in them.

    Raises:
        OutputError: a folder is not an output of this program, or has something that can neither be replaced nor kept.

    """
    folders = [output for output in plan.outputs if output.folder and isinstance(output.path, Path)]
    found = {output.local: examine_output_folder(output) for output in folders}
    return {path: old for path, old in found.items() if old is not None}


def examine_output_folder(output: PlannedOutput) -> OldFolder | None:
    """Return how the files of the folder at the path of an output are treated; ``None`` if there is nothing in it.

    Raises:
        OutputError: as ``find_replaced`` does.

    """
    folder = output.local
    with Writing(folder):
        if not is_nonempty_folder(folder):
            return None
        listed = _listed_files(folder)
        old = examine_old_folder(folder, listed, output.sizes)
        refuse_unlisted_weights(folder, old.kept if old else ())
        return old


def refuse_unlisted_weights(folder: Location, kept: Iterable[str]) -> None:
    """Raise if weights stay in a replaced folder: a library could load them, and verify would find another output.

    Raises:
        OutputError: naming them.

    """
    weights = [quoted(name) for name in kept if is_weights(name)]
    if weights:
        contents = f"{shortlist(weights, most=_SHOWN)}, weights that its report does not list"
        raise OutputError(
            f"{quoted(str(folder))} cannot be replaced: it contains {contents}",
            hint="move them, or choose another name with -o",
        )


def foreign_folder(folder: Location, reason: str, contents: Sequence[str]) -> OutputError:
    """Return the error for a folder that is not an output of this program, with a list of what is in it."""
    return OutputError(
        f"{quoted(str(folder))} already exists, {reason}, and is not replaced: it contains "
        f"{shortlist(contents, most=_SHOWN)}",
        hint="choose another name with -o, or move these files",
    )


def _listed_files(folder: Path) -> frozenset[str]:
    """Return the names of the files in the report beside a folder, at least one of which is there in its size.

    One must have weights that this program wrote: side files are equal in every checkpoint folder of a model, and
    whoever wrote the report chose the names.

    Raises:
        OutputError: there is no such report; the message lists what is in the folder.

    """
    path = report_path(folder)
    try:
        outputs = [average.output for average in load_report(path).averages]
        files = [file for output in outputs for file in output.files]
    except NothingMatched:
        reason = NO_REPORT
    except EmaAvgError as error:
        reason = f"{NO_REPORT} ({error.message})"
    else:
        ours = any(map(partial(_is_ours, folder), outputs))
        if ours and any(_has_size(folder / file.name, file.bytes) for file in files):
            return frozenset(file.name for file in files)
        reason = f"but {quoted(path.name)} describes other files"
    raise foreign_folder(folder, reason, describe_entries(folder))


def _is_ours(folder: Path, output: Output) -> bool:
    """Whether a file with weights in a folder is of this program: by its metadata, else by its report."""
    if output.format == "safetensors":
        return any(is_our_output(folder / file.name) for file in output.files if file.name.endswith(".safetensors"))
    weights = (file for file in output.files if file.role == FileRole.WEIGHTS)
    return any(is_as_reported(folder / file.name, file) for file in weights)


def is_our_output(path: Location) -> bool:
    """Whether a file is an output of this program, by its metadata, or by the report beside it."""
    if output_without_metadata(path) is not None:
        return True
    found = look_at(path)
    return found is not None and marked(found).made_by_us


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.lstat().st_size == size
    except OSError:
        return False
