"""A web server that gives parts of the files of a folder, and logs the requests.

    python -m tests.helpers.range_server FOLDER LOG [DELAY RATE]   # prints its port, and serves until its input ends

Each request is a line of the log: the method, the bytes that were sent, and whether it was for a part. Every answer
begins DELAY seconds late, and all bodies together arrive at RATE bytes per second at most, if given and not 0.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, TextIO

_PIECE_BYTES = 1 << 18


class Throttle:
    """Lets ``rate`` bytes per second through, of all connections together; any number if it is 0."""

    def __init__(self, rate: float = 0) -> None:
        self._rate = rate
        self._free = 0.0
        """When the link is free, by ``time.monotonic``."""
        self._lock = threading.Lock()

    def send(self, connection: socket.socket, file: BinaryIO, first: int, size: int) -> None:
        """Send ``size`` bytes of a file from ``first`` on."""
        if not self._rate:
            connection.sendfile(file, first, size)
            return
        for begin in range(first, first + size, _PIECE_BYTES):
            count = min(_PIECE_BYTES, first + size - begin)
            with self._lock:
                self._free = max(self._free, time.monotonic()) + count / self._rate
                wait = self._free - time.monotonic()
            time.sleep(max(0.0, wait))
            connection.sendfile(file, begin, count)


def handler(
    folder: Path, log: TextIO, delay: float = 0, throttle: Throttle | None = None
) -> type[BaseHTTPRequestHandler]:
    """Return the request handler."""
    link = throttle or Throttle()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16  # one packet for the head of an answer

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(folder / self.path.partition("?")[0].lstrip("/"), body=False)

        def do_GET(self) -> None:
            self.answer(folder / self.path.partition("?")[0].lstrip("/"), body=True)

        def answer(self, path: Path, *, body: bool) -> None:
            if not path.is_file():
                self.send_error(404)
                return
            if delay:
                time.sleep(delay)
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}-{size}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            self.wfile.flush()
            log.write(f"{self.command} {(last - first + 1) * body} {'part' if asked else 'whole'}\n")
            if body:
                with path.open("rb") as file:
                    link.send(self.connection, file, first, last - first + 1)

    return Handler


def main() -> None:
    """Serve."""
    with Path(sys.argv[2]).open("a", buffering=1, encoding="utf-8") as log:
        delay, rate = map(float, sys.argv[3:5] or ("0", "0"))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Path(sys.argv[1]), log, delay, Throttle(rate)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
