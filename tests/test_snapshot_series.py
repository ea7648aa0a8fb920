"""A folder of snapshots of a live EMA on the command line: a series that is ordered, averaged and continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

import ema_cli
from ema_cli import EMA
from ema_cli.errors import InputRefused, OutputError, UsageError
from ema_cli.report.model import Report
from ema_cli.verification.checks import verify
from tests.helpers.found import find, names_of, skipped
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import load, reference_average, same_bits, to_numpy

STEPS = (20, 40, 60, 80, 100)
DECAY = 0.98


class Trained:
    """A real training of a small network, with snapshots of a live EMA and checkpoints beside each other."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 4))
        self.ema = EMA(self.model, DECAY)
        self.several = EMA(self.model, [0.9, 0.99])
        teacher = torch.randn(8, 4)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        for step in range(1, STEPS[-1] + 1):
            rows = torch.randn(16, 8)
            optimizer.zero_grad()
            functional.cross_entropy(self.model(rows), (rows @ teacher).argmax(dim=1)).backward()
            optimizer.step()
            self.ema.update()
            self.several.update()
            if step in STEPS:
                self.save(step)

    def save(self, step: int) -> None:
        """Save a checkpoint, and snapshots of both EMAs, as a training loop does."""
        for name in ("ckpts", "run"):
            (self.folder / name).mkdir(exist_ok=True)
            torch.save(self.model.state_dict(), self.folder / name / f"ckpt_{step}.pt")
        for name in ("snaps/ema_step", "run/ema_step", "run/shadow_"):
            self.ema.save(self.folder / f"{name}{step}.safetensors")
        self.several.save(self.folder / "several" / f"ema_{{decay}}_step{step}.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The files of one training; tests write their outputs elsewhere."""
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def snaps(trained: Trained) -> Path:
    """The folder of snapshots."""
    return trained.folder / "snaps"


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a file, read by the library."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def codes(report: Report) -> set[str]:
    """Return the codes of the warnings of a run."""
    return {warning.code for warning in report.warnings}


def assert_sum(output: Path, files: list[Path], weights: list[float]) -> None:
    """Compare an output with the weighted sum of files, in float64 and rounded once, bit for bit."""
    states = [load(file) if file.suffix == ".safetensors" else torch.load(file) for file in files]
    for name, tensor in load(output).items():
        expected = reference_average([state[name] for state in states], weights).astype(np.float32)
        np.testing.assert_array_equal(to_numpy(tensor).astype(np.float32), expected, err_msg=name)


def test_a_folder_is_averaged_in_the_order_of_its_steps(snaps: Path, tmp_path: Path, ema_avg: Run) -> None:
    """``step100`` is the last, as the metadata state; there is no warning, even in strict mode."""
    done = ema_avg(snaps, "--method", "uniform", "-o", "avg.safetensors", "--strict", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["step"] for one in found["inputs"]] == [*STEPS]
    assert found["warnings"] == []
    assert_sum(tmp_path / "avg.safetensors", [snaps / f"ema_step{step}.safetensors" for step in STEPS], [0.2] * 5)


def test_steps_do_not_come_from_names(snaps: Path, tmp_path: Path) -> None:
    """Whatever the files are called, the steps inside order them; a method may use them."""
    for name, step in zip("cabed", STEPS, strict=True):
        (tmp_path / f"{name}.safetensors").write_bytes((snaps / f"ema_step{step}.safetensors").read_bytes())
    plan = ema_cli.plan([tmp_path / f"{name}.safetensors" for name in "abcde"], half_life=30, per="step")
    assert [member.step.value for member in plan.series.members if member.step] == [*STEPS]
    assert [member.checkpoint.path.stem for member in plan.series.members] == [*"cabed"]


def test_one_name_without_the_word_does_not_hide_the_others(snaps: Path, tmp_path: Path) -> None:
    """A snapshot that is called ``best_40`` is one of the series, not all of it; a backup is none."""
    folder = tmp_path / "snaps"
    shutil.copytree(snaps, folder)
    (folder / "ema_step40.safetensors").rename(folder / "best_40.safetensors")
    shutil.copy(folder / "ema_step20.safetensors", folder / "backup_1.safetensors")
    report = ema_cli.average(folder, method="uniform", output=tmp_path / "mean.safetensors")
    assert [one.step for one in report.inputs] == list(STEPS)
    assert codes(report) == set()


def test_a_plan_and_inspect_name_the_live_ema(snaps: Path, ema_avg: Run) -> None:
    """``plan`` and ``inspect`` say what the files are: method, decay and step."""
    shown = ema_avg("plan", snaps, "--method", "uniform").stdout
    assert shown.count("saved by a live EMA: ema 0.98") == 1
    done = ema_avg("inspect", snaps / "ema_step40.safetensors")
    assert "saved by a live EMA: ema 0.98" in done.stdout + done.stderr
    assert "step 40 (inside: ema_avg.step)" in done.stdout + done.stderr


def test_a_batch_averages_each_folder(trained: Trained, snaps: Path, tmp_path: Path, ema_avg: Run) -> None:
    """Folders of snapshots are runs."""
    done = ema_avg("batch", snaps, trained.folder / "ckpts", "--method", "uniform", "-o", "{name}.safetensors")
    assert done.returncode == 0, done.stderr
    assert {"snaps.safetensors", "ckpts.safetensors"} <= listing(tmp_path)


def test_checkpoints_are_the_series_beside_snapshots(trained: Trained, ema_avg: Run, tmp_path: Path) -> None:
    """Snapshots are skipped with their reason, whatever they are called, in a folder and by a pattern."""
    run = trained.folder / "run"
    for names in ([run], [f"{run}/*"]):
        found = find(*names, method="uniform")
        assert sorted(names_of(found)) == sorted(f"ckpt_{step}.pt" for step in STEPS)
        reasons = skipped(found)
        assert reasons.keys() == {f"{kind}{step}.safetensors" for kind in ("ema_step", "shadow_") for step in STEPS}
        assert all("a snapshot of a live EMA" in reason for reason in reasons.values())
    done = ema_avg(run, "--method", "uniform", "-o", "o.safetensors", "--strict")
    assert done.returncode == 0, done.stderr
    assert "a snapshot of a live EMA" in done.stderr
    assert_sum(tmp_path / "o.safetensors", [run / f"ckpt_{step}.pt" for step in STEPS], [0.2] * 5)


def test_an_output_never_replaces_a_snapshot(trained: Trained, snaps: Path, tmp_path: Path) -> None:
    """Neither one that is averaged or skipped, nor, without ``force``, any other."""
    run = trained.folder / "run"
    for paths, output in (
        (snaps, snaps / "ema_step40.safetensors"),
        (run, run / "ema_step40.safetensors"),
        (run, run / "shadow_40.safetensors"),
    ):
        with pytest.raises(UsageError, match="is one of the inputs"):
            ema_cli.average(paths, output=output, method="uniform", force=True)
    (other,) = trained.ema.save(tmp_path / "other.safetensors")
    before = other.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        ema_cli.average(snaps, output=other, method="uniform")
    assert other.read_bytes() == before


def test_snapshots_of_several_averages_are_two_series(trained: Trained, tmp_path: Path, ema_avg: Run) -> None:
    """A folder of both is refused with the command for each, which works."""
    done = ema_avg("plan", trained.folder / "several", "--method", "uniform")
    assert done.returncode == 3
    assert "snapshots are of several live EMAs: ema 0.9, ema 0.99" in done.stderr
    for decay in ("0.9", "0.99"):
        pattern = f"{trained.folder}/several/ema_{decay}_step*.safetensors"
        assert pattern in done.stderr
        output = tmp_path / f"{decay}.safetensors"
        ema_cli.average(pattern, output=output, method="uniform")
        files = [trained.folder / "several" / f"ema_{decay}_step{step}.safetensors" for step in STEPS]
        assert_sum(output, files, [0.2] * 5)


def test_named_snapshots_of_several_averages_cause_a_warning(trained: Trained) -> None:
    """The user may mix them by hand."""
    folder = trained.folder / "several"
    mixed = [folder / "ema_0.9_step20.safetensors", folder / "ema_0.99_step40.safetensors"]
    warnings = {one.code: one.message for one in ema_cli.plan(mixed, weights=[1, 2]).warnings}
    assert "several live EMAs: ema 0.9, ema 0.99" in warnings["runs-mixed"]


def test_an_average_of_snapshots_is_continued(snaps: Path, tmp_path: Path) -> None:
    """New snapshots are folded into the average of the first ones, as if all had been averaged at once."""
    options: dict[str, Any] = {"decay": 0.5, "dtype": "float64"}
    first, both, at_once = (tmp_path / f"{name}.safetensors" for name in ("first", "both", "at_once"))
    ema_cli.average(snaps, output=first, to_step=60, **options)
    report = ema_cli.average(snaps, output=both, continue_from=first, dtype="float64")
    assert [Path(one.path).name for one in report.inputs] == [
        *("first.safetensors", "ema_step80.safetensors", "ema_step100.safetensors")
    ]
    ema_cli.average(snaps, output=at_once, **options)
    for name, tensor in load(both).items():
        torch.testing.assert_close(tensor, load(at_once)[name], rtol=1e-12, atol=1e-14)


def test_checkpoints_continue_a_snapshot(trained: Trained, snaps: Path, tmp_path: Path) -> None:
    """``E = d^gap E + (1 - d^gap) theta`` from the step of the snapshot on, in one run and in two; no false alarm."""
    run = trained.folder / "run"
    start = snaps / "ema_step40.safetensors"
    files = [start, *(run / f"ckpt_{step}.pt" for step in (60, 80, 100))]
    kept = DECAY**20
    weights = [kept**3, (1 - kept) * kept**2, (1 - kept) * kept, 1 - kept]
    output = tmp_path / "continued.safetensors"
    report = ema_cli.average(run, output=output, continue_from=start)
    states = [load(file) if file.suffix == ".safetensors" else torch.load(file) for file in files]
    for name, tensor in load(output).items():
        expected = reference_average([state[name] for state in states], weights)
        np.testing.assert_allclose(to_numpy(tensor), expected, rtol=2e-7, atol=1e-9, err_msg=name)
    assert codes(report) == set()
    found = metadata_of(output)
    assert json.loads(found["ema_avg.folded"]) == ["ema_step40", "ckpt_60", "ckpt_80", "ckpt_100"]
    assert (found["ema_avg.method"], found["ema_avg.steps"]) == ("ema-hold", "40,60,80,100")
    assert report.averages[0].diagnostics.unobserved_mass is None
    assert verify(output).ok
    part, rest = tmp_path / "part.safetensors", tmp_path / "rest.safetensors"
    report = ema_cli.average(run, output=part, continue_from=start, to_step=60, dtype="float64")
    assert codes(report) == set()  # although the snapshot has two thirds
    report = ema_cli.average(run, output=rest, continue_from=part, dtype="float64")
    assert codes(report) == set()
    for name, tensor in load(rest).items():
        expected = reference_average([state[name] for state in states], weights)
        np.testing.assert_allclose(to_numpy(tensor), expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_name_of_a_snapshot_needs_no_step(trained: Trained, snaps: Path, tmp_path: Path) -> None:
    """Checkpoints with steps in their names continue ``ema_latest``, and what was continued from it."""
    start = tmp_path / "ema_latest.safetensors"
    start.write_bytes((snaps / "ema_step40.safetensors").read_bytes())
    part, rest = tmp_path / "part.safetensors", tmp_path / "rest.safetensors"
    ema_cli.average(trained.folder / "ckpts", output=part, continue_from=start, to_step=80)
    ema_cli.average(trained.folder / "ckpts", output=rest, continue_from=part)
    assert metadata_of(rest)["ema_avg.steps"] == "40,60,80,100"


def test_a_live_ema_of_every_k_steps_is_continued(tmp_path: Path) -> None:
    """Files continue a snapshot as the live EMA with ``every`` would have: the gap begins at its last update."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    live = EMA(model, 0.97, every=10, dtype=torch.float64)
    for step in range(1, 51):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 4))
        live.update()
        if step == 25:
            live.save(tmp_path / "ema_step25.safetensors")
        if step in (30, 40, 50):
            torch.save(model.state_dict(), tmp_path / f"ckpt_{step}.pt")
    start, output = tmp_path / "ema_step25.safetensors", tmp_path / "out" / "o.safetensors"
    output.parent.mkdir()
    ema_cli.average(tmp_path, output=output, continue_from=start, dtype="float64")
    assert metadata_of(output)["ema_avg.steps"] == "20,30,40,50"
    torch.testing.assert_close(load(output)["weight"], live.shadow["weight"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "given",
    [{"method": "uniform"}, {"decay": 0.9, "init": "debias"}, {"method": "ema-warmup", "decay": 0.9}],
    ids=["uniform", "debias", "warm-up"],
)
def test_other_methods_cannot_be_continued_from_files(given: dict[str, Any], trained: Trained, tmp_path: Path) -> None:
    """Only an EMA with one decay for all steps continues without the model."""
    ema = EMA(trained.model, **given)
    ema.register(step=40)
    (start,) = ema.save(tmp_path / "ema.safetensors")
    with pytest.raises(InputRefused, match="which checkpoints cannot continue"):
        ema_cli.plan(trained.folder / "ckpts", continue_from=start)


def test_what_does_not_continue_a_snapshot(trained: Trained, snaps: Path) -> None:
    """Later snapshots contain its steps already; another decay is another average; LoRA updates are not factors."""
    start, ckpts = snaps / "ema_step40.safetensors", trained.folder / "ckpts"
    with pytest.raises(InputRefused, match="so are the new checkpoints"):
        ema_cli.plan(snaps, continue_from=start)
    with pytest.raises(UsageError, match="is continued with method="):
        ema_cli.plan(ckpts, continue_from=start, decay=0.5)
    with pytest.raises(UsageError, match="lora"):
        ema_cli.plan(ckpts, continue_from=start, lora="exact")
    plan = ema_cli.plan(ckpts, continue_from=start, decay=DECAY, method="ema-hold", buffers="last")
    assert [one.step for one in plan.series.folded] == [40, 60, 80, 100]


def test_damaged_metadata_do_not_stop_an_average(snaps: Path, tmp_path: Path, ema_avg: Run) -> None:
    """A file that only says that it is a snapshot is a checkpoint like others; nothing in it speaks to the terminal."""
    from safetensors.torch import save_file  # noqa: PLC0415 - for this test alone

    for step in STEPS:
        state = load(snaps / f"ema_step{step}.safetensors")
        hostile = {"ema_avg.snapshot": "\x1b[2J", "ema_avg.method": "::error::", "ema_avg.averaged": "[" * 100_000}
        save_file(state, tmp_path / f"ema_step{step}.safetensors", hostile)
    shown = ema_avg("plan", ".", "--method", "uniform")
    assert shown.returncode == 0, shown.stderr
    assert "its metadata are damaged" in shown.stdout
    assert "::error" not in shown.stdout + shown.stderr
    refused = ema_avg("plan", ".", "--continue-from", "ema_step20.safetensors")
    assert refused.returncode == 3
    assert "was written by another version" in refused.stderr


def test_a_raw_checkpoint_beside_snapshots_is_no_member(trained: Trained, snaps: Path, tmp_path: Path) -> None:
    """``final.pt`` has a step inside, but is no average: the numbered snapshots are the series."""
    for step in STEPS:
        (tmp_path / f"snap_{step}.safetensors").write_bytes((snaps / f"ema_step{step}.safetensors").read_bytes())
    torch.save({"model": trained.model.state_dict(), "global_step": 120}, tmp_path / "final.pt")
    found = find(tmp_path, method="uniform")
    assert sorted(names_of(found)) == sorted(f"snap_{step}.safetensors" for step in STEPS)
    assert "no snapshot of a live EMA like the others" in skipped(found)["final.pt"]


def test_a_copy_of_the_last_snapshot_is_recognized(snaps: Path, tmp_path: Path) -> None:
    """``ema_last`` with the step of the last one is a copy; with a later step it is the newest."""
    for step in STEPS[:-1]:
        (tmp_path / f"snap_{step}.safetensors").write_bytes((snaps / f"ema_step{step}.safetensors").read_bytes())
    (tmp_path / "last.safetensors").write_bytes((snaps / "ema_step80.safetensors").read_bytes())
    assert "the same step inside" in skipped(find(tmp_path, method="uniform"))["last.safetensors"]
    (tmp_path / "last.safetensors").write_bytes((snaps / "ema_step100.safetensors").read_bytes())
    assert names_of(find(tmp_path, method="uniform"))[-1] == "last.safetensors"


def test_the_live_class_continues_where_files_ended(trained: Trained, snaps: Path) -> None:
    """A snapshot is loaded into a live EMA of the same model: the average of the training."""
    ema = EMA(trained.model, DECAY)
    ema.load(snaps / "ema_step100.safetensors")
    assert ema.step == 100
    for name, tensor in trained.ema.shadow.items():
        assert same_bits(ema.shadow[name], tensor)
