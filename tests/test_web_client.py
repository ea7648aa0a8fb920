"""Requests to web servers: what is sent, over which connections, with whose settings, and when they end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from ema_cli.errors import InputChanged, UsageError
from ema_cli.storage.remote import web_client
from ema_cli.storage.remote.remote_source import RemoteSource
from ema_cli.storage.remote.store_failure import StoreError
from ema_cli.storage.remote.web_object import WebObject
from ema_cli.storage.url import Url
from tests.helpers.hostile_modes import MODES
from tests.helpers.hostile_server import HostileServer, Visit, answer_rightly

pytest.importorskip("yarl")

FILES = {"a.pt": bytes(range(256)) * 4}
LOGIN = "Basic " + b64encode(b"me:secret").decode()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own settings, and leaves no connection open."""
    monkeypatch.setattr("ema_cli.storage.remote.retries.RETRY_DELAY_SECONDS", 0)
    monkeypatch.setattr(web_client, "_CLIENTS", {})
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not any(found for client in web_client._CLIENTS.values() for found in client._idle.values())


@pytest.mark.parametrize(
    ("rest", "sent"),
    [
        ("/a%2Fb%2fc.pt", "/a%2Fb%2fc.pt"),
        ("/x.pt?X-Amz-Signature=a%2Bb%3D&e=1+2", "/x.pt?X-Amz-Signature=a%2Bb%3D&e=1+2"),
        ("/a/../b//c.pt#part", "/a/../b//c.pt"),
        ("?id=7", "/?id=7"),
        ("/a b.pt", "/a%20b.pt"),
        ("/\xe4/\xf6.pt?q=\xe9", "/%C3%A4/%C3%B6.pt?q=%C3%A9"),
        ("/100%.pt", "/100%25.pt"),
    ],
)
def test_an_address_is_sent_as_it_is_given(rest: str, sent: str) -> None:
    """If it is encoded, byte by byte; else it is encoded as a browser does."""
    with HostileServer(mode=lambda visit: visit.refuse("404 no"), files={}) as server:
        with pytest.raises(StoreError, match="404"):
            WebObject(Url(server.address + rest), 9)
        ((path, headers),) = server.visits
    assert path == sent
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert headers["range"] == "bytes=0-8"
    assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("target", "path"), [("/b c?x=%2F", "/b%20c?x=/"), ("/\xc3\xa4", "/%C3%A4"), ("?q", "/a.pt?q")]
)
def test_a_redirect_may_lead_to_any_address_of_the_web(target: str, path: str) -> None:
    """It is relative to the address before it, and in UTF-8."""

    def moved(visit: Visit) -> None:
        visit.refuse("404 no") if visit.number > 1 else visit.refuse(
            "302 x", {"Location": target, "Connection": "close"}
        )

    with HostileServer(mode=moved, files={}) as server, pytest.raises(StoreError, match="404"):
        WebObject(Url(f"{server.address}/a.pt"), 9)
    assert [one for one, _ in server.visits] == ["/a.pt", path]


@pytest.mark.parametrize("length", ["0", "5"])
def test_a_redirect_leaves_no_connection_behind(length: str) -> None:
    """Neither to the first host, nor one on which the rest of the answer may arrive after the next request."""
    seen: list[socket.socket] = []

    def moved(visit: Visit) -> None:
        seen.append(visit.socket)
        if visit.number == 1:
            visit.refuse("302 x", {"Location": "/b.pt", "Content-Length": length})
        elif visit.number == 2:
            visit.refuse("302 x", {"Location": f"http://localhost:{visit.server.port}/c.pt"})
        else:
            visit.refuse("404 no")

    with HostileServer(mode=moved, files={}) as server, pytest.raises(StoreError, match="404"):
        WebObject(Url(f"{server.address}/a.pt"), 9)
    assert [path for path, _ in server.visits] == ["/a.pt", "/b.pt", "/c.pt"]
    assert len(set(map(id, seen))) == (2 if length == "0" else 3)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0127.0.0.1"])
def test_a_short_address_of_a_host_is_not_valid(host: str) -> None:
    """A system would take it for 127.0.0.1, or another one."""
    with pytest.raises(UsageError, match="is not a valid URL"):
        WebObject(Url(f"http://{host}:1/a.pt"), 9)


