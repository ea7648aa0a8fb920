"""Files in remote stores, read by ranges through fsspec: a plan reads kilobytes, a fold each needed byte once.

Ranges that the fold announces are prefetched in large requests, several at a time; everything else is read in small
blocks. An object is pinned when it is opened: a change while it is read is an error.
"""

from __future__ import annotations

import hashlib
import time
from datetime import datetime
from typing import Any

from ema_cli.errors import InputChanged, InputRefused, NothingMatched
from ema_cli.storage.remote.block_cache import BLOCK_BYTES, BlockCache, Pieces
from ema_cli.storage.remote.failure_causes import failure_of
from ema_cli.storage.remote.failures import reading_error
from ema_cli.storage.remote.limits import CALL_SECONDS
from ema_cli.storage.remote.prefetch import Prefetcher
from ema_cli.storage.remote.retries import TRIES, TRIES_OF_BUSY_S3, read_or_raise, retry
from ema_cli.storage.remote.s3_object import S3, S3Object, is_refused, replace_signer, signer_of
from ema_cli.storage.remote.spool import Spool
from ema_cli.storage.remote.store_failure import StoreError
from ema_cli.storage.remote.stores import calling, info_of, store_of
from ema_cli.storage.remote.web_object import WebObject
from ema_cli.storage.source import ByteSource
from ema_cli.storage.url import Url
from ema_cli.text import quoted

_PINNED = (
    *("size", "ETag", "etag", "VersionId", "generation", "LastModified", "mtime", "updated", "created"),
    *("lfs", "blob_id", "xet_hash"),
)
"""Fields that stores report of an object, and that change with it."""
_PIECE_BYTES = 1 << 17
"""What a library returns is cut, so that it is released as it is read."""
_OBJECT_SECONDS = 60.0
"""How long it is remembered that an object is no folder: opening a checkpoint asks for that several times."""
_MOST_OBJECTS = 100_000
_OBJECTS_UNTIL: dict[Url, float] = {}
"""Until when each is remembered, by ``time.monotonic``."""


