"""``--allow CODE``: a warning that the user accepts does not fail a run under ``--strict``, and is marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ema_cli
from ema_cli.errors import WARNING_CODES, StrictWarnings, UsageError
from ema_cli.report.serialize import from_json
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("evidence-oder", "did you mean --allow evidence-order?"),
        ("plain-mean, evidence-oder", "did you mean --allow plain-mean --allow evidence-order?"),
        ("plain-mean,zzz", "the codes are listed by: ema-avg help warnings"),
        ("zzz", "the codes are listed by: ema-avg help warnings"),
    ],
)
def test_an_unknown_code_is_refused(code: str, hint: str, ema_avg: Run, tmp_path: Path) -> None:
    """A code that no warning has is an error of usage, with the nearest one."""
    done = ema_avg("a.pt", "--decay", "0.5", "--allow", code)
    assert done.returncode == 2
    assert hint in done.stderr
    with pytest.raises(UsageError, match='allow="'):
        ema_cli.plan(tmp_path, decay=0.5, allow=code)


def test_a_warning_of_the_plan_can_be_accepted(tmp_path: Path) -> None:
    """It no longer stops the run, is in the plan and the report, and is marked there; other warnings still stop it."""
    write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    with pytest.raises(StrictWarnings, match="first-dominates") as caught:
        ema_cli.average(tmp_path / "run", decay=0.9, output=output, strict=True, allow="plain-mean")
    assert caught.value.hint == 'change that, or accept it: allow="first-dominates"'
    options = {"decay": 0.9, "strict": True, "allow": "first-dominates"}
    assert [w.allowed for w in ema_cli.plan(tmp_path / "run", **options).warnings] == [True]  # type: ignore[arg-type]
    ema_cli.average(tmp_path / "run", output=output, **options)  # type: ignore[arg-type]
    (warning,) = from_json((tmp_path / "ema.report.json").read_text()).warnings
    assert (warning.code, warning.allowed) == ("first-dominates", True)


def test_a_warning_after_the_fold_can_be_accepted(tmp_path: Path) -> None:
    """The same holds for warnings that need all bytes."""
    write_series(tmp_path / "run", [{"w": torch.ones(3)}] * 2)
    output = tmp_path / "ema.safetensors"
    with pytest.raises(StrictWarnings, match="same-weights"):
        ema_cli.average(tmp_path / "run", decay=0.1, output=output, strict=True)
    report = ema_cli.average(tmp_path / "run", decay=0.1, output=output, strict=True, allow=["same-weights"])
    assert [(w.code, w.allowed) for w in report.warnings] == [("same-weights", True)]


def test_an_accepted_warning_is_shown(tmp_path: Path, ema_avg: Run) -> None:
    """On the terminal and in the reports it has its code and that it is allowed; the configuration can name it too."""
    write_series(tmp_path / "run", random_states(2))
    (tmp_path / "ema-avg.toml").write_text('allow = ["first-dominates", "plain-mean"]\n')
    done = ema_avg(
        "run", "--decay", "0.9", "--strict", "-o", "ema.safetensors", "--report", "r.md", "--report", "r.html"
    )
    assert done.returncode == 0, done.stderr
    assert "(first-dominates, allowed)" in done.stderr
    for page in ("r.md", "r.html"):
        assert "first-dominates, allowed" in (tmp_path / page).read_text()
    document = json.loads(ema_avg("plan", "run", "--decay", "0.9", "--json", "-o", "new.safetensors").stdout)
    assert [(w["code"], w["allowed"]) for w in document["warnings"]] == [("first-dominates", True)]


def test_what_stops_a_run_cannot_be_accepted(tmp_path: Path, ema_avg: Run) -> None:
    """A plan shows an output in the way as a warning; ``--allow`` does not accept it, as the run fails all the same."""
    write_series(tmp_path / "run", random_states(2))
    (tmp_path / "ema.safetensors").write_bytes(b"foreign")
    command = ("plan", "run", "--method", "uniform", "-o", "ema.safetensors", "--strict")
    assert ema_avg(*command, "--allow", "output-in-the-way", "--allow", "plain-mean").returncode == 8


def test_the_hint_accepts_what_stops_the_run(tmp_path: Path, ema_avg: Run) -> None:
    """Each code is named once, with what it takes to accept it; an output in the way cannot be accepted."""
    write_series(tmp_path / "run", [{"a.running_mean": torch.ones(2), "w": torch.ones(3)}] * 3)
    (tmp_path / "ema.safetensors").write_bytes(b"something else")
    command = ("run", "--decay", "0.9", "--strict", "-o", "ema.safetensors")
    done = ema_avg("plan", *command)
    assert done.returncode == 8
    assert "so the run would stop: first-dominates, batchnorm-averaged, output-in-the-way" in done.stderr
    hint = "change that, or accept it: --allow first-dominates --allow batchnorm-averaged"
    assert done.stderr.endswith(f"try: {hint}\n")
    (tmp_path / "ema.safetensors").unlink()
    done = ema_avg(*command)
    assert done.returncode == 8
    assert "so nothing was written: first-dominates, batchnorm-averaged\n" in done.stderr
    accepted = hint.partition(": ")[2].split()
    assert ema_avg("plan", *command, *accepted).returncode == 0


def test_every_code_is_registered_once() -> None:
    """No code is in the registry twice."""
    assert len(set(WARNING_CODES)) == len(WARNING_CODES)
