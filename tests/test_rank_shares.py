"""The logic of several ranks without processes: who is which rank, what each folds, and what it may write."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import ema_cli
from ema_cli.distributed import file_systems, shared_outputs, shares
from ema_cli.distributed.launch import find_launch
from ema_cli.distributed.meeting import Meeting
from ema_cli.distributed.shared_file import part_of
from ema_cli.distributed.shared_outputs import refuse_unshared
from ema_cli.distributed.shares import share_out
from ema_cli.errors import OutputError, UsageError
from ema_cli.fold.schedule import Schedule, block_count, single_blocks
from ema_cli.fold.stretch import cut_plan, place_of, read_bytes_of
from ema_cli.fold.tensor_runs import TensorRun
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.files import PlannedFile
from tests.helpers.ranks import free_port, launch_of

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_ID": "2", "SLURM_JOB_ID": "77"}


def test_torchrun_says_which_rank_this_is() -> None:
    """The store is that of the agent, or of rank 0."""
    found = find_launch(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert found is not None
    assert (found.rank, found.size, found.host, found.port, found.local_rank) == (1, 4, "node", 29500, 0)
    assert (found.hosted, found.attempt, found.launcher) == (True, "2", "torchrun")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[07-09,12],other", "node07"),
        ("gpu-a[1,3]", "gpu-a1"),
        ("alone", "alone"),
        ("r1c[01-02]n[1-2]", "r1c01n1"),
        ("", "127.0.0.1"),
    ],
)
def test_srun_says_which_rank_this_is(nodes: str, host: str) -> None:
    """The ranks meet at the first node of the step, or where the user says."""
    found = find_launch(SRUN | {"SLURM_STEP_NODELIST": nodes})
    assert found is not None
    assert (found.rank, found.size, found.host, found.launcher, found.hosted) == (3, 8, host, "srun", False)
    named = find_launch(SRUN | {"SLURM_STEP_NODELIST": nodes, "MASTER_ADDR": "there", "MASTER_PORT": "5"})
    assert named is not None
    assert (named.host, named.port) == ("there", 5)


ALONE: list[dict[str, str]] = [
    {},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500"},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node", "MASTER_PORT": "29500", **SRUN},
    {"RANK": "0", "WORLD_SIZE": "4"},
    {"RANK": "-1", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "MASTER_PORT": "29500"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"},
    {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
]


@pytest.mark.parametrize("variables", ALONE, ids=str)
def test_a_single_process_is_alone(variables: dict[str, str]) -> None:
    """Also a batch script, the shell of an allocation, a step of one task, and variables that are not complete."""
    assert find_launch(variables) is None


@pytest.mark.parametrize(("above", "waits"), [("import torch", False), ("pass", True)])
@pytest.mark.parametrize("variables", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_what_a_training_starts_is_alone(above: str, waits: bool, variables: dict[str, str]) -> None:
    """A training has its variables and torch; a program that only starts others, in between, has no torch."""
    asks = "import os; from ema_cli.distributed.launch import find_launch; print(find_launch(os.environ) is not None)"
    starts = f"{above}; import subprocess, sys; subprocess.run(['sh', '-c', f'{{sys.executable}} -c \"{asks}\"; true'])"
    done = subprocess.run(
        [sys.executable, "-c", starts], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(waits)


def test_python_averages_alone(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training job that calls ``ema_cli.average`` in every rank waits for nobody."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    report = ema_cli.average(run_folder, decay=0.9, output=tmp_path / "ema.safetensors")
    assert report.environment.ranks == ()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints with large, small and empty tensors."""
    folder = tmp_path_factory.mktemp("series")
    tensors = {f"s{i:03}": torch.randn(20) for i in range(40)}
    tensors |= {"empty": torch.zeros(0), "large": torch.randn(90_000), "z": torch.randn(5_000).half()}
    for step in (1, 2):
        save_file(tensors, folder / f"c_{step}.safetensors")
    return sorted(folder.iterdir())


