"""Tensors that are equal in all checkpoints of an average come out as they went in, whatever they hold."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import InputRefused
from ema_cli.events import Event, Progress
from ema_cli.fold.constants import Constants
from ema_cli.fold.cuda import TorchLane
from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold
from ema_cli.options.average import make_options
from ema_cli.options.output_options import OutputDtype
from ema_cli.pipeline import planned, run_average
from ema_cli.records.fold_results import FoldOutcome
from ema_cli.report.beside import report_path
from ema_cli.verification.checks import verify
from tests.helpers.exact import DTYPES, FORM_OF, FORMATS, rounded
from tests.helpers.outputs import Memory
from tests.helpers.program import Run
from tests.helpers.series import State, load, save_zip, write_series

METHODS: list[dict[str, Any]] = [
    {"decay": 0.9},
    {"decay": 0.999, "init": "debias"},
    {"half_life": 70, "per": "step"},
    {"method": "uniform"},
    {"method": "ramp"},
    {"sigma_rel": 0.1},
    {"method": "lr-decay"},
    {"weights": (3, 0, 1, 0.7, 1e-30)},
]
ALL_DTYPES = [*dict.fromkeys([*DTYPES, torch.complex64])]
MASK = torch.full((64, 64), -math.inf).triu(1)
PAYLOADS = struct.pack("<8I", 0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFA5A5A5, 0x7F800000, 0xFF800000, 0x80000000, 1)


def bits_of(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def from_bits(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """Return a vector of these bytes."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)


def series(constant: torch.Tensor, count: int = 3) -> list[State]:
    """Return states with a constant and a weight that changes."""
    generator = torch.Generator().manual_seed(0)
    return [{"constant": constant, "w": torch.randn(50, generator=generator)} for _ in range(count)]


def average(folder: Path, states: Sequence[State], **options: Any) -> State:
    """Average in a folder and return the output."""
    ema_cli.average(write_series(folder, states), output=folder / "ema.safetensors", force=True, **options)
    return load(folder / "ema.safetensors")


def kept(report: Any, k: int = 0) -> list[str]:
    """Return the names that a report lists as kept."""
    return [tensor.name for tensor in report.averages[k].tensors if tensor.kept]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@given(data=st.data())
