"""The probe: real runs stay without a verdict, faults are named, and the sample is small and the same everywhere."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import ema_cli
from ema_cli.errors import InputChanged, InputRefused, StrictWarnings
from ema_cli.evidence import probe as probe_module
from ema_cli.evidence.pieces import choose_pieces
from ema_cli.evidence.probe import examine_series
from ema_cli.evidence.shortest_path import best_move, best_swap, path_length, shortest_path
from ema_cli.options.average import LoraMode, make_options
from ema_cli.pipeline import planned
from ema_cli.records.plan import Plan
from ema_cli.report.model import Report
from ema_cli.report.serialize import from_json
from ema_cli.storage.source import FileSource
from tests.helpers import dcp_makers
from tests.helpers.adapters import factors, write_adapters
from tests.helpers.program import Run
from tests.helpers.series import State, to_numpy, write_series
from tests.helpers.training_runs import trained

CODES = ("evidence-unrelated", "evidence-outlier", "evidence-order", "evidence-copies")


@pytest.fixture(scope="module")
def run() -> list[State]:
    """Twelve checkpoints of a real run, the initialization first."""
    return trained(0)


@pytest.fixture(scope="module")
def other_run() -> list[State]:
    """The same run with another seed."""
    return trained(1)


def narrowed(states: Sequence[State]) -> list[State]:
    """Return states as bfloat16."""
    return [{name: value.bfloat16() for name, value in state.items()} for state in states]


def probed(folder: Path, states: Sequence[State], **options: object) -> Plan:
    """Write states as steps 100, 200, ..., and plan their average."""
    write_series(folder, states, form="safetensors")
    return ema_cli.plan(folder, **{"decay": 0.8, **options})  # type: ignore[arg-type]


def verdicts(plan: Plan) -> list[str]:
    """Return the codes of the warnings that follow from the evidence."""
    return [warning.code for warning in plan.warnings if warning.code in CODES]


def message_of(plan: Plan, code: str) -> str:
    """Return the message of a warning."""
    return next(warning.message for warning in plan.warnings if warning.code == code)


def falling_by_ten(done: float) -> float:
    """Return a learning rate that is divided by ten after half and after three quarters of the training."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


