"""Which folders of a store a run may replace: outputs of this program, with the report beside them.

Other files in such a folder stay. Weights that the report does not list would stay as well, and a library could load
them instead of the new ones.
"""

from __future__ import annotations

from ema_cli.errors import EmaAvgError
from ema_cli.preflight.replaced_folders import NO_REPORT, foreign_folder, refuse_unlisted_weights
from ema_cli.records.plan import Plan, PlannedOutput
from ema_cli.report.beside import read_report, report_path
from ema_cli.storage.locations import names_in
from ema_cli.storage.url import Url
from ema_cli.text import quoted


def refuse_foreign_objects(plan: Plan) -> None:
    """Raise if an output would be written into a folder of a store that is not an output of this program.

    Raises:
        OutputError: naming the files.

    """
    for output in plan.outputs:
        if output.folder and isinstance(output.path, Url):
            _refuse_foreign(output, [name for name, is_folder in _names(output.path).items() if not is_folder])


def _names(folder: Url) -> dict[str, bool]:
    """Return the names in a folder; none if it cannot be listed: the upload reports that."""
    try:
        return names_in(folder)
    except (OSError, EmaAvgError):
        return {}


def _refuse_foreign(output: PlannedOutput, names: list[str]) -> None:
    if not names:
        return
    report = read_report(output.path)
    listed = {file.name for average in report.averages for file in average.output.files} if report else set()
    if listed.isdisjoint(names):
        reason = f"but {quoted(report_path(output.path).name)} describes other files" if report else NO_REPORT
        raise foreign_folder(output.path, reason, [quoted(name) for name in sorted(names)])
    refuse_unlisted_weights(output.path, sorted(set(names) - listed - set(output.sizes)))