class RemoteSource(ByteSource):
    """An object in a remote store.

    Raises:
        NothingMatched: the object does not exist.
        InputRefused: it cannot be read, is not a file, or its server does not support ranges.
        UsageError: the library for the store is not installed.

    """

    is_remote = True
    window_bytes = 1 << 21
    prefetch_bytes = 1 << 28

    def __init__(self, url: Url) -> None:
        self.name = str(url)
        self._url = url
        self._store: Any = None
        self._path = ""
        if not url.is_web:
            self._store, self._path = store_of(url)
        self._web, info = _opened(self._store, self._path, url, BLOCK_BYTES)
        if info is None:
            raise NothingMatched(f"there is no {quoted(self.name)}")
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise InputRefused(f"{quoted(self.name)} is not a file of known size")
        self._size = int(info["size"])
        self._pinned = _pin(info)
        self._tag, self._generation = info.get("ETag"), info.get("generation")
        self._blocks = BlockCache(self._fetch, self._size, self._web.head if self._web else b"")
        self._prefetcher = Prefetcher(self._fetch)
        self._spool = Spool(self._fetch)

    @property
    def identity(self) -> tuple[str, ...]:
        """The address, without what only lets this program read it."""
        return self._url.identity

    @property
    def version(self) -> int:
        """Time of the last modification in nanoseconds, if the store reports it; else a hash of what it reports."""
        modified = next((value for value in self._pinned if isinstance(value, datetime)), None)
        if modified is not None:
            return int(modified.timestamp() * 1e9)
        return int.from_bytes(hashlib.sha256(repr(self._pinned).encode()).digest()[:7], "big")

    def size(self) -> int:
        """Return the size when the object was opened."""
        return self._size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``: from the spool, from prefetched ranges, or else from a block of the object."""
        view = memoryview(buffer).cast("B")
        if offset + len(view) > self._size:
            raise InputChanged(f"{quoted(self.name)} ends at byte {self._size:,}")
        if self._read_spool(offset, view):
            return
        done = 0
        while done < len(view):
            taken = self._prefetcher.take(offset + done, view[done:])
            if taken == 0:
                taken = self._read_block(offset + done, view[done:])
            done += taken

    def _read_spool(self, offset: int, view: memoryview) -> bool:
        try:
            return self._spool.read(offset, view)
        except OSError as error:
            hint = "set TMPDIR to a folder with more space"
            raise InputRefused(f"a part of {quoted(self.name)} cannot be stored locally: {error}", hint=hint) from error

    def _read_block(self, offset: int, view: memoryview) -> int:
        """Fill some of ``view``, return the number of bytes. A long read is a request, a short read a cached block."""
        if len(view) >= BLOCK_BYTES:
            done = 0
            for piece in self._fetch(offset, offset + len(view)):
                view[done : done + len(piece)] = piece
                done += len(piece)
            return len(view)
        return self._blocks.read(offset, view)

    def will_need(self, offset: int, length: int) -> None:
        """Prefetch a range, unless it is cached."""
        end = min(offset + length, self._size)
        if not self._blocks.has(offset, end):
            self._prefetcher.announce(offset, end)

    def spool(self, begin: int, end: int, wanted: int) -> None:
        """Fetch a range once, with the first read of it."""
        self._spool.add(begin, end, wanted)

    def unspool(self, begin: int, end: int, count: int) -> None:
        """Delete the local copy of a range after the last read."""
        self._spool.remove(begin, end, count)

    def crc32(self, begin: int, end: int) -> int | None:
        """Return the CRC-32 of a spooled range."""
        return self._spool.crc32(begin, end)

    def raise_if_changed(self) -> bool:
        """Ask the store whether the object is still the same."""
        if self._web:
            read_or_raise(self._web.raise_if_changed, self._url, opened=True)
            return False
        info = info_of(self._store, self._path, self._url)
        if info is None or _pin(info) != self._pinned:
            event = "was removed" if info is None else "was changed"
            hint = "run again when nothing writes to the checkpoints"
            raise InputChanged(f"{quoted(self.name)} {event} while it was being read", hint=hint)
        return False

    def close(self) -> None:
        """Release all fetched bytes."""
        self._prefetcher.close()
        if self._web:
            self._web.close()
        self._spool.close()
        self._blocks.close()

    def _fetch(self, begin: int, end: int) -> Pieces:
        """Return a range of the object."""
        return read_or_raise(
            lambda: self._ask(begin, end),
            self._url,
            place=f"at byte {begin:,}",
            opened=True,
            tries_of_busy=TRIES_OF_BUSY_S3 if isinstance(self._web, S3Object) else TRIES,
            closed=self._prefetcher.closed,
        )

    def _ask(self, begin: int, end: int) -> Pieces:
        """Request a range."""
        if self._web is None:
            return self._ask_store(begin, end)
        try:
            return self._web.read(begin, end)
        except StoreError as error:
            if self._url.is_web or not is_refused(error.failure):
                raise
        return self._ask_store(begin, end)

    def _ask_store(self, begin: int, end: int) -> list[bytes]:
        """Request a range of the pinned object, if the store supports that."""
        with calling(self._url, tag=self._tag if self._url.scheme in ("s3", "s3a") else None):
            data = self._ask_library(begin, end)
        if len(data) != end - begin:
            raise OSError(f"received {len(data):,} of {end - begin:,} bytes")
        return [data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES)]

    def _ask_library(self, begin: int, end: int) -> bytes:
        if self._url.scheme == "hf":  # its cat_file reads more, and drops it
            with self._store.open(self._path, "rb", cache_type="none", size=self._size) as file:
                file.seek(begin)
                return bytes(file.read(end - begin))
        pinned = {} if self._generation is None else {"generation": self._generation}
        return bytes(self._store.cat_file(self._path, start=begin, end=end, **pinned))


def _opened(
    store: Any,  # noqa: ANN401 - fsspec has no types
    path: str,
    url: Url,
    head_bytes: int,
) -> tuple[WebObject | None, dict[str, Any] | None]:
    """Open an object; return what reads it, ``None`` if that is the library of the store, and its description.

    There is no description if the object does not exist.
    """
    if url.is_web:
        web = read_or_raise(lambda: WebObject(url, head_bytes), url)
        return web, web.info
    signer = signer_of(store, path) if url.scheme in S3 else None
    signed = signer and _opened_at_signed(signer, path, url, head_bytes)
    if signed:
        return signed, signed.info
    info = info_of(store, path, url)  # which says why there is no object, or no access to it
    if signer and info and info.get("type") == "file" and info["size"]:
        with calling(url, seconds=CALL_SECONDS):
            replace_signer(store, path, signer)
        signer = signer_of(store, path)
        signed = signer and _opened_at_signed(signer, path, url, head_bytes)
    return (signed, signed.info) if signed else (None, info)


def _opened_at_signed(signer: Any, path: str, url: Url, head_bytes: int) -> S3Object | None:  # noqa: ANN401
    """Return an object of S3, opened at a signed address; ``None`` if it is refused there."""
    try:
        return retry(lambda: S3Object(signer, path, url, head_bytes), url, tries_of_busy=TRIES_OF_BUSY_S3)
    except MemoryError:
        raise
    except Exception as error:
        if failure_of(error, url).may_pass:
            raise reading_error(error, url) from error
    return None


def is_remote_folder(url: Url) -> bool:
    """Whether a URL is a folder. A web server has none, as it cannot list its files."""
    if url.is_web or time.monotonic() < _OBJECTS_UNTIL.get(url, 0):
        return False
    store, path = store_of(url)
    # What has no dot in its name is rather a folder: only the library can tell that.
    web, info = _opened(store, path, url, 1) if "." in url.name else (None, info_of(store, path, url))
    if web:
        web.close()
    is_directory = info is not None and info.get("type") == "directory"
    if info is not None and not is_directory:
        _remember_objects([url])
    return is_directory


def _remember_objects(urls: list[Url]) -> None:
    """Remember for some time that these are no folders."""
    if len(_OBJECTS_UNTIL) > _MOST_OBJECTS:
        _OBJECTS_UNTIL.clear()
    _OBJECTS_UNTIL.update(dict.fromkeys(urls, time.monotonic() + _OBJECT_SECONDS))


def remote_names_in(url: Url) -> dict[str, bool]:
    """Return the names in a folder of a store, and whether each is a folder itself.

    Raises:
        FileNotFoundError: it does not exist.
        NotADirectoryError: it is an object.
        NothingMatched: it does not exist.
        InputRefused: access is denied.
        InputChanged: the store is failing, or cannot be reached.

    """
    store, path = store_of(url)

    def ask() -> list[dict[str, Any]]:
        with calling(url, seconds=CALL_SECONDS):
            return list(store.ls(path, detail=True))

    try:
        listed = retry(ask, url)
    except (FileNotFoundError, NotADirectoryError, MemoryError):
        raise
    except Exception as error:
        raise reading_error(error, url) from error
    entries = {str(entry["name"]).rstrip("/"): entry["type"] == "directory" for entry in listed}
    found = {name.rpartition("/")[2]: folder for name, folder in entries.items() if name != path.rstrip("/")}
    _remember_objects([url / name for name, folder in found.items() if not folder])
    return found


def _pin(info: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(info.get(key) for key in _PINNED)
