"""What a report says in sentences: the verdict, the most important warning, movement, and why a section is empty."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import WARNING_CODES, RunWarning
from ema_cli.report.html import fragment, to_html
from ema_cli.report.markdown import escaped, to_markdown
from ema_cli.report.model import BatchNormLayer, BatchNormUpdate, Report, StatisticChange
from ema_cli.report.movement import movement, why_no_path
from ema_cli.report.warning_rank import RANKS, ranked
from ema_cli.report.words import overview, verdict
from tests.helpers.html_page import Page
from tests.helpers.series import random_states, write_one, write_series


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    write_series(folder, random_states(6))
    return folder


def average(run: Path, tmp_path: Path, **options: Any) -> Report:
    """Average the run."""
    return ema_cli.average(run, output=tmp_path / "e_{label}.safetensors", **options)


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        (
            {"decay": 0.5},
            "EMA of 6 checkpoints, steps 100 to 600, with decay 0.5 per checkpoint.",
            "It has 2.99 effective checkpoints and a mean age of 96.9 steps.",
        ),
        (
            {"half_life": 200, "per": "step", "init": "debias"},
            "EMA of 6 checkpoints, steps 100 to 600, with a half-life of 200 steps.",
            "It has 4.84 effective checkpoints and a mean age of 181 steps.",
        ),
        (
            {"method": "uniform", "last": 3},
            "Uniform mean of 3 checkpoints, steps 400 to 600.",
            "It has 3.00 effective checkpoints and a mean age of 100 steps.",
        ),
        (
            {"shape": "linear"},
            "Mean weighted like a learning-rate decay (linear) of 6 checkpoints, steps 100 to 600.",
            "It has 6.00 effective checkpoints and a mean age of 250 steps.",
        ),
    ],
    ids=["decay", "half-life", "uniform", "learning-rate decay"],
)
def test_a_verdict_is_two_sentences(
    run: Path, tmp_path: Path, options: dict[str, Any], first: str, second: str
) -> None:
    """What was averaged, of how many checkpoints and which steps; the effective number and the mean age."""
    expected = f"{first} {second}"
    report = average(run, tmp_path, **options)
    assert verdict(report, report.averages[0]) == overview(report) == expected
    assert expected in Page(to_html(report)).text
    assert escaped(expected) in to_markdown(report)


def test_several_averages_have_one_verdict(run: Path, tmp_path: Path) -> None:
    """It has what they share, and the range of what differs."""
    report = average(run, tmp_path, decay=[0.5, 0.9])
    assert overview(report) == (
        "2 averages of 6 checkpoints, steps 100 to 600. "
        "They have 2.61 to 2.99 effective checkpoints and a mean age of 96.9 to 369 steps."
    )


def test_steps_have_the_unit_of_the_run(tmp_path: Path) -> None:
    """Epochs are not called steps."""
    for name, epoch in (("a", 3), ("b", 7)):
        write_one(tmp_path / f"{name}.pt", epoch=epoch)
    report = ema_cli.average(tmp_path, decay=0.5, output=tmp_path / "e.safetensors")
    assert "2 checkpoints, epochs 3 to 7, with" in overview(report)


def test_a_continued_average_is_of_all_its_checkpoints(run: Path, tmp_path: Path) -> None:
    """Also of those in the previous average; the chart has all of them."""
    paths = sorted(run.iterdir())
    ema_cli.average(paths[:4], decay=0.5, output=tmp_path / "a.safetensors")
    previous = tmp_path / "a.safetensors"
    report = ema_cli.average(paths[4:], decay=0.5, continue_from=previous, output=tmp_path / "b.safetensors")
    whole = ema_cli.average(paths, decay=0.5, output=tmp_path / "c.safetensors")
    assert overview(report) == overview(whole)
    assert "a previous average of 4 checkpoints" in Page(to_html(report)).text


def test_a_page_of_recomputed_statistics_has_their_table(run: Path, tmp_path: Path) -> None:
    """Its verdict says on what they were recomputed; it has no weights, drift and path."""
    change = StatisticChange(norm_before=1.5, norm_after=2.5, largest_change=0.125)
    layer = BatchNormLayer(
        name="stem.bn", kind="BatchNorm2d", channels=8, momentum=0.1, batches=4, mean=change, variance=change
    )
    update = BatchNormUpdate(
        model="train:build", data="train:loader", device=None, batches=4, samples=128,
        layers=(layer, dataclasses.replace(layer, name="head.bn", batches=0)),
    )  # fmt: skip
    report = dataclasses.replace(average(run, tmp_path, decay=0.5), batch_norm=update)
    page, text = Page(to_html(report)), to_markdown(report)
    assert "recomputed on 4 batches with 128 samples. The statistics of 1 of 2 layers are new" in page.text
    for shown in (page.text, text.replace("\\", "")):
        assert "stem.bn (BatchNorm2d)" in shown
        assert "0, kept" in shown
        assert "0.125" in shown
    for missing in ("Weights", "Drift from", "Path of the run"):
        assert missing not in page.text


@given(st.lists(st.tuples(st.sampled_from(WARNING_CODES), st.booleans()), max_size=8))
def test_the_most_important_warning_is_the_first(found: list[tuple[str, bool]]) -> None:
    """Allowed warnings are last, then the rank of the code decides, then the order of the report."""
    warnings = [RunWarning(code=code, message=f"{k}", allowed=allowed) for k, (code, allowed) in enumerate(found)]
    shown = ranked(warnings)
    assert sorted(warning.message for warning in shown) == sorted(warning.message for warning in warnings)
    places = {code: k for k, rank in enumerate(RANKS) for code in rank}
    keys = [(one.allowed, places.get(one.code, len(RANKS)), int(one.message)) for one in shown]
    assert keys == sorted(keys)


def test_ranked_codes_exist_and_have_one_rank() -> None:
    """The ranks name codes of the registry, each once."""
    codes = [code for rank in RANKS for code in rank]
    assert len(codes) == len(set(codes))
    assert set(codes) <= set(WARNING_CODES)


def test_a_page_shows_the_worst_warning_and_folds_the_others(run: Path, tmp_path: Path) -> None:
    """A wrong series before a wrong weight before a remark; messages of several lines keep their lines."""
    warnings = [
        RunWarning(code="dtypes-differ", message="a remark"),
        RunWarning(code="first-dominates", message="a weight"),
        RunWarning(code="evidence-unrelated", message="not one series:\n  a\n  b", hint="look at them"),
    ]
    report = dataclasses.replace(average(run, tmp_path, decay=0.5), warnings=tuple(warnings))
    page, text = to_html(report), to_markdown(report)
    assert "2 more warnings" in page
    assert page.index("not one series") < page.index("<details") < page.index("a weight") < page.index("a remark")
    assert '<p>not one series:</p><p class="inner">  a</p><p class="inner">  b</p>' in page
    assert text.index("not one series\\:<br>a<br>b") < text.index("a weight") < text.index("a remark")
    quiet = dataclasses.replace(report, warnings=())
    assert "No warnings." in to_html(quiet)
    assert "No warnings." in to_markdown(quiet)


def test_an_empty_section_says_why(run: Path, tmp_path: Path) -> None:
    """One checkpoint, distances that were not measured, a sample that was not read, tensors without a drift."""
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    alone = ema_cli.average(tmp_path / "a.pt", decay=0.5, output=tmp_path / "e.safetensors")
    text = Page(to_html(alone)).text
    assert text.count("There is one checkpoint") == 4
    for reason in ("nothing to draw", "there is no drift", "there is no path", "nothing to compare before the fold"):
        assert reason in text
    bare = average(run, tmp_path, decay=0.5, geometry="none", probe=False)
    text = Page(to_html(bare)).text
    assert "not measured: --geometry none" in text
    assert "not sampled before the fold: --no-probe" in text
    small = dataclasses.replace(average(run, tmp_path, decay=0.5, force=True), evidence=None)
    small = dataclasses.replace(small, summary=dataclasses.replace(small.summary, parameters=2047))
    assert "they have fewer than 2,048 weights" in Page(to_html(small)).text
    for name, step in (("x", 1), ("y", 2)):
        torch.save({"model": {"n": torch.tensor([step])}, "step": step}, tmp_path / f"{name}.pt")
    copied = ema_cli.average([tmp_path / "x.pt", tmp_path / "y.pt"], decay=0.5, output=tmp_path / "f.safetensors")
    text = Page(to_html(copied)).text
    assert "All tensors were copied from the last checkpoint, so there is no drift." in text
    same = write_series(tmp_path / "same", random_states(1) * 3)
    equal = ema_cli.average(same, decay=0.5, output=tmp_path / "g.safetensors", probe=False)
    assert why_no_path(equal) == "The checkpoints do not differ, so there is no path."
    text = Page(to_html(equal)).text
    assert "The checkpoints do not differ" in text
    assert "The average equals the last checkpoint: no tensor has a drift" in text
    assert "The drift of each tensor" not in text
    plain = dataclasses.replace(bare.command, options={})
    unknown = dataclasses.replace(bare, command=plain, geometry=None)
    assert why_no_path(unknown).endswith("they are not finite.")


def test_exact_lora_has_no_drift_and_no_path(run: Path, tmp_path: Path) -> None:
    """The factors have other shapes than those of the checkpoints: the page says so, and shows no empty figure."""
    report = average(run, tmp_path, decay=0.5)
    factors = (dataclasses.replace(one, action="concatenated", drift=None) for one in report.averages[0].tensors)
    exact = dataclasses.replace(report.averages[0], tensors=tuple(factors))
    text = Page(to_html(dataclasses.replace(report, averages=(exact,), geometry=None))).text
    assert "no tensor was averaged element by element" in text
    assert "so they have no drift" in text
    assert "median drift" not in text
    assert "median drift" in Page(to_html(report)).text


def test_the_hint_of_a_page_names_the_output(tmp_path: Path) -> None:
    """As on the terminal: with one average the command for its statistics can be pasted; with several it cannot."""
    states = [{"bn.running_mean": torch.randn(4), "bn.weight": torch.randn(4), **state} for state in random_states(3)]
    write_series(tmp_path / "bn", states)
    report = average(tmp_path / "bn", tmp_path, decay=0.5)
    command = f"ema-avg update-bn {report.averages[0].output.path} --model MODEL"
    for shown in (Page(to_html(report)).text, Page(fragment(report)).text, to_markdown(report).replace("\\", "")):
        assert command in shown
        assert "-bn.safetensors" in shown
    several = average(tmp_path / "bn", tmp_path, decay=[0.4, 0.5])
    assert "ema-avg update-bn OUT --model MODEL" in Page(to_html(several)).text
    place = dataclasses.replace(report.averages[0].output, path="gopher://x")
    foreign = dataclasses.replace(report, averages=(dataclasses.replace(report.averages[0], output=place),))
    assert "ema-avg update-bn" in Page(to_html(foreign)).text


def test_a_number_of_checkpoints_is_whole(run: Path, tmp_path: Path) -> None:
    """Decay 0.8 needs about 5 of them, not 5.00."""
    report = average(run, tmp_path, decay=0.8, last=3)
    (warning,) = (one for one in report.warnings if one.code == "first-dominates")
    assert warning.message.endswith("there are 3 checkpoints; decay 0.8 per checkpoint needs about 5")


@pytest.mark.parametrize(
    ("cosines", "words"),
    [
        ((-0.6, -0.4), "oscillate around a center"),
        ((0.7, 0.9), "still moving in one direction"),
        ((0.05, -0.1), "as in a random walk"),
        ((0.004, -0.005), "successive steps 0.00)"),
        ((None, 0.9), "still moving in one direction"),
    ],
)
def test_movement_is_described_in_words(
    run: Path, tmp_path: Path, cosines: tuple[float | None, ...], words: str
) -> None:
    """Oscillation, one direction, or neither; the text never says that the average is better."""
    report = average(run, tmp_path, decay=0.5)
    assert report.geometry is not None
    sentence = movement(dataclasses.replace(report.geometry, step_cosines=cosines), None)
    assert words in sentence
    assert "only an evaluation can tell" in sentence
    assert movement(dataclasses.replace(report.geometry, step_cosines=(None,)), None) == ""
