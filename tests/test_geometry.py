"""Distances, path and spread of a run, against numpy on all elements of all checkpoints at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ema_cli
from ema_cli.errors import UsageError
from ema_cli.fold.geometry.sample import GeometrySample
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.fold_results import RunGeometry
from ema_cli.report.html import to_html
from ema_cli.report.model import Report
from tests.helpers.program import Run
from tests.helpers.series import State, random_states, to_numpy, write_series


def average(folder: Path, states: list[State], **options: Any) -> Report:
    """Average a series by a decay of one half, unless another is given."""
    if not {"decay", "method", "weights"} & set(options):
        options["decay"] = 0.5
    output = folder / "ema_{decay}.safetensors" if isinstance(options.get("decay"), list) else folder / "e.safetensors"
    return ema_cli.average(write_series(folder, states), output=output, force=True, **options)


def geometry_of(report: Report) -> RunGeometry:
    """Return the geometry, which must be there."""
    assert report.geometry is not None
    return report.geometry


def matrix(states: list[State]) -> NDArray[np.float64]:
    """Return all averaged numbers of each checkpoint in one row."""
    names = [name for name, value in states[0].items() if value.is_floating_point() or value.is_complex()]
    return np.array([np.concatenate([to_numpy(state[name]).ravel() for name in names]) for state in states])


def walk(count: int, size: int = 40_000, *, seed: int = 0) -> list[State]:
    """Return a random walk of a small model with tensors of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    place = {"big": torch.zeros(size), "middle": torch.zeros(300, 7), "small": torch.zeros(3), "one": torch.zeros(())}
    states = []
    for _ in range(count):
        place = {k: v + torch.randn(v.shape, generator=generator) for k, v in place.items()}
        states.append(place)
    return states


def spread(states: list[State], name: str, weights: Sequence[float]) -> float:
    """Return ``sum_i w_i ||theta_i - average||^2`` over all elements of a tensor."""
    values = np.array([to_numpy(state[name]).ravel() for state in states])
    gaps = values - np.array(weights) @ values
    return math.fsum(weight * np.square(np.abs(gap)).sum() for weight, gap in zip(weights, gaps, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float64], ids=str)
def test_a_sample_of_all_elements_is_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    """Pairwise distances, those of the averages, and the spread of every tensor, whatever the blocks."""
    states = random_states(5, dtype)
    report = average(tmp_path, states, decay=[0.5, 0.9], max_memory=1 << 18)
    found, rows = geometry_of(report), matrix(states)
    expected = np.linalg.norm(rows[:, None] - rows[None, :], axis=2)
    np.testing.assert_allclose(found.pairwise_distance, expected, rtol=1e-12, atol=1e-12)
    for made, distances in zip(report.averages, found.average_distance, strict=True):
        mean = np.array(made.weights) @ rows
        np.testing.assert_allclose(distances, np.linalg.norm(rows - mean, axis=1), rtol=1e-9)  # type: ignore[arg-type]
        for tensor in made.tensors:
            assert (tensor.spread or 0) == pytest.approx(spread(states, tensor.name, made.weights), rel=1e-10)
    assert found.sampled_fraction == 1


@pytest.mark.slow
def test_the_sample_estimates_the_whole(tmp_path: Path) -> None:
    """From a part of the elements, within a few percent of all, and the report has the part."""
    states = walk(8, 400_000)
    report = average(tmp_path, states)
    found, rows = geometry_of(report), matrix(states)
    expected = np.linalg.norm(rows[:, None] - rows[None, :], axis=2)
    np.testing.assert_allclose(found.pairwise_distance, expected, rtol=0.03, atol=1e-9)
    assert 0.01 < found.sampled_fraction < 0.1
    made = report.averages[0]
    spreads = {tensor.name: tensor.spread for tensor in made.tensors}
    assert None not in spreads.values()
    assert spreads["big"] == pytest.approx(spread(states, "big", made.weights), rel=0.05)
    mean = np.array(made.weights) @ rows
    assert found.average_distance[0] is not None
    np.testing.assert_allclose(found.average_distance[0], np.linalg.norm(rows - mean, axis=1), rtol=0.03)


