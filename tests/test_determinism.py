"""One average has one result: its bytes and its findings do not depend on threads, blocks, order or folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import ema_cli
from ema_cli.dtypes import BY_NAME
from ema_cli.fold.conversion import Float64
from ema_cli.fold.statistics import squares
from ema_cli.records.plan import ROW_ELEMENTS
from tests.faults.determinism import findings
from tests.faults.slices import campaign
from tests.helpers.series import data_section

TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.complex64)


@pytest.mark.campaign
def test_random_series_under_random_settings() -> None:
    """A slice of the campaign: threads, memory, order of arguments, locale, time zone, instructions, formats."""
    campaign("determinism", 4)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Checkpoints with tensors larger than the smallest blocks."""
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "run").mkdir()
    made = [tmp_path / "run" / f"c_{step}.safetensors" for step in (1, 2, 3, 4)]
    for path in made:
        whole = {dtype: torch.randn(77, 419, generator=generator, dtype=torch.float64) for dtype in TYPES}
        save_file({str(dtype): tensor.to(dtype) for dtype, tensor in whole.items()}, path)
    return made


def average(paths: Sequence[Path], **options: Any) -> tuple[bytes, dict[str, Any]]:
    """Average; return the bytes, and the findings."""
    output = paths[0].parent.parent / "ema.safetensors"
    report = ema_cli.average(paths, output=output, force=True, **{"decay": 0.9, **options})
    return output.read_bytes(), findings(dataclasses.asdict(report))


CUTS = [
    {"threads": 1},
    {"threads": 2, "max_memory": 400_000},
    {"threads": 3, "max_memory": 1_000_000},
    {"threads": 7, "max_memory": 3_000_000},
    {"threads": 4, "max_memory": 300_000_000},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_cutting_of_the_work_shows_nowhere(cut: dict[str, int], paths: list[Path]) -> None:
    """Neither the bytes nor the last digit of a number in the report depends on threads or blocks."""
    assert average(paths, **cut) == average(paths)


def test_the_order_of_the_arguments_does_not_show(paths: list[Path]) -> None:
    """Steps may come from the names, from ``--steps``, or absent with manual weights: the fold follows the steps."""
    steps, weights = [10, 20, 30, 40], [0.125, 0.5, 0.25, 0.125]
    manual = {"method": "manual", "decay": ()}
    for name, values, method in (("", [], {}), ("steps", steps, {}), ("weights", weights, manual)):
        expected = average(paths, order="step", **({name: values} if name else {}), **method)
        for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
            turned = {name: [values[i] for i in order]} if name else {}
            assert average([paths[i] for i in order], order="step", **turned, **method) == expected


def test_several_averages_of_one_read_are_found_as_each_alone(paths: list[Path]) -> None:
    """Bytes and findings of an average are the same if other averages are made in the same pass."""
    output = paths[0].parent.parent / "several_{decay}.safetensors"
    together = ema_cli.average(paths, decay=[0.5, 0.9, 0.99], output=output)
    for k, decay in enumerate((0.5, 0.9, 0.99)):
        data, alone = average(paths, decay=decay)
        here = findings(dataclasses.asdict(together))["averages"][k]
        assert Path(str(output).format(decay=decay)).read_bytes() == data
        assert here == alone["averages"][0]


def squared(values: Float64) -> Float64:
    """Return the sum of the squares, and the remainder."""
    return np.asarray(squares(values, values.view(np.uint8), BY_NAME["F64"])[0])


@given(
    rows=st.integers(1, 12),
    tail=st.integers(0, ROW_ELEMENTS - 1),
    cuts=st.sets(st.integers(1, 11)),
    scale=st.sampled_from([1.0, 1e-150, 1e100]),
)
def test_sums_of_blocks_are_the_sum_of_the_whole(rows: int, tail: int, cuts: set[int], scale: float) -> None:
    """Blocks that begin with a row add up to the same correctly rounded number, wherever they are cut."""
    values = np.random.default_rng(rows).standard_normal(rows * ROW_ELEMENTS + tail) * scale
    ends = [*sorted(cut * ROW_ELEMENTS for cut in cuts if cut < rows), len(values)]
    parts = [squared(values[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    assert math.fsum([number for part in parts for number in part]) == math.fsum(squared(values))


def test_squares_that_are_too_large_to_add_up_are_no_failure(tmp_path: Path) -> None:
    """A norm near the limit of float64 overflows and is undefined; the average is still written."""
    for step in (1, 2):
        save_file({"w": torch.full((20_000,), 1e152, dtype=torch.float64)}, tmp_path / f"c_{step}.safetensors")
    output = tmp_path / "ema.safetensors"
    report = ema_cli.average(tmp_path, decay=0.5, output=output, max_memory=200_000, threads=1)
    assert report.averages[0].tensors[0].norm is None
    assert np.frombuffer(data_section(output)).tolist() == [1e152] * 20_000
