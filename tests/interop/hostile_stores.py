"""The table of hostile stores: each mode of the proxy against each library, for reads and for uploads.

    python -m tests.interop.hostile_stores [--store s3] [--only read] [--place data] [--mode flood] [--quick]

Prints memory, time, exit code and message of one run each, as Markdown, and for uploads what is in the store after it.
``--quick`` divides the limits of time by 15.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.series import write_series
from tests.interop.benches import BENCHES, Bench, lists
from tests.interop.hostile_proxy import MODES, Asked, Plan
from tests.interop.judge import LARGE, states_of

NOISE = re.compile(r"Traceback|never retrieved|was destroyed|Unclosed|Exception ignored|thrown while|coroutine")
UPLOAD_MODES = ("flood", "no answer", "nothing read", "reset", "garbage", "403", "404", "429, an hour", "500", "503")
_MOST_MEGABYTES = 3000
"""From which on a run is killed."""
SECRETS = ("me:secret", "Signature=secret", "aB3dE")
_QUICK = """
from ema_cli.storage.remote import limits, retries
for module in (limits, retries):
    for name in [name for name in vars(module) if name.endswith("_SECONDS")]:
        setattr(module, name, getattr(module, name) / 15)
from ema_cli.__main__ import main
main()
"""


@dataclass(kw_only=True)
class Measured:
    """What a run did."""

    megabytes: float
    """Its largest memory."""
    seconds: float
    status: int | None
    """``None``: it was killed, as it did not end."""
    stderr: str

    @property
    def message(self) -> str:
        """The line with the error."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        begin = next((n for n, line in enumerate(lines) if line.startswith("error")), len(lines) - 1)
        return " ".join(lines[begin:])

    @property
    def noise(self) -> list[str]:
        """What should not be on standard error."""
        return sorted({found[0] for found in NOISE.finditer(self.stderr)})


def measure(arguments: list[str], environment: dict[str, str], folder: Path, *, quick: bool, most: float) -> Measured:
    """Run ema-avg."""
    program = ["-c", _QUICK] if quick else ["-m", "ema_cli"]
    begun = time.monotonic()
    megabytes = 0.0
    with (folder / "stderr").open("wb+") as errors:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stderr=errors,
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None:
            megabytes = max(megabytes, _peak(process.pid))
            if time.monotonic() - begun > most or megabytes > _MOST_MEGABYTES:
                process.kill()
            time.sleep(0.1)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    ended = None if process.returncode == -signal.SIGKILL else process.returncode
    return Measured(megabytes=megabytes, seconds=time.monotonic() - begun, status=ended, stderr=text)


def _peak(process: int) -> float:
    """Return the largest memory of a running process; what its parent had does not count."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


@contextlib.contextmanager
def opened(store: str) -> Iterator[tuple[Bench, Path]]:
    """Start a store, with an empty folder and home."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        bench = BENCHES[store](folder)
        bench.environment["HOME"] = bench.environment["HF_HOME"] = name
        try:
            yield bench, folder
        finally:
            bench.close()


def report(bench: Bench, place: str, name: str, found: Measured, left: str) -> None:
    """Print a line of the table."""
    noise = [*found.noise, *(word for word in SECRETS if word in found.stderr)]
    numbers = f"{found.megabytes:.0f} | {found.seconds:.1f} | {found.status}"
    message = found.message.replace("|", "/")
    print(f"| {bench.name} | {place} | {name} | {numbers} | {message} | {left} | {', '.join(noise)} |", flush=True)


def read(store: str, given: argparse.Namespace) -> None:
    """Data, or descriptions and listings, are answered in each mode."""
    with opened(store) as (bench, folder):
        arguments = [bench.run, "--decay", "0.5", "-o", "ema.safetensors", "--force"]
        for place, when in (("data", bench.data), ("listing", bench.listing)):
            for name in given.mode or MODES:
                if place in (given.place or place):
                    bench.proxy.plan = Plan(mode=MODES[name], when=when)
                    found = measure(arguments, bench.environment, folder, quick=given.quick, most=given.most)
                    report(bench, place, name, found, "")
        if not given.mode and not given.place:
            bench.proxy.plan = Plan(mode=bench.pages, when=lists)
            found = measure(arguments, bench.environment, folder, quick=given.quick, most=given.most)
            report(bench, "listing", "pages without an end", found, "")


def write(store: str, given: argparse.Namespace) -> None:
    """The requests of an upload in parts are answered in each mode, one kind of request after the other."""
    with opened(store) as (bench, folder):
        write_series(folder / "large", states_of(2, LARGE), form="safetensors")
        out = f"{bench.out}/ema.safetensors"
        for place, when in bench.stages.items():
            for name in given.mode or UPLOAD_MODES:
                if place in (given.place or place):
                    report(bench, place, name, *upload(bench, folder, out, Plan(mode=MODES[name], when=when), given))


def upload(bench: Bench, folder: Path, out: str, plan: Plan, given: argparse.Namespace) -> tuple[Measured, str]:
    """Write an output while the store misbehaves; return what happened, and what is in the store."""
    arguments = ["large", "-o", out, "--force", "--decay"]
    bench.proxy.plan = Plan()
    measure([*arguments, "0.25"], bench.environment, folder, quick=True, most=given.most)
    name = out.partition("//")[2].partition("/")[2].removeprefix("model/")
    old = bench.get(name)
    bench.proxy.plan = plan if plan.when is not bench.stages.get("abort") else _failing(bench, plan)
    found = measure([*arguments, "0.5"], bench.environment, folder, quick=given.quick, most=given.most)
    bench.proxy.plan = Plan()
    left = "old" if bench.get(name) == old else "new"
    others = bench.names() - {name, "run/ckpt_100.safetensors", "run/ckpt_200.safetensors", "out/ema.report.json"}
    return found, ", ".join([left, *(["unfinished"] if bench.unfinished() else []), *others])


def _failing(bench: Bench, plan: Plan) -> Plan:
    """Return a plan in which the upload fails, and is aborted then."""

    def answer(asked: Asked) -> None:
        mode = plan.mode if plan.when(asked) else MODES["403"]
        assert mode is not None
        mode(asked)

    return Plan(mode=answer, when=lambda asked: plan.when(asked) or bench.stages["complete"](asked))


def main() -> None:
    """Print the table."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=BENCHES, action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--place", action="append", help="data, listing, begin, part, complete, abort, check")
    parser.add_argument("--only", choices=("read", "write"), default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--most", type=float, default=600, help="seconds until a run is killed")
    given = parser.parse_args()
    print("| store | request | answer | MB | seconds | exit | message | left in the store | noise |")
    print("|---|---|---|---:|---:|---:|---|---|---|")
    for store in given.store or BENCHES:
        if given.only != "write":
            read(store, given)
        if given.only != "read":
            write(store, given)


if __name__ == "__main__":
    main()
