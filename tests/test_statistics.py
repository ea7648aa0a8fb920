"""Norm, drift and cosine of the report, against numpy on whole tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.dtypes import BY_NAME
from ema_cli.fold import statistics
from ema_cli.records.plan import ROW_ELEMENTS
from ema_cli.report.model import Tensor
from ema_cli.weights.methods import Decay
from ema_cli.weights.schedules import ema
from tests.helpers.series import State, random_states, reference_average, to_numpy, write_series


def tensors_of(folder: Path, states: list[State], *, decay: float = 0.5, **options: Any) -> dict[str, Tensor]:
    """Average a series and return the statistics of each tensor."""
    report = ema_cli.average(
        write_series(folder, states), decay=decay, output=folder / "ema.safetensors", force=True, **options
    )
    return {tensor.name: tensor for tensor in report.averages[0].tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float64], ids=str)
def test_statistics_are_those_of_whole_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the type, the sums over blocks are those over the tensor before rounding."""
    states = random_states(4, dtype)
    found = tensors_of(tmp_path, states, decay=0.8, max_memory=1 << 18, threads=2)
    for name in ("layer.weight", "layer.bias", "scale"):
        average = reference_average([state[name] for state in states], ema(4, Decay.of(0.8))).ravel()
        last = to_numpy(states[-1][name]).ravel()
        norm, size = np.linalg.norm(average), np.linalg.norm(last)
        assert found[name].norm == pytest.approx(norm, rel=1e-13)
        assert found[name].drift == pytest.approx(np.linalg.norm(average - last) / size, rel=1e-12)
        assert found[name].cosine == pytest.approx(np.dot(average, last) / (norm * size), abs=1e-12)


@pytest.mark.slow
@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(*[st.lists(st.floats(-1e3, 1e3, width=32), min_size=n, max_size=n)] * 2)
    )
)
@settings(max_examples=40, deadline=None)
def test_statistics_of_any_two_vectors(
    tmp_path_factory: pytest.TempPathFactory, vectors: tuple[list[float], list[float]]
) -> None:
    """Norms are not negative, cosines within [-1, 1], drift and norms obey the triangle inequality."""
    states = [{"w": torch.tensor(values)} for values in vectors]
    found = tensors_of(tmp_path_factory.mktemp("run"), states)["w"]
    average = (np.array(vectors[0]) + np.array(vectors[1])) / 2
    last = float(np.linalg.norm(vectors[1]))
    assert found.norm is not None
    assert found.norm == pytest.approx(float(np.linalg.norm(average)), rel=1e-9, abs=1e-30)
    assert found.cosine is None or -1 <= found.cosine <= 1
    if found.drift is None:
        assert last == pytest.approx(0, abs=1e-150)
    elif last > 1e-6:
        assert found.drift * last == pytest.approx(float(np.linalg.norm(average - vectors[1])), rel=1e-9)
        assert abs(found.norm - last) <= found.drift * last * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("count", [1, 1023, 1024, 65_536, 65_537, 140_000])
def test_numpy_sums_the_columns_of_a_row_in_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips and the end of the last row change no bit: every row is what adding its 16 columns one by one gives."""
    monkeypatch.setattr(statistics, "kernel", None)
    average, last = np.random.default_rng(count).standard_normal((2, count))
    last = last.astype(np.float32)
    expected = np.empty((3, -(-count // ROW_ELEMENTS)))
    for values, rows in zip((average, average - last, last.astype(np.float64)), expected, strict=True):
        padded = np.append(values, np.zeros(-count % ROW_ELEMENTS)).reshape(len(rows), -1, 16)
        columns = np.zeros((len(rows), 16))
        for part in range(padded.shape[1]):
            columns += padded[:, part] ** 2
        for half in (8, 4, 2, 1):
            columns = columns[:, :half] + columns[:, half:]
        rows[:] = columns[:, 0]
    found = statistics.squares(average, last.view(np.uint8), BY_NAME["F32"])
    assert found.tobytes() == statistics.add_rows(expected, expected.shape[1])[:, 0].tobytes()


def test_equal_checkpoints_have_not_drifted(tmp_path: Path) -> None:
    """A tensor that never changed has drift 0 and cosine 1."""
    states = [{"w": torch.randn(1000)}] * 3
    found = tensors_of(tmp_path, states)["w"]
    assert found.drift == 0
    assert found.cosine == pytest.approx(1, abs=1e-15)


def test_what_is_undefined_is_none(tmp_path: Path) -> None:
    """Copied tensors have no statistics; zero and empty ones no drift and no cosine."""
    state = {"n": torch.arange(3), "zero": torch.zeros(4), "empty": torch.zeros(0, 2), "w": torch.ones(2)}
    found = tensors_of(tmp_path, [state, state])
    assert (found["n"].action, found["n"].norm, found["n"].drift, found["n"].cosine) == ("copied", None, None, None)
    for name in ("zero", "empty"):
        assert (found[name].norm, found[name].drift, found[name].cosine) == (0.0, None, None)


def test_a_tensor_that_became_zero_has_a_norm_but_no_drift(tmp_path: Path) -> None:
    """Relative to zero a drift is undefined."""
    found = tensors_of(tmp_path, [{"w": torch.full((4,), 2.0)}, {"w": torch.zeros(4)}])["w"]
    assert (found.norm, found.drift, found.cosine) == (2.0, None, None)


def test_opposite_and_orthogonal_tensors(tmp_path: Path) -> None:
    """Cosines of -1 and 0 are exact."""
    first = {"o": torch.tensor([-3.0, 0.0]), "r": torch.tensor([-1.0, 2.0])}
    last = {"o": torch.tensor([1.0, 0.0]), "r": torch.tensor([1.0, 0.0])}
    found = tensors_of(tmp_path, [first, last])
    assert found["o"].cosine == -1
    assert found["r"].cosine == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("scale", [1e-20, 1e-160, 1e160])
def test_norms_too_far_apart_have_no_cosine(scale: float, tmp_path: Path) -> None:
    """The law of cosines cannot give the angle of such a pair, and a report never contains infinity or NaN."""
    states = [{"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}]
    states.append({"w": torch.tensor([scale, -scale], dtype=torch.float64)})
    found = tensors_of(tmp_path, states)["w"]
    assert found.cosine is None or scale > 1
    assert found.norm is None or math.isfinite(found.norm)
    assert found.drift is None or math.isfinite(found.drift)


def test_several_averages_have_their_own_statistics(tmp_path: Path) -> None:
    """A larger decay is further from the last checkpoint, in a run that moves in one direction."""
    states = [{"w": torch.full((10,), float(i))} for i in range(1, 6)]
    paths = write_series(tmp_path, states)
    report = ema_cli.average(paths, decay=[0.1, 0.5, 0.9], output=tmp_path / "ema_{decay}.safetensors")
    drifts = [average.tensors[0].drift for average in report.averages]
    expected = [
        1 - sum(w * i for w, i in zip(ema(5, Decay.of(d)), range(1, 6), strict=True)) / 5 for d in (0.1, 0.5, 0.9)
    ]
    assert drifts == pytest.approx(expected, rel=1e-12)
