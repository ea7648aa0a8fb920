"""Locations of files and folders, local or remote, behind one set of functions.

A local location is a ``pathlib.Path``. Anything with a scheme (``s3://bucket/run``) is a ``Url``, with the same pure
operations (``name``, ``parent``, ``/``). The functions here ask the file system or the store.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.storage.protocols import split_protocol
from ema_cli.storage.source import ByteSource, FileSource
from ema_cli.storage.url import Url
from ema_cli.text import HIDDEN, is_redacted, numbered, quoted

STREAMED = ("s3", "s3a", "gs", "gcs")
"""Schemes of stores with multi-part uploads, which are completed by a final request."""

Location = Path | Url


def locate(name: str) -> Location:
    """Return the location of a name that the user gave: a URL if it has a protocol, else a local path.

    A local path may begin with ``~``, see ``base_of``. ``file://`` is a local path too, literally: nothing in it is
    decoded. ``file://localhost/x`` is ``/x``.

    Raises:
        UsageError: the protocol is none of ``ema_cli.storage.protocols``, the name is a chain of URLs, or there is no
            such home folder.

    """
    return _located(expanded(name))


def locate_on_disk(name: str) -> Path:
    """Return the path of a file that cannot be in a store; raise as ``locate``, and for a URL."""
    location = locate(name)
    if isinstance(location, Url):
        raise UsageError(f"{quoted(str(location))} is a URL, but this file must be on a disk", hint="name a local file")
    return location


def _located(name: str) -> Location:
    protocol, rest = split_protocol(name)
    if protocol == "file":
        return Path(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest)
    return Url(f"{protocol}://{rest}") if protocol else Path(rest)


def expanded(name: str) -> str:
    """Return a name with a home folder in place of ``~`` at its beginning; raise as ``base_of``."""
    base = base_of(name)
    return os.path.join(base, name.partition("/")[2] if name.startswith("~") else name) if base else name  # noqa: PTH118


def base_of(name: str) -> str:
    """Return the folder that the beginning of a name stands for; empty if it stands for itself.

    As in a shell, ``~`` is the home folder of the user, and ``~jane`` that of another; but what is called ``~jane``
    here comes first. ``./~`` is a name in the working directory: this is returned, because ``Path`` drops the ``./``.

    Raises:
        UsageError: there is no such home folder.

    """
    if not name.startswith("~"):
        return absolute(Path()) if name.startswith("./") and str(Path(name)).startswith("~") else ""
    user, slash, _ = name.partition("/")
    if user != "~" and (os.path.lexists(user) or glob.has_magic(user)):
        return ""
    try:
        home = os.path.expanduser(user)  # noqa: PTH111 - Path.expanduser raises where there is no home
    except ValueError:  # no user can have this name
        return ""
    if home != user:
        return home
    if user != "~" and not slash:
        return ""
    missing = "home folder: HOME is not set" if user == "~" else f"user {quoted(user[1:])}"
    raise UsageError(
        f"{quoted(name)}: there is no {missing}", hint="write the whole path; or ./~NAME for a name in this folder"
    )


def locate_listed(name: str, *, allow_remote: bool) -> Location:
    """Return the location of a name that a file lists, such as a report: whoever wrote the file chose it.

    A local path may be anywhere. A URL needs the permission of the user.

    Raises:
        InputRefused: it is a URL that may not be opened, or not any more; the hint has an option that may help.

    """
    try:
        location = _located(name)
    except UsageError as refused:
        raise InputRefused(refused.message) from refused
    if is_redacted(name) and not (isinstance(location, Path) and location.exists()):
        raise InputRefused(f"{quoted(str(location))} cannot be opened again: a secret was removed from its name")
    if isinstance(location, Path):
        return location
    if not allow_remote:
        message = f"{quoted(str(location))} was not opened: only the report names this URL"
        raise InputRefused(message, hint="--allow-remote opens the URLs that a report names")
    return location


def absolute(location: Location) -> str:
    """Return the name of a location independently of the working directory. Links are not followed.

    That of a URL has no password, and on the web no query: it does not depend on who asks for the file, or when.
    """
    if isinstance(location, Url):
        return location.place
    try:
        return os.path.abspath(location)  # noqa: PTH100
    except OSError:  # the working directory was removed
        return str(location)


def full_name(location: Location) -> str:
    """Return the name that opens a location. It may have a password or a signature: it is never shown."""
    return location.address if isinstance(location, Url) else _unambiguous(str(location))


def _unambiguous(path: str) -> str:
    """Return a path that does not begin with ``~``."""
    return f"./{path}" if path.startswith("~") else path


def common_folder(locations: Sequence[Location]) -> str:
    """Return the folder, local or in a store, that contains all locations; empty if there is none."""
    parents = zip(*(absolute(location).split("/")[:-1] for location in locations), strict=False)
    return "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, parents))


def labels(locations: Sequence[Location], folder: str) -> list[str]:
    """Return the names of locations relative to ``folder``, their ``common_folder``.

    A query that may choose the file is shown as a mark, and the names are numbered if they differ in it alone.
    """
    return numbered([_label(location, folder) for location in locations])


def _label(location: Location, folder: str) -> str:
    if not folder:
        return str(location)
    query = f"?{HIDDEN}" if isinstance(location, Url) and location.choice else ""
    return absolute(location).removeprefix(folder).lstrip("/") + query


def open_source(location: Location) -> ByteSource:
    """Open a file.

    Raises:
        NothingMatched: the file does not exist.
        InputRefused: it is not a regular file, or cannot be read.

    """
    if isinstance(location, Url):
        from ema_cli.storage.remote.remote_source import RemoteSource  # noqa: PLC0415 - fsspec

        return RemoteSource(location)
    return FileSource(location)


def is_folder(location: Location) -> bool:
    """Whether a location is a folder."""
    if isinstance(location, Url):
        from ema_cli.storage.remote.remote_source import is_remote_folder  # noqa: PLC0415

        return is_remote_folder(location)
    return os.path.isdir(location)  # noqa: PTH112 - false for an impossible name, where pathlib raises


def exists(location: Location) -> bool:
    """Whether a location exists, readable or not."""
    if isinstance(location, Path):
        return location.exists()
    try:
        open_source(location).close()
    except NothingMatched:
        return False
    except InputRefused:  # a folder, or unreadable
        return True
    return True


def is_file(location: Location) -> bool:
    """Whether a listed name is a regular file, or a link to one. In a store every object is a file."""
    return isinstance(location, Url) or location.is_file()


def is_link(location: Location) -> bool:
    """Whether a location is a symbolic link, which may lead to nothing. A store has none."""
    return isinstance(location, Path) and os.path.islink(location)  # noqa: PTH114 - false where pathlib raises


def identity_of(folder: Location) -> object:
    """Return the identity of a file or folder, links followed; ``None`` if it does not exist."""
    if isinstance(folder, Url):
        return folder
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def literal(location: Location) -> str:
    """Return the pattern that matches a location alone."""
    return location.address if isinstance(location, Url) else glob.escape(_unambiguous(str(location)))


def names_in(folder: Location) -> dict[str, bool]:
    """Return the names in a folder, and whether each is a folder itself.

    Raises:
        OSError: it cannot be listed.

    """
    if isinstance(folder, Url):
        from ema_cli.storage.remote.remote_source import remote_names_in  # noqa: PLC0415

        return remote_names_in(folder)
    with os.scandir(folder) as entries:
        return {entry.name: _is_inner(entry) for entry in entries}


def _is_inner(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into what may not be read
        return False
