"""The Python functions: warnings that can be filtered, progress on request, values of numpy and torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ema_cli
from ema_cli.cli.app import app
from ema_cli.cli.views import progress as display
from ema_cli.errors import WARNING_CODES, EmaAvgWarning
from ema_cli.events import BatchDone, Event, Opening, Planned, Progress, WarningIssued
from ema_cli.options.average import make_options
from ema_cli.records.plan import Plan
from ema_cli.training.callbacks.run_average import RunAverage
from tests.helpers.outputs import listing
from tests.helpers.series import random_states, write_series

NORMS = "batchnorm-averaged"
"""The warning of ``run_folder``."""
CALLS: dict[str, Callable[..., Any]] = {"average": ema_cli.average, "plan": ema_cli.plan}


def issued(call: Callable[[], Any], action: Any = "always") -> list[warnings.WarningMessage]:
    """Return the warnings of this package that a call issues under a filter."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter(action, EmaAvgWarning)
        call()
    assert all(issubclass(one.category, EmaAvgWarning) for one in found)
    return found


@pytest.fixture
def same_weights(tmp_path: Path) -> list[Path]:
    """Checkpoints of which two are equal: a warning that needs all bytes, and comes when everything was read."""
    states = random_states(3)
    return write_series(tmp_path / "same", [*states, states[1]])


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_caller(name: str, run_folder: Path, tmp_path: Path) -> None:
    """Its text is code, message and hint, with keywords; its place is the line of the call."""
    with pytest.warns(EmaAvgWarning, match=NORMS) as found:
        CALLS[name](run_folder, decay=0.8, output=tmp_path / "ema.safetensors")
    (one,) = found
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[one.lineno - 1]
    assert (one.filename, line.strip()[:16]) == (__file__, "CALLS[name](run_")
    text = str(one.message)
    assert text.startswith(f"{NORMS}: 2 BatchNorm statistics averaged")
    assert text.endswith('or accept them: buffers="average"')
    assert isinstance(one.message, EmaAvgWarning)
    assert one.message.code == NORMS
    assert one.message.code in WARNING_CODES


def test_every_warning_of_the_report_is_issued_once(same_weights: list[Path], tmp_path: Path) -> None:
    """Those of the plan, and those that are found when everything was read."""
    reports = []
    found = issued(lambda: reports.append(ema_cli.average(same_weights, decay=0.99, output=tmp_path / "e.safetensors")))
    codes = [one.message.code for one in found]  # type: ignore[union-attr]
    assert codes == [warning.code for warning in reports[0].warnings]
    assert {"first-dominates", "same-weights"} <= set(codes)


def test_python_shows_a_warning_of_a_line_once(run_folder: Path) -> None:
    """That is its default; the record has all, every time."""
    plans: list[Plan] = []

    def thrice() -> None:
        plans.extend(ema_cli.plan(run_folder, decay=0.8) for _ in range(3))

    assert len(issued(thrice, "default")) == 1
    assert len(issued(thrice)) == 3
    assert all([warning.code for warning in plan.warnings] == [NORMS] for plan in plans)


def test_a_filter_can_name_the_code(run_folder: Path) -> None:
    """The text begins with it, where the filters of Python look."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", NORMS, EmaAvgWarning)
        ema_cli.plan(run_folder, decay=0.8)
        with pytest.raises(EmaAvgWarning, match="first-dominates"):
            ema_cli.plan(run_folder, decay=0.99)


def test_an_accepted_warning_is_not_issued(run_folder: Path, tmp_path: Path) -> None:
    """``allow`` leaves it in the report, marked."""
    reports = []
    call = lambda: reports.append(  # noqa: E731
        ema_cli.average(run_folder, decay=0.8, output=tmp_path / "ema.safetensors", allow=NORMS)
    )
    assert issued(call) == []
    assert [(warning.code, warning.allowed) for warning in reports[0].warnings] == [(NORMS, True)]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("code", ["first-dominates", "same-weights"])
def test_a_warning_as_an_error_leaves_everything_unchanged(
    code: str, resume: bool, same_weights: list[Path], tmp_path: Path
) -> None:
    """Before the work or after it: the old output and its report stay, and nothing is beside them."""
    output = tmp_path / "out" / "ema.safetensors"
    output.parent.mkdir()
    ema_cli.average(same_weights[:2], decay=0.5, output=output)
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmaAvgWarning)
        warnings.filterwarnings("error", code, EmaAvgWarning)
        with pytest.raises(EmaAvgWarning, match=code):
            ema_cli.average(same_weights, decay=0.99, output=output, force=True, resume=resume)
    assert {path: path.read_bytes() for path in output.parent.iterdir() if "lock" not in path.name} == before


def test_the_command_line_and_callbacks_issue_none(run_folder: Path, tmp_path: Path) -> None:
    """They print and log their warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmaAvgWarning)
        done = CliRunner().invoke(app, [str(run_folder), "--decay", "0.8", "-o", str(tmp_path / "a.safetensors")])
        assert done.exit_code == 0, done.exception
        average = RunAverage(output=tmp_path / "b.safetensors", every_n_saves=None, decay=0.8)
        average.begin({str(path): number for number, path in enumerate(sorted(run_folder.iterdir()))})
        average.write()
    assert average.report is not None
    assert [warning.code for warning in average.report.warnings] == [NORMS]


