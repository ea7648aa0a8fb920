"""Files in remote stores, read by ranges through fsspec: planning takes kilobytes, folding each needed byte once.

What the fold announces is fetched ahead, in large requests, several at a time; everything else is read in small
blocks. An object is pinned when it is opened: one that changes while it is read is an error.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from ema_cli.errors import InputChanged, InputRefused, NothingMatched
from ema_cli.storage.remote.block_cache import BLOCK_BYTES, Blocks
from ema_cli.storage.remote.http_ranges import fetch_part, gives_parts
from ema_cli.storage.remote.prefetch import Ahead
from ema_cli.storage.remote.spool import Kept
from ema_cli.storage.remote.stores import (
    info_of,
    insist,
    is_forbidden,
    is_missing,
    is_replaced,
    login,
    reason_of,
    store_of,
)
from ema_cli.storage.source import ByteSource
from ema_cli.storage.url import Url
from ema_cli.text import quoted

_PINNED = (
    *("size", "ETag", "etag", "VersionId", "generation", "LastModified", "mtime", "updated", "created"),
    *("lfs", "blob_id", "xet_hash"),
)
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
        info = info_of(self._store, self._path, url)
        if info is None:
            raise NothingMatched(f"there is no {quoted(self.name)}")
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise InputRefused(f"{quoted(self.name)} is not a file of known size")
        self._size = int(info["size"])
        if url.is_web and not gives_parts(self._store, self._path, self._size):
            raise InputRefused(f"{quoted(self.name)} is on a server that does not give parts of files (ranges)")
        self._pinned = _pin(info)
        self._tag, self._generation = info.get("ETag"), info.get("generation")
        self._blocks = Blocks(self._fetch, self._size)
        self._ahead = Ahead(self._fetch)
        self._kept = Kept(self._fetch)

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
        if self._read_kept(offset, view):
            return
        done = 0
        while done < len(view):
            taken = self._ahead.take(offset + done, view[done:])
            if taken == 0:
                taken = self._read_block(offset + done, view[done:])
            done += taken

    def _read_kept(self, offset: int, view: memoryview) -> bool:
        try:
            return self._kept.read(offset, view)
        except OSError as error:
            hint = "set TMPDIR to a folder with more space"
            raise InputRefused(f"a part of {quoted(self.name)} cannot be kept: {error}", hint=hint) from error

    def _read_block(self, offset: int, view: memoryview) -> int:
        """Fill some of ``view`` and return how much: a long read is one request, a short one a block that is kept."""
        if len(view) >= BLOCK_BYTES:
            view[:] = self._fetch(offset, offset + len(view))
            return len(view)
        return self._blocks.read(offset, view)

    def will_need(self, offset: int, length: int) -> None:
        """Fetch a range ahead."""
        self._ahead.announce(offset, min(offset + length, self._size))

    def keep(self, begin: int, end: int, wanted: int) -> None:
        """Fetch a range once, when the first piece of it is read."""
        self._kept.keep(begin, end, wanted)

    def deliver(self, begin: int, end: int, count: int) -> None:
        """Forget a range when all of it was read."""
        self._kept.deliver(begin, end, count)

    def crc32(self, begin: int, end: int) -> int | None:
        """Return the CRC-32 of a range that was kept."""
        return self._kept.crc32(begin, end)

    def raise_if_changed(self) -> bool:
        """Ask the store whether the object is the one that was opened."""
        info = info_of(self._store, self._path, self._url)
        if info is None or _pin(info) != self._pinned:
            what = "was removed" if info is None else "was changed"
            hint = "run again when nothing writes to the checkpoints"
            raise InputChanged(f"{quoted(self.name)} {what} while it was being read", hint=hint)
        return False

    def close(self) -> None:
        """Forget what was fetched."""
        self._ahead.close()
        self._kept.close()
        self._blocks.close()

    def _fetch(self, begin: int, end: int) -> bytes:
        """Return a range of the object."""
        try:
            return insist(lambda: self._ask(begin, end), self._url, until=self._ahead.closed.is_set)
        except Exception as error:
            if is_missing(error):
                raise InputChanged(f"{quoted(self.name)} was removed while it was being read") from error
            if is_replaced(error):
                raise InputChanged(f"{quoted(self.name)} was changed while it was being read") from error
            reason = reason_of(error, self._url)
            if is_forbidden(error):
                raise InputRefused(f"{quoted(self.name)} may not be read: {reason}", hint=login(self._url)) from error
            raise InputChanged(f"{quoted(self.name)} cannot be read at byte {begin:,}: {reason}") from error

    def _ask(self, begin: int, end: int) -> bytes:
        """Ask for a range of the object that was opened, and no other, where the store can be asked for that."""
        if self._url.is_web:
            data = fetch_part(self._store, self._path, begin, end, self._tag)
        elif self._url.scheme == "hf":  # its cat_file reads ahead, and forgets what it read
            with self._store.open(self._path, "rb", cache_type="none", size=self._size) as file:
                file.seek(begin)
                data = bytes(file.read(end - begin))
        else:
            pinned = {} if self._generation is None else {"generation": self._generation}
            data = bytes(self._store.cat_file(self._path, start=begin, end=end, **pinned))
        if len(data) != end - begin:
            raise OSError(f"{len(data):,} bytes came of {end - begin:,}")
        return data


def is_remote_folder(url: Url) -> bool:
    """Whether there is a folder of that name. A web server has none: it does not say what it holds."""
    if url.is_web:
        return False
    store, path = store_of(url)
    info = info_of(store, path, url)
    return info is not None and info.get("type") == "directory"


def remote_names_in(url: Url) -> dict[str, bool]:
    """Return the names in a folder of a store, and whether each is a folder itself.

    Raises:
        OSError: it cannot be listed.

    """
    store, path = store_of(url)
    try:
        listed = insist(lambda: store.ls(path, detail=True), url)
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, reason_of(error, url)) from error
    entries = {str(entry["name"]).rstrip("/"): entry["type"] == "directory" for entry in listed}
    return {name.rpartition("/")[2]: folder for name, folder in entries.items() if name != path.rstrip("/")}


def _pin(info: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(info.get(key) for key in _PINNED)
