"""A web server that gives parts of files only to those who know its password and its signature."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class DemandingServer:
    """A server of a folder.

    Args:
        folder: the files.
        login: user and password that it demands, such as ``me:pass``; empty for none.
        query: the query that it demands, byte by byte; empty for any.

    """

    def __init__(self, folder: Path, *, login: str = "", query: str = "") -> None:
        self.folder = folder
        self.login = login
        self.query = query
        self.asked: list[str] = []
        """The targets of the requests."""
        self.refused = 0
        self.site = ""
        """Host and port."""

    def address(self, name: str, *, query: str | None = None) -> str:
        """Return the address of a file, with everything that the server demands."""
        query = self.query if query is None else query
        login = f"{self.login}@" if self.login else ""
        return f"http://{login}{self.site}/{name}" + (f"?{query}" if query else "")

    @contextmanager
    def serving(self) -> Iterator[DemandingServer]:
        """Serve while the context is open."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.site = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def _handler(served: DemandingServer) -> type[BaseHTTPRequestHandler]:
    login = f"Basic {base64.b64encode(unquote(served.login).encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            served.asked.append(self.path)
            name, _, query = self.path.partition("?")
            known = not served.login or self.headers.get("Authorization") == login
            if not known or (served.query and query != served.query):
                served.refused += 1
                self.send_error(403 if known else 401)
                return
            chosen = re.search(r"(?:^|&)id=([^&]*)", query)
            path = served.folder / (chosen[1] if chosen else name.lstrip("/"))
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), min(int(asked[2]), len(data) - 1)) if asked else (0, len(data) - 1)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}-{len(data)}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if body:
                self.wfile.write(data[first : last + 1])

    return Handler
