"""The table of hostile stores: each mode of the proxy against each library, for data and for listings.

    python -m tests.interop.hostile_stores [--store s3] [--mode flood] [--quick]

Prints memory, time, exit code and message of one run each, as Markdown. ``--quick`` divides the
limits of time by 15.
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

from tests.interop.benches import BENCHES, Bench
from tests.interop.hostile_proxy import MODES, Mode, Plan

NOISE = re.compile(r"Traceback|never retrieved|was destroyed|Unclosed|Exception ignored|thrown while|coroutine")
_MOST_MEGABYTES = 3000
"""From which on a run is killed."""
SECRETS = ("hf_abcdefghij", "me:secret", "Signature=secret")
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
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("error")), lines[-1] if lines else "")

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


def reading(bench: Bench, mode: Mode, *, data: bool) -> tuple[Plan, list[str]]:
    """Return the plan of the proxy, and the run: data or listings are answered in a mode."""
    plan = Plan(mode=mode, when=bench.data if data else bench.listing)
    return plan, [bench.run, "--decay", "0.5", "-o", "ema.safetensors", "--force"]


def main() -> None:
    """Print the table."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=BENCHES, action="append")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--place", choices=("data", "listing"), action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--most", type=float, default=600, help="seconds until a run is killed")
    given = parser.parse_args()
    print("| store | answers | mode | MB | seconds | exit | message | noise |\n|---|---|---|---:|---:|---:|---|---|")
    for store in given.store or BENCHES:
        with opened(store) as (bench, folder):
            for place in given.place or ("data", "listing"):
                for name in given.mode or MODES:
                    bench.proxy.plan, arguments = reading(bench, MODES[name], data=place == "data")
                    found = measure(arguments, bench.environment, folder, quick=given.quick, most=given.most)
                    noise = [*found.noise, *(word for word in SECRETS if word in found.stderr)]
                    message = found.message.replace("|", "/")
                    numbers = f"{found.megabytes:.0f} | {found.seconds:.1f} | {found.status}"
                    print(
                        f"| {bench.name} | {place} | {name} | {numbers} | {message} | {', '.join(noise)} |", flush=True
                    )


if __name__ == "__main__":
    main()
