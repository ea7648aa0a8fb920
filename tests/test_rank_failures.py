"""Several ranks when something goes wrong: all end, with one message and one exit code, and nothing is left."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.cli.exit import ExitCode
from ema_cli.distributed import meeting, rank_store
from ema_cli.distributed.failure import PeerFailed
from ema_cli.errors import InputRefused, OutputError, UsageError
from tests.helpers.outputs import listing
from tests.helpers.program import started
from tests.helpers.ranks import average_in_ranks, free_port, started_ranks, variables

SOON = 30
"""Seconds in which all ranks end after a failure: at most 10, unless the machine is busy."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints whose last tensor is folded by the last rank."""
    (tmp_path / "run").mkdir()
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        tensors = {name: torch.randn(400, 500, generator=generator) for name in "abc"}
        save_file(tensors, tmp_path / "run" / f"s_{step}.safetensors")
    return tmp_path / "run"


def spoil(path: Path, name: str) -> None:
    """Put NaN into a tensor of a checkpoint."""
    from safetensors.torch import load_file  # noqa: PLC0415

    save_file({**load_file(path), name: torch.full((400, 500), float("nan"))}, path)


def test_only_rank_0_prints(run: Path) -> None:
    """The plan, warnings and the result are printed once."""
    with started_ranks(2, run.parent, "run", "--decay", "0.9", "-o", "ema.safetensors") as ranks:
        first, second = ranks.wait()
    assert (first.returncode, second.returncode) == (0, 0)
    assert "wrote ema.safetensors" in first.stdout
    assert "3 checkpoints in run" in first.stderr
    assert second.stdout + second.stderr == ""
    assert listing(run.parent) == {"run", "ema.safetensors", "ema.report.json"}


@pytest.mark.parametrize(("tensor", "code"), [("a", 3), ("c", 3)])
def test_a_failing_rank_ends_all(run: Path, tensor: str, code: int) -> None:
    """Rank 0 reports its own failure, or that of another, and all ranks have the exit code of one process."""
    spoil(run / "s_2.safetensors", tensor)
    with started_ranks(2, run.parent, "run", "--decay", "0.9", "-o", "ema/", "--max-shard-size", "1MB") as ranks:
        first, second = ranks.wait()
    assert (first.returncode, second.returncode) == (code, code)
    name = "error: rank 1 of 2 (" if tensor == "c" else "error: tensor"
    assert name in first.stderr
    assert f'tensor "{tensor}" of "run/s_2.safetensors" holds nan' in first.stderr
    assert second.stdout + second.stderr == ""
    assert listing(run.parent) == {"run"}


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_a_signal_to_one_rank_ends_all(tmp_path: Path, number: signal.Signals, rank: int) -> None:
    """Also a rank that is killed: then the others miss its sign of life."""
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        save_file({name: torch.randn(2000, 2000) for name in "abcd"}, tmp_path / "run" / f"s_{step}.safetensors")
    arguments = ("run", "--decay", "0.9", "-o", "ema.safetensors", "--threads", "1", "--no-probe")
    with started_ranks(2, tmp_path, *arguments) as ranks:
        while not list(tmp_path.glob(".ema*.partial")):
            time.sleep(0.005)
        os.kill(ranks.running[rank].pid, number)
        began = time.monotonic()
        ended = ranks.wait()
    assert time.monotonic() - began < SOON
    codes = [one.returncode for one in ended]
    if codes == [0, 0]:
        pytest.skip("the run was faster than the signal")
    if number is signal.SIGKILL:
        assert codes == [ExitCode.EXHAUSTED, -number]
        assert "rank 1 of 2" in ended[0].stderr
    else:
        assert codes == [128 + number] * 2
        assert f"interrupted by {number.name}" in ended[0].stderr
    assert listing(tmp_path) == {"run"}


DIFFERENT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"paths": 2}, InputRefused, r'rank 2 of 3 \(.*\) sees no further checkpoint where rank 0 sees ".*s_3'),
    ({"decay": 0.8}, UsageError, r"rank 2 of 3 \(.*\) has decay = .*0.8.*, and rank 0 .*0.9"),
    ({"include": ["[ab]"]}, UsageError, r"rank 2 of 3 \(.*\) has include = "),
]


