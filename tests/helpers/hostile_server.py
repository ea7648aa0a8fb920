"""A web server that can do everything wrong: every byte of an answer is chosen by a mode (``hostile_modes.py``)."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Self

_LONGEST_REQUEST = 1 << 16
_TLS_HANDSHAKE = 0x16


@dataclass(kw_only=True)
class Visit:
    """One request, and what is needed to answer it."""

    server: HostileServer
    socket: socket.socket
    number: int
    """Of the request, counted from 1 over all connections."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes
    """The file that is requested."""
    keep: bool = True
    """Whether the connection is used for further requests."""

    @property
    def begin(self) -> int:
        """The first byte of the requested range."""
        return self._range[0]

    @property
    def end(self) -> int:
        """The first byte after the requested range."""
        return min(self._range[1] + 1, len(self.content))

    @property
    def body(self) -> bytes:
        """The requested bytes."""
        return self.content[self.begin : self.end]

    @property
    def _range(self) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2])) if found else (0, len(self.content) - 1)

    @property
    def right(self) -> dict[str, str]:
        """The headers of the right answer."""
        return {
            "Content-Range": f"bytes {self.begin}-{self.end - 1}/{len(self.content)}",
            "Content-Length": str(self.end - self.begin),
            "ETag": '"one"',
        }

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def begin_answer(
        self, status: int | str = "206 Partial Content", headers: Mapping[str, str | None] = MappingProxyType({})
    ) -> None:
        """Send the status line, and the right headers with changes; a header that is ``None`` is not sent."""
        lines = [f"{name}: {value}" for name, value in {**self.right, **headers}.items() if value is not None]
        self.send("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1"))

    def answer(
        self,
        status: int | str = "206 Partial Content",
        body: bytes | None = None,
        headers: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        """Send the right answer, with changes; the length is that of the body unless ``headers`` has it."""
        sent = self.body if body is None else body
        self.begin_answer(status, {"Content-Length": str(len(sent)), **headers})
        self.send(sent)

    def refuse(self, status: str, headers: Mapping[str, str | None] = MappingProxyType({})) -> None:
        """Send a status without a body."""
        self.answer(status, b"", {"Content-Range": None, **headers})

    def forever(self, piece: bytes, *, pause_seconds: float = 0.0) -> None:
        """Send a piece again and again until the client or the test has enough."""
        while not self.server.closed.wait(pause_seconds):
            self.send(piece)

    def wait(self) -> None:
        """Do nothing until the test ends."""
        self.server.closed.wait()

    def reset(self) -> None:
        """Abort the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.keep = False


Mode = Callable[[Visit], None]


@dataclass(kw_only=True)
class HostileServer:
    """A server on the loopback; a context in which it answers."""

    mode: Mode
    files: Mapping[str, bytes]
    """By the last part of the path."""
    right_answers: int = 0
    """How many requests are answered correctly before the mode begins."""
    pause_seconds: float = 1.0
    """Between the bytes of an answer that drips."""
    tls: ssl.SSLContext | None = None
    visits: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    """Path and headers of all requests."""
    closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        """The address without a path."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            client.settimeout(None)
            connection = self.tls.wrap_socket(client, server_side=True) if self.tls else client
            with connection:
                while (visit := self._receive(connection)) is not None:
                    (answer_rightly if visit.number <= self.right_answers else self.mode)(visit)
                    if not visit.keep:
                        return

    def _receive(self, connection: socket.socket) -> Visit | None:
        """Return the next request; ``None`` if there is no further one."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(_LONGEST_REQUEST)
            if not piece or len(data) > _LONGEST_REQUEST:
                return None
            data += piece
            if data[0] == _TLS_HANDSHAKE:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return None
        first, *lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        with self._lock:
            self.visits.append((path, headers))
            number = len(self.visits)
        content = self.files.get(PurePosixPath(path.partition("?")[0]).name, b"")
        return Visit(
            server=self, socket=connection, number=number, method=method, path=path, headers=headers, content=content
        )


def answer_rightly(visit: Visit) -> None:
    """Send the requested range."""
    visit.answer()
