"""Parts of files on web servers. A server may do as it likes with a request for a part, so each answer is looked at."""

from __future__ import annotations

from typing import Any

_PARTIAL, _WHOLE = 206, 200


class NoPartsError(Exception):
    """The server sent the whole file where a part of it was asked for."""


def fetch_part(store: Any, address: str, begin: int, end: int, tag: str | None) -> bytes:  # noqa: ANN401
    """Return the bytes from ``begin`` to before ``end``.

    Args:
        store: fsspec's file system of the web.
        address: of the file.
        begin: the first byte.
        end: the first byte that is not asked for.
        tag: the entity tag that the file must have.

    Raises:
        NoPartsError: the server sent something else.
        OSError: the answer is not what was asked for; it may be another time.

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
            raise NoPartsError("the server sends whole files where parts are asked for")
        told = answer.headers.get("Content-Range", "")
        if answer.status != _PARTIAL or not told.replace("=", " ").startswith(f"bytes {begin}-{end - 1}/"):
            what = f"{answer.status}, Content-Range {told!r}"
            raise OSError(f"the server sent {what}, where bytes {begin}-{end - 1} were asked for")
        data: bytes = await answer.read()
        return data


def is_strong(tag: str | None) -> bool:
    """Whether an entity tag stands for the very bytes; only those can be asked for."""
    return tag is not None and tag.startswith('"')


def gives_parts(store: Any, address: str, size: int) -> bool:  # noqa: ANN401
    """Whether a web server answers with the part that is asked for: not all say so, and some send the whole file."""
    if size < 2:  # noqa: PLR2004 - there is no byte behind the first
        return True
    try:
        fetch_part(store, address, 1, 2, None)
    except NoPartsError:
        return False
    except Exception:  # noqa: BLE001 - reading will say what is wrong
        return True
    return True
