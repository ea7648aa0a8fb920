"""The order of a series, and the selection from it. An EMA in the wrong order is another model."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import ema_cli
from ema_cli.api import make_options
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.discovery.order import order_series
from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.records.series import Series
from tests.helpers.series import write_one


def order(*paths: Path, **options: Any) -> Series:
    """Discover and order, and close the files again."""
    made = make_options(paths, **options)
    found = discover(made)
    try:
        return order_series(found, made)
    finally:
        close_all(found.checkpoints)


def names_of(series: Series) -> list[str]:
    """Return the stems of the members' names, in fold order."""
    return [member.checkpoint.path.stem for member in series.members]


def steps_of(series: Series) -> list[int | None]:
    """Return the members' steps."""
    return [member.step.value if member.step else None for member in series.members]


def codes_of(series: Series) -> list[str]:
    """Return the codes of the warnings."""
    return [warning.code for warning in series.warnings]


@given(steps=st.lists(st.integers(0, 10**9), unique=True, min_size=2, max_size=6), shuffle=st.randoms())
@settings(max_examples=15, deadline=None)
def test_a_series_is_ordered_by_its_steps(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], shuffle: random.Random
) -> None:
    """However a shell sorted the names, the oldest comes first: 2 before 10."""
    folder = tmp_path_factory.mktemp("run")
    paths = [write_one(folder / f"ckpt_{step}.pt") for step in steps]
    shuffle.shuffle(paths)
    series = order(*paths)
    assert steps_of(series) == sorted(steps)
    assert series.reason == "by step (name)"


def test_steps_inside_the_files_count_more_than_names(tmp_path: Path) -> None:
    """A step that a trainer stored is better than a step in a file name."""
    a = write_one(tmp_path / "ckpt_1.pt", step=500)
    b = write_one(tmp_path / "ckpt_2.pt", step=400)
    series = order(a, b)
    assert names_of(series) == ["ckpt_2", "ckpt_1"]
    assert steps_of(series) == [400, 500]
    assert series.reason == "by step (inside: step)"
    assert codes_of(series) == []


