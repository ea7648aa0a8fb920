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
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.discovery.order import order_series
from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.options.average import make_options
from ema_cli.records.series import Folded, Series
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
    """A step that a trainer stored is better than a step in a file name, which is reported if it disagrees."""
    a = write_one(tmp_path / "ckpt_1.pt", step=500)
    b = write_one(tmp_path / "ckpt_2.pt", step=400)
    series = order(a, b)
    assert names_of(series) == ["ckpt_2", "ckpt_1"]
    assert steps_of(series) == [400, 500]
    assert series.reason == "by step (inside: step)"
    assert codes_of(series) == ["order-disagrees"]


def test_names_that_disagree_with_steps_inside_are_an_example(tmp_path: Path) -> None:
    """The warning has the numbers of both for two checkpoints, and the steps that follow the names."""
    paths = [write_one(tmp_path / f"ckpt_{name}.pt", step=step) for name, step in ((100, 100), (500, 500), (900, 0))]
    (warning,) = order(tmp_path, decay=(0.5,)).warnings
    example = 'inside, "ckpt_900.pt" has step 0 and "ckpt_100.pt" step 100; their names say 900 and 100'
    assert (
        warning.message == f"the order follows the step (inside: step), but the step (name) contradicts it: {example}"
    )
    assert warning.hint == "if the names are right: --steps 100,500,900"
    assert names_of(order(*paths, steps=(100, 500, 900), decay=(0.5,))) == ["ckpt_100", "ckpt_500", "ckpt_900"]


def test_many_contradicted_steps_are_not_listed(tmp_path: Path) -> None:
    """A list of steps that no one would read is not proposed."""
    for number in range(20):
        write_one(tmp_path / f"ckpt_{number}.pt", step=20 - number)
    (warning,) = order(tmp_path, decay=(0.5,)).warnings
    assert warning.code == "order-disagrees"
    assert warning.hint.startswith("check which one is right")


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
    """Where only some have a step, those come in its order, and the warning shows the whole order."""
    paths = [write_one(tmp_path / f"{name}.pt", **more) for name, more in (("a", {}), ("c", {"step": 3}))]
    paths.append(write_one(tmp_path / "d.pt", step=1))
    series = order(*paths, decay=(0.5,))
    assert names_of(series) == ["d", "c", "a"]
    assert codes_of(series) == ["steps-incomplete"]
    assert '2 of 3 checkpoints have a step (inside: step), but "a.pt" has none' in series.warnings[0].message
    assert '"d.pt", "c.pt", "a.pt"' in series.warnings[0].message


def test_names_say_where_checkpoints_without_a_step_belong(tmp_path: Path) -> None:
    """Initial weights come first, whatever else has no step comes last; never by the alphabet among the steps."""
    names = ("final/m", "init/m", "step-100/m", "step-20/m")
    series = order(*(write_one(tmp_path / f"{name}.pt") for name in names), decay=(0.5,))
    assert [member.checkpoint.path.parent.name for member in series.members] == ["init", "step-20", "step-100", "final"]
    assert steps_of(series) == [None] * 4
    assert codes_of(series) == ["steps-incomplete"]