@settings(deadline=None, max_examples=12)
@pytest.mark.filterwarnings("ignore:.*float8")
def test_any_bits_come_out_as_they_went_in(
    dtype: torch.dtype, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """NaN of any payload, infinities, zeros of both signs, subnormals: the oracle are the bytes of the input."""
    raw = data.draw(st.binary(min_size=8, max_size=160).map(lambda found: found[: len(found) // 8 * 8]))
    method = data.draw(st.sampled_from(METHODS))
    found = average(tmp_path_factory.mktemp("any"), series(from_bits(raw, dtype), 5), geometry="none", **method)
    assert bits_of(found["constant"]) == raw


@given(values=st.lists(st.floats(width=64, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
@settings(deadline=None, max_examples=25)
def test_constants_of_float64_keep_their_last_digit(
    values: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where the sum of the products is rounded to a neighbor, or overflows."""
    constant = torch.tensor(values, dtype=torch.float64)
    found = average(tmp_path_factory.mktemp("f64"), series(constant, 6), decay=0.7)
    assert found["constant"].equal(constant)


@pytest.mark.parametrize("output", ["bfloat16", "float16", "float32", "float64"])
def test_another_type_rounds_the_constant_itself(tmp_path: Path, output: str) -> None:
    """``--dtype`` rounds once, ties to even: the sum of the products of a midpoint is not always the midpoint."""
    steps = torch.arange(1, 400, dtype=torch.float64)
    constant = (1 + steps / 512).to(torch.float32)  # midpoints of bfloat16 among them
    finer = (1 + steps / 2**24 + steps).to(torch.float64)
    states = [{**one, "finer": finer} for one in series(constant, 7)]
    found = average(tmp_path, states, decay=0.93, dtype=output)
    form = {name: FORM_OF.get(getattr(torch, name)) for name in ("bfloat16", "float16", "float32", "float64")}[output]
    for name, exact in (("constant", constant.double()), ("finer", finer)):
        expected = [rounded(value, FORMATS[form]) if form else value for value in exact.tolist()]
        assert found[name].double().tolist() == expected, name


def test_a_mask_is_kept_and_the_report_says_so(tmp_path: Path, ema_avg: Run) -> None:
    """No warning, no refusal, also under ``--strict``; the statistics of the mask are null, all others are there."""
    write_series(tmp_path, [{**one, "scalar": torch.tensor(math.inf)} for one in series(MASK)])
    done = ema_avg("ckpt_*.pt", "--decay", "0.5", "-o", "ema.safetensors", "--strict")
    assert done.returncode == 0, done.stderr
    assert bits_of(load(tmp_path / "ema.safetensors")["constant"]) == bits_of(MASK)
    report = json.loads(report_path(tmp_path / "ema.safetensors").read_text(), parse_constant=pytest.fail)
    tensors = {tensor["name"]: tensor for tensor in report["averages"][0]["tensors"]}
    assert [name for name, tensor in tensors.items() if tensor["kept"]] == ["constant", "scalar"]
    assert {tensors["constant"][key] for key in ("norm", "drift", "cosine")} == {None}
    assert (tensors["constant"]["action"], tensors["constant"]["spread"]) == ("averaged", 0)
    assert tensors["w"]["norm"] > 0
    assert report["warnings"] == []
    assert report["geometry"]["pairwise_distance"][0][1] > 0
    assert verify(tmp_path / "ema.safetensors").ok


@pytest.mark.parametrize("where", [0, 17, 63])
@pytest.mark.parametrize("block_elements", [1024, 4096])
def test_a_mask_that_differs_somewhere_is_refused(tmp_path: Path, where: int, block_elements: int) -> None:
    """Wherever the difference is, in a block of its own or not; the error is the same as ever."""
    states = series(MASK)
    states[1]["constant"] = MASK.clone()
    states[1]["constant"][where, 0] = 0.5
    paths = write_series(tmp_path, states)
    with planned(make_options(paths, decay=0.5)) as plan:
        cut = replace(plan, buffers=replace(plan.buffers, block_elements=block_elements))
        with pytest.raises(InputRefused, match=r'tensor "constant" of .*ckpt_100.pt" holds -inf at index \(\d+, \d+\)'):
            fold(cut, [Memory(cut.data_bytes)], lane_maker("cpu", cut))


def test_nan_of_two_payloads_is_no_constant(tmp_path: Path) -> None:
    """Bits are compared, not numbers; the error about a scalar has no index."""
    states = series(torch.tensor(0.0))
    states[0]["constant"] = from_bits(struct.pack("<I", 0x7FC00000), torch.float32)[0]
    states[1]["constant"] = states[2]["constant"] = from_bits(struct.pack("<I", 0x7FC00001), torch.float32)[0]
    with pytest.raises(InputRefused, match=r'ckpt_100.pt" holds nan$'):
        average(tmp_path, states, decay=0.5)


@pytest.mark.parametrize("options", [{"weights": (1, 1, 2), "normalize": False}, {"weights": (0, 0, 1)}])
def test_other_weights_refuse_it(tmp_path: Path, options: dict[str, Any]) -> None:
    """Where the weights do not sum to one, equal numbers change; and one checkpoint alone shows no constant."""
    with pytest.raises(InputRefused, match="holds -inf"):
        average(tmp_path, series(MASK), **options)


def test_weights_that_do_not_sum_to_one_scale_constants(tmp_path: Path) -> None:
    """Without normalization a finite constant is multiplied like everything else."""
    states = series(torch.tensor([0.1, 3.0], dtype=torch.float64))
    found = average(tmp_path, states, weights=(1, 1, 2), normalize=False)
    assert found["constant"].tolist() == [0.1 + 0.1 + 0.1 * 2, 12.0]


def test_checkpoints_without_a_weight_do_not_count(tmp_path: Path) -> None:
    """A constant is one among the checkpoints of its average, so an average is the same alone and with others."""
    states = series(MASK, 4)
    states[3]["constant"] = torch.zeros(64, 64)
    found = average(tmp_path, states, weights=(1, 2, 3, 0))
    assert bits_of(found["constant"]) == bits_of(MASK)
    constant = torch.rand(100, dtype=torch.float64)
    others = series(constant, 4)
    others[0]["constant"] = constant.flip(0)
    paths = write_series(tmp_path / "two", others)
    both = tmp_path / "ema_{method}.safetensors"
    report = ema_cli.average(paths, method=["uniform", "manual"], weights=(0, 1, 2, 4), output=both)
    assert kept(report, 0) == []
    assert kept(report, 1) == ["constant"]
    assert load(tmp_path / "ema_manual.safetensors")["constant"].equal(constant)
    alone = ema_cli.average(paths, weights=(0, 1, 2, 4), output=tmp_path / "alone.safetensors")
    assert kept(alone) == ["constant"]


def outcome_of(
    paths: Sequence[Path], lane: str, *, threads: int, block_elements: int
) -> tuple[list[bytes], FoldOutcome]:
    """Fold in memory, cut up in a certain way."""
    with planned(make_options(paths, method=["ema", "uniform"], decay=0.7)) as plan:
        cut = replace(plan, buffers=replace(plan.buffers, threads=threads, block_elements=block_elements))
        sinks = [Memory(cut.data_bytes) for _ in cut.outputs]
        maker = partial(TorchLane, torch.device("cpu"), block_elements=block_elements, averages=2)
        found = fold(cut, sinks, maker if lane == "torch" else lane_maker("cpu", cut), measure_geometry=True)
    return [bytes(sink.data) for sink in sinks], found


def test_the_result_is_the_same_however_the_work_is_cut_up(tmp_path: Path) -> None:
    """Blocks, threads and lanes change neither the bytes nor the statistics, for constants of many blocks, too."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.rand(9000, dtype=torch.float64, generator=generator)
    states = [{**one, "wide": wide, "nearly": wide.clone()} for one in series(MASK, 4)]
    states[2]["nearly"][8999] += 1
    paths = write_series(tmp_path, states)
    whole = outcome_of(paths, "cpu", threads=1, block_elements=1 << 16)
    (_, ema), found = (whole[0][0], whole[0][1]), whole[1]
    assert [statistics.kept for statistics in found.statistics[0]].count(True) == 2
    assert len(ema) == len(whole[0][0])
    for lane in ("cpu", "torch"):
        for threads, block_elements in ((1, 1024), (3, 2048), (2, 5120)):
            assert outcome_of(paths, lane, threads=threads, block_elements=block_elements) == whole


def test_a_resumed_run_keeps_the_same(tmp_path: Path) -> None:
    """What an interrupted run kept is in its journal, and the finished output is that of a run in one go."""
    paths = write_series(tmp_path, series(torch.rand(3000, dtype=torch.float64)))
    options = {"decay": [0.7], "output": tmp_path / "ema.safetensors"}

    class Stopped(BaseException):
        """Used in place of a signal."""

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "folding" and event.done_bytes == event.total_bytes:
            raise Stopped

    with pytest.raises(Stopped):
        run_average(make_options(paths, resume=True, **options), stop)
    report = run_average(make_options(paths, resume=True, **options)).report
    assert report.summary.resumed_tensors == 2
    assert kept(report) == ["constant"]
    assert verify(tmp_path / "ema.safetensors").ok


@pytest.mark.parametrize("dtype", ["same", "bfloat16"])
def test_a_continued_average_keeps_its_constants(tmp_path: Path, dtype: OutputDtype) -> None:
    """The previous average holds the constant, too; if it is stored in another type, the same numbers count."""
    paths = write_series(tmp_path, series(MASK, 4))
    previous = tmp_path / "previous.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=previous, dtype=dtype)
    report = ema_cli.average(
        paths[2:], decay=0.5, output=tmp_path / "ema.safetensors", continue_from=previous, dtype=dtype
    )
    found = load(tmp_path / "ema.safetensors")["constant"]
    assert found.double().equal(MASK.double())
    assert kept(report) == ["constant"]
    assert verify(tmp_path / "ema.safetensors").ok


def test_verify_finds_a_constant_that_was_changed(tmp_path: Path) -> None:
    """A kept tensor is recomputed as what its inputs hold."""
    average(tmp_path, series(torch.rand(40, dtype=torch.float64), 6), decay=0.7)
    output = tmp_path / "ema.safetensors"
    data = bytearray(output.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    output.write_bytes(data)
    failures = {check.name: check.message for check in verify(output).failures}
    assert '"constant" at (0,) is' in failures["samples"]


def test_verify_reports_a_constant_that_is_none(tmp_path: Path) -> None:
    """A report that calls a tensor kept does not make it so: where its inputs differ, the sum is expected."""
    average(tmp_path, series(torch.rand(40, dtype=torch.float64), 6), decay=0.7)
    report = report_path(tmp_path / "ema.safetensors")
    document = json.loads(report.read_text())
    for tensor in document["averages"][0]["tensors"]:
        tensor["kept"] = tensor["name"] == "w"
    report.write_text(json.dumps(document))
    failures = {check.name: check.message for check in verify(tmp_path / "ema.safetensors").failures}
    assert "1 of 2 pieces differ" in failures["samples"]
    assert '"constant"' in failures["samples"]


def test_allow_nonfinite_warns_of_what_changes_alone(tmp_path: Path) -> None:
    """A mask is no reason to warn; infinity in weights that change is."""
    states = series(from_bits(PAYLOADS, torch.float32))
    states[1]["w"][7] = math.inf
    report = ema_cli.average(
        write_series(tmp_path, states), decay=0.5, output=tmp_path / "ema.safetensors", allow_nonfinite=True
    )
    (warning,) = [warning for warning in report.warnings if warning.code == "nonfinite-written"]
    assert warning.message.endswith('in "w"')
    assert bits_of(load(tmp_path / "ema.safetensors")["constant"]) == PAYLOADS


def test_a_constant_too_large_for_the_output_is_refused(tmp_path: Path) -> None:
    """Also where the sum in float64 overflows, and only the constant itself is finite."""
    largest = torch.full((3,), torch.finfo(torch.float64).max, dtype=torch.float64)
    with pytest.raises(InputRefused, match=r'"constant": .* is too large for float32'):
        average(tmp_path, series(largest, 4), decay=0.99, dtype="float32")


@pytest.mark.parametrize("options", [{}, {"dtype": "float64"}])
def test_weights_that_change_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Only a tensor with equal checksums and another sum is read again: not an ordinary one, not a frozen float32."""
    monkeypatch.setattr(Constants, "includes", lambda *_: pytest.fail("a tensor was read again"))
    states = series(torch.rand(300), 4)
    if options:
        states = [{"w": one["w"]} for one in states]
    average(tmp_path, states, decay=0.7, **options)


def test_a_constant_in_another_order_of_elements(tmp_path: Path) -> None:
    """Tensors are compared by their elements, not by how a file stores them."""
    constant = torch.where(torch.rand(30, 20, generator=torch.Generator().manual_seed(2)) > 0.5, -math.inf, 0.25)
    paths = [tmp_path / f"ckpt_{n}.pt" for n in (1, 2)]
    save_zip({"constant": constant, "w": torch.zeros(2)}, paths[0])
    save_zip({"constant": constant.t().contiguous().t(), "w": torch.ones(2)}, paths[1])
    ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    assert load(tmp_path / "ema.safetensors")["constant"].equal(constant)
