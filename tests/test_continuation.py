"""Continuing from a previous average: the result is the average of all checkpoints, or a refusal with its reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, NothingNew, StrictWarnings, UsageError
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared
from ema_cli.report.beside import read_report
from ema_cli.report.model import Report
from ema_cli.verification.checks import verify
from tests.helpers.program import Run
from tests.helpers.series import FORMATS, State, load, open_files, random_states, same_bits

STEPS = (100, 200, 350, 360, 1000, 1100)
ONE_SHOT: dict[str, dict[str, Any]] = {
    "ema": {"decay": 0.8},
    "debiased": {"decay": 0.9, "init": "debias"},
    "per step": {"decay": 0.995, "per": "step"},
    "half-life, debiased": {"half_life": 300, "per": "step", "init": "debias"},
    "near 1": {"one_minus_decay": 1e-12, "per": "step", "init": "debias"},
    "hold": {"method": "ema-hold", "decay": 0.99},
    "warm-up": {"method": "ema-warmup", "decay": 0.99},
    "inv-gamma": {"method": "ema-warmup", "decay": 0.99, "power": 0.75},
    "uniform": {"method": "uniform"},
    "uniform-time": {"method": "uniform-time"},
    "ramp": {"method": "ramp"},
    "power": {"sigma_rel": 0.15},
}


def write_steps(folder: Path, states: list[State], steps: tuple[int, ...], *, form: str = "zip") -> list[Path]:
    """Write checkpoints with their steps in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix, save = FORMATS[form]
    paths = [folder / f"step_{step}{suffix}" for step in steps]
    for state, path in zip(states, paths, strict=True):
        save(state, path)
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Six unevenly spaced checkpoints."""
    return write_steps(tmp_path / "run", random_states(len(STEPS)), STEPS)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of an output."""
    with safe_open(path, framework="numpy") as opened:
        return dict(opened.metadata())


def assert_same_average(found: Path, expected: Path, *, ulps: float) -> None:
    """Two float64 averages are equal but for a few units in the last place of numbers like those averaged, near 1."""
    one, other = load(found), load(expected)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if value.numel():
            unit = np.spacing(max(1.0, other[name].abs().max().item()))
            assert (value - other[name]).abs().max().item() <= ulps * unit, name


@pytest.mark.parametrize("inside", [1, 2, 4, 5])
@pytest.mark.parametrize("name", ONE_SHOT)
def test_going_on_is_the_average_of_all_at_once(name: str, inside: int, paths: list[Path], tmp_path: Path) -> None:
    """Whatever the method, the parts and the spacing: a few units in the last place of float64, and one report."""
    options: dict[str, Any] = {**ONE_SHOT[name], "dtype": "float64"}
    whole, part, both = (tmp_path / f"{what}.safetensors" for what in ("whole", "part", "both"))
    expected = ema_cli.average(paths, output=whole, **options)
    ema_cli.average(paths[:inside], output=part, **options)
    found = ema_cli.average(paths[inside - 1 :], continue_from=part, output=both, dtype="float64")
    assert_same_average(both, whole, ulps=4)
    assert_same_story(found, expected)
    assert {k: v for k, v in metadata_of(both).items() if "fingerprint" not in k} == {
        k: v for k, v in metadata_of(whole).items() if "fingerprint" not in k
    }


def assert_same_story(found: Report, expected: Report) -> None:
    """The shares, and all numbers computed from them, are those of the average of all checkpoints."""
    (one,), (other,) = found.averages, expected.averages
    assert one.continued is not None
    assert one.continued.shares == pytest.approx(other.weights, rel=1e-12, abs=1e-300)
    assert one.continued.steps == STEPS
    assert one.diagnostics.mean_age == pytest.approx(other.diagnostics.mean_age, rel=1e-12)
    assert one.diagnostics.unobserved_mass == pytest.approx(other.diagnostics.unobserved_mass)
    assert len(one.weights) == len(found.inputs)
    assert sum(one.weights) == pytest.approx(1, abs=1e-14)
    assert found.inputs[0].role == "average"
    for mine, theirs in zip(one.tensors, other.tensors, strict=True):
        assert mine.name == theirs.name
        assert mine.norm == pytest.approx(theirs.norm, rel=1e-13)