@pytest.mark.parametrize("method", ["uniform", "ema"])
def test_an_order_by_the_alphabet_alone_is_warned_about(tmp_path: Path, method: str) -> None:
    """Also without numbers; but not for a mean, which has no order."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in "badcefg"]
    decay = {"decay": (0.5,)} if method == "ema" else {}
    series = order(*paths, method=(method,), **decay)
    assert names_of(series) == ["a", "b", "c", "d", "e", "f", "g"]
    assert codes_of(series) == (["order-doubtful"] if method == "ema" else [])
    if method == "ema":
        assert '"a.pt", "b.pt", "c.pt", 2 more, "f.pt", "g.pt"' in series.warnings[0].message
        assert "--order name" in series.warnings[0].hint
        assert codes_of(order(*paths, order="name", method=(method,), **decay)) == []


def test_times_are_mentioned_only_where_names_alone_decide(tmp_path: Path) -> None:
    """Copies have any times, so they never raise a warning, but help where there is one."""
    for names, mentioned in ((("a", "b"), True), (("ckpt_1", "ckpt_2"), False)):
        paths = [write_one(tmp_path / f"{name}.pt") for name in names]
        for path, when in zip(paths, (300, 100), strict=True):
            os.utime(path, (when, when))
        warnings = order(*paths, decay=(0.5,)).warnings
        assert any('written in another order: "b.pt", "a.pt"' in warning.message for warning in warnings) == mentioned
        assert any("of the times is: --order mtime" in warning.hint for warning in warnings) == mentioned
        assert bool(warnings) == mentioned


def test_the_same_step_inside_makes_bare_numbers_doubtful(tmp_path: Path) -> None:
    """Numbers without a word may count parts or seeds, if all files have one step; after a word they are steps."""
    bare = [write_one(tmp_path / f"model_{n}.pt", global_step=500) for n in (1, 2)]
    series = order(*bare, decay=(0.5,))
    assert (steps_of(series), codes_of(series)) == ([None, None], ["order-doubtful"])
    assert "all have the same step 500 (inside: global_step)" in series.warnings[0].message
    worded = [write_one(tmp_path / f"iter_{n}.pt", global_step=500) for n in (1, 2)]
    assert (steps_of(order(*worded)), codes_of(order(*worded))) == ([1, 2], [])


@pytest.mark.parametrize(
    ("numbers", "epoch", "doubtful"),
    [
        ((1, 2, 3), 10, True),
        ((0, 1, 2), 10, True),
        ((1, 2, 3), 1, False),
        ((100, 200, 300), 10, False),
        ((2, 4, 6), 10, False),
    ],
)
@pytest.mark.parametrize("word", ["m-", "epoch_"])
def test_the_same_epoch_inside_makes_small_bare_numbers_doubtful(
    tmp_path: Path, numbers: tuple[int, ...], epoch: int, doubtful: bool, word: str
) -> None:
    """They may count seeds. Larger ones are steps in that epoch, and in the first epoch milestones are usual."""
    series = order(*(write_one(tmp_path / f"{word}{n}.pt", epoch=epoch) for n in numbers), decay=(0.5,))
    assert codes_of(series) == (["order-doubtful"] if doubtful and word == "m-" else [])
    assert codes_of(series) == [] or "same epoch 10 (inside: epoch)" in series.warnings[0].message


@pytest.mark.parametrize("names", [("step_005.pt", "step_5.pt"), ("step_1k.pt", "step_1000.pt"), ("m_5.pt", "m_5.pth")])
def test_two_files_that_claim_one_step_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """As three are: they are copies, or one is not what it seems. Different steps inside decide otherwise."""
    with pytest.raises(InputRefused, match="the names of checkpoints state the same step: ") as refused:
        order(*(write_one(tmp_path / name) for name in names))
    assert "--order name" not in refused.value.hint
    paths = [write_one(tmp_path / name, step=step) for name, step in zip(names, (20, 10), strict=True)]
    assert steps_of(order(*paths)) == [10, 20]


def test_steps_that_begin_again_in_every_epoch_are_no_clock(tmp_path: Path) -> None:
    """Epochs and names agree on the order; the step is that within the epoch."""
    inside = [{"epoch": n, "step": step} for n, step in ((1, 950), (2, 30), (3, 500))]
    series = order(*(write_one(tmp_path / f"epoch_{one['epoch']}.pt", **one) for one in inside), decay=(0.5,))
    assert (steps_of(series), series.unit, codes_of(series)) == ([1, 2, 3], "epoch", [])
    anonymous = order(*(write_one(tmp_path / f"{'xyz'[n]}.pt", **one) for n, one in enumerate(inside)), decay=(0.5,))
    assert names_of(anonymous) == ["x", "y", "z"]
    assert codes_of(anonymous) == ["order-disagrees"], "no third witness says which one is right"


def test_several_checkpoints_in_an_epoch_are_ordered_by_epoch_and_step(tmp_path: Path) -> None:
    """The order is by both, inside or in the names, and the numbers are not used as steps."""
    pairs = [(1, 900), (1, 500), (2, 100), (2, 700)]
    named = [write_one(tmp_path / f"epoch{epoch}_iter{step}.pt") for epoch, step in pairs]
    series = order(*named, decay=(0.5,))
    assert names_of(series) == ["epoch1_iter500", "epoch1_iter900", "epoch2_iter100", "epoch2_iter700"]
    assert (steps_of(series), series.reason, codes_of(series)) == ([None] * 4, "by epoch and step (name)", [])
    inside = [write_one(tmp_path / f"{'dcba'[n]}.pt", epoch=e, step=s) for n, (e, s) in enumerate(pairs)]
    assert names_of(order(*inside)) == ["c", "d", "b", "a"]


def test_epochs_of_a_resumed_run_begin_again(tmp_path: Path) -> None:
    """Names and steps agree against the epochs, so the steps are followed, and the epochs are reported."""
    inside = [{"step": 100, "epoch": 5}, {"step": 200, "epoch": 6}, {"step": 300, "epoch": 1}]
    series = order(*(write_one(tmp_path / f"ckpt_{n}.pt", **one) for n, one in enumerate(inside)), decay=(0.5,))
    assert steps_of(series) == [100, 200, 300]
    assert codes_of(series) == ["order-disagrees"]
    assert "the epoch (inside: epoch) contradicts it" in series.warnings[0].message


def test_a_global_step_is_followed_against_epochs_and_names(tmp_path: Path) -> None:
    """Its name says that it does not begin again; the example has the numbers of both."""
    paths = [write_one(tmp_path / f"epoch_{n}.pt", global_step=step, epoch=n) for n, step in ((1, 60), (2, 50))]
    series = order(*paths, decay=(0.5,))
    assert steps_of(series) == [50, 60]
    (warning,) = series.warnings
    assert warning.code == "order-disagrees"
    example = 'inside, "epoch_2.pt" has step 50 and "epoch_1.pt" step 60; inside, their epochs are 2 and 1'
    assert warning.message.endswith(f"contradicts it: {example}")
    assert warning.hint == "if the epochs inside are right: --steps 1,2"
    assert codes_of(order(*paths, method=("uniform",))) == []


def test_a_common_clock_inside_orders_names_of_two_kinds(tmp_path: Path) -> None:
    """Icefall saves by epoch and by batch, and both kinds of files have ``batch_idx_train``."""
    saved = {"epoch-1": (3000, 1), "epoch-2": (6000, 2), "epoch-10": (30000, 10), "checkpoint-4000": (4000, 2)}
    paths = [
        write_one(tmp_path / f"{name}.pt", batch_idx_train=batch, cur_epoch=epoch)
        for name, (batch, epoch) in saved.items()
    ]
    series = order(*paths, decay=(0.5,))
    assert steps_of(series) == [3000, 4000, 6000, 30000]
    assert (series.reason, codes_of(series)) == ("by step (inside: batch_idx_train)", [])


def test_two_kinds_of_names_alone_have_no_order(tmp_path: Path) -> None:
    """Without a clock inside they are refused, with a hint that works; for a mean they need no order."""
    paths = [write_one(tmp_path / f"{name}.pt") for name in ("epoch-1", "epoch-2", "checkpoint-4000")]
    with pytest.raises(InputRefused, match="numbered in different units") as refused:
        order(*paths, decay=(0.5,))
    assert "--order name" not in refused.value.hint
    assert codes_of(order(*paths, method=("uniform",))) == []


def test_a_coarse_number_inside_gives_way_to_finer_names(tmp_path: Path) -> None:
    """VITS stores the epoch as ``iteration``, and names its files by the step."""
    paths = [write_one(tmp_path / f"G_{n}.pth", iteration=it) for n, it in ((1000, 1), (2000, 1), (3000, 2))]
    series = order(*paths, decay=(0.5,))
    assert (steps_of(series), codes_of(series)) == ([1000, 2000, 3000], [])


def test_numbers_in_names_that_are_the_epochs_inside_are_epochs(tmp_path: Path) -> None:
    """Timm and torchvision name files by the epoch, counted from 0 or 1, without that word."""
    paths = [write_one(tmp_path / f"checkpoint-{n}.pth.tar", epoch=n + 1) for n in (3, 10)]
    series = order(*paths, decay=(0.5,))
    assert (steps_of(series), series.unit, codes_of(series)) == ([4, 11], "epoch", [])


def test_dates_in_names_order_a_series(tmp_path: Path) -> None:
    """Later saves come later; a date is no step."""
    days = ("2024-01-02", "2023-12-31", "2024-01-10")
    paths = [write_one(tmp_path / f"CKPT+{day}+10-00-00+00" / "model.ckpt") for day in days]
    series = order(*paths, decay=(0.5,))
    assert [member.checkpoint.path.parent.name[5:15] for member in series.members] == sorted(days)
    assert (steps_of(series), series.reason, codes_of(series)) == ([None] * 3, "by time (name)", [])


@pytest.mark.parametrize("day", ["2024010", "2024-01-0"])
def test_dates_that_contradict_the_steps_are_reported(tmp_path: Path, day: str) -> None:
    """The steps of two days, or of two runs."""
    names = [f"{day}{n}_step_{step}.pt" for n, step in ((1, 900), (1, 1000), (2, 100), (2, 200))]
    assert codes_of(order(*(write_one(tmp_path / name) for name in names), decay=(0.5,))) == ["order-disagrees"]


@pytest.mark.parametrize(
    ("inside", "source"),
    [
        ([{"iter_num": n, "best_val_loss": torch.tensor(0.5)} for n in (9, 10)], "iter_num"),
        ([{"step_count": n, "iter_num": 4 * n} for n in (9, 10)], "step_count"),
        ([{"meta": {"epoch": n, "iter": 100 * n, "seed": 1}} for n in (9, 10)], "meta.iter"),
        ([{"optim": {"training_step": n, "optimizer": {}}} for n in (9, 10)], "optim.training_step"),
        (
            [{"state": {"timestamp": {"Timestamp": {"batch": n, "epoch": 0}}}} for n in (9, 10)],
            "state.timestamp.Timestamp.batch",
        ),
        ([{"trainer": {"global_step": n}} for n in (9, 10)], "trainer.global_step"),
        ([{"progress": {"counters": {"step": float(n)}}} for n in (9, 10)], "progress.counters.step"),
        ([{"info": {"global_step": str(n)}} for n in (9, 10)], "info.global_step"),
        ([{"steps_run": n, "epochs_run": 1} for n in (9, 10)], "steps_run"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_steps_are_found_where_trainers_store_them(tmp_path: Path, inside: list[dict[str, Any]], source: str) -> None:
    """At the top level or in a dictionary of the trainer's; the names are in the order of the alphabet, 10 and 9."""
    series = order(*(write_one(tmp_path / f"{'ba'[n]}.pt", **one) for n, one in enumerate(inside)))
    assert names_of(series) == ["b", "a"]
    assert series.reason == f"by step (inside: {source})"


