"""Remote files, from a web server on the loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
"""Of the downloads, and of ema-avg."""
_LINKS = {"loopback": (0, 0), "10 ms per request": (0.01, 0), "100 MB/s": (0, 1e8)}
"""Seconds before each answer, and bytes per second; 0 for any number."""


class _Server(NamedTuple):
    """A web server on the loopback, in a process of its own."""

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
    """Read from a web server on the loopback: requests, bytes, time against plain downloads, memory against files."""
    yield (
        *("checkpoints on a web server, warm", "link", "plan: requests", "sent", "run: requests", "sent / needed"),
        *("parallel downloads", "ema-avg, remote", "ratio", "CPU: downloads", "remote", "local"),
        *("peak memory: remote", "local"),
    )
    large = Series(max(2, settings.objects // 25), 40, settings.remote_bytes // 160)
    small = Series(settings.objects, 10, 50_000)
    for series in (large, large._replace(suffix=".pt"), small, small._replace(suffix=".pt")):
        with on_disk(series, settings) as paths:
            for link, (delay, rate) in _LINKS.items():
                with _served(paths[0].parent, delay, rate) as server:
                    yield _remote_row(series, link, paths, server, settings)


def _remote_row(
    series: Series, link: str, paths: Sequence[Path], server: _Server, settings: Settings
) -> tuple[str, ...]:
    label = f"{series.checkpoints} x {size(series.data_bytes())} `{series.suffix}`"
    urls = [f"http://127.0.0.1:{server.port}/{path.name}" for path in paths]
    run(Job([EMA_AVG, "plan", *urls, "--decay", DECAY], paths), settings)
    planned, planned_bytes = server.sent()
    remote: Sequence[object] = [EMA_AVG, *urls, "--decay", DECAY, "-o", settings.out / "out.safetensors"]
    names = [path.name for path in paths]
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
