"""What the hostile server does wrong, and what a run must make of it: its exit code and its words."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache

from tests.helpers.hostile_server import Mode, Visit

_ZEROS = bytes(1 << 20)
_FOREVER: dict[str, str | None] = {"Content-Length": None, "Transfer-Encoding": "chunked"}
_UNMARKED: dict[str, str | None] = {"Content-Length": None, "Connection": "close"}
_TOO_MUCH = "the server sent more than the requested [0-9,]+ bytes"
_NOT_HTTP = "the answer is not valid HTTP"
_REMOVED = (4, "was removed while it was being read")
_CHANGED = (4, "was changed while it was being read")
_NO_ANSWER = "no answer began within"
_TOO_SLOW = "the server is too slow: [0-9,]+ of [0-9,]+ bytes arrived"
_NO_RANGES = "the server does not support byte ranges"
_WHOLE = (4, "the server sent the whole file instead of a range")


@dataclass(frozen=True, kw_only=True)
class HostileMode:
    """What a server does to every request, or to every request after the first ones."""

    name: str
    serve: Mode
    code: int
    """The exit code, if no answer is right."""
    words: str
    """A regular expression that the message matches; empty if the run succeeds."""
    later: tuple[int, str] | None = None
    """Exit code and words, if the first answers are right; ``None``: the same."""
    is_slow: bool = False
    """Whether the run waits for a time-out."""

    def expected(self, right_answers: int) -> tuple[int, str]:
        """Return exit code and words, if so many answers are right."""
        return self.later if right_answers and self.later else (self.code, self.words)


def _mode(
    name: str, serve: Mode, code: int, words: str, later: tuple[int, str] | None = None, *, slow: bool = False
) -> HostileMode:
    return HostileMode(name=name, serve=serve, code=code, words=words, later=later, is_slow=slow)


def _status(
    status: str, code: int, later: tuple[int, str] | None = None, *, wait: str = "", asked: str = ""
) -> HostileMode:
    """Return a mode that answers every request with a status, and perhaps with a time to wait."""
    words = rf"the server answered {status}"
    asked = f", Retry-After: {asked or wait}" if wait else ""
    headers = {"Retry-After": wait} if wait else {}
    return _mode(f"{status[:3]}{asked}", lambda visit: visit.refuse(status, headers), code, words, later)


def _chunked(visit: Visit, *chunks: bytes, headers: dict[str, str | None] | None = None) -> None:
    visit.begin_answer(headers={**_FOREVER, **(headers or {})})
    visit.send(b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n")


def _huge_chunk(visit: Visit) -> None:
    visit.begin_answer(headers=_FOREVER)
    visit.send(b"f" * 17 + b"\r\n" + visit.body)
    visit.keep = False


def _small_chunks(visit: Visit) -> None:
    body = visit.body
    _chunked(visit, *(body[begin : begin + 100] for begin in range(0, len(body), 100)))


def _flood(visit: Visit) -> None:
    visit.begin_answer(headers=_FOREVER)
    visit.forever(b"%x\r\n%s\r\n" % (len(_ZEROS), _ZEROS))


def _flood_of_tiny_chunks(visit: Visit) -> None:
    visit.begin_answer(headers=_FOREVER)
    visit.forever(b"1\r\n\0\r\n" * 10_000)


def _flood_until_close(visit: Visit) -> None:
    visit.begin_answer(headers=_UNMARKED)
    visit.forever(_ZEROS)


def _flood_of_the_whole(visit: Visit) -> None:
    visit.begin_answer("200 OK", {**_FOREVER, "Content-Range": None})
    visit.forever(b"%x\r\n%s\r\n" % (len(_ZEROS), _ZEROS))


def _flood_after_an_error(visit: Visit) -> None:
    visit.begin_answer("500 no", {**_FOREVER, "Content-Range": None})
    visit.forever(b"%x\r\n%s\r\n" % (len(_ZEROS), _ZEROS))


def _encoded(encoding: str, wbits: int) -> Mode:
    """Return a mode that sends 100 MB of zeros, compressed."""

    @cache
    def body() -> bytes:
        packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
        return b"".join(packer.compress(_ZEROS) for _ in range(100)) + packer.flush()

    def serve(visit: Visit) -> None:
        visit.answer(body=body(), headers={"Content-Encoding": encoding})

    return serve


def _cut(visit: Visit) -> None:
    visit.begin_answer()
    visit.send(visit.body[: len(visit.body) // 2])
    visit.keep = False


def _reset(visit: Visit) -> None:
    visit.begin_answer()
    visit.send(visit.body[: len(visit.body) // 2])
    time.sleep(0.05)
    visit.reset()


def _close(visit: Visit) -> None:
    visit.keep = False


def _raw(data: bytes) -> Mode:
    """Return a mode that sends bytes, and closes the connection."""

    def serve(visit: Visit) -> None:
        visit.send(data)
        visit.keep = False

    return serve


def _endless(begin: bytes, piece: bytes, pause_seconds: float = 0.0) -> Mode:
    """Return a mode that sends a beginning, and then a piece forever."""

    def serve(visit: Visit) -> None:
        visit.send(begin)
        visit.forever(piece, pause_seconds=pause_seconds)

    return serve


def _silent_after_headers(visit: Visit) -> None:
    visit.begin_answer()
    visit.wait()


def _drip(visit: Visit) -> None:
    visit.begin_answer()
    for number in range(len(visit.body)):
        visit.send(visit.body[number : number + 1])
        if visit.server.closed.wait(visit.server.pause_seconds):
            return


def _stall_at_the_end(visit: Visit) -> None:
    visit.begin_answer()
    visit.send(visit.body[:-1])
    visit.wait()


def _never_ending(visit: Visit) -> None:
    visit.begin_answer(headers=_FOREVER)
    visit.send(b"%x\r\n%s\r\n" % (len(visit.body), visit.body))
    visit.wait()


def _multipart(visit: Visit) -> None:
    part = b"--x\r\nContent-Range: bytes 0-1/9\r\n\r\n"
    body = part + visit.body + b"\r\n--x--\r\n"
    visit.answer(body=body, headers={"Content-Range": None, "Content-Type": "multipart/byteranges; boundary=x"})


def _shifted(visit: Visit) -> None:
    begin = visit.begin + 1
    visit.answer(headers={"Content-Range": f"bytes {begin}-{visit.end}/{len(visit.content) + 9}"})


def _silently_shifted_start(visit: Visit) -> None:
    size = visit.end - visit.begin
    visit.answer(body=visit.content[:size], headers={"Content-Range": f"bytes 0-{size - 1}/{len(visit.content)}"})


def _total(total: str) -> Mode:
    return lambda visit: visit.answer(headers={"Content-Range": f"bytes {visit.begin}-{visit.end - 1}/{total}"})


def _growing(visit: Visit) -> None:
    total = len(visit.content) + visit.number
    visit.answer(headers={"Content-Range": f"bytes {visit.begin}-{visit.end - 1}/{total}"})


def _with_headers(**headers: str | None) -> Mode:
    """Return a mode that sends the right answer with other headers (_ is -)."""
    return lambda visit: visit.answer(headers={name.replace("_", "-"): value for name, value in headers.items()})


def _redirect(target: str, status: str = "302 Found") -> Mode:
    return lambda visit: visit.refuse(status, {"Location": target})


def _redirect_to_itself(visit: Visit) -> None:
    visit.refuse("302 Found", {"Location": f"{visit.path}x"})


def _poison(visit: Visit) -> None:
    visit.answer()
    time.sleep(visit.number % 3 / 1000)  # it arrives with the answer, while nothing is asked, or after the next request
    visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")


def _unmarked(visit: Visit) -> None:
    visit.answer(headers=_UNMARKED)
    visit.keep = False


def _endless_trailers(visit: Visit) -> None:
    visit.begin_answer(headers=_FOREVER)
    visit.send(b"%x\r\n%s\r\n0\r\n" % (len(visit.body), visit.body))
    visit.forever(b"X: y\r\n" * 1000)


def _redirect_with_a_flood(visit: Visit) -> None:
    visit.begin_answer("302 Found", {**_FOREVER, "Location": f"{visit.path}x"})
    visit.forever(b"%x\r\n%s\r\n" % (len(_ZEROS), _ZEROS))


def _control(visit: Visit) -> None:
    visit.refuse("500 \x1b[31mred\x07")


def _informed(visit: Visit) -> None:
    visit.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
    visit.answer()


def _modes() -> Iterator[HostileMode]:
    yield from _statuses()
    yield from _sizes()
    yield from _ranges()
    yield from _junk()
    yield from _redirects()
    yield from _waits()
    yield from _harmless()


def _statuses() -> Iterator[HostileMode]:
    yield _status("400 Bad Request", 3)
    yield _status("401 Unauthorized", 3)
    yield _status("403 Forbidden", 3)
    yield _mode("404", lambda visit: visit.refuse("404 none"), 7, "there is no", _REMOVED)
    yield _mode("410", lambda visit: visit.refuse("410 none"), 7, "there is no", _REMOVED)
    yield _mode("412", lambda visit: visit.refuse("412 no"), 4, "was changed", _CHANGED)
    yield _mode("416", lambda visit: visit.refuse("416 no"), 3, "answered 416", _CHANGED)
    yield _status("429 Too Many Requests", 4)
    yield _status("429 Too Many Requests", 4, wait="100000")
    yield _status("429 Too Many Requests", 4, wait=formatdate(time.time() + 7200, usegmt=True), asked="in two hours")
    yield _status("429 Too Many Requests", 4, wait="-\x1b[31m soon", asked="junk")
    yield _status("500 Internal Server Error", 4)
    yield _status("502 Bad Gateway", 4)
    yield _status("503 Service Unavailable", 4)
    yield _status("504 Gateway Timeout", 4)
    yield _mode("999", lambda visit: visit.refuse("999 what"), 4, "answered 999")
    yield _mode("204", lambda visit: visit.refuse("204 No Content"), 4, "answered 204 No Content")
    yield _mode(
        "500, control characters", lambda v: v.refuse("500 \x1b[31mred\x07"), 4, "answered 500 Internal|not valid"
    )
    yield _mode("500 with an endless body", _flood_after_an_error, 4, "answered 500 Internal Server Error")


def _sizes() -> Iterator[HostileMode]:
    yield _mode("endless body, chunked", _flood, 4, _TOO_MUCH)
    yield _mode("endless body, tiny chunks", _flood_of_tiny_chunks, 4, _TOO_MUCH)
    yield _mode("endless body, no length", _flood_until_close, 4, _TOO_MUCH)
    yield _mode("endless whole file", _flood_of_the_whole, 3, _NO_RANGES, _WHOLE)
    yield _mode("one byte more, chunked", lambda v: _chunked(v, v.body, b"x"), 4, _TOO_MUCH)
    yield _mode("one byte less, chunked", lambda v: _chunked(v, v.body[:-1]), 4, "received [0-9,]+ of")
    yield _mode("half, declared", lambda v: v.answer(body=v.body[: len(v.body) // 2]), 4, "the server announced")
    yield _mode("half, then closed", _cut, 4, "the answer broke off")
    yield _mode("half, then reset", _reset, 4, "the answer broke off|the connection was lost")
    yield _mode("length 2^62", _with_headers(Content_Length=str(1 << 62)), 4, "the server announced")
    yield _mode("length 10^30", _with_headers(Content_Length="1" + "0" * 30), 4, _NOT_HTTP)
    yield _mode("length -5", _with_headers(Content_Length="-5"), 4, _NOT_HTTP)
    yield _mode("two lengths", lambda v: v.answer(headers={"content-length": "7"}), 4, _NOT_HTTP)
    yield _mode("length and chunks", _with_headers(Transfer_Encoding="chunked"), 4, _NOT_HTTP)
    yield _mode("chunk of 2^68 bytes", _huge_chunk, 4, "broke off|not valid|too slow", slow=True)
    for encoding, wbits in (("gzip", 31), ("deflate", 15), ("br", 31)):
        words = f'Content-Encoding: "{encoding}"'
        yield _mode(f"{encoding} of 100 MB", _encoded(encoding, wbits), 3, words)
    compressed: dict[str, str | None] = {"Transfer-Encoding": "gzip, chunked"}
    words = 'Transfer-Encoding: "gzip, chunked"'
    yield _mode("transfer encoding gzip", lambda v: _chunked(v, v.body, headers=compressed), 3, words)


def _ranges() -> Iterator[HostileMode]:
    yield _mode("whole file", lambda v: v.answer("200 OK", v.content, {"Content-Range": None}), 3, _NO_RANGES, _WHOLE)
    yield _mode("shifted range", _shifted, 4, "the server sent bytes", _CHANGED)
    yield _mode("range from 0", _silently_shifted_start, 4, "the server sent bytes 0 to")
    yield _mode("total 2^62", _total(str(1 << 62)), 4, "Content-Range .*4611686018427387904")
    yield _mode("total 10^30", _total("1" + "0" * 30), 4, "Content-Range .*10000000")
    yield _mode("total -5", _total("-5"), 4, "Content-Range .*-5")
    yield _mode("total unknown", _total("*"), 3, "not a file of known size", (0, ""))
    yield _mode("total 0", _total("0"), 4, "which is not a range of a file")
    yield _mode("no Content-Range", _with_headers(Content_Range=None), 4, "Content-Range")
    yield _mode("several parts", _multipart, 4, "multipart/byteranges")
    yield _mode("ETag changes", lambda v: v.answer(headers={"ETag": f'"{v.number}"'}), 4, "was changed", _CHANGED)
    yield _mode("file grows", _growing, 3, "after its last tensor", _CHANGED)


def _junk() -> Iterator[HostileMode]:
    yield _mode("junk", _raw(b"\xff\xfe junk\r\n\r\n"), 4, _NOT_HTTP)
    yield _mode("bytes without headers (HTTP/0.9)", _raw(bytes(range(256)) * 100), 4, _NOT_HTTP)
    yield _mode("an alert of TLS", _raw(b"\x15\x03\x01\x00\x02\x02\x50"), 4, f"{_NOT_HTTP}|the connection was lost")
    yield _mode("closed at once", _close, 4, "the connection was lost")
    yield _mode("reset at once", lambda visit: visit.reset(), 4, "the connection was lost")
    yield _mode("closed in the headers", _raw(b"HTTP/1.1 206 Partial\r\nContent-Le"), 4, "the connection was lost")
    yield _mode("HTTP/9.9", _raw(b"HTTP/9.9 206 x\r\nContent-Length: 1\r\n\r\nx"), 4, f"{_NOT_HTTP}|Content-Range")
    yield _mode("endless status line", _endless(b"HTTP/1.1 206 ", b"x" * 65536), 4, _NOT_HTTP)
    yield _mode("endless headers", _endless(b"HTTP/1.1 206 x\r\n", b"X-Y: z\r\n" * 1000), 4, _NOT_HTTP)
    yield _mode("endless header", _endless(b"HTTP/1.1 206 x\r\nX: ", b"y" * 65536), 4, _NOT_HTTP)
    yield _mode("endless trailers", _endless_trailers, 4, "")
    yield _mode("headers with control characters", _with_headers(ETag='"\x1b[31m"', Content_Range="\x1b[31m"), 4, "")


def _redirects() -> Iterator[HostileMode]:
    refused = "the server redirects"
    yield _mode("redirects without end", _redirect_to_itself, 4, "the server redirects more than 10 times")
    yield _mode("redirect to file:", _redirect("file:///etc/passwd"), 3, "redirects to file:, which is not followed")
    yield _mode("redirect to ftp:", _redirect("ftp://127.0.0.1/x"), 3, "redirects to ftp:, which is not followed")
    yield _mode("redirect to data:", _redirect("data:,x"), 3, "redirects to data:, which is not followed")
    yield _mode("redirect to no URL", _redirect("http://[::1/\x1b[31m"), 3, "which is not a valid URL")
    yield _mode("redirect to no port", _redirect("http://127.0.0.1:99999/"), 3, "which is not a valid URL")
    yield _mode("redirect to a closed port", _redirect("http://127.0.0.1:1/x"), 4, "there is no connection to")
    yield _mode("redirect without a target", lambda v: v.refuse("302 Found"), 4, "the server answered 302 Found")
    yield _mode("redirect with an endless body", _redirect_with_a_flood, 4, refused)


def _waits() -> Iterator[HostileMode]:
    yield _mode("no answer", lambda visit: visit.wait(), 4, _NO_ANSWER, slow=True)
    yield _mode("slow headers", _endless(b"HTTP/1.1 206 x\r\n", b"X: y\r\n", 2), 4, _NO_ANSWER, slow=True)
    yield _mode(
        "100 Continue forever",
        _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99),
        4,
        f"{_NO_ANSWER}|{_TOO_SLOW}",
        slow=True,
    )
    yield _mode("102 now and then", _endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 1), 4, _NO_ANSWER, slow=True)
    yield _mode("no first byte", _silent_after_headers, 4, _TOO_SLOW, slow=True)
    yield _mode("one byte a second", _drip, 4, _TOO_SLOW, slow=True)
    yield _mode("no last byte", _stall_at_the_end, 4, _TOO_SLOW, slow=True)
    yield _mode("no end", _never_ending, 4, _TOO_SLOW, slow=True)


def _harmless() -> Iterator[HostileMode]:
    cookies = "; ".join(f"c{number}={number}" for number in range(100))
    yield _mode("cookies", _with_headers(Set_Cookie=cookies), 0, "")
    yield _mode("chunks of 100 bytes", _small_chunks, 0, "")
    yield _mode("no length, closed at the end", _unmarked, 0, "")
    yield _mode("an answer in front of it (100, 103)", _informed, 0, "")
    yield _mode("another answer behind it", _poison, 0, "")
    yield _mode("no ETag", _with_headers(ETag=None), 0, "", _CHANGED)


MODES = {one.name: one for one in _modes()}
"""By their names."""
