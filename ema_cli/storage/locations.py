"""Where files and folders are: local paths and URLs under one set of questions.

A local path is a ``pathlib.Path``. Anything with a scheme (``s3://bucket/run``) is a ``Url``, which has the same
pure operations (``name``, ``parent``, ``/``); what needs the store is asked through the functions of this module.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.storage.source import ByteSource, FileSource
from ema_cli.storage.url import Url

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
STREAMED = ("s3", "s3a", "gs", "gcs")
"""Schemes of stores that take an upload in parts, and complete it when they are told to."""


Location = Path | Url


def locate(name: str) -> Location:
    """Return what a name on the command line means: a URL if it has a scheme, else a local path."""
    if name.startswith("file://"):
        return Path(name.removeprefix("file://"))
    return Url(name) if _SCHEME.match(name) else Path(name)


def absolute(location: Location) -> str:
    """Return the name of a place that does not depend on the working directory. Links are not followed."""
    if isinstance(location, Url):
        return str(location)
    try:
        return os.path.abspath(location)  # noqa: PTH100
    except OSError:  # the working directory was removed, and nothing can be reached by such a name
        return str(location)


def open_source(location: Location) -> ByteSource:
    """Open a file.

    Raises:
        NothingMatched: there is no such file.
        InputRefused: it is not a regular file, or may not be read.

    """
    if isinstance(location, Url):
        from ema_cli.storage.remote.remote_source import RemoteSource  # noqa: PLC0415 - fsspec

        return RemoteSource(location)
    return FileSource(location)


def is_folder(location: Location) -> bool:
    """Whether there is a folder of that name."""
    if isinstance(location, Url):
        from ema_cli.storage.remote.remote_source import is_remote_folder  # noqa: PLC0415

        return is_remote_folder(location)
    return os.path.isdir(location)  # noqa: PTH112 - of an impossible name it says no, where pathlib raises


def exists(location: Location) -> bool:
    """Whether something is there that can be opened, or cannot for another reason than that it is missing."""
    if isinstance(location, Path):
        return location.exists()
    try:
        open_source(location).close()
    except NothingMatched:
        return False
    except InputRefused:  # a folder, or what may not be read
        return True
    return True


def is_file(location: Location) -> bool:
    """Whether what was listed under that name is a regular file, or leads to one; in a store all that lies there is."""
    return isinstance(location, Url) or location.is_file()


def names_in(folder: Location) -> dict[str, bool]:
    """Return the names in a folder, and whether each is a folder itself.

    Raises:
        OSError: it cannot be listed.

    """
    if isinstance(folder, Url):
        from ema_cli.storage.remote.remote_source import remote_names_in  # noqa: PLC0415

        return remote_names_in(folder)
    return {path.name: path.is_dir() for path in folder.iterdir()}
