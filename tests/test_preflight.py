"""May a plan be carried out? The run, ``plan`` (also from Python) and both dry runs give the same answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ema_cli
from ema_cli.batch.jobs import make_job
from ema_cli.batch.run_batch import Status, run_batch
from ema_cli.cli.app import app
from ema_cli.cli.console import Console, Style
from ema_cli.errors import EmaAvgError, OutputError, StrictWarnings, UsageError
from ema_cli.events import Event, WarningIssued
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from tests.helpers.series import random_states, write_series


def nothing(_: Path) -> None:
    """Leave the folder as it is."""


def foreign(name: str) -> Callable[[Path], object]:
    """Return a function that puts a file of another program into a folder."""
    return lambda folder: (folder / name).write_bytes(b"foreign")


def the_average(folder: Path) -> None:
    """Write the average that will be requested."""
    run_average(make_options(folder / "run", decay=0.5, output=folder / "ema.safetensors"))


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The contents of the folder, the requested average, and the expected answer."""

    prepare: Callable[[Path], object] = nothing
    options: dict[str, Any] = field(default_factory=dict)
    output: str = "ema.safetensors"
    codes: tuple[str, ...] = ()
    """The warnings that a plan shows, in order."""
    plan_raises: type[EmaAvgError] | None = None
    run_raises: type[EmaAvgError] | None = None


EXISTS = foreign("ema.safetensors")
IN_THE_WAY: dict[str, Any] = {"codes": ("output-in-the-way",), "run_raises": OutputError}
SITUATIONS = {
    "nothing in the way": Situation(),
    "a warning": Situation(options={"decay": 0.99}, codes=("first-dominates",)),
    "no device": Situation(options={"device": "cuda:99"}, codes=("no-device",), run_raises=UsageError),
    "output exists": Situation(prepare=EXISTS, **IN_THE_WAY),
    "output exists, force": Situation(prepare=EXISTS, options={"force": True}),
    "report in the way": Situation(prepare=foreign("ema.report.json"), **IN_THE_WAY),
    "no folder": Situation(output="run/ckpt_100.safetensors/ema.safetensors", **IN_THE_WAY),
    "a warning, no device, output exists": Situation(
        prepare=EXISTS,
        options={"decay": 0.99, "device": "cuda:99"},
        codes=("first-dominates", "no-device", "output-in-the-way"),
        run_raises=UsageError,
    ),
    "up to date": Situation(prepare=the_average, codes=("up-to-date",)),
    "up to date, strict": Situation(prepare=the_average, options={"strict": True}, codes=("up-to-date",)),
    "output is an input": Situation(
        output="run/ckpt_200.safetensors", options={"force": True}, plan_raises=UsageError, run_raises=UsageError
    ),
    "a warning, strict": Situation(
        options={"decay": 0.99, "strict": True},
        codes=("first-dominates",),
        plan_raises=StrictWarnings,
        run_raises=StrictWarnings,
    ),
    "output exists, strict": Situation(
        prepare=EXISTS,
        options={"strict": True},
        codes=("output-in-the-way",),
        plan_raises=StrictWarnings,
        run_raises=OutputError,
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_all_agree(situation: Situation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same codes in the same order, and the same error; only the run writes."""
    run, output = tmp_path / "run", tmp_path / situation.output
    write_series(run, random_states(3), form="safetensors")
    situation.prepare(tmp_path)
    before = contents(tmp_path)
    options = make_options(run, **{"decay": 0.5, **situation.options}, output=output)

    arguments = [str(run), *flags({"decay": 0.5, **situation.options}), "-o", str(output)]
    for command in (["plan", *arguments], [*arguments, "--dry-run"]):
        assert shown_by(command, capsys) == (list(situation.codes), situation.plan_raises)
    python = {"decay": 0.5, **situation.options, "output": output}
    if situation.plan_raises in (None, StrictWarnings):  # who calls it reads the warnings
        found = [warning.code for warning in ema_cli.plan(run, **python).warnings]
        assert found == [code for code in situation.codes if code != "up-to-date"]
    else:
        with pytest.raises(situation.plan_raises):
            ema_cli.plan(run, **python)
    (job,) = run_batch([make_job(options, str(run))], lambda _: None, dry_run=True)
    assert contents(tmp_path) == before

    heard: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, WarningIssued):
            heard.append(event.warning.code)

    if situation.run_raises is None:
        outcome = run_average(options, listen)
        assert outcome.up_to_date == ("up-to-date" in situation.codes) == (job.status is Status.UP_TO_DATE)
        assert heard == [code for code in situation.codes if code != "up-to-date"]
    else:
        with pytest.raises(situation.run_raises) as refused:
            run_average(options, listen)
        assert (type(job.error), str(job.error)) == (situation.run_raises, str(refused.value))
        assert job.status is Status.FAILED
    assert heard == [warning.code for warning in job.warnings]


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flags(options: dict[str, Any]) -> list[str]:
    """Return options as flags."""
    return [
        word
        for name, value in options.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def shown_by(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[str], type[EmaAvgError] | None]:
    """Run a command; return the codes of the warnings that it shows, and the error that it raises."""
    capsys.readouterr()
    error = None
    try:
        app(command, prog_name="ema-avg", standalone_mode=False, obj=Console(Style()))
    except EmaAvgError as refused:
        error = type(refused)
    return re.findall(r"^warning: .*\(([a-z-]+)\)$", capsys.readouterr().err, re.MULTILINE), error