def test_one_checkpoint_at_a_time(paths: list[Path], tmp_path: Path) -> None:
    """A chain of continuations, each from the last, in place: still the average of all."""
    options: dict[str, Any] = {"per": "step", "half_life": 200}
    whole, chain = tmp_path / "whole.safetensors", tmp_path / "chain.safetensors"
    ema_cli.average(paths, output=whole, dtype="float64", **options)
    ema_cli.average(paths[:1], output=chain, dtype="float64", **options)
    for path in paths[1:]:
        ema_cli.average(path, continue_from=chain, output=chain, dtype="float64", force=True)
    assert_same_average(chain, whole, ulps=8)
    assert metadata_of(chain)["ema_avg.steps"] == ",".join(map(str, STEPS))


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_the_stored_type_bounds_the_error(form: str, tmp_path: Path) -> None:
    """From a float32 file the average is within a rounding of that file; copied tensors come from the last."""
    states = [{**state, "n": torch.tensor(i)} for i, state in enumerate(random_states(6))]
    paths = write_steps(tmp_path / "run", states, STEPS, form=form)
    whole, part, both = (tmp_path / f"{what}.safetensors" for what in ("whole", "part", "both"))
    ema_cli.average(paths, decay=0.7, output=whole)
    ema_cli.average(paths[:3], decay=0.7, output=part)
    report = ema_cli.average(paths, continue_from=part, output=both)
    assert [warning.code for warning in report.warnings] == []
    assert load(both)["n"] == 5
    for name, value in load(both).items():
        if value.is_floating_point() and value.numel():
            expected = load(whole)[name]
            assert (value - expected).abs().max() <= 2 * torch.finfo(torch.float32).eps * expected.abs().max()


def test_what_is_inside_is_not_folded_twice(paths: list[Path], tmp_path: Path) -> None:
    """If all checkpoints are given again, only the new are folded, and the known are listed; files may have moved."""
    part, both, fresh = (tmp_path / f"{what}.safetensors" for what in ("part", "both", "fresh"))
    ema_cli.average(paths[:3], decay=0.7, output=part)
    ema_cli.average(paths[3:], continue_from=part, output=fresh)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    made = ema_cli.plan(tmp_path / "moved", continue_from=part)
    assert [left.path.name for left in made.series.skipped] == ["step_100.pt", "step_200.pt", "step_350.pt"]
    assert all("already in" in left.reason for left in made.series.skipped)
    ema_cli.average(tmp_path / "moved", continue_from=part, output=both)
    assert both.read_bytes() == fresh.read_bytes()