REAL: dict[str, Callable[[], list[State]]] = {
    "from the initialization": lambda: trained(0),
    "constant rate, later": lambda: trained(2, from_step=200),
    "rate falls to zero": lambda: trained(3, schedule=lambda done: 1 - done),
    "rate falls by ten, five": lambda: trained(10, saves=5, from_step=25, schedule=falling_by_ten),
    "rate falls by ten, six": lambda: trained(10, saves=6, from_step=25, schedule=falling_by_ten),
    "cyclic rate": lambda: trained(4, schedule=lambda done: 1 - (6 * done) % 1),
    "every step": lambda: trained(5, every=1, from_step=150),
    "every step, bfloat16": lambda: narrowed(trained(5, every=1, from_step=150)),
    "bfloat16": lambda: narrowed(trained(0)),
    "a leap": lambda: trained(6, schedule=lambda done: 30.0 if 0.5 <= done < 0.51 else 1.0),
    "fine-tuning": lambda: trained(8, start=trained(7, saves=1, from_step=200)[0], rate=1e-3),
    "three": lambda: trained(9, saves=3),
    "two": lambda: trained(9, saves=2, from_step=50),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_run_has_no_verdict(name: str, tmp_path: Path) -> None:
    """Runs of every schedule, spacing and element type are one series, and in order where that can be decided."""
    plan = probed(tmp_path / "run", REAL[name]())
    assert verdicts(plan) == []
    assert plan.evidence is not None
    assert plan.evidence.verdicts == ()
    assert plan.evidence.path_ratio in (None, pytest.approx(1, abs=0.05))


def test_a_walk_around_a_point_has_no_order(tmp_path: Path) -> None:
    """Weights that only fluctuate around a mean have no order, and any order of them is silent."""
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(100, 50, generator=generator)
    states = [{"w": center + 0.1 * torch.randn(100, 50, generator=generator)} for _ in range(12)]
    plan = probed(tmp_path / "run", states)
    assert verdicts(plan) == []
    assert plan.evidence is not None
    assert not plan.evidence.order_decided


Fault = Callable[[list[State], list[State]], list[State]]
FAULTS: dict[str, tuple[Fault, str, str]] = {
    "last first": (
        lambda a, _: [a[-1], *a[:-1]],
        "evidence-order",
        '"ckpt_100.safetensors" seems to belong at the end',
    ),
    "last second": (
        lambda a, _: [a[0], a[-1], *a[1:-1]],
        "evidence-order",
        '"ckpt_200.safetensors" seems to belong at the end, beside "ckpt_1200.safetensors"',
    ),
    "two swapped": (
        lambda a, _: [*a[:2], a[9], *a[3:9], a[2], *a[10:]],
        "evidence-order",
        '"ckpt_300.safetensors" and "ckpt_1000.safetensors" seem to be in each other\'s place',
    ),
    "alphabetical": (
        lambda a, _: [a[n - 1] for n in sorted(range(1, 13), key=str)],
        "evidence-order",
        "times as long as the shortest",
    ),
    "one of another run": (lambda a, b: [*a[:5], b[5], *a[6:]], "evidence-outlier", '"ckpt_600.safetensors"'),
    "another initialization": (lambda a, b: [b[0], *a[1:]], "evidence-outlier", '"ckpt_100.safetensors"'),
    "other scale": (
        lambda a, _: [*a[4:9], {name: 9 * value for name, value in a[9].items()}, *a[10:]],
        "evidence-outlier",
        '"ckpt_600.safetensors" is far from all others',
    ),
    "two runs": (lambda a, b: [*a[:6], *b[6:]], "evidence-unrelated", "2 groups"),
    "two files of two runs": (lambda a, b: [a[-1], b[-1]], "evidence-unrelated", "nothing in common"),
    "one of three": (lambda a, b: [a[-2], a[-1], b[-1]], "evidence-outlier", '"ckpt_300.safetensors"'),
    "parts of one": (
        lambda a, _: [{"w": a[-1]["0.weight"][:32].repeat(1, 4)}, {"w": a[-1]["0.weight"][32:].repeat(1, 4)}],
        "evidence-unrelated",
        "nothing in common",
    ),
    "one twice": (
        lambda a, _: [*a[:5], a[4], *a[5:]],
        "evidence-copies",
        '"ckpt_500.safetensors" = "ckpt_600.safetensors"',
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name: str, run: list[State], other_run: list[State], tmp_path: Path) -> None:
    """Each kind of fault has its code, and the message names the checkpoints."""
    spoil, code, words = FAULTS[name]
    plan = probed(tmp_path / "run", spoil(run, other_run))
    assert verdicts(plan) == [code]
    assert words in message_of(plan, code)
    assert plan.evidence is not None
    assert plan.evidence.verdicts == (code,)


def test_an_outlier_in_second_place_is_found(tmp_path: Path) -> None:
    """Only what lies between its neighbors may be far from them."""
    states = trained(10, saves=6, from_step=25, schedule=falling_by_ten)
    states[1] = {name: 4 * value for name, value in states[1].items()}
    plan = probed(tmp_path / "run", states)
    assert verdicts(plan) == ["evidence-outlier"]
    assert plan.evidence is not None
    assert plan.evidence.outliers == (1,)


def test_the_two_ends_exchanged(tmp_path: Path) -> None:
    """Where one leap is long, both ways to shorten the path are compared in full, and half a repair is no agreement."""
    generator = torch.Generator().manual_seed(0)
    start, direction = (torch.randn(64, 64, generator=generator) for _ in range(2))
    noise = torch.zeros(64, 64)
    states: list[State] = []
    for place in (0.0, 1.0, 1.6, 2.0, 2.2, 2.35, 2.45, 2.5):
        noise = noise + 0.1 * torch.randn(64, 64, generator=generator)
        states.append({"w": start + 0.3 * (place * direction + noise)})
    assert verdicts(probed(tmp_path / "true", states)) == []
    plan = probed(tmp_path / "swapped", [states[7], *states[1:7], states[0]])
    assert '"ckpt_100.safetensors" and "ckpt_800.safetensors" seem to be in' in message_of(plan, "evidence-order")
    half = probed(tmp_path / "half", [*states[1:], states[0]])
    assert verdicts(half) == ["evidence-order"]


@pytest.mark.parametrize("lora", ["factors", "exact"])
def test_factors_of_two_runs_are_noticed(lora: LoraMode, tmp_path: Path) -> None:
    """Whether LoRA factors are averaged or joined; what joins them is not proposed for two runs."""
    bases = [factors(seed, rank=16, inside=128, outside=128) for seed in range(2)]
    states = [{name: value + 0.01 * torch.randn_like(value) for name, value in bases[n % 2].items()} for n in range(6)]
    plan = ema_cli.plan(write_adapters(tmp_path, states, [{"r": 16}] * 6), method="uniform", lora=lora)
    assert verdicts(plan) == ["evidence-unrelated"]
    assert not any("--lora exact" in warning.hint for warning in plan.warnings)
    assert '("checkpoint-100", "checkpoint-300" and 1 more; "checkpoint-200",' in message_of(plan, "evidence-unrelated")


def test_a_copy_at_the_wrong_place_is_only_a_copy(run: list[State], tmp_path: Path) -> None:
    """A copy of the last that stands first is reported once, not as a wrong order too."""
    plan = probed(tmp_path / "run", [run[-1], *run])
    assert verdicts(plan) == ["evidence-copies"]


def test_order_is_silent_where_it_changes_nothing(run: list[State], tmp_path: Path) -> None:
    """A uniform mean of all does not depend on the order; of the last few it does."""
    states = [run[-1], *run[:-1]]
    assert verdicts(probed(tmp_path / "run", states, decay=(), method="uniform")) == []
    assert verdicts(ema_cli.plan(tmp_path / "run", method="uniform", last=8)) == []  # eight that are in order
    assert verdicts(ema_cli.plan(tmp_path / "run", method="uniform", last=12)) == ["evidence-order"]


def test_an_order_by_hand_is_judged_too(run: list[State], tmp_path: Path) -> None:
    """``--order given`` may come from a shell that sorts by name."""
    paths = write_series(tmp_path / "run", run, form="safetensors")
    assert verdicts(ema_cli.plan(sorted(paths), decay=0.8, order="given")) == ["evidence-order"]


def test_four_are_too_few_for_an_order(run: list[State], tmp_path: Path) -> None:
    """Among four checkpoints chance decides which path is the shortest."""
    plan = probed(tmp_path / "run", [run[11], run[4], run[6], run[8]])
    assert verdicts(plan) == []
    assert plan.evidence is not None
    assert plan.evidence.path_ratio is None


def test_a_long_gap_is_no_outlier(run: list[State], tmp_path: Path) -> None:
    """A checkpoint after a long gap is far away, which its step explains."""
    dense = trained(0, saves=6, every=1, from_step=100)
    states = [*dense, run[-1]]
    steps = [100, 101, 102, 103, 104, 105, 275]
    paths = write_series(tmp_path / "run", states, form="safetensors")
    assert verdicts(ema_cli.plan(paths, decay=0.8, steps=steps)) == []
    assert verdicts(ema_cli.plan(paths, decay=0.8, order="name", steps=range(7))) == ["evidence-outlier"]


def test_a_tiny_model_has_no_verdict(tmp_path: Path) -> None:
    """A few numbers prove nothing."""
    plan = probed(tmp_path / "run", [{"w": torch.randn(20, 20)} for _ in range(8)])
    assert plan.evidence is None


def test_why_there_is_no_evidence(run: list[State], tmp_path: Path, ema_avg: Run) -> None:
    """A model that is too small, and a series that is too short for an order, are called so."""
    write_series(tmp_path / "tiny", [{"w": torch.randn(20, 20)} for _ in range(3)], form="safetensors")
    write_series(tmp_path / "short", run[:4], form="safetensors")
    assert "weights compared: no (fewer than 2,048)" in ema_avg("plan", "tiny", "--decay", "0.5").stdout
    assert "too few checkpoints to judge the order (5 needed)" in ema_avg("plan", "short", "--decay", "0.5").stdout


def test_batch_is_proposed_only_for_runs_in_folders(run: list[State], other_run: list[State], tmp_path: Path) -> None:
    """For two runs in one folder it would not help; the geometry is not interpreted for either."""
    one = probed(tmp_path / "one", [*run[:6], *other_run[6:]])
    paths = [*write_series(tmp_path / "a", run[:6]), *write_series(tmp_path / "b", other_run[:6])]
    several = ema_cli.plan(paths, decay=0.8, order="given")
    hints = [next(w.hint for w in plan.warnings if w.code == "evidence-unrelated") for plan in (one, several)]
    assert ["ema-avg batch" in hint for hint in hints] == [False, True]
    page = tmp_path / "r.md"
    ema_cli.average(tmp_path / "one", decay=0.5, output=tmp_path / "ema.safetensors", report=[page])
    assert "Mean cosine between" not in page.read_text()


def test_frozen_weights_are_no_copies(tmp_path: Path) -> None:
    """Checkpoints that differ only in a small head beside a large frozen model are not called copies."""
    frozen = {f"layer.{n}.weight": torch.randn(64, 64) for n in range(64)}
    states = [{**frozen, "head.bias": torch.randn(8)} for _ in range(5)]
    plan = probed(tmp_path / "run", states)
    assert verdicts(plan) == []
    copied = probed(tmp_path / "copies", [*states[:3], states[2]])
    assert verdicts(copied) == ["evidence-copies"]


def test_copies_are_reported_once(run: list[State], tmp_path: Path) -> None:
    """What the probe reported is not reported again after the fold; without the probe, the fold reports it."""
    write_series(tmp_path / "run", [*run[:5], run[4]], form="safetensors")
    for number, (probe, code) in enumerate(((True, "evidence-copies"), (False, "same-weights"))):
        output = tmp_path / f"{number}.safetensors"
        report = ema_cli.average(tmp_path / "run", decay=0.8, output=output, probe=probe)
        assert [w.code for w in report.warnings if w.code in ("same-weights", *CODES)] == [code]


def test_distances_are_those_of_the_weights(run: list[State], tmp_path: Path) -> None:
    """A small model is compared whole: root mean square of the differences, relative to that of each piece."""
    evidence = probed(tmp_path / "run", run[:3]).evidence
    assert evidence is not None
    whole = [np.stack([to_numpy(state[name]).ravel() for state in run[:3]]) for name in run[0]]
    tensors = [tensor[:, k : k + 1024] for tensor in whole for k in range(0, tensor.shape[1], 1024)]
    size = sum(tensor.shape[1] for tensor in tensors)
    expected = [
        [sum(((t[i] - t[j]) ** 2).sum() / (t**2).mean() for t in tensors) / size for j in range(3)] for i in range(3)
    ]
    assert np.allclose(evidence.distances, np.sqrt(expected), rtol=1e-9)
    assert evidence.elements == size


def test_layouts_in_storage_do_not_matter(run: list[State], tmp_path: Path) -> None:
    """Transposed tensors and tensors in several pieces are sampled, too."""
    plain = [{"w": state["0.weight"]} for state in run[:4]]
    expected = probed(tmp_path / "plain", plain).evidence
    assert expected is not None
    write_series(tmp_path / "strided", [{"w": state["w"].t().contiguous().t()} for state in plain])
    for number, state in enumerate(plain, 1):
        dcp_makers.save(tmp_path / "dcp" / f"step_{number}", {"model": state})
    for folder in ("strided", "dcp"):
        found = ema_cli.plan(tmp_path / folder, decay=0.8).evidence
        assert found is not None
        assert np.allclose(found.distances, expected.distances, rtol=0.02)  # the pieces of a transposed one differ


def test_what_is_not_finite_is_left_to_the_fold(run: list[State], tmp_path: Path) -> None:
    """A NaN is no evidence of anything; the fold refuses it."""
    states = [{name: value.clone() for name, value in state.items()} for state in run]
    states[3]["0.weight"][0, 0] = float("nan")
    states[4]["0.weight"][:] = float("inf")
    assert verdicts(probed(tmp_path / "run", states)) == []
    with pytest.raises(InputRefused, match="holds nan"):
        ema_cli.average(tmp_path / "run", decay=0.8, output=tmp_path / "ema.safetensors")


def test_a_file_that_became_shorter_is_an_error_of_the_input(run: list[State], tmp_path: Path) -> None:
    """A file that is truncated between planning and the sample was changed, as in the fold."""
    paths = write_series(tmp_path / "run", run[:3], form="safetensors")
    options = make_options([str(path) for path in paths], decay=0.8)
    with planned(options) as plan:
        os.truncate(paths[1], paths[1].stat().st_size - 2000)
        with pytest.raises(InputChanged, match=r"ckpt_200\.safetensors"):
            examine_series(plan, options)


def large_states(count: int) -> list[State]:
    """Return states of 2 MB with an embedding, matrices and vectors, a random walk."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (2000, 128), **{f"w{n}": (128, 128) for n in range(12)}, **{f"n{n}": (128,) for n in range(30)}}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    states = []
    for _ in range(count):
        states.append(state)
        state = {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    return states


def test_the_sample_is_small_and_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 32 reads of 4 KiB per checkpoint, at the same offsets in files of one layout, over large and small."""
    paths = write_series(tmp_path / "run", large_states(4), form="safetensors")
    options = make_options([str(path) for path in paths], decay=0.8)
    reads: dict[str, list[tuple[int, int]]] = {path.name: [] for path in paths}
    read_into = FileSource.read_into

    def noted(self: FileSource, offset: int, buffer: bytearray | memoryview) -> None:
        reads[self.path.name].append((offset, memoryview(buffer).nbytes))
        read_into(self, offset, buffer)

    with planned(options) as plan:
        monkeypatch.setattr(FileSource, "read_into", noted)
        examine_series(plan, options)
        names = {plan.tensors[piece.number].name for piece in choose_pieces(plan, range(4))}
    first, *rest = reads.values()
    assert 16 <= len(first) <= 32
    assert all(size <= 4096 for _, size in first)
    assert all(offsets == first for offsets in rest)
    assert "embed" in names
    assert len([name for name in names if name.startswith("w")]) >= 8
    assert any(name.startswith("n") for name in names)


def test_of_many_checkpoints_some_are_sampled(tmp_path: Path) -> None:
    """Of more than 128 checkpoints, 128 are compared, the first and the last among them."""
    states = [{"w": torch.full((64, 64), 1.0) + n * torch.eye(64) + torch.rand(64, 64)} for n in range(130)]
    evidence = probed(tmp_path / "run", states).evidence
    assert evidence is not None
    assert len(evidence.inputs) == len(set(evidence.inputs)) == 128
    assert (evidence.inputs[0], evidence.inputs[-1]) == (0, 129)


def test_a_previous_average_is_no_member(run: list[State], other_run: list[State], tmp_path: Path) -> None:
    """Continuing, the average is only compared with: its place in the order means nothing, another run is noticed."""
    paths = write_series(tmp_path / "run", run, form="safetensors")
    before = tmp_path / "before.safetensors"
    ema_cli.average(paths[:5], decay=0.8, output=before)
    plan = ema_cli.plan(tmp_path / "run", continue_from=before)
    assert verdicts(plan) == []
    assert plan.evidence is not None
    assert plan.evidence.inputs == tuple(range(1, 8))
    write_series(tmp_path / "run", [*run[:5], *other_run[5:]], form="safetensors")
    assert verdicts(ema_cli.plan(tmp_path / "run", continue_from=before)) == ["evidence-outlier"]


def test_strict_stops_before_the_fold(run: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``--strict`` a verdict fails the run before anything is folded; without it, the report has the warning."""
    write_series(tmp_path / "run", [run[-1], *run[:-1]], form="safetensors")
    output = tmp_path / "ema.safetensors"
    report = ema_cli.average(tmp_path / "run", decay=0.5, output=output)
    assert [warning.code for warning in report.warnings] == ["evidence-order"]
    output.unlink()
    monkeypatch.setattr("ema_cli.execution.fold", lambda *_, **__: pytest.fail("folded"))
    with pytest.raises(StrictWarnings, match="evidence-order"):
        ema_cli.average(tmp_path / "run", decay=0.5, output=output, strict=True)
    assert not output.exists()


def test_nothing_is_probed_if_nothing_is_to_be_done(
    run: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output that is up to date, an output in the way of a run, and ``--no-probe`` cost no reads."""
    write_series(tmp_path / "run", run, form="safetensors")
    output = tmp_path / "ema.safetensors"
    ema_cli.average(tmp_path / "run", decay=0.5, output=output)
    monkeypatch.setattr(probe_module, "examine_series", lambda *_: pytest.fail("probed"))
    ema_cli.average(tmp_path / "run", decay=0.5, output=output)
    with pytest.raises(ema_cli.EmaAvgError, match="already exists"):
        ema_cli.average(tmp_path / "run", decay=0.6, output=output)
    report = ema_cli.average(tmp_path / "run", decay=0.6, output=output, force=True, probe=False)
    assert report.evidence is None


def test_the_option_does_not_change_the_output(run: list[State], tmp_path: Path) -> None:
    """With and without the probe the bytes are the same, and one is up to date for the other."""
    write_series(tmp_path / "run", run, form="safetensors")
    outputs = [tmp_path / "with.safetensors", tmp_path / "without.safetensors"]
    for output, probe in zip(outputs, (True, False), strict=True):
        ema_cli.average(tmp_path / "run", decay=0.5, output=output, probe=probe)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    written = outputs[0].stat().st_mtime_ns
    ema_cli.average(tmp_path / "run", decay=0.5, output=outputs[0], probe=False)
    assert outputs[0].stat().st_mtime_ns == written


def test_reports_show_the_evidence(run: list[State], tmp_path: Path) -> None:
    """JSON has the numbers, the page and Markdown a sentence; a report of schema 1.0 has none, and is readable."""
    write_series(tmp_path / "run", run, form="safetensors")
    more = [tmp_path / "r.html", tmp_path / "r.md"]
    report = ema_cli.average(tmp_path / "run", decay=0.5, output=tmp_path / "ema.safetensors", report=more)
    text = (tmp_path / "ema.report.json").read_text()
    assert from_json(text).evidence == report.evidence is not None
    for page in more:
        assert "similar (cosine to the nearest" in page.read_text().replace("\\", "")
        assert "the order agrees with the weights." in page.read_text().replace("\\", "")
    document = json.loads(text) | {"schema_version": "1.0"}
    del document["evidence"]
    old: Report = from_json(json.dumps(document))
    assert old.evidence is None


def test_the_commands_show_the_evidence(run: list[State], tmp_path: Path, ema_avg: Run) -> None:
    """``plan`` and its JSON, the run, and ``batch --dry-run`` have the verdict."""
    write_series(tmp_path / "runs" / "a", [run[-1], *run[:-1]], form="safetensors")
    planned_run = ema_avg("plan", "runs/a", "--decay", "0.5")
    assert "weights compared: similar" in planned_run.stdout
    assert "(evidence-order)" in planned_run.stderr
    assert ema_avg("plan", "runs/a", "--decay", "0.5", "--strict").returncode == 8
    document = json.loads(ema_avg("plan", "runs/a", "--decay", "0.5", "--json").stdout)
    assert document["evidence"]["verdicts"] == ["evidence-order"]
    assert "(evidence-order)" in ema_avg("runs/a", "--decay", "0.5", "-o", "ema.safetensors").stderr
    for options in (("--dry-run",), ()):
        batch = ema_avg("batch", "runs", "--decay", "0.5", "--json", *options)
        assert json.loads(batch.stdout)["jobs"][0]["warnings"] == ["evidence-order"]
    silent = ema_avg("plan", "runs/a", "--decay", "0.5", "--no-probe", "--strict")
    assert silent.returncode == 0
    assert "weights compared: no (--no-probe)" in silent.stdout


@pytest.mark.parametrize("seed", range(8))
def test_the_shortest_path_is_found(seed: int) -> None:
    """For six points, the path is as short as the best of all orders, and so are the best move and the best swap."""
    points = np.random.default_rng(seed).normal(size=(6, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    best = min(itertools.permutations(range(6)), key=lambda order: path_length(distances, order))
    assert path_length(distances, shortest_path(distances)) == pytest.approx(path_length(distances, best))
    order = random.Random(seed).sample(range(6), 6)
    moves = [
        [*rest[:k], point, *rest[k:]]
        for point in order
        for rest in [[p for p in order if p != point]]
        for k in range(6)
    ]
    found = best_move(distances, order)
    assert path_length(distances, found) == pytest.approx(
        min(path_length(distances, move) for move in moves if move != order)
    )
    swaps = [[b if p == a else a if p == b else p for p in order] for a, b in itertools.combinations(order, 2)]
    assert path_length(distances, best_swap(distances, order)) == pytest.approx(
        min(path_length(distances, swap) for swap in swaps)
    )
