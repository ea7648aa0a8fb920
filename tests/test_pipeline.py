"""The whole run, from finding to reporting, and files that change during it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.errors import InputChanged, NothingMatched, OutputError, StrictWarnings
from ema_cli.events import Event, Opening, Planned, Progress, WarningIssued
from ema_cli.options.average import make_options
from ema_cli.pipeline import Outcome, run_average
from ema_cli.report.serialize import from_json
from ema_cli.report.validation import find_fault
from tests.helpers.listeners import during
from tests.helpers.series import State, load, open_files, random_states, same_bits, write_series

Paths = list[Path]


def run(paths: Paths, output: Path, **options: Any) -> Outcome:
    """Run the pipeline with a decay of one half."""
    return run_average(make_options(paths, output=output, **{"decay": 0.5, **options}))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Three checkpoints in a folder of their own."""
    return write_series(tmp_path / "run", random_states(3))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The output of the average."""
    return tmp_path / "ema.safetensors"


def test_a_second_run_finds_the_output_up_to_date(paths: Paths, output: Path) -> None:
    """The same command again writes nothing: neither the file nor its time changes, and the report is the old one."""
    first = run(paths, output)
    before = output.stat()
    second = run(paths, output)
    assert (first.up_to_date, second.up_to_date) == (False, True)
    assert second.report == first.report
    after = output.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    "change",
    [
        {"decay": 0.6},
        {"decay": None, "method": "uniform"},
        {"dtype": "float64"},
        {"metadata": {"k": "v"}},
        {"exclude": ("bias",)},
        {"last": 2},
        {"sha256": True},
    ],
)
def test_another_average_does_not_overwrite(change: dict[str, Any], paths: Paths, output: Path) -> None:
    """An output of other options exists: refused with a hint, and overwritten with ``force``."""
    run(paths, output)
    before = output.read_bytes()
    with pytest.raises(OutputError, match=r"ema\.safetensors. already exists, ") as refused:
        run(paths, output, **change)
    assert "--force" in refused.value.hint
    assert output.read_bytes() == before
    assert not run(paths, output, force=True, **change).up_to_date
    assert run(paths, output, **change).up_to_date


def test_changed_inputs_are_noticed(paths: Paths, output: Path) -> None:
    """The same names with other content are not up to date."""
    run(paths, output)
    torch.save(random_states(1, seed=9)[0], paths[1])
    with pytest.raises(OutputError, match="was changed or touched"):
        run(paths, output)


@pytest.mark.parametrize("damage", ["truncate", "header", "no report", "broken report", "foreign"])
def test_a_damaged_output_is_not_up_to_date(damage: str, paths: Paths, output: Path) -> None:
    """A damaged file, or one without its report, is never up to date."""
    run(paths, output)
    report = output.with_name("ema.report.json")
    raw = output.read_bytes()
    if damage == "truncate":
        output.write_bytes(raw[:-1])
    elif damage == "header":
        output.write_bytes(raw[:20] + b"#" + raw[21:])
    elif damage == "no report":
        report.unlink()
    elif damage == "broken report":
        report.write_text("[" * 10_000)
    else:
        output.write_bytes(b"a file of the user")
    with pytest.raises(OutputError):
        run(paths, output)
    run(paths, output, force=True)
    assert output.read_bytes() == raw


def test_further_averages_of_the_same_run(paths: Paths, tmp_path: Path) -> None:
    """With an additional decay all outputs are computed again, even those that are up to date."""
    template = tmp_path / "ema_{decay}.safetensors"
    run(paths, template, decay=[0.5])
    assert not run(paths, template, decay=[0.5, 0.9]).up_to_date
    outcome = run(paths, template, decay=[0.5, 0.9])
    assert outcome.up_to_date
    assert [found.method.decay for found in outcome.report.averages] == [0.5, 0.9]


def test_a_report_can_be_asked_for_later(paths: Paths, output: Path, tmp_path: Path) -> None:
    """When the output is up to date, a further report is still written."""
    run(paths, output)
    assert run(paths, output, report=[tmp_path / "late.json"]).up_to_date
    assert (tmp_path / "late.json").read_bytes() == (tmp_path / "ema.report.json").read_bytes()


@pytest.mark.parametrize("change", ["append", "truncate", "overwrite"])
def test_an_input_that_changes_is_never_published(change: str, paths: Paths, output: Path) -> None:
    """A file is appended to, truncated or rewritten during the run: the error names it, and there is no output."""

    def spoil() -> None:
        raw = paths[1].read_bytes()
        if change == "append":
            paths[1].write_bytes(raw + b"x")
        elif change == "truncate":
            os.truncate(paths[1], len(raw) // 2)
        else:
            paths[1].write_bytes(raw)
            os.utime(paths[1], ns=(1, 1))

    files = open_files()
    with pytest.raises(InputChanged, match=r"ckpt_200\.pt"):
        run_average(make_options(paths, decay=0.5, output=output), during(spoil))
    assert sorted(path.name for path in output.parent.iterdir()) == ["run"]
    assert open_files() == files


@pytest.mark.parametrize("change", ["unlink", "replace"])
def test_an_input_that_loses_its_name_is_averaged_with_a_warning(change: str, paths: Paths, output: Path) -> None:
    """A rotated checkpoint is still readable through the open file: the run finishes, and reports it."""
    expected = run(paths, output.with_name("expected.safetensors")).report

    def spoil() -> None:
        paths[1].unlink()
        if change == "replace":
            torch.save(random_states(1, seed=9)[0], paths[1])

    heard: list[str] = []

    def listen(event: Event) -> None:
        during(spoil)(event)
        if isinstance(event, WarningIssued):
            heard.append(event.warning.code)

    outcome = run_average(make_options(paths, decay=0.5, output=output), listen)
    assert [warning.code for warning in outcome.report.warnings] == heard == ["input-replaced"]
    assert output.read_bytes() == Path(expected.averages[0].output.path).read_bytes()


def test_strict_refuses_an_input_that_lost_its_name(paths: Paths, output: Path) -> None:
    """Under ``strict`` a warning after the fold still keeps the output from being published."""
    with pytest.raises(StrictWarnings, match=r"1 warning under --strict.*input-replaced"):
        run_average(make_options(paths, decay=0.5, output=output, strict=True), during(paths[0].unlink))
    assert sorted(path.name for path in output.parent.iterdir()) == ["run"]


def test_strict_fails_on_a_warning_before_the_work(paths: Paths, output: Path) -> None:
    """A planned warning stops the run, whether or not a previous run without ``strict`` wrote the output."""
    with pytest.raises(StrictWarnings, match="first-dominates"):
        run(paths, output, decay=0.99, strict=True)
    assert not output.exists()
    assert [warning.code for warning in run(paths, output, decay=0.99).report.warnings] == ["first-dominates"]
    with pytest.raises(StrictWarnings):
        run(paths, output, decay=0.99, strict=True)


def test_strict_passes_without_warnings(paths: Paths, output: Path) -> None:
    """A run without warnings succeeds under ``strict``."""
    assert run(paths, output, strict=True).report.warnings == ()


def test_one_checkpoint_is_copied_with_a_warning(paths: Paths, output: Path) -> None:
    """The average of one checkpoint has its bytes."""
    report = run(paths[:1], output).report
    assert [warning.code for warning in report.warnings] == ["one-checkpoint"]
    state = random_states(3)[0]
    assert all(same_bits(value, state[name]) for name, value in load(output).items())


def test_events_come_in_the_order_of_the_work(paths: Paths, output: Path) -> None:
    """Opening, then the plan, then warnings, then progress that ends at all bytes."""
    events: list[Event] = []
    run_average(make_options(paths, decay=0.99, output=output, sha256=True), events.append)
    kinds = [type(event) for event in events]
    assert kinds[:5] == [Opening, Opening, Opening, Planned, WarningIssued]
    for activity in ("hashing", "folding"):
        progress = [e for e in events if isinstance(e, Progress) and e.activity == activity]
        assert progress[-1].done_bytes == progress[-1].total_bytes > 0


def test_digests_of_the_inputs(paths: Paths, output: Path) -> None:
    """``sha256`` adds the digest of every input file; without it there is none."""
    assert {found.sha256 for found in run(paths, output).report.inputs} == {None}
    report = run(paths, output, sha256=True, force=True).report
    assert [found.sha256 for found in report.inputs] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def test_the_file_loads_into_a_real_model(tmp_path: Path) -> None:
    """A model with BatchNorm loads the average with ``strict=True``, from nested training checkpoints."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    paths = []
    for step in (10, 20, 30):
        torch.manual_seed(step)
        model(torch.randn(8, 3, 6, 6))
        paths.append(tmp_path / f"ckpt_{step}.ckpt")
        torch.save({"state_dict": model.state_dict(), "global_step": step, "optimizer_states": [{}]}, paths[-1])
    report = ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    state = load(tmp_path / "ema.safetensors")
    assert model.load_state_dict(state, strict=True).missing_keys == []
    assert state["1.num_batches_tracked"].item() == 3
    assert [warning.code for warning in report.warnings] == ["batchnorm-averaged"]
    assert [found.step_source for found in report.inputs] == ["inside: global_step"] * 3


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    """Checkpoints of a wrapped model give the names of the bare one."""
    states: list[State] = [{"module._orig_mod.w": torch.ones(2)}, {"module._orig_mod.w": torch.zeros(2)}]
    ema_cli.average(write_series(tmp_path, states), decay=0.5, output=tmp_path / "ema.safetensors")
    assert load(tmp_path / "ema.safetensors")["w"].tolist() == [0.5, 0.5]