@pytest.mark.parametrize("name", ["config", "args", "optimizer", "lr_scheduler", "best", "val_loop", "dataloader"])
def test_settings_are_no_steps(tmp_path: Path, name: str) -> None:
    """Numbers called ``step`` in the settings, in the optimizer or of the best checkpoint are not read."""
    series = order(*(write_one(tmp_path / f"m_{n}.pt", **{name: {"step": 9 - n, "epoch": 9 - n}}) for n in (1, 2)))
    assert (names_of(series), series.reason) == (["m_1", "m_2"], "by step (name)")


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    """Two copies, or two runs: both are named, with the step."""
    paths = [write_one(tmp_path / f"{name}.pt", step=step) for name, step in (("a", 5), ("b", 5), ("c", 6))]
    with pytest.raises(InputRefused, match=r"checkpoints have the same step: 5: .*a.pt.*b.pt") as refused:
        order(*paths)
    assert "; " not in refused.value.message
    assert "--order given" in refused.value.hint
    assert "--order name" not in refused.value.hint, "which is wrong for steps in names"


def test_copies_under_other_numbers_are_refused(tmp_path: Path) -> None:
    """A global step that two files share shows a copy, though their names differ."""
    paths = [write_one(tmp_path / f"model_{n}.pt", global_step=step) for n, step in ((1, 5), (2, 5), (3, 6))]
    with pytest.raises(InputRefused, match="checkpoints have the same step: 5: "):
        order(*paths)


