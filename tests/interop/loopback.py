"""A web server on the loopback that can delay its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from werkzeug.serving import make_server


class Loopback:
    """The server; a request that is to wait sets ``arrived``, and waits for ``opened``.

    Args:
        application: answers, as WSGI says.

    """

    def __init__(self, application: Callable[..., object]) -> None:
        self.arrived, self.opened = threading.Event(), threading.Event()
        self._server = make_server("127.0.0.1", 0, application, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self.opened.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