def test_nothing_stays_open_and_no_thread_runs_on(paths: Paths, output: Path) -> None:
    """After a run, successful or not, descriptors and threads are as before."""
    run(paths, output)
    files, threads = open_files(), threading.active_count()
    run(paths, output, force=True)
    run(paths, output)
    with pytest.raises(OutputError):
        run(paths, output, decay=0.7)
    with pytest.raises(NothingMatched):
        run([*paths, output.with_name("missing.pt")], output)
    ema_cli.inspect(paths[0])
    assert (open_files(), threading.active_count()) == (files, threads)


def test_an_interrupt_leaves_nothing(paths: Paths, output: Path) -> None:
    """An interrupt while folding removes the temporary file and keeps the old output."""
    run(paths, output)
    before = output.read_bytes()

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_average(make_options(paths, decay=0.9, output=output, force=True), interrupt)
    assert output.read_bytes() == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["ema.report.json", "ema.safetensors", "run"]


def test_the_package_offers_its_functions_lazily() -> None:
    """The public names are there; any other is an AttributeError."""
    assert {"EMA", "EmaAvgError", "average", "plan", "inspect", "update_bn", "__version__"} <= set(ema_cli.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fold_it'"):
        ema_cli.fold_it  # noqa: B018


def test_a_large_norm_is_no_overflow(tmp_path: Path) -> None:
    """Squares can leave float64 where the numbers do not: there is no warning, and the statistics are undefined."""
    states = [{"w": torch.full((4,), 1e200 * i, dtype=torch.float64)} for i in range(1, 5)]
    outcome = run(write_series(tmp_path / "run", states), tmp_path / "e.safetensors", strict=True)
    assert outcome.report.warnings == ()
    assert outcome.report.averages[0].tensors[0].norm is None
    assert load(tmp_path / "e.safetensors")["w"][0] == 3.125e200


def test_a_touched_output_is_read_before_it_is_believed(paths: Paths, output: Path) -> None:
    """A changed byte is detected, whatever the times of the files; a copy with the same bytes is up to date."""
    run(paths, output)
    raw = output.read_bytes()
    output.write_bytes(raw)
    assert run(paths, output).up_to_date
    output.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (output.parent / "ema.report.json").touch()
    with pytest.raises(OutputError, match="changed after it was written"):
        run(paths, output)


def test_each_report_has_the_geometry_of_its_average(paths: Paths, tmp_path: Path) -> None:
    """The report of each output is complete; together they are that of the run."""
    template = tmp_path / "ema_{decay}.safetensors"
    whole = run(paths, template, decay=[0.5, 0.9]).report
    again = run(paths, template, decay=[0.5, 0.9]).report
    assert again == whole
    one = from_json((tmp_path / "ema_0.9.report.json").read_text())
    assert one.geometry is not None
    assert whole.geometry is not None
    assert one.geometry.averages_2d == whole.geometry.averages_2d[1:]
    assert find_fault(one) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("averages", 0, "diagnostics", "implied_lr"), [1.0]),
        (("averages", 0, "diagnostics", "mean_age"), math.nan),
        (("averages", 0, "tensors", 0, "drift"), math.inf),
        (("averages", 0, "output", "sha256"), None),
        (("geometry", "path_2d"), [[0, 0]]),
        (("geometry", "path_2d"), [[0]] * 3),
        (("geometry", "inputs"), [0, 1, 77]),
        (("geometry", "explained"), [1, 2, 3]),
        (("geometry", "averages_2d"), []),
        (("geometry", "pairwise_distance"), []),
        (("summary", "throughput_bytes_per_second"), math.nan),
        (("schema_version",), "9.0"),
        (("inputs",), []),
        (("averages",), []),
    ],
    ids=str,
)
def test_a_report_that_is_not_sound_is_none(
    place: tuple[Any, ...], value: object, paths: Paths, output: Path, tmp_path: Path
) -> None:
    """Whatever the report of an output contains, the answer is one sentence, and no page is made of it."""
    run(paths, output)
    report_file = tmp_path / "ema.report.json"
    document = json.loads(report_file.read_text())
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    report_file.write_text(json.dumps(document))
    with pytest.raises(OutputError, match=r"without a readable report beside it|exists and is not a report of ema-avg"):
        run(paths, output, report=[tmp_path / "x.html", tmp_path / "x.md"])
    assert not (tmp_path / "x.html").exists()
