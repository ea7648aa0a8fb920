"""Remote files, from a server on the loopback that answers as a web server, and as S3."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .commands import DECAY, EMA_AVG, ours
from .measure import ROOT, Job, Rows, Settings, in_turn, peak, run, size
from .series import Series, on_disk

_DOWNLOAD = """
import http.client, queue, sys, threading
names = queue.SimpleQueue()
for name in sys.argv[3:]:
    names.put(name)
def work():
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    buffer = bytearray(1 << 20)
    while True:
        try:
            connection.request("GET", "/" + names.get_nowait())
        except queue.Empty:
            return
        answer = connection.getresponse()
        while answer.readinto(buffer):
            pass
threads = [threading.Thread(target=work) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
_CONNECTIONS = 12
"""Of the downloads."""
_ACCOUNT = ("AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY=nothing", "AWS_DEFAULT_REGION=us-east-1")
_LINKS = {"loopback": (0, 0), "10 ms per request": (0.01, 0), "100 MB/s": (0, 1e8)}
"""Seconds before each answer, and bytes per second; 0 for any number."""


class _Server(NamedTuple):
    """A server on the loopback, in a process of its own."""

    port: int
    log: Path

    def sent(self) -> tuple[int, int]:
        """Return the number of requests since the last call, without plain downloads, and the bytes of parts."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        os.truncate(self.log, 0)
        asked = [int(size) for method, size, kind in lines if method == "HEAD" or kind == "part"]
        return len(asked), sum(asked)


@contextmanager
def _served(folder: Path, delay: float, rate: float) -> Iterator[_Server]:
    log = folder / "requests"
    command = [sys.executable, "-m", "tests.helpers.range_server", str(folder.resolve()), str(log.resolve())]
    command += [str(delay), str(rate)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield _Server(int(process.stdout.readline()), log)
        finally:
            process.stdin.close()
            process.wait()
            log.unlink()


def remote(settings: Settings) -> Rows:
    """Read from a server on the loopback, by `http` and `s3`: requests, bytes, time, and memory.

    The times are compared with plain downloads, and the memory with that of local files.
    """
    yield (
        *("remote checkpoints, warm", "link", "plan: requests", "sent", "run: requests", "sent / needed"),
        *("parallel downloads", "ema-avg, remote", "ratio", "CPU: downloads", "remote", "local"),
        *("peak memory: remote", "local"),
    )
    large = Series(max(2, settings.objects // 25), 40, settings.remote_bytes // 160)
    small = Series(settings.objects, 10, 50_000)
    for series in (large, large._replace(suffix=".pt"), small, small._replace(suffix=".pt")):
        with on_disk(series, settings) as paths:
            protocols = ["http", "s3"] if find_spec("s3fs") and series.suffix == ".safetensors" else ["http"]
            for protocol in protocols:
                for link, (delay, rate) in _LINKS.items():
                    with _served(settings.folder, delay, rate) as server:
                        yield _remote_row(series, (protocol, link), paths, server, settings)


def _remote_row(
    series: Series, way: tuple[str, str], paths: Sequence[Path], server: _Server, settings: Settings
) -> tuple[str, ...]:
    label = f"{series.checkpoints} x {size(series.data_bytes())} `{series.suffix}`"
    protocol, link = way[0], f"`{way[0]}`, {way[1]}"
    names = [f"{path.parent.name}/{path.name}" for path in paths]  # the folder is a bucket of S3
    host = f"http://127.0.0.1:{server.port}"
    urls = [f"{host if protocol == 'http' else 's3:/'}/{name}" for name in names]
    ema_avg: Sequence[object] = ["env", f"AWS_ENDPOINT_URL={host}", *_ACCOUNT, EMA_AVG]
    run(Job([*ema_avg, "plan", *urls, "--decay", DECAY], paths), settings)
    planned, planned_bytes = server.sent()
    remote: Sequence[object] = [*ema_avg, *urls, "--decay", DECAY, "-o", settings.out / "out.safetensors"]
    jobs = {
        "downloads": Job([sys.executable, "-c", _DOWNLOAD, server.port, _CONNECTIONS, *names], paths),
        "remote": Job(remote, paths),
        "local": Job(ours(paths, settings), paths),
    }
    downloads, far, near = in_turn(f"{label}, {link}", jobs, settings).values()
    made, sent = (count / settings.rounds for count in server.sent())
    return (
        label,
        link,
        *(f"{planned:,}", size(planned_bytes), f"{made:,.0f}"),
        f"{sent / (series.checkpoints * series.data_bytes()):.3f}",
        *(f"{downloads.seconds:.2f} s", f"{far.seconds:.2f} s", f"{far.seconds / downloads.seconds:.2f}"),
        *(f"{sample.cpu_seconds:.2f} s" for sample in (downloads, far, near)),
        *(peak(far), peak(near)),
    )
