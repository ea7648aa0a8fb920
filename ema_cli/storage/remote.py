"""Files in remote stores, read by ranges through fsspec: planning takes kilobytes, folding each needed byte once.

What the fold announces is fetched ahead, in large requests, several at a time; everything else is read in small
blocks. An object is pinned when it is opened: one that changes while it is read is an error.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import OrderedDict
from datetime import datetime
from typing import Any

from ema_cli.errors import InputChanged, InputRefused, NothingMatched, UsageError
from ema_cli.storage.ahead import Ahead
from ema_cli.storage.locations import Url
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted

_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.2
_BLOCK_BYTES = 1 << 16
"""Of a read that was not announced, at least this much is fetched: structure is read in small pieces."""
_BLOCKS = 8
_LIBRARIES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
"""The extra of this package that brings what a scheme needs."""
_PINNED = ("size", "ETag", "etag", "VersionId", "generation", "LastModified", "mtime", "updated", "created", "lfs")
"""What stores tell of an object that changes with it."""


class RemoteSource(ByteSource):
    """An object in a remote store.

    Raises:
        NothingMatched: there is no such object.
        InputRefused: it may not be read, is no file, or its server does not give parts of it.
        UsageError: the library for such a store is not installed.

    """

    far = True
    window_bytes = 1 << 23
    ahead_bytes = 1 << 28

    def __init__(self, url: Url) -> None:
        self.name = str(url)
        self._url = url
        self._store, self._path = store_of(url)
        info = _info(self._store, self._path, url)
        if info is None:
            raise NothingMatched(f"there is no {quoted(self.name)}")
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise InputRefused(f"{quoted(self.name)} is not a file of known size")
        self._size = int(info["size"])
        if url.scheme.startswith("http") and not _gives_parts(self._store, self._path, self._size):
            raise InputRefused(f"{quoted(self.name)} is on a server that does not give parts of files (ranges)")
        self._pinned = _pin(info)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead = Ahead(self._fetch)

    @property
    def identity(self) -> str:
        """The address."""
        return self._url.address

    @property
    def version(self) -> int:
        """Time of the last modification in nanoseconds, where the store tells it; else a hash of what it tells."""
        modified = next((value for value in self._pinned if isinstance(value, datetime)), None)
        if modified is not None:
            return int(modified.timestamp() * 1e9)
        return int.from_bytes(hashlib.sha256(repr(self._pinned).encode()).digest()[:7], "big")

    def size(self) -> int:
        """Return the size when the object was opened."""
        return self._size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``: from what was fetched ahead, else from a block of the object."""
        view = memoryview(buffer).cast("B")
        if offset + len(view) > self._size:
            raise InputChanged(f"{quoted(self.name)} ends at byte {self._size:,}")
        done = 0
        while done < len(view):
            taken = self._ahead.take(offset + done, view[done:])
            if taken == 0:
                taken = self._read_block(offset + done, view[done:])
            done += taken

    def _read_block(self, offset: int, view: memoryview) -> int:
        """Fill some of ``view`` and return how much: a long read is one request, a short one a block that is kept."""
        if len(view) >= _BLOCK_BYTES:
            view[:] = self._fetch(offset, offset + len(view))
            return len(view)
        begin = offset - offset % _BLOCK_BYTES
        block = self._blocks.get(begin)
        if block is None:
            block = self._blocks[begin] = self._fetch(begin, min(begin + _BLOCK_BYTES, self._size))
            while len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        piece = block[offset - begin : offset - begin + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def will_need(self, offset: int, length: int) -> None:
        """Fetch a range ahead."""
        self._ahead.announce(offset, min(offset + length, self._size))

    def raise_if_changed(self) -> bool:
        """Ask the store whether the object is the one that was opened."""
        info = _info(self._store, self._path, self._url)
        if info is None or _pin(info) != self._pinned:
            what = "was removed" if info is None else "was changed"
            hint = "run again when nothing writes to the checkpoints"
            raise InputChanged(f"{quoted(self.name)} {what} while it was being read", hint=hint)
        return False

    def close(self) -> None:
        """Forget what was fetched."""
        self._ahead.close()
        self._blocks.clear()

    def _fetch(self, begin: int, end: int) -> bytes:
        """Return a range of the object; what may pass, such as a busy server or a lost connection, is tried again."""
        for attempt in range(_TRIES):
            try:
                data = bytes(self._store.cat_file(self._path, start=begin, end=end))
                if len(data) == end - begin:
                    return data
                reason = f"{len(data):,} bytes came of {end - begin:,}"
            except FileNotFoundError as error:
                raise InputChanged(f"{quoted(self.name)} was removed while it was being read") from error
            except Exception as error:  # noqa: BLE001 - every store has errors of its own
                reason = str(error) or type(error).__name__
            if self._ahead.closed.is_set():
                break
            _pause(attempt)
        raise InputChanged(f"{quoted(self.name)} cannot be read at byte {begin:,}: {reason}")


def is_remote_folder(url: Url) -> bool:
    """Whether there is a folder of that name. A web server has none: it does not say what it holds."""
    if url.scheme.startswith("http"):
        return False
    store, path = store_of(url)
    info = _info(store, path, url)
    return info is not None and info.get("type") == "directory"


def remote_names_in(url: Url) -> dict[str, bool]:
    """Return the names in a folder of a store, and whether each is a folder itself.

    Raises:
        OSError: it cannot be listed.

    """
    store, path = store_of(url)
    try:
        listed = store.ls(path, detail=True)
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, str(error)) from error
    entries = {str(entry["name"]).rstrip("/"): entry["type"] == "directory" for entry in listed}
    return {name.rpartition("/")[2]: folder for name, folder in entries.items() if name != path.rstrip("/")}


def store_of(url: Url) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path there.

    Raises:
        UsageError: there is no such store, or its library is not installed.

    """
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only where something is remote

    try:
        store, path = url_to_fs(url.address, use_listings_cache=False)
    except ImportError as error:
        extra = _LIBRARIES.get(url.scheme)
        hint = f"pip install 'ema-avg[{extra}]'" if extra else ""
        raise UsageError(f"{url.scheme}:// needs a library that is not installed: {error}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{quoted(str(url))} is of no store that fsspec knows: {error}") from error
    return store, str(path)


def _info(store: Any, path: str, url: Url) -> dict[str, Any] | None:  # noqa: ANN401 - fsspec has no types
    """Return what the store says of an object; ``None`` if there is none."""
    for attempt in range(_TRIES):
        try:
            store.invalidate_cache()
            return dict(store.info(path))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise InputRefused(f"{quoted(str(url))} may not be read: {error}") from error
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            reason = str(error) or type(error).__name__
        _pause(attempt)
    raise InputRefused(f"{quoted(str(url))} cannot be reached: {reason}")


def _pause(attempt: int) -> None:
    """Wait before the next try, twice as long each time, and not all at once; there is no wait after the last."""
    if attempt + 1 < _TRIES:
        time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the tries


def _gives_parts(store: Any, path: str, size: int) -> bool:  # noqa: ANN401
    """Whether a web server answers with the range that is asked for: not all say so, and some send the whole file."""
    if size < 2:  # noqa: PLR2004 - there is no byte behind the first
        return True
    try:
        with store.open(path, "rb", cache_type="none", size=size) as file:
            file.seek(1)
            return len(file.read(1)) == 1
    except ValueError:
        return False
    except Exception:  # noqa: BLE001 - reading will say what is wrong
        return True


def _pin(info: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(info.get(key) for key in _PINNED)