def test_one_checkpoint_has_an_order(tmp_path: Path) -> None:
    """There is nothing to warn about."""
    assert codes_of(order(write_one(tmp_path / "a.pt"), decay=(0.5,))) == []


def test_keys_are_not_mixed_if_all_have_one(tmp_path: Path) -> None:
    """A better key that only one file has is no witness against the common one, nor is one of a nested dictionary."""
    first = {"global_step": 100, "step": 1}
    inside = [first, {"step": 2}, {"step": 3}]
    paths = [write_one(tmp_path / f"{'xyz'[n]}.pt", **one) for n, one in enumerate(inside)]
    series = order(*paths, decay=(0.5,))
    assert (steps_of(series), codes_of(series)) == ([1, 2, 3], [])
    nested = [write_one(tmp_path / f"n{n}.pt", step=n, info={"step": 9 - n}) for n in (1, 2)]
    assert (steps_of(order(*nested)), codes_of(order(*nested))) == ([1, 2], [])


def test_names_that_gave_the_steps_of_an_average_go_on_giving_them(tmp_path: Path) -> None:
    """A continued average counts as before, also if the new checkpoints have steps inside."""
    made = make_options([write_one(tmp_path / "epoch_3.pt", global_step=3000)], decay=(0.5,))
    found = discover(made)
    folded = [Folded(name=f"epoch_{n}", step=n) for n in (1, 2)]
    series = order_series(found, made, folded)
    close_all(found.checkpoints)
    assert (steps_of(series), series.unit) == ([3], "epoch")


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
    assert codes_of(order(*paths, order="given", method=("uniform",))) == [], "a mean has no order"


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
