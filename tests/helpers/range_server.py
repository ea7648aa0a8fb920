"""A web server that gives parts of the files of a folder, and logs the requests.

    python -m tests.helpers.range_server FOLDER LOG      # prints its port, and serves until its input ends

Each request is a line of the log: the method, the bytes that were sent, and whether it was for a part.
"""

from __future__ import annotations

import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TextIO


def handler(folder: Path, log: TextIO) -> type[BaseHTTPRequestHandler]:
    """Return the request handler."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(folder / self.path.lstrip("/"), body=False)

        def do_GET(self) -> None:
            self.answer(folder / self.path.lstrip("/"), body=True)

        def answer(self, path: Path, *, body: bool) -> None:
            if not path.is_file():
                self.send_error(404)
                return
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
            log.write(f"{self.command} {(last - first + 1) * body} {'part' if asked else 'whole'}\n")
            if body:
                with path.open("rb") as file:
                    self.connection.sendfile(file, first, last - first + 1)

    return Handler


def main() -> None:
    """Serve."""
    with Path(sys.argv[2]).open("a", buffering=1, encoding="utf-8") as log:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Path(sys.argv[1]), log))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