def test_a_small_model_is_sampled_whole(tmp_path: Path) -> None:
    """A sample with room for all elements takes all of them, and is exact."""
    states = walk(4, 500)
    found = geometry_of(average(tmp_path, states))
    assert found.sampled_fraction == 1
    rows = matrix(states)
    np.testing.assert_allclose(found.pairwise_distance, np.linalg.norm(rows[:, None] - rows[None], axis=2), rtol=1e-12)


def test_the_sample_does_not_depend_on_blocks_or_threads(tmp_path: Path) -> None:
    """The same elements, and so the same numbers to the last digit."""
    states = walk(5)
    one, other = (
        geometry_of(average(tmp_path, states, threads=threads, max_memory=memory))
        for threads, memory in ((1, 1 << 24), (3, 1 << 19))
    )
    assert one == other


def test_every_stratum_gives_one_element(tmp_path: Path) -> None:
    """The elements of a tensor are spread over all of it, none twice."""
    with planned(make_options(write_series(tmp_path, walk(3)), decay=0.5)) as plan:
        geometry = GeometrySample(plan)
        for number, tensor in enumerate(plan.tensors):
            picked = geometry.picked(number)
            strata = picked * len(picked) // tensor.elements
            assert len(picked) >= 1
            assert len(set(picked.tolist())) == len(picked)
            assert abs(strata - np.arange(len(picked))).max() <= 1
            assert 0 <= picked.min() <= picked.max() < tensor.elements


def test_the_path_is_that_of_principal_components(tmp_path: Path) -> None:
    """Coordinates and explained variance are those of an SVD; the first axis runs from the first to the last."""
    states = walk(6, 2_000)
    report = average(tmp_path, states)
    found, rows = geometry_of(report), matrix(states)
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.path_2d), np.abs(left[:, :2] * values[:2]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-9)
    path = np.array(found.path_2d)
    assert path[-1, 0] > path[0, 0]
    np.testing.assert_allclose(found.averages_2d[0], np.array(report.averages[0].weights) @ path, rtol=1e-9)  # type: ignore[arg-type]


def test_cosines_distinguish_bouncing_from_traveling(tmp_path: Path) -> None:
    """Straight on is 1, back and forth is -1, a standstill has none."""
    for places, expected in (((0, 1, 2, 3), [1.0, 1.0]), ((0, 1, 0, 1), [-1.0, -1.0]), ((1, 1, 2, 3), [None, 1.0])):
        states = [{"w": torch.full((10,), float(place))} for place in places]
        assert geometry_of(average(tmp_path, states)).step_cosines == pytest.approx(expected)


def test_close_checkpoints_keep_their_digits(tmp_path: Path) -> None:
    """Differences a hundred-millionth of the weights are still measured: distances are measured from the last."""
    base = torch.randn(1000, dtype=torch.float64)
    states = [{"w": base + 1e-8 * i} for i in range(4)]
    found = geometry_of(average(tmp_path, states))
    assert found.pairwise_distance[0][1] == pytest.approx(1e-8 * math.sqrt(1000), rel=1e-6)


def test_ties_and_copies_are_not_counted_twice(tmp_path: Path) -> None:
    """A tied tensor is one set of numbers; integers take no part."""
    states = []
    for i in range(3):
        shared = torch.full((5,), float(i))
        states.append({"a": shared, "b": shared, "n": torch.tensor(100 * i)})
    report = average(tmp_path, states)
    assert geometry_of(report).pairwise_distance[0][2] == pytest.approx(2 * math.sqrt(5))
    assert [tensor.spread is None for tensor in report.averages[0].tensors] == [True, False, True]