def all_blocks(plan: Any, stretch: Any = None) -> list[tuple[int, int]]:
    """Return tensor and part of every block of a stretch, in order; runs of small tensors count by tensor."""
    schedule, found = Schedule(plan, stretch=stretch), []
    while (block := schedule.take()) is not None:
        if isinstance(block, TensorRun):
            found += [(number, 0) for number in range(block.first, block.stop)]
        else:
            found += [(one.number, one.part) for one in single_blocks(plan, block)]
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100])
def test_stretches_are_disjoint_complete_and_even(series: list[Path], count: int) -> None:
    """Together they have every block once, in order, and about equal bytes."""
    with planned(make_options(series, decay=0.5, max_memory=200_000, threads=1)) as plan:
        stretches = cut_plan(plan, count)
        blocks = [block for stretch in stretches for block in all_blocks(plan, stretch)]
        assert blocks == all_blocks(plan)
        places = [place_of(plan, stretch) for stretch in stretches]
        assert places[0][0] == 0
        assert places[-1][1] == plan.data_bytes
        assert all(one[1] == other[0] for one, other in pairwise(places))
        sizes = [read_bytes_of(plan, stretch) for stretch in stretches]
        assert sum(sizes) == plan.read_bytes
        largest = max(
            -(-tensor.nbytes // block_count(plan, tensor)) * len(plan.used)
            for tensor in plan.tensors
            if tensor.elements
        )
        assert max(sizes) <= plan.read_bytes / count + 2 * largest


def test_stretches_of_a_folder_end_between_files(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """If that is even enough; and in any case where several hosts may not write one file."""
    options = make_options(
        series, decay=0.5, output=series[0].parent / "out/", max_shard_size="20KB", max_memory=200_000
    )
    with planned(options) as plan:
        begins = {file.begin for file in plan.outputs[0].files} | {plan.data_bytes}

        def ends(*hosts: str) -> set[int]:
            return {place_of(plan, stretch)[1] for stretch in share_out(plan, hosts)}

        assert not ends("a", "a") <= begins
        monkeypatch.setattr(shares, "is_coherent", lambda _: False)
        assert not ends("a", "a") <= begins
        assert ends("a", "b") <= begins


@given(st.integers(0, 50), st.integers(0, 50), st.lists(st.integers(0, 100), max_size=4))
def test_every_file_has_one_owner(begin: int, length: int, cuts: list[int]) -> None:
    """The parts of all ranks are the file, and one of them writes its header."""
    bounds = [0, *sorted(cuts), 100]
    file = PlannedFile(name="f", header=b"", begin=begin, data_bytes=length)
    parts = [part_of(file, list(pairwise(bounds)), rank) for rank in range(len(bounds) - 1)]
    assert sum(part.is_owner for part in parts) == 1
    assert sum(part.end - part.begin for part in parts) == length
    writing = [part for part in parts if part.begin < part.end]
    assert all(part.is_whole == (len(writing) <= 1) for part in parts)
    if writing:
        assert writing[0].is_owner
        assert writing[0].begin == 0


def test_one_file_of_several_hosts_is_refused_on_nfs(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """There each host writes whole pages back. Ranks of one host share its cache."""
    monkeypatch.setattr(shared_outputs, "is_coherent", lambda _: False)
    monkeypatch.setattr(shared_outputs, "file_system_of", lambda _: "nfs4")
    options = make_options(series, decay=0.5, output=series[0].parent / "x.safetensors")
    with planned(options) as plan:
        refuse_unshared(plan, options, ["a", "a"])
        with pytest.raises(OutputError, match="one file on nfs4") as refused:
            refuse_unshared(plan, options, ["a", "b"])
    assert refused.value.hint == "write a folder with a file for each rank: -o x/ --max-shard-size SIZE"


def test_the_type_of_a_file_system_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table of mounts: the last mount of the device; also for a folder that does not exist yet."""
    assert file_systems.file_system_of(Path("/proc/x")) == "proc"
    status = tmp_path.stat().st_dev
    device = f"{status >> 8 & 0xFFF}:{status & 0xFF}"
    table = tmp_path / "mounts"
    monkeypatch.setattr(file_systems, "_MOUNTS", table)
    for kind, coherent in (("nfs4", False), ("fuse.sshfs", False), ("lustre", True), ("gpfs", True), ("ext4", True)):
        table.write_text(f"20 1 0:3 / /proc rw - proc proc rw\n21 1 {device} / /data rw shared:1 - {kind} host:/x rw\n")
        assert file_systems.file_system_of(tmp_path / "new" / "folder" / "x") == kind
        assert file_systems.is_coherent(tmp_path / "x") is coherent
    table.unlink()
    assert file_systems.file_system_of(tmp_path / "x") == ""


def test_tensors_with_strides_are_refused(tmp_path: Path) -> None:
    """Two ranks would put elements between those of each other."""
    for step in (1, 2):
        torch.save({"w": torch.randn(4, 6).t(), "b": torch.randn(3)}, tmp_path / f"c_{step}.pt")
    options = make_options(sorted(tmp_path.iterdir()), decay=0.5, output=tmp_path / "x.pt")
    with planned(options) as plan, pytest.raises(UsageError, match="stored with strides"):
        refuse_unshared(plan, options, ["a", "a"])


def test_values_of_any_size_reach_rank_0() -> None:
    """The store refuses values of 8 MiB, so they are sent in pieces; what was taken is removed."""
    port, values = free_port(), {1: b"", 2: bytes(range(256)) * 40_000}

    def work(rank: int) -> list[bytes]:
        meeting = Meeting(launch_of(rank, 3, port), lambda _: None)
        gathered = meeting.gather(values.get(rank, b"own"))
        announced = meeting.announce(b"for all" if rank == 0 else b"")
        meeting.wait_for_all()
        threading.Thread(target=meeting.leave).start()  # rank 0 waits for the others
        return [*gathered, announced]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, range(3)))
    assert found == [[b"own", values[1], values[2], b"for all"], [b"for all"], [b"for all"]]