def test_checkpoints_without_steps_are_known_by_name(tmp_path: Path) -> None:
    """Without stored steps, the names show which checkpoints are inside."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, state in zip("abcd", random_states(4), strict=True):
        torch.save(state, folder / f"{name}.pt")
    part, both, whole = (tmp_path / f"{what}.safetensors" for what in ("part", "both", "whole"))
    ema_cli.average([folder / "a.pt", folder / "b.pt"], decay=0.5, output=part, dtype="float64")
    ema_cli.average(folder, continue_from=part, output=both, dtype="float64")
    ema_cli.average(folder, decay=0.5, output=whole, dtype="float64")
    assert_same_average(both, whole, ulps=4)
    assert "ema_avg.steps" not in metadata_of(both)
    assert json.loads(metadata_of(both)["ema_avg.folded"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("layout", ["ckpt_{}.pt", "checkpoint-{}/model.pt"])
def test_steps_known_only_from_the_series_are_understood(layout: str, tmp_path: Path) -> None:
    """A single new file has no number that differs; together with the names inside it has."""
    paths = [tmp_path / layout.format(step) for step in (10, 20, 30)]
    for path, state in zip(paths, random_states(3), strict=True):
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path)
    part, both, whole = (tmp_path / f"{what}.safetensors" for what in ("part", "both", "whole"))
    options: dict[str, Any] = {"per": "step", "decay": 0.9}
    ema_cli.average(paths[:2], output=part, dtype="float64", **options)
    report = ema_cli.average(paths[2], continue_from=part, output=both, dtype="float64")
    ema_cli.average(paths, output=whole, dtype="float64", **options)
    assert [found.step for found in report.inputs] == [20, 20, 30]
    assert [found.role for found in report.inputs] == ["average", "again", "checkpoint"]
    assert_same_average(both, whole, ulps=4)


def test_the_last_checkpoint_is_found_or_asked_for(paths: list[Path], tmp_path: Path) -> None:
    """Methods on lines need the last checkpoint again: in its old place, with the new ones, or named."""
    part, both = tmp_path / "part.safetensors", tmp_path / "both.safetensors"
    ema_cli.average(paths[:3], per="step", decay=0.99, output=part)
    moved = [shutil.move(path, tmp_path / path.name) for path in paths[2:]]
    made = ema_cli.plan(moved[1:], continue_from=part)
    assert [member.checkpoint.path.name for member in made.series.members][:2] == ["part.safetensors", "step_350.pt"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    last = shutil.move(moved[0], elsewhere / "step_350.pt")
    with pytest.raises(NothingMatched, match=r'"step_350" \(step 350\), is needed again') as refused:
        ema_cli.average(moved[1:], continue_from=part, output=both)
    assert "name it too" in refused.value.hint
    assert not both.exists()
    ema_cli.average([*moved[1:], last], continue_from=part, output=both)
    assert both.exists()


def test_another_file_of_that_name_is_not_taken(paths: list[Path], tmp_path: Path) -> None:
    """A file among the new ones with a contradicting step inside is not the checkpoint that was folded."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], per="step", decay=0.99, output=part)
    torch.save({"model": torch.load(paths[2]), "step": 7}, paths[2])
    before = open_files()
    with pytest.raises(NothingMatched, match="is needed again"):
        ema_cli.plan(paths[3:], continue_from=part)
    assert open_files() == before


def test_nothing_new_is_said(paths: list[Path], tmp_path: Path) -> None:
    """With nothing to fold there is nothing to write; in place that is up to date."""
    part = tmp_path / "part.safetensors"
    report = ema_cli.average(paths, decay=0.7, output=part)
    before = part.read_bytes()
    with pytest.raises(NothingNew, match=r"no new checkpoints: .* already contains 6 checkpoints up to step 1,100"):
        ema_cli.average(paths, continue_from=part, output=tmp_path / "more.safetensors")
    assert ema_cli.average(paths, continue_from=part, output=part, force=True) == report
    assert part.read_bytes() == before


