"""The files of a checkpoint folder that a copy of it gets: all of them, as they are.

A copy never follows a link out of the folder. What cannot be copied is refused, as the copy would not be the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.planning.linked_files import open_inside
from ema_cli.record import record
from ema_cli.records.files import FileRole, SideFile
from ema_cli.storage.locations import Location, is_link, names_in
from ema_cli.text import listing, quoted

_MOST_FILES = 100_000
_MOST_DEPTH = 32
_MOST_LINES = 8


@record
class FolderContents:
    """What is in a folder."""

    files: tuple[str, ...]
    """Paths from the folder, with ``/``."""
    empty_folders: tuple[str, ...]


def contents_below(root: Location) -> FolderContents:
    """Return everything in a folder and in those inside it.

    Raises:
        InputRefused: a folder cannot be listed or is a link, or there are too many files.

    """
    files: list[str] = []
    empty: list[str] = []
    for name, is_folder in _below(root, "", 0):
        (empty if is_folder else files).append(name)
        if len(files) + len(empty) > _MOST_FILES:
            raise InputRefused(f"{quoted(str(root))} has more than {_MOST_FILES:,} files, too many to copy")
    return FolderContents(files=tuple(files), empty_folders=tuple(empty))


def _below(folder: Location, above: str, depth: int) -> Iterator[tuple[str, bool]]:
    """Yield the files below a folder, and the folders that are empty; every name begins with ``above``."""
    try:
        names = names_in(folder)
    except OSError as error:
        raise InputRefused(f"{quoted(str(folder))} cannot be listed: {error.strerror}") from error
    if depth > _MOST_DEPTH:
        raise InputRefused(f"{quoted(str(folder))} is more than {_MOST_DEPTH} folders deep, too deep to copy")
    if above and not names:
        yield above.rstrip("/"), True
    for name, is_folder in sorted(names.items()):
        if not is_folder:
            yield f"{above}{name}", False
        elif is_link(folder / name):
            raise InputRefused(
                f"{quoted(str(folder / name))} is a link to a folder, which is not copied",
                hint="move it out of the checkpoint, or put the folder itself there",
            )
        else:
            yield from _below(folder / name, f"{above}{name}/", depth + 1)


def below(root: Location, name: str) -> Location:
    """Return the location of a file of ``FolderContents``."""
    for part in name.split("/"):
        root = root / part
    return root


def plan_copies(root: Location, names: Collection[str]) -> tuple[SideFile, ...]:
    """Return the copies of files of a folder.

    Raises:
        InputRefused: naming the files that cannot be copied.

    """
    copies: list[SideFile] = []
    refused: list[str] = []
    for name in sorted(names):
        try:
            with open_inside(below(root, name)) as source:
                copies.append(
                    SideFile(
                        name=name,
                        role=FileRole.SIDE_FILE,
                        nbytes=source.size(),
                        source=below(root, name),
                        state=source.state,
                    )
                )
        except EmaAvgError as error:
            refused.append(error.message)
    if refused:
        raise InputRefused(
            listing(f"{quoted(str(root))} cannot be copied:", refused, most=_MOST_LINES),
            hint="move these out of the checkpoint; or -o ema.safetensors writes the averages by themselves",
        )
    return tuple(copies)
