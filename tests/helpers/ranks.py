"""Processes that average together, as torchrun starts them; or threads of this process that are as many ranks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ema_cli.distributed.assistant import Assistant
from ema_cli.distributed.failure import PeerFailed
from ema_cli.distributed.launch import Launch
from ema_cli.distributed.leader import Leader
from ema_cli.distributed.meeting import Meeting
from ema_cli.options.average import make_options
from ema_cli.pipeline import assist_average, run_average
from ema_cli.report.model import Report
from tests.helpers.fork_server import Running, shared

Given = Callable[[int], Mapping[str, Any]]


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def launch_of(rank: int, size: int, port: int) -> Launch:
    """Return the place of a rank on this host."""
    return Launch(rank=rank, size=size, host="127.0.0.1", port=port, local_rank=rank, launcher="torchrun")


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun sets for a rank."""
    return {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{size}"} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }


def average_in_ranks(
    count: int,
    paths: Sequence[Path],
    own: Given = lambda _: {},
    of_paths: Callable[[int], Sequence[Path]] | None = None,
    **options: Any,
) -> tuple[Report, list[BaseException | None]]:
    """Average in threads that are the ranks; return the report, and what each rank has raised.

    Raises:
        BaseException: what rank 0 has raised.

    """
    port = free_port()
    reports: list[Report] = []

    def work(rank: int) -> BaseException | None:
        meeting = Meeting(launch_of(rank, count, port), lambda _: None)
        try:
            given = make_options(of_paths(rank) if of_paths else paths, **{**options, **own(rank)})
            if rank == 0:
                reports.append(
                    run_average(given, ranks=Leader(meeting, lambda met: meeting.fail(failure_of(met, rank)))).report
                )
            else:
                assist_average(given, Assistant(meeting))
        except PeerFailed as ended:
            return ended
        except Exception as error:  # noqa: BLE001 - as the command line does
            meeting.fail(failure_of(error, rank))
            return error
        finally:
            threading.Thread(target=meeting.leave).start()  # it waits for the others
        return None

    with ThreadPoolExecutor(count) as pool:
        raised = list(pool.map(work, range(count)))
    if raised[0] is not None:
        raise raised[0]
    return reports[0], raised


def failure_of(error: BaseException, rank: int) -> Any:
    """Return the failure that a rank reports."""
    from ema_cli.cli.exit import explain  # noqa: PLC0415 - few tests fail
    from ema_cli.distributed.failure import Failure  # noqa: PLC0415

    explained, _ = explain(error)
    return Failure(rank=rank, kind=type(explained).__name__, message=explained.message, hint=explained.hint)


class Ranks:
    """Processes that were started together."""

    def __init__(self, running: Sequence[Running]) -> None:
        self.running = running

    def wait(self, seconds: float = 60) -> list[subprocess.CompletedProcess[str]]:
        """Return how each rank ended, and what it printed."""
        deadline = time.monotonic() + seconds
        ended = []
        for number, one in enumerate(self.running):
            status = one.wait(max(0, deadline - time.monotonic()))
            assert status is not None, f"rank {number} runs on"
            ended.append(subprocess.CompletedProcess([f"{number}"], status, *one.output()))
        return ended


@contextlib.contextmanager
def started_ranks(
    count: int, folder: Path, *arguments: object, own: Callable[[int], Mapping[str, str]] = lambda _: {}
) -> Iterator[Ranks]:
    """Start the program as many ranks, and kill what is left of them at the end."""
    port = free_port()
    running = [
        shared("torch", "torch.distributed").start(
            [*map(str, arguments)],
            folder=folder,
            environment={**os.environ, **variables(rank, count, port), **own(rank)},
        )
        for rank in range(count)
    ]
    try:
        yield Ranks(running)
    finally:
        for one in running:
            one.kill()
            one.close()
