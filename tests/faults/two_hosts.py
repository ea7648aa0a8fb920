"""Runs on two hosts with one shared folder: ``python -m tests.faults.two_hosts``, as root; prints a table."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.hosts import SHARED, Host, two_hosts
from tests.faults.runs import PROGRAM
from tests.faults.series import write_series

_PORT = 29_400
_ELEMENTS, _TENSORS = 1_000_000, 32
"""128 MB, so that a run can be hit while it folds."""
_MOST_SECONDS = 90
_OUTPUTS: dict[str, tuple[str, ...]] = {
    "ema.safetensors": (),
    "ema/": ("--max-shard-size", "10MB"),
}


@dataclass(slots=True)
class Pair:
    """The processes of one run on two hosts.

    Args:
        hosts: where they run.
        folder: of their logs.

    """

    hosts: tuple[Host, Host]
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def alone(self, command: Sequence[str], on_second: Sequence[str] | None = None) -> None:
        """Start one rank on each host, with the variables that ``srun`` would give to it."""
        for rank, host in enumerate(self.hosts):
            variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
            meeting = {"MASTER_ADDR": self.hosts[0].name, "MASTER_PORT": str(_PORT)}
            self._start(host, on_second if rank and on_second else command, {**variables, **meeting})

    def torchrun(self, command: Sequence[str], ranks: int, way: str) -> None:
        """Start torchrun on each host, which find each other by ``c10d`` or ``static`` rendezvous."""
        for number, host in enumerate(self.hosts):
            first = self.hosts[0].name
            meeting = {
                "c10d": ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{_PORT}", "--rdzv-id", "run"],
                "static": ["--master-addr", first, "--master-port", str(_PORT), "--node-rank", str(number)],
            }[way]
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(ranks)]
            self._start(host, [*launcher, *meeting, *command[1:]], {})

    def _start(self, host: Host, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self.processes.append(host.start(command, self.folder / f"{host.name}.log", variables))

    def wait_for_ranks(self, since: float) -> float:
        """Wait until all ranks have ended; return the seconds since then. Launchers may need longer."""
        deadline = time.monotonic() + _MOST_SECONDS
        while any(_has_rank(process) for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        return time.monotonic() - since

    def wait(self) -> list[int | None]:
        """Wait until all have ended; return their statuses, ``None`` for those that had to be killed."""
        deadline, statuses = time.monotonic() + _MOST_SECONDS, list[int | None]()
        for process in self.processes:
            try:
                statuses.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                statuses.append(None)
        return statuses

    def said(self) -> str:
        """Return what all have printed."""
        return "".join(f"[{host.name}] {(self.folder / f'{host.name}.log').read_text()}" for host in self.hosts)


@dataclass(frozen=True, slots=True)
class Row:
    """What was tried, and what came of it."""

    tried: str
    statuses: Sequence[int | None]
    seconds: float
    """Of the whole run, or from the failure to the end of all ranks."""
    problems: Sequence[str]
    said: str = ""


class Trial:
    """Runs of two hosts over one folder.

    Args:
        root: the shared folder.
        hosts: that share it.

    """

    def __init__(self, root: Path, hosts: tuple[Host, Host]) -> None:
        self.root, self.hosts = root, hosts
        self.output = ""
        (root / "inputs").mkdir()
        write_series(root / "inputs", _ELEMENTS, tensors=_TENSORS)
        shutil.copytree(root / "inputs", root / "fewer")
        next(iter(sorted((root / "fewer").iterdir()))).unlink()
        self.right = {name: self._made_alone(name) for name in _OUTPUTS}

    def command(self, name: str, inputs: str = "inputs", folder: Path = SHARED / "out") -> list[str]:
        """Return the command of a rank."""
        return [*PROGRAM, str(SHARED / inputs), "--decay", "0.9", "-q", *_OUTPUTS[name], "-o", f"{folder}/{name}"]

    def pair(self) -> Pair:
        """Return a pair of hosts on which nothing runs."""
        return Pair(self.hosts, self.root)

    def _made_alone(self, name: str) -> dict[str, bytes]:
        """Return the files of a run of one process."""
        self.clear()
        process = self.hosts[0].start(self.command(name), self.root / "alone.log")
        if process.wait():
            raise SystemExit(f"the program does not even run alone: {(self.root / 'alone.log').read_text()}")
        return self.files()

    def clear(self) -> None:
        """Remove all outputs."""
        shutil.rmtree(self.root / "out", ignore_errors=True)
        (self.root / "out").mkdir()

    def files(self) -> dict[str, bytes]:
        """Return the outputs, without their reports."""
        files = (path for path in (self.root / "out").rglob("*") if path.is_file())
        found = {str(path.relative_to(self.root / "out")): path for path in files}
        return {name: path.read_bytes() for name, path in found.items() if not name.endswith("report.json")}

    def right_bytes(self, name: str, pair: Pair) -> list[str]:
        """Return the problems of a run without faults."""
        return (
            [] if self.files() == self.right[name] else [f"other bytes or files: {sorted(self.files())}; {pair.said()}"]
        )

    def nothing_new(self, name: str) -> list[str]:
        """Return the problems of a run that failed, and of the next one."""
        public = {found for found in self.files() if not found.startswith(".")}
        problems = [f"published {sorted(public)}"] if public else []
        self.hosts[0].start(self.command(name), self.root / "alone.log").wait()
        left = [path.name for path in (self.root / "out").iterdir() if path.name.startswith(".")]
        problems += [f"the next run left {left}"] if left else []
        return problems + ([] if self.files() == self.right[name] else ["the next run wrote other bytes"])


def _without_faults(trial: Trial) -> Iterator[Row]:
    for name in _OUTPUTS:
        for way, ranks in (("c10d", 1), ("c10d", 2), ("static", 1), ("alone", 1)):
            trial.clear()
            pair, started = trial.pair(), time.monotonic()
            if way == "alone":
                pair.alone(trial.command(name))
            else:
                pair.torchrun(trial.command(name), ranks, way)
            statuses = pair.wait()
            launcher = "no launcher" if way == "alone" else f"torchrun, {way} rendezvous"
            problems = trial.right_bytes(name, pair) + ([f"statuses, {pair.said()}"] if any(statuses) else [])
            yield Row(f"`{name}`, 2 x {ranks} ranks, {launcher}", statuses, time.monotonic() - started, problems)


def _with_failures(trial: Trial) -> Iterator[Row]:
    name = "ema.safetensors"
    for number in (0, 1):
        for kind in (signal.SIGKILL, signal.SIGTERM):
            trial.clear()
            pair = trial.pair()
            pair.alone(trial.command(name))
            _wait_for_fold(trial, pair)
            sent = time.monotonic()
            pair.processes[number].send_signal(kind)
            took, statuses = pair.wait_for_ranks(sent), pair.wait()
            yield _failed(
                f"{kind.name} to the rank on the {_PLACES[number]} host, no launcher", trial, pair, statuses, took
            )
    for number in (0, 1):
        trial.clear()
        pair = trial.pair()
        pair.torchrun(trial.command(name), 2, "c10d")
        _wait_for_fold(trial, pair)
        sent = time.monotonic()
        _kill_all(pair.processes[number].pid)
        took, statuses = pair.wait_for_ranks(sent), pair.wait()
        yield _failed(f"SIGKILL to all processes on the {_PLACES[number]} host, torchrun", trial, pair, statuses, took)


def _with_a_cut(trial: Trial) -> Iterator[Row]:
    name = "ema.safetensors"
    for way in ("alone", "c10d"):
        trial.clear()
        pair = trial.pair()
        if way == "alone":
            pair.alone(trial.command(name))
        else:
            pair.torchrun(trial.command(name), 1, way)
        _wait_for_fold(trial, pair)
        sent = time.monotonic()
        trial.hosts[1].cut_off()
        took, statuses = pair.wait_for_ranks(sent), pair.wait()
        trial.hosts[1].connect()
        launcher = "no launcher" if way == "alone" else "torchrun"
        yield _failed(f"the network between the hosts is cut, {launcher}", trial, pair, statuses, took)


_PLACES = ("first", "second")


def _failed(tried: str, trial: Trial, pair: Pair, statuses: Sequence[int | None], took: float) -> Row:
    problems = [f"ended with {statuses}"] if 0 in statuses or took > _MOST_SECONDS else []
    said = pair.said()
    return Row(tried, statuses, took, [*problems, *trial.nothing_new("ema.safetensors")], said)


def _with_differences(trial: Trial) -> Iterator[Row]:
    name = "ema.safetensors"
    for tried, other in (
        ("the second host sees fewer checkpoints", ["sh", "-c", _OTHER_INPUTS, *trial.command(name)]),
        (
            "the second host sees another folder under the name of the output",
            ["sh", "-c", _OTHER_OUTPUT, *trial.command(name)],
        ),
    ):
        trial.clear()
        pair, started = trial.pair(), time.monotonic()
        pair.alone(trial.command(name), other)
        statuses, took = pair.wait(), time.monotonic() - started
        yield _failed(tried, trial, pair, statuses, took)


_OTHER_INPUTS = f'mount --bind {SHARED}/fewer {SHARED}/inputs && exec "$0" "$@"'
_OTHER_OUTPUT = f'mount -t tmpfs none {SHARED}/out && exec "$0" "$@"'


def _has_rank(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process is a rank that has not ended, or has started one."""
    if process.poll() is not None:
        return False
    command = ["ps", "-o", "stat=,args=", "--pid", str(process.pid), "--ppid", str(process.pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return any("-m ema_cli" in line and not line.startswith("Z") and "distributed.run" not in line for line in listed)


def _wait_for_fold(trial: Trial, pair: Pair) -> None:
    """Wait until the temporary file of the output has data."""
    while not any(process.poll() is not None for process in pair.processes):
        for path in (trial.root / "out").glob(".*"):
            with contextlib.suppress(OSError):
                if path.stat().st_blocks > 0 and path.stat().st_size > 1_000_000:
                    return
        time.sleep(0.002)
    raise SystemExit(f"ended before it folded: {pair.wait()}, {pair.said()}")


def _kill_all(parent: int) -> None:
    """Kill a process and all its descendants, the youngest first."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    for child in children.stdout.split():
        _kill_all(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(parent, signal.SIGKILL)


_PARTS = {"without faults": _without_faults, "failures": _with_failures, "cut": _with_a_cut, "other": _with_differences}


def rows(trial: Trial, only: str | None) -> Iterator[Row]:
    """Yield all rows of the table, or those of a part."""
    for name, part in _PARTS.items():
        if only in (None, name):
            yield from part(trial)


def main() -> None:
    """Print the table; exit 1 if a row has a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=_PARTS)
    parser.add_argument("--verbose", action="store_true", help="print what the ranks said")
    given, failed = parser.parse_args(), False
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the hosts are removed
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as folder, two_hosts(Path(folder)) as hosts:
        print("| tried | exit codes | seconds | problems |\n|---|---|---:|---|", flush=True)
        for row in rows(Trial(Path(folder), hosts), given.only):
            failed = failed or bool(row.problems)
            ends = ", ".join("none" if status is None else str(status) for status in row.statuses)
            print(f"| {row.tried} | {ends} | {row.seconds:.1f} | {'; '.join(row.problems) or 'none'} |", flush=True)
            if given.verbose:
                print(row.said, file=sys.stderr, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
