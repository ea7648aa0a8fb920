"""Integers and bools that change from checkpoint to checkpoint: copied from the last, with a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.records.plan import Plan
from ema_cli.storage.source import FileSource
from tests.helpers.program import Run
from tests.helpers.series import State, load, random_states, write_series


def plan(folder: Path, tensors: list[dict[str, torch.Tensor]], **options: Any) -> Plan:
    """Plan a series of ordinary weights and these tensors."""
    states: list[State] = [{**one, **more} for one, more in zip(random_states(len(tensors)), tensors, strict=True)]
    return ema_cli.plan(write_series(folder, states), method="uniform", **options)


def warned(made: Plan) -> list[str]:
    """Return the messages of the warnings, all of which are about integers."""
    assert {warning.code for warning in made.warnings} <= {"integers-differ"}
    return [warning.message for warning in made.warnings]


@pytest.mark.parametrize("dtype", [torch.uint32, torch.int8, torch.uint8, torch.int64, torch.bool], ids=str)
def test_codes_that_change_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    """Codes of weights change in every step; they are named with type and shape."""
    codes = [{"layer.codes": torch.randint(0, 2, (8, 6), generator=torch.manual_seed(n)).to(dtype)} for n in range(3)]
    (message,) = warned(plan(tmp_path, codes))
    assert "1 tensor of integers or bools changed from checkpoint to checkpoint" in message
    assert f'"layer.codes" ({str(dtype).removeprefix("torch.")} (8, 6))' in message


@pytest.mark.parametrize("at", [0, 66_000, 99_999])
def test_a_large_tensor_is_sampled(tmp_path: Path, at: int) -> None:
    """The first, the last and some elements between are compared, those around them too."""
    codes = [torch.zeros(100_000, dtype=torch.int64) for _ in range(2)]
    codes[1][max(0, at - 1000) : at + 1000] = 1
    assert len(warned(plan(tmp_path, [{"codes": one} for one in codes]))) == 1


@pytest.mark.parametrize("count", [3, 40])
def test_a_change_in_between_is_seen(tmp_path: Path, count: int) -> None:
    """The first and the last are equal, and one between them is not; all are compared if there is little to read."""
    codes = [{"codes": torch.full((9,), int(number == 1))} for number in range(count)]
    assert len(warned(plan(tmp_path, codes))) == 1


def test_what_trainers_save_is_no_reason_to_warn(tmp_path: Path) -> None:
    """Counters, positions, masks that stay, extra state of any length, scalars, nothing at all."""
    harmless = [
        {
            "bn.num_batches_tracked": torch.tensor(n),
            "queue_ptr": torch.tensor([n]),
            "position_ids": torch.arange(512)[None],
            "attn.bias": torch.ones(1, 1, 300, 300).tril().bool(),
            "fc._extra_state": torch.arange(40 + 8 * n, dtype=torch.uint8),
            "_extra_state": torch.full((30,), n, dtype=torch.uint8),
            "empty": torch.zeros(0, dtype=torch.int32),
        }
        for n in range(3)
    ]
    assert warned(plan(tmp_path, harmless)) == []


def test_another_shape_or_type_is_a_change(tmp_path: Path) -> None:
    """It is seen without reading anything; the last is copied and the output verifies."""
    tensors = [{"ids": torch.zeros(4, dtype=torch.int32)}, {"ids": torch.zeros(5, dtype=torch.int32)}]
    assert '"ids" (int32 (5,))' in warned(plan(tmp_path, tensors))[0]
    tensors[1]["ids"] = torch.zeros(4, dtype=torch.int64)
    assert '"ids" (int64 (4,))' in warned(plan(tmp_path, tensors))[0]


def test_other_orders_of_elements_are_compared_by_element(tmp_path: Path) -> None:
    """A transposed tensor is the same tensor; a column of a larger one does not change with its neighbors."""
    wide = torch.arange(48).reshape(6, 8)
    same = [{"a": wide, "b": wide[:, 3]}, {"a": wide.t().contiguous().t(), "b": (wide + (wide % 8 != 3))[:, 3]}]
    assert warned(plan(tmp_path, same)) == []
    same[1]["b"] = wide[:, 4]
    assert '"b" (int64 (6,))' in warned(plan(tmp_path, same))[0]


def test_tensors_that_are_not_written_or_not_in_all(tmp_path: Path) -> None:
    """Excluded tensors are not compared; those that the first lacks are compared where they are."""
    tensors = [{"codes": torch.full((9,), n)} for n in range(3)]
    assert warned(plan(tmp_path, tensors, exclude="codes")) == []
    made = plan(tmp_path, [{}, *tensors[1:]], on_missing="last")
    assert [warning.code for warning in made.warnings] == ["missing-copied", "integers-differ"]
    made = plan(tmp_path, [{}, {}, tensors[2]], on_missing="last")
    assert [warning.code for warning in made.warnings] == ["missing-copied"]
    assert [one.code for one in plan(tmp_path, tensors, last=1).warnings] == ["one-checkpoint"]


def test_the_reads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 256 pieces of 16 KiB of a checkpoint, however many integers it has."""
    read: list[int] = []
    original = FileSource.read_into

    def counting(source: FileSource, offset: int, buffer: bytearray | memoryview) -> None:
        read.append(len(buffer))
        original(source, offset, buffer)

    tensors = [{f"t{n}": torch.zeros(9_000 + n, dtype=torch.int64) for n in range(300)}] * 2
    states = [{**one, **more} for one, more in zip(random_states(2), tensors, strict=True)]
    paths = write_series(tmp_path, states, form="safetensors")
    monkeypatch.setattr(FileSource, "read_into", counting)
    assert warned(ema_cli.plan(paths, method="uniform")) == []
    assert 2 * 200 <= len([size for size in read if size == 1 << 14]) <= 2 * 256


def test_extra_state_of_changing_length_is_copied(tmp_path: Path, ema_avg: Run) -> None:
    """As Transformer Engine saves it: ``--strict`` passes, the bytes are those of the last, and verify agrees."""
    states: list[State] = [
        {**one, "fc._extra_state": torch.arange(40 + 8 * n, dtype=torch.uint8)}
        for n, one in enumerate(random_states(2))
    ]
    write_series(tmp_path / "run", states)
    done = ema_avg("run", "--method", "uniform", "-o", "ema.safetensors", "--strict")
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "ema.safetensors")["fc._extra_state"].equal(states[1]["fc._extra_state"])
    done = ema_avg("verify", "ema.safetensors")
    assert done.returncode == 0, done.stderr


def test_strict_stops_before_the_fold(tmp_path: Path, ema_avg: Run) -> None:
    """The warning is part of the plan."""
    states: list[State] = [{**one, "codes": torch.full((9,), n)} for n, one in enumerate(random_states(3))]
    write_series(tmp_path / "run", states)
    done = ema_avg("run", "--method", "uniform", "-o", "ema.safetensors", "--strict")
    assert (done.returncode, (tmp_path / "ema.safetensors").exists()) == (8, False)
    assert "integers-differ" in done.stderr


def test_checkpoints_of_other_integers_are_not_called_equal(tmp_path: Path) -> None:
    """Where no tensor is averaged there is nothing that could be the same."""
    states: list[State] = [{"bits": torch.full((64, 64), n, dtype=torch.int16)} for n in range(3)]
    report = ema_cli.average(write_series(tmp_path / "run", states), decay=0.2, output=tmp_path / "out.safetensors")
    assert {warning.code for warning in report.warnings} == {"nothing-averaged", "integers-differ"}
