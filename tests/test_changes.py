"""Inputs that are changed during a read: the run fails with an error, or its result has one age."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.compare import compare
from ema_cli.errors import InputChanged, InputRefused
from ema_cli.events import Event, Progress, WarningIssued
from ema_cli.options.average import Options, make_options
from ema_cli.pipeline import run_average
from tests.faults.slices import campaign
from tests.helpers.folders import write_shards
from tests.helpers.listeners import during
from tests.helpers.series import State, load, random_states, reference_average, same_bits, write_series

BEFORE, AFTER = random_states(3, seed=1), random_states(3, seed=2)


def overwrite_quietly(path: Path, other: Path) -> None:
    """Write over a file in place, and put its time back."""
    times, data = path.stat(), other.read_bytes()
    assert len(data) == times.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.campaign
def test_changes_at_any_call_are_reported_or_harmless() -> None:
    """A slice of the campaign: every form of checkpoint, every command that reads some, every kind of change."""
    campaign("changes", 2)


@pytest.mark.campaign
def test_other_programs_that_change_the_output_are_reported_or_harmless() -> None:
    """Files that the other program puts there are kept, its changes are not published, and the run reports it."""
    campaign("foreign-files", 3)


def before_opening(path: Path, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Act once, just before a file is opened; return a list that is empty by then."""
    original, waiting = os.open, [str(path)]

    def acting(opened: Any, *arguments: Any, **more: Any) -> int:
        if str(opened) in waiting:
            waiting.clear()
            action()
        return original(opened, *arguments, **more)

    monkeypatch.setattr(os, "open", acting)
    return waiting


@pytest.mark.parametrize("what", ["folder", "shards"])
def test_a_folder_that_is_replaced_while_it_is_opened_is_no_mix(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard of the old save and one of the new are not one checkpoint."""
    run, new = tmp_path / "run", tmp_path / "new"
    for number, state in enumerate(BEFORE):
        write_shards(run / f"checkpoint-{number}", state)
    write_shards(new, AFTER[1])
    victim = run / "checkpoint-1"

    def replace() -> None:
        if what == "folder":
            victim.rename(tmp_path / "old")
            new.rename(victim)
        else:
            for shard in sorted(new.glob("*.safetensors")):
                shard.replace(victim / shard.name)

    waiting = before_opening(victim / "model-00002-of-00003.safetensors", replace, monkeypatch)
    with pytest.raises(InputChanged, match=r"model-00001-of-00003\.safetensors.* replaced or removed while the folder"):
        ema_cli.average(run, decay=0.5, output=tmp_path / "ema.safetensors")
    assert not waiting
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_damage_that_comes_during_the_run_is_a_change(form: str, tmp_path: Path) -> None:
    """A wrong checksum or a NaN is not blamed on a checkpoint that was sound until it was overwritten."""
    paths = write_series(tmp_path / "run", BEFORE, form=form)
    nan = [{name: torch.full_like(tensor, torch.nan) for name, tensor in AFTER[0].items()}]
    (other,) = write_series(tmp_path / "new", nan, form=form)
    options = make_options(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    with pytest.raises(InputChanged, match=r"ckpt_200.* was changed while it was being read"):
        run_average(options, during(lambda: overwrite_quietly(paths[1], other)))
    assert not (tmp_path / "ema.safetensors").exists()
    with pytest.raises(InputRefused):  # now the file is refused for its contents
        run_average(options)


class Stopped(BaseException):
    """Used in place of a signal."""


def test_a_run_is_not_resumed_on_other_contents(tmp_path: Path) -> None:
    """Blocks folded from old contents are folded again, although size and time of the file are the same."""
    paths = write_series(tmp_path / "run", BEFORE, form="safetensors")
    (other,) = write_series(tmp_path / "new", AFTER[:1], form="safetensors")
    options = make_options(paths, decay=0.5, output=tmp_path / "ema.safetensors", resume=True)

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "folding" and event.done_bytes == event.total_bytes:
            raise Stopped

    with pytest.raises(Stopped):
        run_average(options, stop)
    overwrite_quietly(paths[1], other)
    report = run_average(options).report
    assert report.summary.resumed_tensors == 0
    assert is_average(load(tmp_path / "ema.safetensors"), [BEFORE[0], AFTER[0], BEFORE[2]])


def is_average(result: State, series: list[State]) -> bool:
    """Whether a result is the average of a series with a decay of one half."""
    return all(
        same_bits(tensor, torch.from_numpy(reference_average([s[name] for s in series], [0.25, 0.25, 0.5])).float())
        for name, tensor in result.items()
    )


def test_a_comparison_of_files_that_lost_their_names_says_so(tmp_path: Path) -> None:
    """The comparison used whole files, but these are no longer the current ones."""
    paths = write_series(tmp_path, [BEFORE[0], BEFORE[0]], form="safetensors")
    heard: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            paths[0].unlink(missing_ok=True)
        if isinstance(event, WarningIssued):
            heard.append(event.warning.code)

    assert compare(Options(paths=tuple(map(str, paths))), listen).equal
    assert heard == ["input-replaced"]
