"""Verifying outputs of ``--format same``: averages are recomputed, and everything else is compared with the last."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.verification.checks import Verification, verify
from tests.helpers.deepspeed_files import Training, write_stage_3
from tests.helpers.program import Run
from tests.helpers.series import open_files

CHECKS = ["report", "size", "sha256", "tensors", "method", "input 1", "input 2", "input 3", "samples", "copied"]


def save(path: Path, number: int, *, zipped: bool = True) -> None:
    """Write a nested checkpoint of a wrapped model with BatchNorm, its optimizer, and a tensor that is a view."""
    torch.manual_seed(number)
    base = torch.randn(6, 4)
    model = {
        "module.weight": torch.randn(30, 40),
        "module.turned": base.t(),
        "module.empty": torch.empty(0, 4),
        "module.bn.running_mean": torch.randn(4),
        "module.bn.num_batches_tracked": torch.tensor(number),
    }
    content = {"state_dict": model, "optimizer": {"moments": torch.randn(2000)}, "global_step": number}
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints."""
    for number in (1, 2, 3):
        save(tmp_path / "run" / f"step_{number}.pt", number)
    return tmp_path / "run"


def made(run: Path, **options: Any) -> Path:
    """Average a run in the format of its last checkpoint."""
    output = run.parent / "ema.pt"
    ema_cli.average(run, decay=0.5, output=output, **options)
    return output


def check(output: Path, **options: Any) -> Verification:
    """Verify, and leave no file open."""
    before = open_files()
    try:
        return verify(output, **options)
    finally:
        assert open_files() == before


def test_partitions_of_ranks_are_verified(tmp_path: Path) -> None:
    """DeepSpeed's ZeRO-3: every rank has a part of each weight, and all have the buffers."""
    for step in (1, 2):
        torch.manual_seed(step)
        weights = {"w": torch.randn(7, 5), "b": torch.randn(3)}
        buffers = {"norm.running_mean": torch.randn(4)}
        write_stage_3(
            tmp_path / "run" / f"global_step{step}", Training(groups=[weights], buffers=buffers, step=step), 3
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ema_cli.average(tmp_path / "run", decay=0.5, format="same", output=tmp_path / "averaged")
    output = tmp_path / "averaged"
    assert failures(check(output)) == []
    for path in sorted(output.iterdir()):
        flip(path, path.stat().st_size - 5)
        assert {"sha256", "copied"} <= {*failures(check(output))}
        flip(path, path.stat().st_size - 5)


def failures(found: Verification) -> list[str]:
    """Return the names of the checks that failed."""
    return [one.name for one in found.failures]


@pytest.mark.parametrize("options", [{}, {"key": "state_dict"}, {"buffers": "first"}, {"include": "weight"}], ids=str)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_an_output_passes_all_checks(tmp_path: Path, options: dict[str, Any], *, zipped: bool) -> None:
    """Under a key, without a prefix, with statistics of the first, of some tensors: in both formats of torch."""
    for number in (1, 2, 3):
        save(tmp_path / "run" / f"step_{number}.pt", number, zipped=zipped)
    found = check(made(tmp_path / "run", **options))
    assert failures(found) == []
    assert [one.name for one in found.checks] == CHECKS
    assert found.complete
    assert found.samples > 0


def test_the_output_alone_is_checked(run: Path) -> None:
    """Without the inputs nothing is recomputed."""
    found = check(made(run), output_only=True)
    assert ([one.name for one in found.checks], failures(found)) == (CHECKS[:5], [])


def flip(path: Path, at: int) -> None:
    """Change a byte."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x40
    path.write_bytes(raw)


def test_a_changed_optimizer_is_found(run: Path) -> None:
    """Each byte outside the averages counts: of another tensor, and between the records."""
    output = made(run)
    raw = output.read_bytes()
    moments = raw.index(torch.load(run / "step_3.pt")["optimizer"]["moments"].numpy().tobytes())
    for at in (moments + 4001, len(raw) - 5):
        flip(output, at)
        found = check(output)
        assert {"sha256", "copied"} <= {*failures(found)}
        (message,) = [one.message for one in found.failures if one.name == "copied"]
        assert message.startswith(f'byte {at:,} of "ema.pt" is not that of ')
        flip(output, at)
    assert failures(check(output)) == []


def test_a_changed_average_is_found(run: Path) -> None:
    """It is recomputed; the rest is as it was."""
    output = made(run)
    averaged = torch.load(output)["state_dict"]["module.weight"]
    flip(output, output.read_bytes().index(averaged.numpy().tobytes()) + 3)
    assert failures(check(output)) == ["sha256", "samples"]


def test_a_gone_checkpoint_leaves_the_rest_unchecked(run: Path) -> None:
    """The message says which bytes, and the missing input is reported by its own check."""
    output = made(run)
    (run / "step_3.pt").unlink()
    found = check(output)
    assert failures(found) == ["input 3"]
    assert "the bytes that are not averaged (they need input 3)" in found.unchecked


def test_quick_compares_a_sample(run: Path) -> None:
    """As many pieces as are recomputed."""
    output = made(run)
    found = check(output, quick=True, samples=1)
    assert failures(found) == []
    assert any("bytes that are not averaged" in one for one in found.unchecked)


def test_the_inputs_can_be_named(run: Path, ema_avg: Run) -> None:
    """After they moved; the output is not taken for one of them, nor is another one."""
    output = made(run)
    run.rename(run.parent / "moved")
    ema_cli.average(run.parent / "moved", decay=0.9, output=run.parent / "moved" / "other.pt")
    done = ema_avg("verify", output, "--input", run.parent / "moved")
    assert "3 inputs" in done.stdout
    assert "that are not averaged equal" in done.stdout


def test_diff_shows_what_was_averaged(run: Path, ema_avg: Run) -> None:
    """The averages differ from the last checkpoint, copied tensors do not."""
    done = ema_cli.diff(made(run), run / "step_3.pt")
    assert [one.name for one in done.different] == ["weight", "turned", "bn.running_mean"]
    assert done.only_in_a == done.only_in_b == ()
    assert "different: 3 of 5" in ema_avg("diff", run.parent / "ema.pt", run / "step_3.pt").stdout