def test_the_full_geometry_is_refused_with_the_modes_that_exist(tmp_path: Path, ema_avg: Run) -> None:
    """The mode was removed: flag and Python name the others. Configuration of then goes on, with the sample."""
    write_series(tmp_path / "run", walk(2, 10))
    arguments = ["run", "--decay", "0.5", "-o", "e.safetensors"]
    (tmp_path / "full.toml").write_text('geometry = "full"\n')
    done = ema_avg(*arguments, "--geometry", "full")
    assert done.returncode == 2
    words = " ".join(done.stderr.replace("'", "").split())
    assert "--geometry" in words
    assert "sample, none" in words
    assert ema_avg(*arguments, EMA_AVG_GEOMETRY="full").returncode == 0
    assert ema_avg(*arguments, "--config", "full.toml").returncode == 0
    with pytest.raises(UsageError, match="is none of sample, none"):
        make_options(tmp_path / "run", decay=0.5, geometry="full")


@pytest.mark.parametrize("options", [{"geometry": "none"}, {"last": 1}])
def test_there_may_be_no_geometry(options: dict[str, Any], tmp_path: Path) -> None:
    """There is no geometry if it is not requested, or if there is one checkpoint."""
    assert average(tmp_path, random_states(3), **options).geometry is None


def test_what_is_not_finite_has_no_geometry(tmp_path: Path) -> None:
    """A NaN that ``--allow-nonfinite`` folds is null in the report, not NaN."""
    states = [{"w": torch.tensor([1.0, math.nan])}, {"w": torch.ones(2)}]
    report = average(tmp_path, states, allow_nonfinite=True)
    assert report.geometry is None
    assert report.averages[0].tensors[0].spread is None


def test_checkpoints_without_a_share_take_no_part(tmp_path: Path) -> None:
    """A checkpoint that is not read has no position; the others keep the positions of their inputs."""
    found = geometry_of(average(tmp_path, walk(4), weights=(1, 0, 1, 0)))
    assert found.inputs == (0, 2, 3)
    assert len(found.pairwise_distance) == 3


def test_weights_that_do_not_sum_to_one_have_no_place(tmp_path: Path) -> None:
    """A sum is no average; it has no position among the checkpoints."""
    found = geometry_of(average(tmp_path, walk(2), weights=(1, 1), normalize=False))
    assert (found.average_distance, found.averages_2d) == ((None,), (None,))
    assert found.pairwise_distance[0][1] > 0


@pytest.mark.slow
def test_of_many_checkpoints_some_are_placed(tmp_path: Path) -> None:
    """More than 128 would fill the report with distances: evenly spaced ones are reported; averages use all."""
    states = [{"w": torch.tensor([float(i), float(i % 3)])} for i in range(300)]
    report = average(tmp_path, states, method="uniform")
    found = geometry_of(report)
    assert len(found.inputs) == 128
    assert (found.inputs[0], found.inputs[-1]) == (0, 299)
    rows = matrix(states)
    placed = rows[list(found.inputs)]
    np.testing.assert_allclose(
        found.average_distance[0],  # type: ignore[arg-type]
        np.linalg.norm(placed - rows.mean(axis=0), axis=1),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        found.pairwise_distance, np.linalg.norm(placed[:, None] - placed[None], axis=2), rtol=1e-6, atol=1e-9
    )
    assert len(to_html(report)) < 300_000


def test_equal_checkpoints_are_one_point(tmp_path: Path) -> None:
    """No distance, no direction, no division by zero."""
    found = geometry_of(average(tmp_path, [random_states(1)[0]] * 3))
    assert np.array(found.pairwise_distance).max() == 0
    assert (found.explained, found.step_cosines) == ((0, 0), (None,))


def test_many_tensors_take_one_element_each_at_least(tmp_path: Path) -> None:
    """The sample includes small tensors, however many there are."""
    states = [{f"t{k}": torch.full((50,), float(i)) for k in range(400)} for i in range(3)]
    report = average(tmp_path, states)
    assert all(tensor.spread for tensor in report.averages[0].tensors)