def test_update_bn_warns(tmp_path: Path) -> None:
    """Of a layer without a batch, for an average in memory as for one in a file; as an error it writes nothing."""
    model = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    model.forward = model[0].forward
    torch.save(model.state_dict(), tmp_path / "ema.pt")
    loader = [torch.randn(4, 2)]
    assert "layers-unreached" in str(issued(lambda: ema_cli.update_bn(model.state_dict(), model, loader))[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmaAvgWarning)
        with pytest.raises(EmaAvgWarning, match="layers-unreached"):
            ema_cli.update_bn(tmp_path / "ema.pt", model, loader, output=tmp_path / "new.safetensors")
    assert "new.safetensors" not in listing(tmp_path)


def test_inspect_warns_of_what_it_skips(run_folder: Path) -> None:
    """A damaged file among the checkpoints of a folder is named."""
    (run_folder / "ckpt_600.pt").write_bytes(b"PK\3\4")
    (one,) = issued(lambda: ema_cli.inspect(run_folder))
    assert "ckpt_600.pt" in str(one.message)


def events_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> list[Event]:
    """Return the events that a call reports, all of them in this thread."""
    events: list[Event] = []
    threads = set()

    def listen(event: Event) -> None:
        threads.add(threading.current_thread())
        events.append(event)

    call(*arguments, progress=listen, **options)
    assert threads == {threading.current_thread()}
    return events


def test_a_function_gets_the_events(run_folder: Path, tmp_path: Path) -> None:
    """Of an average: what is opened, the plan, the warnings, and bytes that grow to their total."""
    output = tmp_path / "ema.safetensors"
    events = events_of(ema_cli.average, run_folder, decay=0.8, output=output)
    assert [event.done for event in events if isinstance(event, Opening)] == [0, 1, 2, 3, 4]
    assert sum(isinstance(event, Planned) for event in events) == 1
    assert [event.warning.code for event in events if isinstance(event, WarningIssued)] == [NORMS]
    folded = [event for event in events if isinstance(event, Progress) and event.activity == "folding"]
    assert all(a.done_bytes <= b.done_bytes for a, b in pairwise(folded))
    assert folded[-1].done_bytes == folded[-1].total_bytes > 0
    for call, arguments, activity in (
        (ema_cli.verify, [output], "hashing"),
        (ema_cli.diff, [output, output], "comparing"),
    ):
        assert activity in {event.activity for event in events_of(call, *arguments) if isinstance(event, Progress)}
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    batches = events_of(ema_cli.update_bn, output, model, [torch.randn(3, 6)] * 2)
    assert batches == [BatchDone(done=1, total=2), BatchDone(done=2, total=2)]


def test_an_exception_in_the_function_stops_the_run(run_folder: Path, tmp_path: Path) -> None:
    """Nothing is written."""

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ema_cli.average(run_folder, decay=0.8, output=tmp_path / "ema.safetensors", progress=stop)
    assert not [name for name in listing(tmp_path) if "safetensors" in name]


def test_progress_is_shown_on_request(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lines where there is no terminal, such as in a notebook, and without the warnings, which Python shows."""
    monkeypatch.setattr(display, "HEARTBEAT_SECONDS", 0.0)
    ema_cli.plan(run_folder, decay=0.8, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "checkpoint 5 of 5" in shown.err
    assert NORMS not in shown.err
    ema_cli.plan(run_folder, decay=0.8)
    assert capsys.readouterr().err == ""


def test_without_progress_no_library_of_the_terminal_is_imported(run_folder: Path) -> None:
    """An average needs neither rich nor typer, and no torch."""
    code = (
        "import sys, ema_cli; ema_cli.average(sys.argv[1], decay=0.5, output=sys.argv[1] + '.safetensors');"
        "ema_cli.verify(sys.argv[1] + '.safetensors');"
        "print([m for m in ('rich', 'typer', 'torch', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run_folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr.startswith("<string>:1: EmaAvgWarning: batchnorm-averaged: ")


def _steps() -> Iterator[np.int64]:
    yield from np.array([1, 2, 3])


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({"dtype": np.dtype("<f4")}, {"dtype": "float32"}),
        ({"dtype": np.float64}, {"dtype": "float64"}),
        ({"dtype": ml_dtypes.bfloat16}, {"dtype": "bfloat16"}),
        ({"device": torch.device("cuda", 1)}, {"device": "cuda:1"}),
        ({"decay": np.float64(0.9)}, {"decay": 0.9}),
        ({"decay": np.array([0.8, 0.9])}, {"decay": [0.8, 0.9]}),
        ({"decay": torch.tensor([0.8, 0.9], dtype=torch.float64)}, {"decay": [0.8, 0.9]}),
        ({"decay": [torch.tensor(0.5), np.float32(0.25)]}, {"decay": [0.5, 0.25]}),
        ({"half_life": np.int64(4)}, {"half_life": 4.0}),
        ({"steps": np.array([1, 2, 3])}, {"steps": [1, 2, 3]}),
        ({"steps": torch.tensor([1, 2, 3])}, {"steps": [1, 2, 3]}),
        pytest.param({"steps": _steps()}, {"steps": range(1, 4)}, id="steps of a generator"),
        ({"weights": torch.tensor([1.0, 3.0])}, {"weights": "1,3"}),
        ({"last": np.int32(3), "threads": torch.tensor(2)}, {"last": 3, "threads": 2}),
        ({"max_memory": np.int64(64_000_000)}, {"max_memory": "64MB"}),
        ({"decay": 0.5, "force": np.True_}, {"decay": 0.5, "force": True}),
        ({"output": Path("a.safetensors"), "report": Path("r.md")}, {"output": "a.safetensors", "report": ["r.md"]}),
    ],
    ids=str,
)
def test_values_of_libraries_are_plain_ones(given: dict[str, Any], plain: dict[str, Any]) -> None:
    """Types, devices, numbers, arrays and paths mean what plain values mean, and become them."""
    made = make_options(Path("run"), **given)
    assert made == make_options("run", **plain)
    assert repr(made) == repr(make_options("run", **plain))


def test_the_report_has_plain_values(tmp_path: Path) -> None:
    """It is the same JSON whatever the values were."""
    paths = write_series(tmp_path / "run", random_states(3))
    options: dict[str, Any] = {
        "decay": np.float64(0.5),
        "steps": np.array([1, 2, 3]),
        "dtype": torch.float64,
        "force": np.True_,
    }
    ema_cli.average(np.array([str(path) for path in paths]), output=tmp_path / "a.safetensors", **options)
    kept = json.loads((tmp_path / "a.report.json").read_text())["command"]["options"]
    assert (kept["steps"], kept["dtype"], kept["force"]) == ([1, 2, 3], "float64", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, 'dtype="int8" is none of same, float32'),
        ({"dtype": float}, 'dtype="float" is none of'),
        ({"device": torch.device("meta")}, 'device="meta" is none of cpu, auto'),
        ({"decay": np.array([[0.5]])}, "is not a number"),
        ({"steps": [1.5, 2]}, 'steps="1.5,2" is not a list of whole numbers'),
        ({"report": True}, 'report="True" is not a path'),
        ({"output": 3}, 'output="3" is not a path'),
        ({"output": ""}, 'output="" is not a path'),
        ({"output": "a\0.safetensors"}, 'output="a\\x00.safetensors" is not a path'),
        ({"include": re.compile("a")}, "is not text"),
        ({"device": 0}, 'device="0" is not text'),
        ({"max_memory": 1.5}, 'max_memory="1.5" is not a size'),
        ({"force": "no"}, 'force must be True or False, not "no"'),
    ],
)
def test_other_values_are_refused(options: dict[str, Any], message: str) -> None:
    """With the keyword, and what it takes."""
    with pytest.raises(ema_cli.EmaAvgError) as refused:
        ema_cli.plan("run", **options)
    assert message in str(refused.value)


def test_a_misspelt_keyword_is_a_type_error() -> None:
    """With the nearest."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'half_lief'; did you mean half_life\?"):
        ema_cli.average("run", half_lief=3)  # type: ignore[call-arg]