def test_late_checkpoints_are_skipped_with_a_warning(paths: list[Path], tmp_path: Path) -> None:
    """A checkpoint between those of the previous average cannot be folded in; it is skipped with a warning."""
    part, both = tmp_path / "part.safetensors", tmp_path / "both.safetensors"
    ema_cli.average([paths[1], paths[3]], decay=0.7, output=part)
    report = ema_cli.average(paths, continue_from=part, output=both)
    assert [found.step for found in report.inputs] == [360, 1000, 1100]
    (late,) = [warning for warning in report.warnings if warning.code == "late-left-out"]
    assert 'skipped "step_350.pt"' in late.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.71}, 'was made with method="ema" decay=0.7,'),
        ({"decay": 0.7, "per": "step"}, "can only be continued in the same way"),
        ({"method": "uniform"}, "can only be continued in the same way"),
        ({"init": "debias"}, 'was made with method="ema" init="first"'),
        ({"buffers": "last"}, 'was made with buffers="average"'),
        ({"strip_prefix": ""}, "was made without strip_prefix"),
        ({"order": "given"}, "was made without order"),
    ],
)
def test_another_average_is_not_mixed_in(
    options: dict[str, Any], message: str, paths: list[Path], tmp_path: Path
) -> None:
    """Options that contradict the previous average are refused."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], decay=0.7, output=part)
    with pytest.raises(UsageError, match=message):
        ema_cli.plan(paths, continue_from=part, **options)


def test_the_hint_repeats_an_option_without_text(paths: list[Path], tmp_path: Path) -> None:
    """An average that kept all prefixes is continued with ``--strip-prefix ''``."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], decay=0.7, output=part, strip_prefix="")
    with pytest.raises(UsageError) as refused:
        ema_cli.plan(paths, continue_from=part)
    assert refused.value.hint == 'strip_prefix=""'


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decay": 0.5},
        {"half_life": 1},
        {"one_minus_decay": 0.5, "method": "ema"},
        {"method": "ema"},
        {"per": "checkpoint"},
        {"init": "first"},
    ],
)
def test_the_same_method_may_be_repeated(options: dict[str, Any], paths: list[Path], tmp_path: Path) -> None:
    """The same options may be written in another way, or not at all."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], decay=0.5, output=part)
    assert len(ema_cli.plan(paths, continue_from=part, **options).series.members) == 4


def test_what_cannot_be_continued_is_refused_with_a_reason(paths: list[Path], tmp_path: Path) -> None:
    """A cosine shifts the previous shares; manual weights and foreign files cannot be continued."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:4], shape="cosine", output=part)
    with pytest.raises(InputRefused, match="change the relative shares of those in it"):
        ema_cli.plan(paths, continue_from=part)
    ema_cli.average(paths[:2], weights=(1, 2), output=part, force=True)
    with pytest.raises(InputRefused, match="was made with weights"):
        ema_cli.plan(paths, continue_from=part)
    save_file(random_states(1)[0], part)
    with pytest.raises(InputRefused, match="is not an output of ema-avg"):
        ema_cli.plan(paths, continue_from=part)
    with pytest.raises(NothingMatched):
        ema_cli.plan(paths, continue_from=tmp_path / "missing.safetensors")


def test_a_changed_model_is_refused(paths: list[Path], tmp_path: Path) -> None:
    """The tensors must have the names and shapes of the previous average, unless both sides exclude them."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], decay=0.5, output=part, exclude="bias")
    with pytest.raises(InputRefused, match="the checkpoints are not of one model"):
        ema_cli.plan(paths, continue_from=part)
    assert ema_cli.plan(paths, continue_from=part, exclude="bias").tensors


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_rounded_average_warns(dtype: str, paths: list[Path], tmp_path: Path) -> None:
    """A file with two bytes per number stays rounded; the hint is a wider type."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], decay=0.5, output=part, dtype=dtype)  # type: ignore[arg-type]
    (warning,) = ema_cli.plan(paths, continue_from=part).warnings
    assert warning.code == "continued-from-rounded"
    assert dtype in warning.message
    assert "--dtype float32" in warning.hint


def test_other_units_are_refused(paths: list[Path], tmp_path: Path) -> None:
    """Epochs cannot continue a series of steps, and neither can checkpoints without any number."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], decay=0.5, output=part)
    epochs = [tmp_path / f"epoch_{n}.pt" for n in (2000, 3000)]
    for path in epochs:
        torch.save(random_states(1)[0], path)
    with pytest.raises(InputRefused, match="numbered in steps"):
        ema_cli.plan(epochs, continue_from=part)
    assert len(ema_cli.plan(epochs, continue_from=part, steps=(2000, 3000)).series.members) == 3


HOSTILE = [
    {"folded": None},
    {"folded": "not json"},
    {"folded": "[]"},
    {"folded": "[1, 2, 3]"},
    {"folded": '{"a": 1}'},
    {"folded": "[" * 100_000},
    {"folded": '["a"]'},
    {"steps": "100,200"},
    {"steps": "300,200,100"},
    {"steps": "1,2,x"},
    {"steps": ""},
    {"steps": "9" * 10_000 + ",1,2"},
    {"method": "sum"},
    {"steps": "-300,-200,-100"},
    {"steps": f"1,2,{10**400}"},
    {"folded": '["a", "b", "../../ckpt_300"]'},
    {"folded": '["a", "b", "/etc/passwd"]'},
    {"folded": '["a", "b", ""]'},
    {"folded": '["a", "b", "\\u001b[31m"]'},
    {"decay": "0.25"},
    {"decay": "1.0"},
    {"method": None},
    {"decay": "2"},
    {"decay": "nan"},
    {"decay": None},
    {"one_minus_decay": "0"},
    {"one_minus_decay": "1e-200"},
    {"one_minus_decay": "x"},
    {"one_minus_decay": None},
    {"per": "epoch"},
    {"init": "zero"},
    {"warmup": "tf"},
    {"sigma_rel": "0.1"},
    {"method": "power", "sigma_rel": "7"},
    {"method": "power", "sigma_rel": "1e-200"},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: str(changes)[:40])
def test_metadata_that_contradict_themselves_are_refused(
    changes: dict[str, str | None], paths: list[Path], tmp_path: Path
) -> None:
    """Whatever the file contains, the answer is one clear refusal, and no file stays open."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], per="step", decay=0.5, output=part)
    metadata = metadata_of(part)
    for key, value in changes.items():
        metadata.pop(f"ema_avg.{key}", None)
        if value is not None:
            metadata[f"ema_avg.{key}"] = value
    save_file(load(part), part, metadata)
    before = open_files()
    with pytest.raises(InputRefused, match="do not list its checkpoints correctly"):
        ema_cli.plan(paths, continue_from=part)
    assert open_files() == before


