"""Several ranks of one run: started by torchrun, or alone with the variables that ``srun`` would give to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from tests.faults.nursery import Nursery
from tests.faults.runs import HUNG, PROGRAM
from tests.helpers.fork_server import Running

MOST_SECONDS = 90
"""Ranks that take longer count as hung."""
_STEP_SECONDS = 0.005
_GRACE_SECONDS = 25
"""Ranks that nobody watches have this long to end after one failed; then they are asked to, as by srun."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What is different for one rank."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to its environment."""
    prefix: Sequence[str] = ()
    """The command that runs its command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How all ranks ended."""

    statuses: Sequence[int]
    """Of each rank, or of torchrun alone; negative for a signal."""
    stderr: str
    at: float
    """Seconds since the epoch: when the last one had ended."""
    survivors: Sequence[int] = ()
    """Process ids of ranks that still exist."""
    asked: bool = False
    """Whether ranks did not end by themselves after one had failed, and got a SIGTERM."""

    @property
    def hung(self) -> bool:
        """Whether a rank had to be killed."""
        return HUNG in self.statuses


class Ranks(Protocol):
    """The processes of one run."""

    def pid(self, rank: int) -> int | None:
        """Return the process id of a rank, ``None`` if it has not started."""

    def end(self) -> End:
        """Wait until all have ended; kill those that do not."""


class AloneRanks:
    """Ranks that nobody watches, forked by a nursery that has imported torch.

    Args:
        nursery: forks them.
        command: of the program.
        ranks: how many.
        orders: by rank.

    """

    def __init__(self, nursery: Nursery, command: Sequence[str], ranks: int, orders: Mapping[int, Orders]) -> None:
        meeting = {**LOOPBACK, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        meeting |= {"LOCAL_WORLD_SIZE": str(ranks)}
        self._running: list[Running] = []
        self._ended: dict[int, int] = {}
        """Statuses by rank."""
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **orders.get(rank, Orders()).variables}
            self._running.append(nursery.start(command, {**meeting, **own}))

    def pid(self, rank: int) -> int:
        """Return the process id of a rank."""
        return self._running[rank].pid

    def end(self) -> End:
        """Wait until all have ended."""
        deadline, asked = time.monotonic() + MOST_SECONDS, False
        statuses = self._ended
        while len(statuses) < len(self._running) and time.monotonic() < deadline:
            for rank, running in enumerate(self._running):
                if rank not in statuses and (status := running.wait(_STEP_SECONDS)) is not None:
                    statuses[rank] = status
                    deadline = min(deadline, time.monotonic() + _GRACE_SECONDS) if status else deadline
            if time.monotonic() >= deadline and not asked:
                asked, deadline = True, time.monotonic() + _GRACE_SECONDS
                self._signal(statuses, signal.SIGTERM)
        at = time.time()
        self._signal(statuses, signal.SIGKILL)
        stderr = "".join(f"[{rank}] {running.output()[1]}" for rank, running in enumerate(self._running))
        for running in self._running:
            running.close()
        return End(
            statuses=[statuses.get(rank, HUNG) for rank in range(len(self._running))], stderr=stderr, at=at, asked=asked
        )

    def end_of_others(self, rank: int) -> tuple[list[int | None], float]:
        """Wait until all but a rank have ended; return their statuses, ``None`` for one that has not, and when."""
        deadline = time.monotonic() + MOST_SECONDS
        for number, running in enumerate(self._running):
            if number != rank and (status := running.wait(max(0, deadline - time.monotonic()))) is not None:
                self._ended[number] = status
        return [self._ended.get(number) for number in range(len(self._running)) if number != rank], time.time()

    def _signal(self, ended: Mapping[int, int], number: int) -> None:
        for rank, running in enumerate(self._running):
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, number)


class TorchrunRanks:
    """Ranks that torchrun starts and watches.

    Args:
        folder: for the orders and the process ids.
        command: of the program.
        ranks: how many.
        orders: by rank.

    """

    def __init__(self, folder: Path, command: Sequence[str], ranks: int, orders: Mapping[int, Orders]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._folder, self._ranks = folder, ranks
        written = {str(rank): asdict(order) for rank, order in orders.items()}
        (folder / "orders.json").write_text(json.dumps(written))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        become = ["--no-python", sys.executable, "-m", "tests.faults.as_rank", str(folder)]
        self._stderr = (folder / "stderr").open("w+b")
        self.launcher = subprocess.Popen(
            [*launcher, *become, *command[len(PROGRAM) :]],
            env={**os.environ, **LOOPBACK},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )

    def pid(self, rank: int) -> int | None:
        """Return the process id of a rank, ``None`` if it has not started."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self._folder / f"{rank}.pid").read_text())
        return None

    def end(self) -> End:
        """Wait until torchrun and all ranks have ended."""
        deadline = time.monotonic() + MOST_SECONDS
        try:
            status = self.launcher.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            self.launcher.wait()
            status = HUNG
        while self._alive() and time.monotonic() < deadline:
            time.sleep(_STEP_SECONDS)
        at, survivors = time.time(), self._alive()
        for pid in survivors:
            os.kill(pid, signal.SIGKILL)
        self._stderr.close()
        stderr = (self._folder / "stderr").read_text(errors="replace")
        return End(statuses=[status], stderr=stderr, at=at, survivors=survivors)

    def _alive(self) -> list[int]:
        return [pid for rank in range(self._ranks) if (pid := self.pid(rank)) and _runs(pid)]


def _runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
