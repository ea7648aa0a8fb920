"""Byte ranges of files on web servers. A server may ignore the requested range, so every response is checked."""

from __future__ import annotations

from typing import Any

_PARTIAL, _WHOLE = 206, 200


class RangesIgnoredError(Exception):
    """The server sent the whole file instead of the requested range."""


def fetch_range(store: Any, address: str, begin: int, end: int, tag: str | None) -> bytes:  # noqa: ANN401
    """Return the bytes from ``begin`` to before ``end``.

    Args:
        store: fsspec's file system of the web.
        address: of the file.
        begin: the first byte.
        end: the first byte after the range.
        tag: the entity tag (ETag) that the file must have.

    Raises:
        RangesIgnoredError: the server sent the whole file.
        OSError: the response is not the requested range; a retry may help.

    """
    from fsspec.asyn import sync  # noqa: PLC0415

    data: bytes = sync(store.loop, _fetch, store, address, begin, end, tag)
    return data


async def _fetch(store: Any, address: str, begin: int, end: int, tag: str | None) -> bytes:  # noqa: ANN401
    headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    if is_strong(tag):
        headers["If-Match"] = str(tag)
    session = await store.set_session()
    async with session.get(store.encode_url(address), headers=headers, **store.kwargs) as answer:
        answer.raise_for_status()
        if answer.status == _WHOLE:
            raise RangesIgnoredError("the server sent the whole file instead of a range")
        declared = answer.headers.get("Content-Range", "")
        if answer.status != _PARTIAL or not declared.replace("=", " ").startswith(f"bytes {begin}-{end - 1}/"):
            received = f"{answer.status}, Content-Range {declared!r}"
            raise OSError(f"the server sent {received} instead of bytes {begin}-{end - 1}")
        data: bytes = await answer.read()
        return data


def is_strong(tag: str | None) -> bool:
    """Whether an entity tag is strong, i.e. identifies the exact bytes; only strong tags work with ranges."""
    return tag is not None and tag.startswith('"')


def supports_ranges(store: Any, address: str, size: int) -> bool:  # noqa: ANN401
    """Whether a web server sends the requested range. Some send the whole file, and headers do not tell."""
    if size < 2:  # noqa: PLR2004 - there is no byte after the first
        return True
    try:
        fetch_range(store, address, 1, 2, None)
    except RangesIgnoredError:
        return False
    except Exception:  # noqa: BLE001 - the first read reports the error
        return True
    return True