def test_steps_from_another_source_are_not_mixed(tmp_path: Path) -> None:
    """Files that are inside under other steps are refused, not folded twice."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step, state in zip((100, 200, 300, 400), random_states(4), strict=True):
        torch.save({"model": state, "global_step": step}, folder / f"ckpt_{step}.pt")
    part = tmp_path / "part.safetensors"
    ema_cli.average([folder / f"ckpt_{step}.pt" for step in (100, 200, 300)], steps=(1, 2, 3), decay=0.5, output=part)
    with pytest.raises(InputRefused, match=r"is step 1 in .*, but step 100 now \(inside: global_step\)"):
        ema_cli.plan(folder, continue_from=part)
    made = ema_cli.plan(folder, continue_from=part, steps=(1, 2, 3, 4))
    assert [member.step.value for member in made.series.members if member.step] == [3, 4]


def test_a_single_checkpoint_is_distinguished_from_later_ones(tmp_path: Path) -> None:
    """The path ``checkpoint-500/model.pt`` has a number, so the next ``model.pt`` is another checkpoint."""
    paths = [tmp_path / f"checkpoint-{step}" / "model.pt" for step in (500, 1000, 1500)]
    for path, state in zip(paths, random_states(3), strict=True):
        path.parent.mkdir()
        torch.save(state, path)
    average = tmp_path / "e.safetensors"
    ema_cli.average(paths[0], method="ramp", output=average)
    assert json.loads(metadata_of(average)["ema_avg.folded"]) == ["checkpoint-500/model"]
    report = ema_cli.average(paths, continue_from=average, output=average, force=True)
    assert len(report.averages[0].diagnostics.implied_lr) == 3


def test_a_shallow_path_is_named_from_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From inside its folder, a checkpoint still has a name like those of the others."""
    paths = [tmp_path / f"checkpoint-{step}" / "model.pt" for step in (500, 1000, 1500)]
    for path, state in zip(paths, random_states(3), strict=True):
        path.parent.mkdir()
        torch.save(state, path)
    part = tmp_path / "e.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=part)
    monkeypatch.chdir(paths[2].parent)
    assert ema_cli.plan("model.pt", continue_from=part).series.folded[-1].name == "checkpoint-1500/model"


def test_the_order_given_is_kept(tmp_path: Path) -> None:
    """With ``--order given`` every checkpoint that is not inside is new, in the order given; repeat the option."""
    paths = {name: tmp_path / f"{name}.pt" for name in "zmab"}
    for path, state in zip(paths.values(), random_states(4), strict=True):
        torch.save(state, path)
    part, both, whole = (tmp_path / f"{what}.safetensors" for what in ("part", "both", "whole"))
    options: dict[str, Any] = {"order": "given", "dtype": "float64"}
    ema_cli.average(list(paths.values())[:2], decay=0.5, output=part, **options)
    with pytest.raises(UsageError, match='was made with order="given"'):
        ema_cli.plan([paths["a"], paths["b"]], continue_from=part)
    ema_cli.average([paths["a"], paths["b"]], continue_from=part, output=both, **options)
    ema_cli.average(list(paths.values()), decay=0.5, output=whole, **options)
    assert_same_average(both, whole, ulps=4)