def test_requests_share_a_connection_until_the_last_file_is_closed() -> None:
    """It is opened once, and closed with the last file that uses it."""
    seen: list[socket.socket] = []
    ended = threading.Event()

    def note(visit: Visit) -> None:
        seen.append(visit.socket)
        visit.answer()

    class Server(HostileServer):
        def _serve(self, client: socket.socket) -> None:
            super()._serve(client)
            ended.set()

    with Server(mode=note, files=FILES) as server:
        files = [WebObject(Url(f"{server.address}/a.pt"), 9) for _ in range(3)]
        assert b"".join(files[1].read(5, 700)) == FILES["a.pt"][5:700]
        for one in files[:2]:
            one.close()
        assert b"".join(files[2].read(0, 1024)) == FILES["a.pt"]
        assert len(set(map(id, seen))) == 1
        assert not ended.is_set()
        files[2].close()
        assert ended.wait(60)


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something between may have forgotten it."""
    monkeypatch.setattr(web_client, "_IDLE_SECONDS", 0.0)
    seen: list[socket.socket] = []

    def note(visit: Visit) -> None:
        seen.append(visit.socket)
        visit.answer()

    with HostileServer(mode=note, files=FILES) as server:
        file = WebObject(Url(f"{server.address}/a.pt"), 9)
        file.read(0, 9)
        file.close()
    assert len(set(map(id, seen))) == 2


def test_a_connection_that_the_server_closes_is_replaced() -> None:
    """A request that is lost on a connection with earlier answers is sent again on another one, without a new try."""

    def close_after_an_answer(visit: Visit) -> None:
        visit.answer()
        visit.keep = visit.number % 2 == 1  # the second request on each connection is answered, the third is lost

    with HostileServer(mode=close_after_an_answer, files=FILES) as server:
        file = WebObject(Url(f"{server.address}/a.pt"), 9)
        for begin in range(0, 1000, 100):
            assert b"".join(file.read(begin, begin + 24)) == FILES["a.pt"][begin : begin + 24]
        file.close()


@pytest.mark.parametrize("begin", [9, 900])
def test_an_answer_that_comes_too_early_is_not_taken_for_that_to_the_next_request(begin: int) -> None:
    """Even if it has the range that is requested next, and whether it arrived with the answer before it or after it."""

    def poison(visit: Visit) -> None:
        evil = f"HTTP/1.1 206 x\r\nContent-Range: bytes {begin}-{begin + 8}/1024\r\nContent-Length: 9\r\n\r\nevil evil"
        head = "\r\n".join(["HTTP/1.1 206 x", *(f"{name}: {value}" for name, value in visit.right.items()), "", ""])
        visit.send(head.encode() + visit.body + evil.encode())

    with HostileServer(mode=poison, files=FILES) as server:
        file = WebObject(Url(f"{server.address}/a.pt"), 9)
        assert b"".join(file.read(begin, begin + 9)) == FILES["a.pt"][begin : begin + 9]
        file.close()


@pytest.mark.parametrize("status", ["200 OK", "206 Partial Content", "404 Not Found"])
def test_a_wrong_answer_on_a_used_connection_is_not_believed(status: str) -> None:
    """It may be a second answer to an earlier request: another connection decides."""
    seen: list[socket.socket] = []

    def doubt(visit: Visit) -> None:
        seen.append(visit.socket)
        if visit.number == 2:
            visit.answer(status, b"evil evil", {"Content-Range": "bytes 500-508/1024"})
        else:
            visit.answer()

    with HostileServer(mode=doubt, files=FILES) as server:
        file = WebObject(Url(f"{server.address}/a.pt"), 9)
        assert b"".join(file.read(9, 18)) == FILES["a.pt"][9:18]
        file.close()
    assert [id(one) == id(seen[0]) for one in seen] == [True, True, False]


def test_the_end_of_an_object_ends_its_requests() -> None:
    """A request that waits for an answer, or for its body, ends without one, also in another thread."""
    for name in ("no answer", "no first byte", "102 now and then", "one byte a second"):
        with HostileServer(mode=MODES[name].serve, files=FILES, right_answers=1) as server:
            file = WebObject(Url(f"{server.address}/a.pt"), 9)
            with ThreadPoolExecutor(3) as pool:
                waiting = [pool.submit(file.read, 0, 1000) for _ in range(3)]
                while len(server.visits) < 4:
                    time.sleep(0.01)
                file.close()
                for one in waiting:
                    with pytest.raises(StoreError, match="no longer needed"):
                        one.result(30)


def test_the_beginning_of_an_answer_is_bounded() -> None:
    """Headers that are all short and few are too long together; so are the marks between the parts of a body."""
    headers = {f"X-{number}": "y" * 2000 for number in range(50)}

    def marked(visit: Visit) -> None:
        visit.begin_answer(headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
        for byte in visit.body:
            visit.send(b"1;%s\r\n%c\r\n" % (b"x" * 30_000, byte))
        visit.send(b"0\r\n\r\n")

    for mode in (lambda visit: visit.answer(headers=headers), marked):
        with (
            HostileServer(mode=mode, files=FILES) as server,
            pytest.raises(StoreError, match="not valid HTTP: its lines are too long"),
        ):
            WebObject(Url(f"{server.address}/a.pt"), 9)


def test_a_name_that_is_not_found_in_time_does_not_hold_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else ends the search of a system for the address of a host."""
    found, closed = threading.Event(), threading.Event()
    monkeypatch.setattr(web_client, "CONNECT_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    connect = socket.create_connection

    def search(_: tuple[str, int], timeout: float) -> socket.socket:
        found.wait(60)
        opened = connect(listener.getsockname(), timeout)
        closed.set()
        return opened

    monkeypatch.setattr(socket, "create_connection", search)
    with pytest.raises(StoreError, match=r"there is no connection within 0\.3 s"):
        WebObject(Url("http://host.invalid/a.pt"), 9)
    found.set()
    with listener:
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(60)
            assert accepted.recv(1) == b""  # what is found too late is closed
    assert closed.is_set()


def settings(monkeypatch: pytest.MonkeyPatch, **configured: object) -> None:
    """Have a configuration of fsspec."""
    monkeypatch.setitem(fsspec.config.conf, "http", configured)


def headers_of(server: HostileServer) -> Mapping[str, str]:
    """Return the headers of the only request."""
    ((_, headers),) = server.visits
    return headers


def test_settings_of_fsspec_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a request come before those of the session; the login in an address before both."""
    session = {"headers": {"X-One": "1", "X-Two": "2"}, "auth": ("you", "other"), "timeout": 3}
    settings(monkeypatch, headers={"x-two": "3", "User-Agent": "me"}, cookies={"c": "1"}, client_kwargs=session)
    monkeypatch.setitem(fsspec.config.conf, "https", {"block_size": 5})
    with HostileServer(mode=answer_rightly, files=FILES) as server:
        WebObject(Url(f"{server.address.replace('//', '//me:secret@')}/a.pt"), 9).close()
        sent = headers_of(server)
    assert {name: sent[name] for name in ("x-one", "x-two", "user-agent", "cookie", "authorization")} == {
        "x-one": "1",
        "x-two": "3",
        "user-agent": "me",
        "cookie": "c=1",
        "authorization": LOGIN,
    }


@pytest.mark.parametrize(
    "configured",
    [
        {"connector": "x"},
        {"client_kwargs": {"connector": "x"}},
        {"client_kwargs": "x"},
        {"headers": "x"},
        {"auth": 3},
        {"ssl": "maybe"},
        {"proxy": "https://localhost:1"},
        {"proxy": "socks5://localhost:1"},
    ],
)
def test_settings_that_are_not_heeded_are_refused(
    configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is requested: the user may rely on them."""
    settings(monkeypatch, **configured)
    with (
        HostileServer(mode=answer_rightly, files=FILES) as server,
        pytest.raises(UsageError, match=r"fsspec|the proxy"),
    ):
        RemoteSource(Url(f"{server.address}/a.pt"))
    assert not server.visits


def test_a_header_with_a_line_break_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be two headers."""
    settings(monkeypatch, headers={"X-One": "1\r\nX-Two: 2"})
    with HostileServer(mode=answer_rightly, files=FILES) as server, pytest.raises(InputChanged, match="request failed"):
        RemoteSource(Url(f"{server.address}/a.pt"))
    assert not server.visits


@pytest.mark.parametrize("source", ["none", "environment", "exception", "fsspec"])
def test_a_proxy_is_used_if_the_user_wants_one(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts only with ``trust_env``; the proxy gets its own login, and the whole address."""
    with HostileServer(mode=answer_rightly, files=FILES) as proxy:
        address = proxy.address.replace("//", "//me:secret@")
        monkeypatch.setenv("http_proxy", address if source != "fsspec" else "http://127.0.0.1:1")
        if source == "exception":
            monkeypatch.setenv("no_proxy", "host.invalid")
        options = {"none": {}, "fsspec": {"proxy": address}}.get(source, {"client_kwargs": {"trust_env": True}})
        settings(monkeypatch, **options)
        url = Url("http://host.invalid/a.pt?v=1")
        if source in ("none", "exception"):
            with pytest.raises(StoreError, match=r"there is no address of .host\.invalid"):
                WebObject(url, 9)
            return
        file = WebObject(url, 9)
        assert file.size == 1024
        file.close()
        ((path, headers),) = proxy.visits
    assert path == "http://host.invalid/a.pt?v=1"
    assert headers["proxy-authorization"] == LOGIN
    assert "authorization" not in headers


def test_a_login_of_netrc_is_used_if_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``trust_env``, and without another login."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for trust_env, sent in ((False, None), (True, LOGIN)):
        settings(monkeypatch, client_kwargs={"trust_env": trust_env})
        with HostileServer(mode=answer_rightly, files=FILES) as server:
            WebObject(Url(f"{server.address}/a.pt"), 9).close()
            assert headers_of(server).get("authorization") == sent


def forward(listener: socket.socket, asked: list[bytes], answer: bytes) -> None:
    """Be a proxy for one connection with TLS."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    client, _ = listener.accept()
    with client:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1 << 16)
        asked.append(head)
        client.sendall(answer)
        if b" 200 " in answer:
            host, _, port = head.split()[1].partition(b":")
            with socket.create_connection((host.decode(), int(port))) as server:
                back = threading.Thread(target=copy, args=(server, client), daemon=True)
                back.start()
                copy(client, server)
                back.join()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_proxy_forwards_tls(allowed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked for the host and the port, with its own login, and sees nothing else; its refusal is shown."""
    pytest.importorskip("cryptography")
    from tests.helpers.certificates import make_certificate, server_context  # noqa: PLC0415 - cryptography

    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    asked: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\n\r\n" if allowed else b"HTTP/1.1 407 no\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=forward, args=(listener, asked, answer), daemon=True).start()
        settings(monkeypatch, proxy=f"http://me:secret@127.0.0.1:{listener.getsockname()[1]}", headers={"X-One": "1"})
        with HostileServer(mode=answer_rightly, files=FILES, tls=server_context(certificate)) as server:
            url = Url(f"{server.address}/a.pt")
            if allowed:
                file = WebObject(url, 9)
                assert b"".join(file.read(0, 1024)) == FILES["a.pt"]
                file.close()
            else:
                with pytest.raises(StoreError, match="the proxy answered 407"):
                    WebObject(url, 9)
            assert len(server.visits) == 2 * allowed
    (head,) = asked
    place = f"127.0.0.1:{server.port}"
    assert head.decode().split("\r\n")[:3] == [
        *(f"CONNECT {place} HTTP/1.1", f"Host: {place}", f"Proxy-Authorization: {LOGIN}"),
    ]
    assert b"X-One" not in head