def test_steps_of_safetensors_metadata(tmp_path: Path) -> None:
    """A step in the metadata of a safetensors file is a step inside."""
    for name, step in (("a", 20), ("b", 10)):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors", {"global_step": str(step)})
    series = order(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert names_of(series) == ["b", "a"]
    assert series.reason == "by step (inside: global_step)"


def test_steps_come_from_one_source(tmp_path: Path) -> None:
    """If only some files have a step inside, the names of all are read instead."""
    a = write_one(tmp_path / "ckpt_300.pt", step=1)
    b = write_one(tmp_path / "ckpt_200.pt")
    series = order(a, b)
    assert steps_of(series) == [200, 300]
    assert series.reason == "by step (name)"


def test_steps_are_better_than_epochs(tmp_path: Path) -> None:
    """Epochs inside are used when there is no step anywhere; steps in names come before them."""
    a = write_one(tmp_path / "step=20.ckpt", epoch=1)
    b = write_one(tmp_path / "step=10.ckpt", epoch=2)
    assert order(a, b).reason == "by step (name)"
    c = write_one(tmp_path / "x.ckpt", epoch=9)
    d = write_one(tmp_path / "y.ckpt", epoch=3)
    series = order(c, d)
    assert (names_of(series), series.reason) == (["y", "x"], "by epoch (inside: epoch)")


def test_a_constant_step_says_nothing(tmp_path: Path) -> None:
    """If all files have one step inside, it is not the step of the series; the names may have it."""
    paths = [write_one(tmp_path / f"ckpt_{n}.pt", step=7) for n in (10, 2)]
    series = order(*paths)
    assert (steps_of(series), series.reason) == ([2, 10], "by step (name)")


def test_without_steps_names_decide(tmp_path: Path) -> None:
    """Names without steps are folded in natural order, and the reason says so."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in ("part10b", "part2a", "end")]
    series = order(*paths)
    assert names_of(series) == ["end", "part2a", "part10b"]
    assert series.reason == "by name, in natural order"


def test_incomplete_steps_are_warned_about(tmp_path: Path) -> None:
    """When the order uses names although some files have their step inside, the others are named."""
    paths = [write_one(tmp_path / "a.pt", step=9), write_one(tmp_path / "b.pt")]
    series = order(*paths)
    assert codes_of(series) == ["steps-incomplete"]
    assert '"b.pt"' in series.warnings[0].message


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    """Two copies, or two runs: both are named, with the step."""
    paths = [write_one(tmp_path / f"{name}.pt", step=step) for name, step in (("a", 5), ("b", 5), ("c", 6))]
    with pytest.raises(InputRefused, match=r"checkpoints have the same step: 5: .*a.pt.*b.pt") as refused:
        order(*paths)
    assert "--order name" in refused.value.hint


def test_mixed_units_are_refused(tmp_path: Path) -> None:
    """A step and an epoch cannot be compared; the user can request an order that needs neither."""
    paths = [write_one(tmp_path / "a.pt", step=100), write_one(tmp_path / "b.pt", epoch=3)]
    with pytest.raises(InputRefused, match=r'in different units: "a\.pt" has step 100, "b\.pt" has epoch 3'):
        order(*paths)
    assert names_of(order(*paths, order="name")) == ["a", "b"]


def test_steps_from_the_user(tmp_path: Path) -> None:
    """``--steps`` overrules every other source, in the order of the arguments."""
    paths = [write_one(tmp_path / f"{name}.pt", step=n) for n, name in enumerate("abc")]
    series = order(*paths, steps=(30, 10, 20))
    assert names_of(series) == ["b", "c", "a"]
    assert series.reason == "by step (--steps)"


def test_steps_from_the_user_must_be_as_many_as_checkpoints(tmp_path: Path) -> None:
    """The error for a wrong number of steps states both numbers."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in "ab"]
    with pytest.raises(UsageError, match="--steps gives 3 steps for 2 checkpoints"):
        order(*paths, steps=(1, 2, 3))


def test_the_given_order_is_kept(tmp_path: Path) -> None:
    """``--order given`` folds in the given order, and warns if the steps contradict it."""
    paths = [write_one(tmp_path / f"ckpt_{n}.pt") for n in (2, 10, 1)]
    series = order(*paths, order="given")
    assert names_of(series) == ["ckpt_2", "ckpt_10", "ckpt_1"]
    assert series.reason == "as given"
    assert codes_of(series) == ["order-against-steps"]


def test_the_order_of_names_can_be_asked_for(tmp_path: Path) -> None:
    """``--order name`` ignores steps for the order, and warns if they contradict it."""
    paths = [write_one(tmp_path / "b.pt", step=1), write_one(tmp_path / "a.pt", step=2)]
    series = order(*paths, order="name")
    assert names_of(series) == ["a", "b"]
    assert codes_of(series) == ["order-against-steps"]


def test_the_order_of_modification(tmp_path: Path) -> None:
    """``--order mtime`` folds in the order in which the files were written."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in "abc"]
    for path, when in zip(paths, (300, 100, 200), strict=True):
        os.utime(path, (when, when))
    series = order(*paths, order="mtime")
    assert names_of(series) == ["b", "c", "a"]
    assert series.reason == "by modification time"


def test_the_order_of_steps_needs_steps(tmp_path: Path) -> None:
    """``--order step`` is refused if some checkpoint has no step."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in ("x", "yy")]
    with pytest.raises(UsageError, match="--order step, but the checkpoints have no steps"):
        order(*paths, order="step")


@given(
    every=st.integers(1, 4),
    last=st.none() | st.integers(1, 12),
    from_step=st.none() | st.integers(0, 1200),
    length=st.none() | st.integers(0, 1200),
)
@settings(max_examples=40, deadline=None)
def test_the_selection_is_from_the_end(
    ten_checkpoints: list[Path], every: int, last: int | None, from_step: int | None, length: int | None
) -> None:
    """``--from``, ``--to``, then every K-th counted back from the last, then the last N."""
    to_step = None if length is None else (from_step or 0) + length
    inside = [n for n in range(100, 1100, 100) if (from_step or 0) <= n <= (10**9 if to_step is None else to_step)]
    expected = inside[::-1][::every][: last or 100][::-1]
    options: dict[str, Any] = {"every": every, "last": last, "from_step": from_step, "to_step": to_step}
    if expected:
        assert steps_of(order(*ten_checkpoints, **options)) == expected
    else:
        with pytest.raises(NothingMatched, match="no checkpoint "):
            order(*ten_checkpoints, **options)


@pytest.fixture(scope="module")
def ten_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten checkpoints of steps 100 to 1000."""
    folder = tmp_path_factory.mktemp("ten")
    return [write_one(folder / f"ckpt_{n}.pt") for n in range(100, 1100, 100)]


def test_bounds_need_steps(tmp_path: Path) -> None:
    """``--from`` means a step, so every checkpoint must have one."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in ("x", "yy")]
    with pytest.raises(UsageError, match="--from and --to need the step of every checkpoint"):
        order(*paths, from_step=1)


def test_names_are_distinguished_below_their_common_folder(tmp_path: Path) -> None:
    """In ``run/checkpoint-500/model.pt`` the folder's name has the step; numbers in higher folders do not matter."""
    paths = [write_one(tmp_path / "exp7_1" / f"checkpoint-{n}" / "model.pt") for n in (500, 60)]
    assert steps_of(order(*paths)) == [60, 500]


def test_a_loss_in_the_name_is_not_a_step(tmp_path: Path) -> None:
    """Names with a step and a loss are folded by the step, never by the digits of the loss."""
    paths = [write_one(tmp_path / f"ckpt_{n}_{loss}.pt") for n, loss in ((100, "2.31"), (200, "2.11"), (1000, "1.99"))]
    assert names_of(order(*paths[::-1])) == ["ckpt_100_2.31", "ckpt_200_2.11", "ckpt_1000_1.99"]


def test_steps_from_the_user_that_contradict_those_inside_warn(tmp_path: Path) -> None:
    """A shell sorts ckpt_1000 before ckpt_200: steps in another order than the arguments are detected."""
    paths = [write_one(tmp_path / f"ckpt_{step}.pt", step=step) for step in (1000, 200, 300)]
    wrong = ema_cli.plan(paths, decay=0.5, steps=(200, 300, 1000))
    (warning,) = [warning for warning in wrong.warnings if warning.code == "steps-contradict"]
    assert '"ckpt_1000.pt", but the step inside is 1,000' in warning.message
    right = ema_cli.plan(paths, decay=0.5, steps=(50, 10, 20))
    assert all(warning.code != "steps-contradict" for warning in right.warnings)
