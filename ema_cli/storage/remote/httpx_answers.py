"""Answers of httpx within limits: that is what huggingface_hub uses.

The library has one client for the whole process. Its hooks, which httpx documents, act only during calls of this
program; versions of the library without such a client are used as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ema_cli.storage.remote import limits
from ema_cli.storage.remote.limits import AnswerMeter

_SENT = ("POST", "PUT", "PATCH")


def watch_hub() -> None:
    """Add the hooks to the client of huggingface_hub, which makes a new one after some errors."""
    from huggingface_hub import get_session  # noqa: PLC0415 - slow, and only for the Hub

    client = get_session()
    hooks = getattr(client, "event_hooks", None)
    if hooks is None or _before in hooks["request"]:
        return
    requests, answers = [*hooks["request"], _before], [*hooks["response"], _after]
    client.event_hooks = {"request": requests, "response": answers}


def _before(request: Any) -> None:  # noqa: ANN401 - of httpx
    """Give a request time-outs, if it has none."""
    if not limits.in_call():
        return
    limits.current_allowance().check()
    read = limits.REQUEST_SECONDS if request.method in _SENT else limits.STALL_SECONDS
    defaults = {"connect": limits.CONNECT_SECONDS, "read": read, "write": limits.STALL_SECONDS}
    given = {name: seconds for name, seconds in request.extensions.get("timeout", {}).items() if seconds is not None}
    request.extensions["timeout"] = {"pool": None, **defaults, **given}
    request.headers["Accept-Encoding"] = "identity"


def _after(answer: Any) -> None:  # noqa: ANN401
    """Check the head of an answer, and have its body counted."""
    if limits.in_call():
        checked = AnswerMeter(answer.request.headers, answer.status_code, answer.headers)
        library = sys.modules[type(answer).__module__.partition(".")[0]]
        answer.stream = _metered(library.SyncByteStream, answer.stream, checked)


def _metered(base: type, stream: Any, meter: AnswerMeter) -> Any:  # noqa: ANN401
    """Return a stream that counts what is read, of the class that httpx requires."""

    class MeteredByteStream(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                meter.count(len(piece))
                yield piece

        def close(self) -> None:
            stream.close()

    return MeteredByteStream()
