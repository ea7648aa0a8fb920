"""How a report names its inputs: relative to the working directory of the run, and to the folder of its output.

The second path is what makes ``verify`` work from any directory, also after a folder with a run and its output was
moved. It is relative to the folder of the output, where the report of that output is too.
"""

from __future__ import annotations

import os
from pathlib import Path

from ema_cli.records.reported_output import Output
from ema_cli.report.model import Input
from ema_cli.storage.locations import Location, identity_of, locate_listed
from ema_cli.storage.url import Url


def path_from_output(path: Location, output: Location) -> str | None:
    """Return the path of an input relative to the folder of an output; ``None`` unless both are on one disk.

    Links in the path of the folder are followed if ``..`` would lead elsewhere behind them.
    """
    if isinstance(path, Url) or isinstance(output, Url):
        return None
    for folder in (output.parent, Path(os.path.realpath(output.parent))):
        name = _relative(str(path), str(folder))
        if name is not None and identity_of(folder / name) == identity_of(path):
            return name
    return None


def path_from_other(known: Input, output: str, other: str) -> str | None:
    """Return the path of an input relative to the folder of another output of the same run."""
    old, new = os.path.dirname(output), os.path.dirname(other)  # noqa: PTH120 - of text
    if known.path_from_output is None or old == new:
        return known.path_from_output
    return _relative(os.path.join(old, known.path_from_output), new)  # noqa: PTH118


def listed_locations(known: Input, output: Output, folder: Location, *, allow_remote: bool) -> tuple[Location, ...]:
    """Return the locations that an input of a report can have, without looking whether anything is there.

    They are: from the working directory; from ``folder``, where the output is now, by the path that is relative to the
    output; and the path of the run from there, as if run and output were side by side.

    Raises:
        InputRefused: it is a URL that may not be opened.

    """
    location = locate_listed(known.path, allow_remote=allow_remote)
    if isinstance(location, Url) or (isinstance(folder, Url) and (location.is_absolute() or not allow_remote)):
        return (location,)
    if isinstance(folder, Url):
        return (location, folder / known.path)
    from_output = _of_older_version(known, output) if known.path_from_output is None else known.path_from_output
    beside = [folder / from_output] if from_output else []
    return tuple(dict.fromkeys((location, *beside, folder / location)))


def _of_older_version(known: Input, output: Output) -> str | None:
    """Return the path relative to the output from a report without it, if its two paths begin at the same place."""
    paths = (known.path, output.path)
    return _relative(known.path, os.path.dirname(output.path)) if len({*map(os.path.isabs, paths)}) == 1 else None  # noqa: PTH120


def _relative(path: str, folder: str) -> str | None:
    """Return a path relative to a folder; ``None`` if there is none."""
    try:
        return os.path.relpath(path, folder or os.curdir)
    except (OSError, ValueError):  # another drive, or the working directory was removed
        return None
