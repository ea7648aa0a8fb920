"""Addresses without a usable server behind them, and what a run must make of them: its exit code and its words."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.hostile_server import HostileServer, Visit, answer_rightly

Files = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What a run needs to go to a place."""

    address: str
    """Without the name of the file."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the run."""


@dataclass(frozen=True, kw_only=True)
class HostilePlace:
    """An address, and what a run must make of it."""

    name: str
    open: Callable[[Files], AbstractContextManager[Reached]]
    code: int
    """The exit code."""
    words: str
    """A regular expression that the message matches; empty if the run succeeds."""
    is_slow: bool = False
    """Whether the run waits for a time-out."""


@contextmanager
def _nobody(_: Files) -> Iterator[Reached]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield Reached(address=f"http://127.0.0.1:{port}")


@contextmanager
def _no_name(_: Files) -> Iterator[Reached]:
    yield Reached(address="http://no-such-host.invalid")


@contextmanager
def _full(_: Files) -> Iterator[Reached]:
    """A server that accepts no connection: its queue is full."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _number in range(2):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield Reached(address=f"http://127.0.0.1:{listener.getsockname()[1]}")


@contextmanager
def _silent(_: Files) -> Iterator[Reached]:
    """A server that accepts connections, and says nothing, not even for TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Reached(address=f"https://127.0.0.1:{listener.getsockname()[1]}")


@contextmanager
def _no_tls(files: Files) -> Iterator[Reached]:
    with HostileServer(mode=answer_rightly, files=files) as server:
        yield Reached(address=server.address.replace("http:", "https:"))


def _tls(
    *, loopback: bool = True, expired: bool = False, trusted: bool = True, scheme: str = "https"
) -> Callable[[Files], AbstractContextManager[Reached]]:
    """Return a place with a certificate."""

    @contextmanager
    def opened(files: Files) -> Iterator[Reached]:
        from tests.helpers.certificates import make_certificate, server_context  # noqa: PLC0415 - cryptography

        with tempfile.TemporaryDirectory() as name:
            certificate = make_certificate(Path(name), loopback=loopback, expired=expired)
            with HostileServer(mode=answer_rightly, files=files, tls=server_context(certificate)) as server:
                environment = {"SSL_CERT_FILE": str(certificate)} if trusted else {}
                yield Reached(address=server.address.replace("https:", f"{scheme}:"), environment=environment)

    return opened


@contextmanager
def _downgrade(files: Files) -> Iterator[Reached]:
    """A server with TLS that redirects to one without."""
    from tests.helpers.certificates import make_certificate, server_context  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name, HostileServer(mode=answer_rightly, files=files) as plain:
        certificate = make_certificate(Path(name))

        def redirect(visit: Visit) -> None:
            visit.refuse("302 Found", {"Location": f"{plain.address}{visit.path}"})

        with HostileServer(mode=redirect, files=files, tls=server_context(certificate)) as server:
            yield Reached(address=server.address, environment={"SSL_CERT_FILE": str(certificate)})


def _places() -> Iterator[HostilePlace]:
    refused, unknown = "there is no connection to .*Connection refused", "there is no address of .no-such-host.invalid"
    certificate = "the certificate of .127.0.0.1. is not valid"
    yield HostilePlace(name="nobody listens", open=_nobody, code=4, words=refused)
    yield HostilePlace(name="no such host", open=_no_name, code=4, words=unknown)
    slow = "no connection within|no answer began within"
    yield HostilePlace(name="no connection", open=_full, code=4, words=slow, is_slow=True)
    yield HostilePlace(name="TLS: silence", open=_silent, code=4, words=slow, is_slow=True)
    yield HostilePlace(name="TLS: none", open=_no_tls, code=4, words="there is no secure connection to")
    yield HostilePlace(
        name="TLS where none is expected", open=_tls(scheme="http"), code=4, words="the connection was|not valid HTTP"
    )
    yield HostilePlace(name="TLS: signed by itself", open=_tls(trusted=False), code=4, words=f"{certificate}.*self")
    yield HostilePlace(name="TLS: expired", open=_tls(expired=True), code=4, words=f"{certificate}.*expired")
    yield HostilePlace(name="TLS: another host", open=_tls(loopback=False), code=4, words=f"{certificate}.*mismatch")
    yield HostilePlace(name="TLS, redirect to http:", open=_downgrade, code=3, words="redirects from https to http")
    yield HostilePlace(name="TLS as it should be", open=_tls(), code=0, words="")


PLACES = {one.name: one for one in _places()}
"""By their names."""