@pytest.mark.parametrize(("own", "kind", "message"), DIFFERENT, ids=["files", "decay", "include"])
def test_ranks_with_other_plans_are_refused(
    run: Path, own: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """The first difference is named, with both fingerprints."""
    paths = sorted(run.iterdir())
    own = {**own, **({"steps": ()} if "paths" in own else {})}
    count = own.pop("paths", 3)
    own.pop("steps", None)

    def of_rank(rank: int) -> dict[str, Any]:
        return own if rank == 2 else {}

    with pytest.raises(kind, match=message) as refused:
        average_in_ranks(
            3,
            paths,
            of_rank,
            of_paths=lambda rank: paths[: count if rank == 2 else 3],
            decay=0.9,
            output=run.parent / "ema.safetensors",
        )
    assert refused.match(r"\(plans [0-9a-f]{12} and [0-9a-f]{12}\)")
    assert listing(run.parent) == {"run"}


def test_a_file_of_another_size_is_named() -> None:
    """Two hosts without a common file system have files of the same names."""
    from ema_cli.distributed.compared_plans import refuse_other_plans  # noqa: PLC0415

    plans = [
        f'{{"version": "1", "inputs": [["run/ckpt_300.pt", {size}, "ab"]], "options": {{}}}}'.encode()
        for size in (1_048_600, 1_048_600, 1_048_576)
    ]
    expected = r'rank 2 sees "run/ckpt_300.pt" with 1,048,576 bytes; rank 0 with 1,048,600 \(plans '
    with pytest.raises(InputRefused, match=expected):
        refuse_other_plans(plans, lambda rank: f"rank {rank}")


def test_ranks_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a training job reach a single process: it ends, and says how to run alone."""
    from tests.helpers.ranks import launch_of  # noqa: PLC0415

    monkeypatch.setattr(meeting, "RENDEZVOUS_SECONDS", 0.5)
    for rank in (0, 1):
        with pytest.raises(UsageError) as refused:
            meeting.Meeting(launch_of(rank, 2, free_port()), lambda _: None)
        assert "env -u RANK -u WORLD_SIZE ema-avg" in refused.value.hint


def test_ranks_whose_launcher_is_gone_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had opened its store before it started them: they do not try for two minutes."""
    from tests.helpers.ranks import launch_of  # noqa: PLC0415

    monkeypatch.setattr(rank_store, "_HOSTED_SECONDS", 0.5)
    with pytest.raises(UsageError, match="cannot be reached"):
        meeting.Meeting(replace(launch_of(1, 2, free_port()), hosted=True), lambda _: None)


def test_what_several_ranks_cannot_do_is_refused(run: Path) -> None:
    """They do not write to a store."""
    with pytest.raises(UsageError, match="several ranks cannot write"):
        average_in_ranks(2, [run], decay=0.9, output="memory://bucket/ema.safetensors")


def test_the_outputs_must_be_in_a_common_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that does not see the file of rank 0 says so."""
    monkeypatch.setattr(os.path, "lexists", lambda path: ".partial" not in str(path))
    with pytest.raises((PeerFailed, OutputError)) as ended:
        average_in_ranks(2, [run], decay=0.9, output=run.parent / "ema.safetensors")
    met = ended.value
    hint = met.failure.hint if isinstance(met, PeerFailed) else met.hint if isinstance(met, OutputError) else ""
    assert "write to a folder that all hosts share" in hint
    assert listing(run.parent) == {"run"}


def test_other_commands_are_left_to_rank_0(run: Path) -> None:
    """They run once, and the other ranks say why they do nothing."""
    done = started(run.parent)("inspect", "run", **variables(1, 2, 1))
    assert (done.returncode, done.stdout) == (0, "")
    assert "env -u RANK -u WORLD_SIZE" in done.stderr
    assert started(run.parent)("inspect", "run", **variables(0, 2, 1)).stdout.count("s_1.safetensors") == 1
