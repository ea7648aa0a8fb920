"""Measure ema-avg, each part against what it can be compared with in the same run.

    scripts/bench                                             # everything: about half an hour
    scripts/bench speed memory --folder /scratch --keep       # on another disk, whose checkpoints are kept
    scripts/bench peers --environment /tmp/peers-env          # makes the environment when it is missing
    scripts/bench scale --curve size --most 16
    scripts/bench quick                                       # three rows within 15 seconds

Tables go to stdout, progress to stderr, and with --records a JSON file per part and the pictures to a folder. The
record of scale keeps the curves that are not measured again.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from .costs import geometry, probe, startup, structure
from .measure import Rows, Settings
from .memory import in_memory, memory
from .peers import SOURCES, peers
from .planning import planning
from .ranks import ranks
from .remote import remote
from .scale import CURVES, keep, scale
from .speed import quick, speed, tensors
from .units import units

PARTS: dict[str, Callable[[Settings], Rows]] = {
    "speed": speed,
    "tensors": tensors,
    "structure": structure,
    "memory": memory,
    "in-memory": in_memory,
    "geometry": geometry,
    "probe": probe,
    "planning": planning,
    "units": units,
    "ranks": ranks,
    "startup": startup,
    "remote": remote,
    "peers": peers,
}
_TABLES: dict[str, Callable[[Settings], Rows]] = {
    **PARTS,
    "quick": quick,
    **{f"scale {curve}": partial(scale, curve) for curve in CURVES},
}
_NAMES = (*PARTS, "scale")
"""Of the parts; the last has a table for each curve."""
_SMALL_ROWS = {"memory": 3, "ranks": 3, "startup": 3, "peers": None, "scale": None}
"""Of each table of a small run, its head included; 2 of most."""


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join([*_NAMES, "quick"])
    parser.add_argument("part", nargs="*", choices=[*_NAMES, "quick"], metavar="PART", help=f"{names} [all but quick]")
    parser.add_argument("--folder", type=Path, help="for the checkpoints, on the disk to measure [a temporary folder]")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints in --folder for the next run")
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="for JSON files and pictures [none]")
    parser.add_argument("--rounds", type=int, help="runs of each command [2]")
    parser.add_argument("--size", type=float, metavar="MB", help="per checkpoint [512]")
    parser.add_argument("--checkpoints", type=int, metavar="N", help="of the timed runs [8; of the peers 2, 8 and 64]")
    parser.add_argument("--small", action="store_true", help="a small run that shows that everything works")
    some = parser.add_argument_group("peers")
    some.add_argument("--environment", type=Path, metavar="FOLDER", help="virtual environment of the peers; made once")
    scripts = f"a script that is in no package: {', '.join(SOURCES)}"
    some.add_argument("--source", action="append", default=[], metavar="NAME=FILE", help=scripts)
    some = parser.add_argument_group("scale")
    some.add_argument("--curve", action="append", choices=CURVES, help="measure only this curve; repeatable")
    some.add_argument("--most", type=float, metavar="GB", default=64, help="size of the largest checkpoint [64]")
    return parser.parse_args()


def _settings(given: argparse.Namespace, scratch: Path) -> Settings:
    small, full = (2, 16, 4, 300, 2000, 64, 16, 12), (2, 512, 8, 3000, 100_000, 4000, 120, 500)
    rounds, size, checkpoints, many, entries, large, remote_size, objects = small if given.small else full
    return Settings(
        folder=(given.folder or scratch).absolute(),
        scratch=scratch.absolute(),
        rounds=given.rounds or rounds,
        model_bytes=int((given.size or size) * 1e6),
        large_bytes=int(large * 1e6),
        checkpoints=given.checkpoints or checkpoints,
        counts=(given.checkpoints,) if given.checkpoints else (2, 8, 64)[: 1 if given.small else None],
        many=many,
        entries=entries,
        remote_bytes=int((given.size or remote_size) * 1e6),
        objects=objects,
        keep=given.keep,
        small=given.small,
        records=given.records,
        environment=given.environment,
        sources=_sources(given.source),
        most_bytes=int(given.most * 1e9),
        curves=given.curve or CURVES,
        samples=[],
    )


def _sources(pairs: list[str]) -> dict[str, Path]:
    found = {name: Path(path).absolute() for name, _, path in (pair.partition("=") for pair in pairs)}
    for name, path in found.items():
        if name not in SOURCES or not path.is_file():
            raise SystemExit(f"--source {name}={path}: expected one of {', '.join(SOURCES)}, and a file")
    return found


def _machine(folder: Path) -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    disk = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True, check=True).stdout.split()
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{len(os.sched_getaffinity(0))} cores, {ram:.0f} GiB, Linux {platform.release()}, {disk[-1]}"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model[1] if model else platform.machine()}, {system}, {load}; {versions}"


def _measure(name: str, title: str, settings: Settings) -> None:
    """Print a table while it grows, then write its JSON file."""
    started = time.monotonic()
    print(f"\n## {name}\n", flush=True)
    settings.samples.clear()
    part, _, curve = name.partition(" ")
    rows: list[tuple[str, ...]] = []
    for row in islice(_TABLES[name](settings), _SMALL_ROWS.get(part, 2) if settings.small else None):
        print(f"| {' | '.join(row)} |", flush=True)
        if not rows:
            print(f"| --- |{' ---: |' * (len(row) - 1)}", flush=True)
        rows.append(row)
    seconds = time.monotonic() - started
    print(f"\n({seconds:.0f} s)", flush=True)
    if settings.records:
        table = {"head": rows[0], "rows": rows[1:]}
        found = {"machine": title, "command": shlex.join(["scripts/bench", *sys.argv[1:]]), "seconds": round(seconds)}
        document = {**found, "rounds": settings.rounds, **table, "measurements": settings.samples}
        if curve:
            keep(curve, document, settings.records)
            return
        (settings.records / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _main() -> None:
    given = _given()
    for folder in filter(None, (given.folder, given.records)):
        folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ema-avg-bench-", dir=given.folder))
    settings = _settings(given, scratch)
    try:
        title = _machine(scratch)
        parts = given.part or _NAMES
        rounds = f", medians of {settings.rounds} rounds" * (parts != ["quick"])
        print(f"{title}\n`scripts/bench {shlex.join(sys.argv[1:])}`{rounds}", flush=True)
        for name in parts:
            for table in [f"scale {curve}" for curve in settings.curves] if name == "scale" else [name]:
                _measure(table, title, settings)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    _main()