def test_another_model_in_the_files_is_not_mixed_in(tmp_path: Path) -> None:
    """An average of one --key is not continued with another."""
    paths = [tmp_path / f"ckpt_{step}.pt" for step in (1, 2, 3)]
    for path, state in zip(paths, random_states(3), strict=True):
        torch.save({"model": state, "teacher": state}, path)
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:2], key="teacher", decay=0.5, output=part)
    with pytest.raises(UsageError, match='was made with key="teacher"') as refused:
        ema_cli.plan(paths, continue_from=part)
    assert refused.value.hint == 'key="teacher"'
    assert ema_cli.plan(paths, continue_from=part, key="teacher").tensors


def test_several_keys_are_continued_with_the_same(tmp_path: Path) -> None:
    """An average of several parts is continued with the same keys in the same order, up to date, and verified."""
    paths = [tmp_path / f"ckpt_{step}.pt" for step in (1, 2, 3)]
    for path, state in zip(paths, random_states(3), strict=True):
        torch.save({"model": state, "head": {"module.w": state["layer.bias"]}}, path)
    part, both, whole = (tmp_path / f"{name}.safetensors" for name in ("part", "both", "whole"))
    keys = ["model", "head"]
    ema_cli.average(paths[:2], key=keys, decay=0.5, output=part, dtype="float64")
    for wrong in ((), "model", keys[::-1]):
        with pytest.raises(UsageError, match=r'was made with key=\["model", "head"\]') as refused:
            ema_cli.plan(paths, continue_from=part, key=wrong)
        assert refused.value.hint == 'key=["model", "head"]'
    ema_cli.average(paths, continue_from=part, key=keys, output=both, dtype="float64")
    ema_cli.average(paths, key=keys, decay=0.5, output=whole, dtype="float64")
    assert_same_average(both, whole, ulps=4)
    assert {name.partition(".")[0] for name in load(whole)} == {"model", "head"}
    assert "head.w" in load(whole)
    assert verify(whole).ok


def test_one_key_is_stored_as_text(tmp_path: Path) -> None:
    """A single key is written as in earlier versions, in the metadata and in the report, whatever way it is given."""
    torch.save({"model": random_states(1)[0]}, tmp_path / "ckpt_1.pt")
    written = []
    for key in ("model", ["model"]):
        out = tmp_path / "out.safetensors"
        report = ema_cli.average([tmp_path / "ckpt_1.pt"], key=key, decay=0.5, output=out, force=True)
        written.append(out.read_bytes())
        assert report.command.options["key"] == "model"
        with safe_open(out, "pt") as file:
            assert file.metadata()["ema_avg.key"] == "model"
    assert written[0] == written[1]
    (option,) = [one for one in declared(Options) if one.name == "key"]
    assert [option.plain(value) for value in ((), ("a",), ("a", "b"))] == [None, "a", ["a", "b"]]


def test_prefixes_that_were_kept_are_kept(tmp_path: Path) -> None:
    """With ``--strip-prefix ''`` the names of the output have the prefix, and keep it when continued."""
    states = [{f"module.{name}": value for name, value in state.items()} for state in random_states(3)]
    paths = write_steps(tmp_path / "run", states, (1, 2, 3))
    part, both = tmp_path / "part.safetensors", tmp_path / "both.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=part, strip_prefix="")
    ema_cli.average(paths, continue_from=part, output=both, strip_prefix="")
    assert set(load(both)) == set(states[0])
    with pytest.raises(UsageError, match="strip_prefix"):
        ema_cli.plan(paths, continue_from=part)


