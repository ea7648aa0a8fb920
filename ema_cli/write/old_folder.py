"""The folder that a new one replaces: its files that are replaced, and the foreign files that the new folder keeps.

Foreign files get a second name in the new folder (a hard link) before it is published, or are copied where the file
system has no such links. The old folder is removed afterwards, file by file, and only what was seen in it before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.record import record
from ema_cli.text import quoted, shortlist
from ema_cli.write.permissions import Permissions
from ema_cli.write.publish import FileState, kind_of, state_of
from ema_cli.write.temp_names import visible_name

_EFFECTIVE = os.access in os.supports_effective_ids
_OF_NFS = ".nfs"
"""Names of files that NFS has removed while they are open."""


@record
class OldFolder:
    """The files of a folder before it is replaced, by name."""

    path: Path
    state: FileState
    """Of the folder itself."""
    replaced: Mapping[str, FileState]
    kept: Mapping[str, FileState]
    has_inner: bool = False
    """Whether it may have folders inside it."""

    def permissions_of_new_files(self) -> Permissions | None:
        """Return what files of a new name are permitted at most: what all replaced files are.

        Raises:
            OSError: a file cannot be looked up.

        """
        found = (Permissions.of(self.path / name) for name in self.replaced)
        return Permissions.common(one for one in found if one is not None)

    def give_kept_files(self, new: Path) -> None:
        """Put the kept files into the new folder.

        Raises:
            OutputError: a file can be neither linked nor copied.

        """
        for name in self.kept:
            try:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(self.path / name, new / name)
            except OSError as error:
                reason = error.strerror or str(error)
                raise OutputError(
                    f"{quoted(str(self.path))} cannot be replaced: its file {quoted(name)} cannot be kept: {reason}",
                    hint="move it, or choose another name with -o",
                ) from error

    def refuse_changed(self, folder: Path, new: Path) -> None:
        """Raise if the old folder, now called ``folder``, has other files than before.

        A kept file may change where the folder ``new`` has the same file.

        Raises:
            OutputError: naming the files.
            OSError: a folder cannot be listed.

        """
        before = {**self.replaced, **self.kept}
        now = {name: state_of(folder / name) for name, _ in _entries(folder, inner=self.has_inner)}
        names = [name for name in {**before, **now} if now.get(name) != before.get(name)]
        changed = [name for name in names if name not in self.kept or not _is_one_file(folder / name, new / name)]
        if changed:
            what = f"{shortlist(map(quoted, changed))} in {quoted(str(self.path))}"
            verb = "was" if len(changed) == 1 else "were"
            message = f"{what} {verb} changed, added or removed by another program during the run"
            raise OutputError(message, hint="run again, or choose another name with -o")

    def remove(self, folder: Path) -> None:
        """Remove the old folder, now called ``folder``. Files that are not known get a visible name and stay.

        Raises:
            OSError: it cannot be removed; a later run tries again.

        """
        with contextlib.suppress(OSError):
            folder.chmod(stat.S_IRWXU)
        for name, state in {**self.replaced, **self.kept}.items():
            now = state_of(folder / name)
            if now is not None and now[:2] == state[:2]:
                (folder / name).unlink()
        if self.has_inner:
            _remove_empty(folder)
        if all(name.startswith(_OF_NFS) for name in (entry.name for entry in folder.iterdir())):
            folder.rmdir()
        else:
            folder.rename(visible_name(self.path))


def examine_old_folder(path: Path, listed: Collection[str], new: Collection[str]) -> OldFolder | None:
    """Return how the files of a folder are treated when it is replaced; ``None`` if there is nothing in it.

    Args:
        path: of the folder.
        listed: names of the files that are an output of this program, and are replaced.
        new: names of the files to write. If files in folders inside it are among them, with ``/`` in their names, it
            may have such folders.

    Raises:
        OutputError: it has folders, links or devices, or a foreign file that cannot be kept.
        OSError: it cannot be listed.

    """
    state = state_of(path)
    if state is None or not path.is_dir():
        return None
    has_inner = any("/" in name for name in (*listed, *new))
    kinds = dict(_entries(path, inner=has_inner))
    obstacles = [*_obstacles(path, kinds, listed, new)]
    if obstacles:
        raise OutputError(
            f"{quoted(str(path))} cannot be replaced: it contains {shortlist(obstacles)}",
            hint="move that, or choose another name with -o",
        )
    if not kinds:
        return None
    states = {name: found for name in sorted(kinds) if (found := state_of(path / name)) is not None}
    return OldFolder(
        path=path,
        state=state,
        replaced={name: found for name, found in states.items() if name in listed},
        kept={name: found for name, found in states.items() if name not in listed},
        has_inner=has_inner,
    )


def _remove_empty(folder: Path) -> None:
    """Remove the folders inside a folder that have no file."""
    for inner, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            if inner != str(folder):
                os.rmdir(inner)  # noqa: PTH106 - a name of os.walk


def _entries(folder: Path, above: str = "", *, inner: bool) -> Iterator[tuple[str, int]]:
    """Yield name and mode of what is in a folder; with ``inner``, of the files in its folders instead of those.

    Raises:
        OSError: a folder cannot be listed.

    """
    with os.scandir(folder) as entries:
        found = sorted((entry.name, os.lstat(entry).st_mode) for entry in entries)
    for name, mode in found:
        if inner and stat.S_ISDIR(mode):
            yield from _entries(folder / name, f"{above}{name}/", inner=True)
        else:
            yield f"{above}{name}", mode


def describe_entries(folder: Path) -> list[str]:
    """Return the names in a folder for a message, each with its kind unless it is a regular file.

    Raises:
        OSError: it cannot be listed.

    """
    kinds = {entry.name: os.lstat(entry).st_mode for entry in os.scandir(folder)}
    return [_describe(name, kinds[name]) for name in sorted(kinds)]


def _obstacles(folder: Path, kinds: Mapping[str, int], listed: Collection[str], new: Collection[str]) -> Iterator[str]:
    for name, mode in sorted(kinds.items()):
        if not stat.S_ISREG(mode):
            yield _describe(name, mode)
        elif name in new and name not in listed:
            yield f"{quoted(name)}, which its report does not list and the new output would overwrite"
        elif name not in listed and not _can_be_kept(folder / name):
            yield f"{quoted(name)}, a file of another user that cannot be read"


def _can_be_kept(path: Path) -> bool:
    """Whether a file can be linked, as its owner can, or read to be copied."""
    return os.lstat(path).st_uid == os.geteuid() or os.access(path, os.R_OK, effective_ids=_EFFECTIVE)


def _describe(name: str, mode: int) -> str:
    return quoted(name) if stat.S_ISREG(mode) else f"the {kind_of(mode)} {quoted(name)}"


def _is_one_file(one: Path, other: Path) -> bool:
    states = state_of(one), state_of(other)
    return states[0] is not None and states[0] == states[1]


def _link_or_copy(source: Path, place: Path) -> None:
    """Give a file a second name; copy it with its mode and times where the system refuses that.

    Raises:
        OSError: the file cannot be read, the place is taken, or there is no space.

    """
    try:
        os.link(source, place, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        _copy(source, place)


def _copy(source: Path, place: Path) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(source, "rb", opener=lambda name, _: os.open(name, flags)) as old:
        status = os.fstat(old.fileno())
        with open(place, "xb", opener=lambda name, flags: os.open(name, flags, stat.S_IRUSR | stat.S_IWUSR)) as new:
            shutil.copyfileobj(old, new)
            new.flush()
            Permissions(mode=status.st_mode & 0o777, group=status.st_gid).set_on(new.fileno())
            os.utime(new.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(new.fileno())