def test_certificates_may_be_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the user says so."""
    pytest.importorskip("cryptography")
    from tests.helpers.certificates import make_certificate, server_context  # noqa: PLC0415 - cryptography

    certificate = make_certificate(tmp_path, expired=True)
    for configured, valid in (({"ssl": False}, True), ({"verify_ssl": False}, True), ({"ssl": True}, False)):
        settings(monkeypatch, **configured)
        with HostileServer(mode=answer_rightly, files=FILES, tls=server_context(certificate)) as server:
            if valid:
                WebObject(Url(f"{server.address}/a.pt"), 9).close()
            else:
                with pytest.raises(StoreError, match="the certificate of"):
                    WebObject(Url(f"{server.address}/a.pt"), 9)


def test_reading_from_the_web_imports_neither_fsspec_nor_aiohttp(tmp_path: Path) -> None:
    """Their import would take longer than a small run."""
    code = (
        "import sys\n"
        "from ema_cli.storage.remote.remote_source import RemoteSource\n"
        "from ema_cli.storage.url import Url\n"
        "RemoteSource(Url(sys.argv[1])).close()\n"
        "print([one for one in ('fsspec', 'aiohttp', 'asyncio') if one in sys.modules])"
    )
    with HostileServer(mode=answer_rightly, files=FILES) as server:
        command = [sys.executable, "-c", code, f"{server.address}/a.pt"]
        done = subprocess.run(
            command, env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}, capture_output=True, check=True
        )
    assert done.stdout == b"[]\n"