def test_a_touched_last_checkpoint_warns(paths: list[Path], tmp_path: Path) -> None:
    """The file that is read again should be the file that was folded: its fingerprint is in the report."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], per="step", decay=0.99, output=part)
    assert "again-touched" not in {warning.code for warning in ema_cli.plan(paths, continue_from=part).warnings}
    save_again = torch.load(paths[2])
    paths[2].unlink()
    torch.save(save_again, paths[2])
    for named in (paths, paths[3:]):
        assert "again-touched" in {warning.code for warning in ema_cli.plan(named, continue_from=part).warnings}


def test_the_file_that_was_folded_is_preferred(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in the report may be another file from here; the fingerprint shows which file it means."""
    monkeypatch.chdir(tmp_path)
    ema_cli.average([Path("run") / path.name for path in paths[:3]], per="step", decay=0.99, output="part.safetensors")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "run").mkdir(parents=True)
    torch.save(random_states(1, seed=9)[0], elsewhere / "run" / "step_350.pt")
    monkeypatch.chdir(elsewhere)
    made = ema_cli.plan([f"../run/{path.name}" for path in paths[3:]], continue_from="../part.safetensors")
    assert Path(made.series.members[1].checkpoint.path).resolve() == paths[2]
    assert "again-touched" not in {warning.code for warning in made.warnings}


