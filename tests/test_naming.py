"""Natural order, names of tensors, and the names of outputs."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ema_cli.naming import (
    distinct_names,
    fields_in,
    fill_output_name,
    is_batch_norm_statistic,
    natural_key,
    report_name,
    safetensors_name,
)

NAMES = st.text("aB_.019٣", max_size=5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ema.pt", "ema"), ("ema_0.9", "ema_0.9"), ("{name}_{decay}.ckpt", "{name}_{decay}"), ("v.2", "v.2")],
)
def test_the_suffix_of_an_output(name: str, expected: str) -> None:
    """It takes the place of another suffix; a number with a point is none."""
    assert safetensors_name(name) == f"{expected}.safetensors"


@given(st.lists(st.integers(0, 10**12), unique=True, min_size=1))
@settings(deadline=None)
def test_natural_order_is_that_of_the_numbers(numbers: list[int]) -> None:
    """``ckpt_2`` comes before ``ckpt_10``."""
    names = [f"ckpt_{number}.pt" for number in numbers]
    assert sorted(names, key=natural_key) == [f"ckpt_{number}.pt" for number in sorted(numbers)]


@given(names=st.lists(NAMES, unique=True), shuffle=st.randoms(use_true_random=False))
@example(names=["ckpt_1", "ckpt_01", "ckpt_001"], shuffle=random.Random(0))
@settings(deadline=None)
def test_natural_order_is_total(names: list[str], shuffle: random.Random) -> None:
    """Different names never tie, so the order does not depend on how a folder was listed."""
    shuffled = list(names)
    shuffle.shuffle(shuffled)
    assert sorted(names, key=natural_key) == sorted(shuffled, key=natural_key)
    assert len({natural_key(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "is_statistic"),
    [
        ("running_mean", True),
        ("bn1.running_var", True),
        ("layer.0.bn.running_mean", True),
        ("bn.num_batches_tracked", False),
        ("not_running_mean", False),
        ("running_mean.weight", False),
    ],
)
def test_batch_norm_statistics_are_known_by_name(name: str, is_statistic: bool) -> None:
    """BatchNorm calls them ``running_mean`` and ``running_var``."""
    assert is_batch_norm_statistic(name) is is_statistic


def test_output_names_are_filled() -> None:
    """Fields are replaced by the parameters of the average; an unknown field stays, and is reported later."""
    values = {"method": "ema", "decay": 0.999, "half_life": 1.0, "sigma_rel": None}
    assert fill_output_name("ema_{decay}.safetensors", values) == "ema_0.999.safetensors"
    assert fill_output_name("h{half_life}_{method}", values) == "h1_ema"
    assert fill_output_name("plain", values) == "plain"
    assert fields_in(fill_output_name("{sigma_rel}_{decay}_{other}", values)) == ["sigma_rel"]


@pytest.mark.parametrize(
    ("paths", "taken", "names"),
    [
        (["run/ckpt_1.pt", "run/ckpt_2.safetensors"], [], ["ckpt_1", "ckpt_2"]),
        (["run/1/model.bin", "run/2/model.bin"], [], ["1/model", "2/model"]),
        (["run/3/model.bin"], ["1/model", "2/model"], ["3/model"]),
        (["b/ckpt_1.pt"], ["ckpt_1"], ["b/ckpt_1"]),
        (["/a/x.tar.pt"], [], ["a/x"]),
        (["/a/x1.tar.pt"], [], ["x1"]),
        (["/runs/checkpoint-500/model.pt"], [], ["checkpoint-500/model"]),
        (["model.pt"], ["a/b/c"], ["model"]),
        (["x.pt", "x.pt"], [], ["x", "x"]),
        ([], ["a"], []),
    ],
)
def test_names_are_the_shortest_that_are_distinct(paths: list[str], taken: list[str], names: list[str]) -> None:
    """The label of a checkpoint is the end of its path, whatever its folder and its format."""
    assert distinct_names(paths, taken) == names


def test_names_that_cannot_be_decoded_are_escaped() -> None:
    """Metadata values are text."""
    assert distinct_names(["a\udcff.pt"]) == ["a\\udcff"]


@pytest.mark.parametrize(
    ("output", "report"),
    [
        ("ema.safetensors", "ema.report.json"),
        ("ema_0.999.safetensors", "ema_0.999.report.json"),
        ("a.safetensors.safetensors", "a.safetensors.report.json"),
    ],
)
def test_the_report_is_next_to_its_output(output: str, report: str) -> None:
    """A final ``.safetensors`` is replaced, nothing else."""
    assert report_name(output) == report
