"""Which of several processes this one is: the variables that torchrun and srun set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ema_cli.record import record
from ema_cli.text import regex

_FIRST_PORT, _PORTS = 20_000, 10_000
"""The ports of steps of Slurm, unless MASTER_PORT is set: by the numbers of job and step."""
_OF_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PROCESSES = Path("/proc")
"""Of Linux, see proc(5)."""
_TORCH = b"libtorch"
_NUMBERS = regex(r"\[(\d+)[^\]]*\]")
"""Of nodes, as Slurm writes them: the first of them is taken."""


@record
class Launch:
    """The place of this process among those of the run."""

    rank: int
    size: int
    """Number of processes, at least 2."""
    host: str
    """Of the store that the processes meet at."""
    port: int
    local_rank: int | None
    """Number of the process on its node, if the launcher says."""
    launcher: str
    """``torchrun`` or ``srun``."""
    hosted: bool = False
    """Whether the launcher has opened the store; rank 0 does otherwise."""
    attempt: str = "0"
    """Number of the launcher's attempt to run the processes."""


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """Return the place of this process; ``None`` if it was not started as one of several.

    A training that averages its checkpoints starts this program in one of its processes, with its own variables.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        found = _of_torchrun(environment)
        own = {name: environment.get(name) for name in _OF_TORCHRUN}
    else:
        found = _of_srun(environment)
        own = {name: environment.get(name) for name in _OF_SRUN}
    return None if found is not None and _is_of_training(own) else found


def _is_of_training(variables: Mapping[str, str | None]) -> bool:
    """Whether a program above this process, up to the launcher, has these variables and torch in its memory.

    ``False`` where the system does not tell. Shells and the tools that start programs have no torch; a launcher has
    none of the variables.
    """
    wanted = {f"{name}={value}".encode() for name, value in variables.items() if value is not None}
    process = os.getppid()
    try:
        while process > 1:
            folder = _PROCESSES / str(process)
            if not wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                return False
            if _TORCH in (folder / "maps").read_bytes():
                return True
            process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass
    return False


def alone(launcher: str) -> str:
    """Return how to run without the other processes."""
    names = ("RANK", "WORLD_SIZE") if launcher == "torchrun" else ("SLURM_PROCID",)
    return f"To run alone: env {' '.join(f'-u {name}' for name in names)} ema-avg ..."


def _of_torchrun(environment: Mapping[str, str]) -> Launch | None:
    numbers = _numbers(environment, "RANK", "WORLD_SIZE", "MASTER_PORT")
    if numbers is None or not environment.get("MASTER_ADDR"):
        return None
    rank, size, port = numbers
    if not 0 <= rank < size or size == 1:
        return None
    return Launch(
        rank=rank,
        size=size,
        host=environment["MASTER_ADDR"],
        port=port,
        local_rank=_number(environment, "LOCAL_RANK"),
        launcher="torchrun",
        hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _of_srun(environment: Mapping[str, str]) -> Launch | None:
    """Return the place in a step of Slurm. A batch script and the shell of ``salloc`` are no step of several tasks."""
    numbers = _numbers(environment, *_OF_SRUN)
    if numbers is None:
        return None
    rank, size, step = numbers
    if not 0 <= rank < size or size == 1:
        return None
    job = _number(environment, "SLURM_JOB_ID") or 0
    port = _number(environment, "MASTER_PORT")
    return Launch(
        rank=rank,
        size=size,
        host=environment.get("MASTER_ADDR") or _first_node(environment),
        port=_FIRST_PORT + (job * 64 + step) % _PORTS if port is None else port,
        local_rank=_number(environment, "SLURM_LOCALID"),
        launcher="srun",
    )


def _first_node(environment: Mapping[str, str]) -> str:
    """Return the first node of the step, which has its first task: of ``node[07-09,12],other``, ``node07``."""
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    return _NUMBERS.sub(r"\1", nodes).partition(",")[0]


def _numbers(environment: Mapping[str, str], *names: str) -> list[int] | None:
    """Return the values of all these variables; ``None`` if one is missing or no number."""
    found = [_number(environment, name) for name in names]
    return None if None in found else [number for number in found if number is not None]


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() else None