@pytest.mark.parametrize("name", ["step_350.PT", "step_350.pth.tar", "step_350"])
def test_the_last_checkpoint_is_found_whatever_its_suffix(name: str, paths: list[Path], tmp_path: Path) -> None:
    """The checkpoint is recognized by its name."""
    part = tmp_path / "part.safetensors"
    last = paths[2].rename(paths[2].with_name(name))
    ema_cli.average([*paths[:2], last], per="step", decay=0.99, output=part)
    assert ema_cli.plan(paths[3:], continue_from=part).series.members[1].checkpoint.path == last


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"include": "bias"}, {"metadata": {"a": "b"}}, {"sha256": True}]
)
def test_in_place_something_else_is_not_up_to_date(options: dict[str, Any], paths: list[Path], tmp_path: Path) -> None:
    """Without new checkpoints, only the existing average can be repeated."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths, decay=0.7, output=part)
    with pytest.raises(NothingNew, match="cannot be made again"):
        ema_cli.average(paths, continue_from=part, output=part, force=True, **options)


def test_in_place_late_checkpoints_and_damage_are_reported(paths: list[Path], tmp_path: Path) -> None:
    """A checkpoint that came too late warns, and fails under --strict; a damaged file is not up to date."""
    part, more = tmp_path / "part.safetensors", tmp_path / "more.json"
    ema_cli.average([*paths[:2], *paths[3:]], decay=0.7, output=part)
    with pytest.raises(StrictWarnings, match="late-left-out"):
        ema_cli.average(paths, continue_from=part, output=part, force=True, strict=True)
    with pytest.raises(NothingNew, match=r"step_350\.pt"):
        ema_cli.average(paths, continue_from=part, output=tmp_path / "other.safetensors")
    ema_cli.average(paths, continue_from=part, output=part, force=True, report=more)
    assert more.exists()
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    with pytest.raises(NothingNew, match="changed after it was written"):
        ema_cli.average(paths, continue_from=part, output=part, force=True)


def test_the_average_is_not_folded_into_itself(paths: list[Path], tmp_path: Path) -> None:
    """In a folder with nothing else, the previous average is no new checkpoint."""
    folder = tmp_path / "alone"
    folder.mkdir()
    part = folder / "ema.safetensors"
    ema_cli.average(paths[:3], decay=0.5, output=part)
    with pytest.raises(NothingNew):
        ema_cli.plan(folder, continue_from=part)


@pytest.mark.slow
def test_a_report_of_unreasonable_size_is_not_read(paths: list[Path], tmp_path: Path) -> None:
    """The next run reads the report of an output, and treats one that would fill the memory as no report."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths, per="step", decay=0.9, output=part)
    report_file = tmp_path / "part.report.json"
    document = report_file.read_bytes()
    report_file.write_bytes(document[:1] + b" " * 120_000_000 + document[1:])
    assert read_report(part) is None
    report_file.write_bytes(document)
    assert read_report(part) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"averages": []},
        {"inputs": [{"path": 5}]},
        {"averages": [{"output": {"sha256": None}}]},
        {"schema_version": 1},
    ],
    ids=str,
)
def test_a_damaged_report_is_no_report(change: dict[str, Any], paths: list[Path], tmp_path: Path) -> None:
    """Whatever the report of an output contains, the answer is one clear message."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths, per="step", decay=0.9, output=part)
    report_file = tmp_path / "part.report.json"
    document = json.loads(report_file.read_text())
    for key, value in change.items():
        document[key] = value
        if value and isinstance(value, list):
            document[key] = [{**json.loads(report_file.read_text())[key][0], **value[0]}]
    report_file.write_text(json.dumps(document))
    with pytest.raises(EmaAvgError):
        ema_cli.average(paths, continue_from=part, output=part, force=True)
    with pytest.raises(EmaAvgError):
        ema_cli.average(paths, per="step", decay=0.9, output=part)


def test_files_are_closed(paths: list[Path], tmp_path: Path) -> None:
    """The previous average and the checkpoint that was found again are closed with the other files."""
    part = tmp_path / "part.safetensors"
    ema_cli.average(paths[:3], per="step", decay=0.99, output=part)
    before = open_files()
    ema_cli.plan(paths[3:], continue_from=part)
    assert open_files() == before


def test_the_checkpoint_that_is_read_again_is_never_overwritten(tmp_path: Path) -> None:
    """The previous average is an input, found or named; only its own file may be replaced, with --force."""
    safe = write_steps(tmp_path / "flat", random_states(6), STEPS, form="safetensors")
    part = tmp_path / "part.safetensors"
    ema_cli.average(safe[:3], per="step", decay=0.99, output=part)
    with pytest.raises(UsageError, match="is one of the inputs"):
        ema_cli.average(safe[3:], continue_from=part, output=safe[2], force=True)
    with pytest.raises(EmaAvgError, match="exists"):
        ema_cli.average(safe[3:], continue_from=part, output=part)
    ema_cli.average(safe[3:], continue_from=part, output=part, force=True)
    assert metadata_of(part)["ema_avg.checkpoints"] == "6"


def test_a_second_run_is_up_to_date(paths: list[Path], tmp_path: Path) -> None:
    """The same continuation again writes nothing."""
    part, both = tmp_path / "part.safetensors", tmp_path / "both.safetensors"
    ema_cli.average(paths[:3], per="step", decay=0.99, output=part)
    first = ema_cli.average(paths[3:], continue_from=part, output=both)
    assert ema_cli.average(paths[3:], continue_from=part, output=both) == first
    assert same_bits(load(both)["scale"], load(both)["scale"])


def test_the_command_line_continues(paths: list[Path], ema_avg: Run) -> None:
    """The plan shows the previous average, the checkpoint that is read again, and all shares; exit codes are clear."""
    first, more = paths[:4], paths[4:]
    assert ema_avg(*first, "--per", "step", "--decay", "0.99", "-o", "a.safetensors").returncode == 0
    done = ema_avg(*more, "--continue-from", "a.safetensors", "-o", "b.safetensors")
    assert done.returncode == 0, done.stderr
    assert "2 new checkpoints in" in done.stderr
    assert 'continued from the average of 4 checkpoints in "a.safetensors"' in done.stderr
    assert "4 checkpoints" in next(line for line in done.stderr.splitlines() if line.startswith(" 1"))
    assert "its last, read again" in next(line for line in done.stderr.splitlines() if "step_360.pt" in line)
    assert "  6 checkpoints  " in done.stdout
    again = ema_avg(*paths, "--continue-from", "b.safetensors", "-o", "b.safetensors", "--force")
    assert (again.returncode, again.stdout.split()[:3]) == (0, ["up", "to", "date"])
    assert ", ," not in again.stderr, "a format for no file"
    assert ema_avg(*paths, "--continue-from", "b.safetensors", "-o", "c.safetensors").returncode == 7
    document = json.loads(ema_avg("plan", *more, "--continue-from", "a.safetensors", "--json").stdout)
    assert [found["role"] for found in document["inputs"]] == ["average", "again", "checkpoint", "checkpoint"]
    assert document["averages"][0]["continued"]["checkpoints"] == 4
