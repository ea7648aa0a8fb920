"""The fold from files to file: exact sums, rounded once, the same bytes however the work is cut up."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ema_cli
from ema_cli.errors import InputRefused
from ema_cli.fold.devices import lane_maker
from ema_cli.fold.engine import fold
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.plan import Action, Plan
from ema_cli.weights.methods import Decay
from ema_cli.weights.schedules import ema
from tests.helpers.exact import DTYPES, FORM_OF, FORMATS, Format, ema_shares, rounded
from tests.helpers.outputs import Memory
from tests.helpers.series import (
    FORMATS as FILE_FORMATS,
)
from tests.helpers.series import (
    State,
    data_section,
    load,
    random_states,
    reference_average,
    same_bits,
    to_numpy,
    write_series,
)

FLOAT8 = [dtype for dtype in DTYPES if dtype.itemsize == 1]


def fold_in_memory(plan: Plan, *, threads: int, block_elements: int) -> list[bytes]:
    """Fold a plan cut up in a certain way; return the data sections."""
    cut = replace(plan, buffers=replace(plan.buffers, threads=threads, block_elements=block_elements))
    sinks = [Memory(plan.data_bytes) for _ in plan.outputs]
    fold(cut, sinks, lane_maker("cpu", cut))
    assert all(sink.filled == plan.data_bytes for sink in sinks)
    return [bytes(sink.data) for sink in sinks]


def round_all(values: NDArray[np.float64], form: Format) -> list[float]:
    """Round every number with the exact reference."""
    return [rounded(float(value), form) for value in values.ravel()]


def numbers(tensor: torch.Tensor) -> list[float]:
    """Return the numbers of a tensor in a flat list."""
    flat: list[float] = to_numpy(tensor).ravel().tolist()
    return flat


def average(folder: Path, states: list[State], *, form: str = "zip", **options: Any) -> State:
    """Write a series, average it through the public function, and read the result."""
    paths = write_series(folder, states, form=form)
    output = folder / "ema.safetensors"
    ema_cli.average(paths, output=output, **options)
    return load(output)


@pytest.mark.parametrize("form", sorted(FILE_FORMATS))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.filterwarnings("ignore:.*float8")
def test_the_average_is_the_reference_fold(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    """For every element type and file format: float64 products and sums in order, rounded once, correctly."""
    states = random_states(4, dtype)
    result = average(tmp_path, states, form=form, decay=0.7)
    assert set(result) == set(states[0])
    for name, tensor in result.items():
        expected = reference_average([state[name] for state in states], ema(4, Decay.of(0.7)))
        assert tensor.dtype is dtype
        assert tensor.shape == states[0][name].shape
        if dtype is torch.float64:
            assert same_bits(tensor, torch.from_numpy(expected))
        else:
            assert numbers(tensor) == round_all(expected, FORMATS[FORM_OF.get(dtype, "F32")])


@pytest.mark.slow
@given(
    decay=st.floats(0, 1, exclude_max=True),
    columns=st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)),
)
@settings(max_examples=60, deadline=None)
def test_float32_is_the_exact_average_correctly_rounded(
    tmp_path_factory: pytest.TempPathFactory, decay: float, columns: list[list[float]]
) -> None:
    """Against the recurrence in fractions: within one unit in the last place, and inside the range of the inputs."""
    tensors = [torch.tensor([column[i] for column in columns], dtype=torch.float32) for i in range(3)]
    result = average(tmp_path_factory.mktemp("run"), [{"w": tensor} for tensor in tensors], decay=decay, threads=1)
    for value, column in zip(numbers(result["w"]), columns, strict=True):
        terms = [share * Fraction(x) for share, x in zip(ema_shares(3, decay), column, strict=True)]
        error = 6 * Fraction(2) ** -52 * sum(abs(term) for term in terms)  # the most that six float64 roundings can add
        least, most = (rounded(sum(terms) + sign * error, FORMATS["F32"]) for sign in (-1, 1))
        assert least <= value <= most
        assert min(column) <= value <= max(column)


def test_nearly_every_element_is_correctly_rounded_from_the_exact_average(tmp_path: Path) -> None:
    """The float64 sums lose nothing that float32 could show: all of 2,000 elements are the exact ones, rounded."""
    states = [{"w": torch.randn(2000, generator=torch.Generator().manual_seed(i))} for i in range(8)]
    result = average(tmp_path, states, decay=0.9)["w"]
    shares = ema_shares(8, 0.9)
    columns = zip(*(numbers(state["w"]) for state in states), strict=True)
    exact = [sum(s * Fraction(x) for s, x in zip(shares, column, strict=True)) for column in columns]
    assert numbers(result) == [rounded(Fraction(value), FORMATS["F32"]) for value in exact]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
def test_bytes_do_not_depend_on_how_the_work_is_cut(dtype: torch.dtype, tmp_path: Path) -> None:
    """Any block size and any number of threads give the same data section."""
    paths = write_series(tmp_path, random_states(3, dtype))
    options = make_options(paths, decay=[0.3, 0.99], output=tmp_path / "ema_{decay}.safetensors")
    with planned(options) as plan:
        reference = fold_in_memory(plan, threads=1, block_elements=1 << 20)
        for threads, block_elements in [(1, 2), (3, 7), (2, 64), (8, 1000)]:
            assert fold_in_memory(plan, threads=threads, block_elements=block_elements) == reference


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4),
    block_elements=st.integers(2, 40),
    threads=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_any_shapes_in_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], block_elements: int, threads: int
) -> None:
    """Every element of every tensor is written once, whatever the shapes and the blocks."""
    folder = tmp_path_factory.mktemp("run")
    states = [{f"t{k}": torch.randn(shape) for k, shape in enumerate(shapes)} for _ in range(2)]
    for state in states:
        state |= {f"n{k}": torch.randint(-999, 999, shape, dtype=torch.int32) for k, shape in enumerate(shapes)}
    with planned(make_options(write_series(folder, states), decay=0.5)) as plan:
        (data,) = fold_in_memory(plan, threads=threads, block_elements=block_elements)
        for tensor in plan.tensors:
            if tensor.action is Action.COPIED:
                copied = np.frombuffer(data, np.int32, tensor.elements, tensor.offset)
                assert copied.tolist() == states[-1][tensor.name].flatten().tolist()
                continue
            found = np.frombuffer(data, np.float32, tensor.elements, tensor.offset)
            expected = reference_average([state[tensor.name] for state in states], (0.5, 0.5)).astype(np.float32)
            assert found.tolist() == expected.ravel().tolist()


def test_the_data_does_not_depend_on_the_format_of_the_inputs(tmp_path: Path) -> None:
    """The same weights from zip, legacy and safetensors files give the same data section."""
    states = random_states(3, torch.bfloat16)
    for form in FILE_FORMATS:
        average(tmp_path / form, states, form=form, decay=0.9)
    sections = {data_section(tmp_path / form / "ema.safetensors") for form in FILE_FORMATS}
    assert len(sections) == 1


def test_strided_inputs_are_read_in_order(tmp_path: Path) -> None:
    """Transposed, sliced and expanded tensors give the same average as their contiguous copies."""
    base = [torch.randn(40, 30, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    views = [{"t": b.t(), "s": b[::2, 1::3], "e": b[0].expand(5, 30), "l": b[3:7]} for b in base]
    copies = [{name: view.contiguous() for name, view in state.items()} for state in views]
    expected = average(tmp_path / "copies", copies, decay=0.6)
    found = average(tmp_path / "views", views, decay=0.6)
    assert all(same_bits(found[name], expected[name]) for name in expected)


def test_it_matches_the_framework_ema(tmp_path: Path) -> None:
    """The AveragedModel of torch with its EMA function, given the same checkpoints, agrees to float32 precision."""
    model = torch.nn.Linear(8, 4)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    states = []
    for seed in range(6):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.weight)
        reference.update_parameters(model)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    result = average(tmp_path, states, decay=0.8)
    for name, value in reference.module.state_dict().items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6)


def test_uniform_matches_the_framework_average(tmp_path: Path) -> None:
    """The AveragedModel of torch with its defaults is the equal-weights average: SWA."""
    model = torch.nn.Linear(8, 4)
    reference = AveragedModel(model)
    states = []
    for seed in range(5):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.weight)
        reference.update_parameters(model)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    result = average(tmp_path, states, method="uniform")
    for name, value in reference.module.state_dict().items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FORM_OF, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("options", [{"decay": 0.9}, {"method": "uniform"}, {"decay": 0.95, "init": "debias"}])
def test_every_element_is_between_its_inputs(dtype: torch.dtype, options: dict[str, Any], tmp_path: Path) -> None:
    """With weights that sum to one, no average of float32 or narrower leaves the range of its inputs."""
    states = random_states(7, dtype, seed=3)
    states.append(states[0])
    for name, tensor in average(tmp_path, states, **options).items():
        stacked = np.stack([to_numpy(state[name]) for state in states])
        assert (stacked.min(axis=0) <= to_numpy(tensor)).all()
        assert (to_numpy(tensor) <= stacked.max(axis=0)).all()


@pytest.mark.parametrize("dtype", FORM_OF, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_equal_checkpoints_average_to_themselves(dtype: torch.dtype, tmp_path: Path) -> None:
    """An average of equal checkpoints has their bytes, whatever the weights; the drift is rounding of float64."""
    (state,) = random_states(1, dtype)
    result = average(tmp_path, [state] * 9, decay=0.9173)
    assert all(same_bits(result[name], state[name]) for name in state)


def test_decay_zero_is_the_last_checkpoint_byte_for_byte(tmp_path: Path) -> None:
    """With d = 0 nothing but the last is read: the sign of a zero survives, and NaNs before it do not matter."""
    last = {"w": torch.tensor([-0.0, 0.0, 5e-45, -3.5])}
    paths = write_series(tmp_path, [{"w": torch.full((4,), math.nan)}, last])
    report = ema_cli.average(paths, decay=0, output=tmp_path / "ema.safetensors")
    assert same_bits(load(tmp_path / "ema.safetensors")["w"], last["w"])
    assert report.summary.bytes_read == 16


def test_a_checkpoint_without_a_share_is_not_added_as_zero(tmp_path: Path) -> None:
    """Adding 0 x theta would turn -0.0 into 0.0: a checkpoint without a share is not added, in any of the averages."""
    states = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([-0.0])}]
    paths = write_series(tmp_path, states)
    ema_cli.average(paths, decay=[0.0, 0.5], output=tmp_path / "ema_{decay}.safetensors")
    assert same_bits(load(tmp_path / "ema_0.safetensors")["w"], states[1]["w"])
    assert load(tmp_path / "ema_0.5.safetensors")["w"].item() == 0.5


def test_several_averages_of_one_read_equal_single_runs(tmp_path: Path) -> None:
    """Each of several decays gives the very file that it gives alone."""
    paths = write_series(tmp_path, random_states(5, torch.float16))
    decays = [0.1, 0.9, 0.999]
    report = ema_cli.average(paths, decay=decays, output=tmp_path / "many_{decay}.safetensors")
    assert [found.method.decay for found in report.averages] == decays
    for decay in decays:
        ema_cli.average(paths, decay=decay, output=tmp_path / f"one_{decay}.safetensors")
        many, one = (tmp_path / f"{name}_{decay}.safetensors" for name in ("many", "one"))
        assert many.read_bytes() == one.read_bytes()


def test_half_life_and_debias(tmp_path: Path) -> None:
    """A half-life sets the same decay, and ``init`` reaches the weights."""
    states = random_states(4, torch.float64)
    result = average(tmp_path, states, half_life=2, init="debias")
    expected = reference_average([state["scale"] for state in states], ema(4, Decay.of(2**-0.5), "debias"))
    assert numbers(result["scale"]) == expected.ravel().tolist()


def test_integers_and_bools_are_copied_from_the_last(tmp_path: Path) -> None:
    """A mean of counters, indices or masks is meaningless."""
    integers = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.bool]
    states = [
        {"w": torch.tensor([float(i)])}
        | {str(dtype).removeprefix("torch."): torch.tensor([i % 2, 1, 0]).to(dtype) for dtype in integers}
        for i in range(4)
    ]
    result = average(tmp_path, states, decay=0.5)
    assert all(same_bits(result[name], value) for name, value in states[-1].items() if name != "w")


@pytest.mark.parametrize(("policy", "expected"), [("average", 2.25), ("last", 3.0), ("first", 1.0)])
def test_buffers_follow_the_policy(policy: str, expected: float, tmp_path: Path) -> None:
    """BatchNorm statistics are averaged, or taken whole from the last or the first checkpoint."""
    states = [
        {
            "bn.running_mean": torch.tensor([value]),
            "bn.num_batches_tracked": torch.tensor(int(value)),
            "bn.weight": torch.tensor([value]),
        }
        for value in (1.0, 2.0, 3.0)
    ]
    result = average(tmp_path, states, decay=0.5, buffers=policy)
    assert result["bn.running_mean"].item() == expected
    assert result["bn.num_batches_tracked"].item() == 3
    assert result["bn.weight"].item() == 2.25


def test_buffers_of_the_first_checkpoint_keep_their_own_type(tmp_path: Path) -> None:
    """When the first checkpoint has another precision, its statistics are copied in it, not reinterpreted."""
    first = {"bn.running_var": torch.tensor([1.0, 2.0, 3.0]), "w": torch.ones(2)}
    last = {"bn.running_var": torch.tensor([9.0, 9.0, 9.0]).bfloat16(), "w": torch.ones(2).bfloat16()}
    result = average(tmp_path, [first, last], decay=0.5, buffers="first")
    assert same_bits(result["bn.running_var"], first["bn.running_var"])
    assert result["w"].dtype is torch.bfloat16


def test_mixed_types_are_folded_exactly_as_they_are(tmp_path: Path) -> None:
    """Each checkpoint is upcast from its own type; the output has the type of the last."""
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.float32]
    states = [{"w": torch.randn(500, dtype=torch.float64).to(dtype)} for dtype in dtypes]
    result = average(tmp_path, states, decay=0.6)["w"]
    assert result.dtype is torch.float32
    expected = reference_average([state["w"] for state in states], ema(4, Decay.of(0.6)))
    assert numbers(result) == round_all(expected, FORMATS["F32"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtype_sets_the_type_of_averaged_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    """``--dtype`` rounds the float64 sums to another type; integers, complex numbers and copies keep theirs."""
    states = [
        {"w": torch.randn(50), "c": torch.randn(3, dtype=torch.complex64), "n": torch.tensor(i)} for i in range(3)
    ]
    result = average(tmp_path, states, decay=0.5, dtype=str(dtype).removeprefix("torch."))
    expected = reference_average([state["w"] for state in states], ema(3, Decay.of(0.5)))
    assert result["w"].dtype is dtype
    exact = expected.tolist() if dtype is torch.float64 else round_all(expected, FORMATS[FORM_OF[dtype]])
    assert numbers(result["w"]) == exact
    assert result["c"].dtype is torch.complex64
    assert result["n"].dtype is torch.int64


@pytest.mark.parametrize(
    ("source", "dtype", "hint"),
    [
        (torch.float32, "float16", 'dtype="float32", or dtype="bfloat16"'),
        (torch.float64, "float16", 'dtype="float32", or dtype="bfloat16"'),
        (torch.float64, "float32", 'dtype="float64"'),
    ],
    ids=str,
)
def test_an_overflow_of_the_output_type_is_an_error(source: torch.dtype, dtype: str, hint: str, tmp_path: Path) -> None:
    """A finite average never becomes infinite; the error names the tensor, the number, the limit and a wider type."""
    value = 7e4 if source is torch.float32 or hint.startswith('dtype="float32"') else 1e39
    states = [{"fine": torch.ones(2, dtype=source), "big": torch.tensor([1.0, value], dtype=source)}] * 2
    with pytest.raises(InputRefused, match=f'tensor "big": .* is too large for {dtype} .largest number') as refused:
        average(tmp_path, states, decay=0.5, dtype=dtype)
    assert refused.value.hint.startswith(hint)
    assert not (tmp_path / "ema.safetensors").exists()


def test_the_largest_numbers_average_to_themselves(tmp_path: Path) -> None:
    """At the limit of a type nothing overflows by rounding of the sums."""
    states = [{name: torch.full((3,), torch.finfo(dtype).max, dtype=dtype) for dtype, name in FORM_OF.items()}] * 5
    result = average(tmp_path, states, decay=0.9)
    assert all(same_bits(result[name], states[0][name]) for name in result)


def test_a_float64_sum_that_overflows_is_refused(tmp_path: Path) -> None:
    """A weighted sum of finite float64 inputs that overflows is distinguished from non-finite inputs."""
    largest = torch.finfo(torch.float64).max
    states = [{"w": torch.tensor([largest, number], dtype=torch.float64)} for number in range(4)]
    with pytest.raises(InputRefused, match='tensor "w" is too large to be averaged in float64'):
        average(tmp_path, states, decay=0.99)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_number_that_is_not_finite_is_named(bad: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """The error names the tensor, the file and the index, and nothing is published."""
    states = [{"a": torch.ones(4, dtype=dtype), "layer.w": torch.ones((5, 7), dtype=dtype)} for _ in range(3)]
    states[1]["layer.w"][3, 2] = bad
    with pytest.raises(InputRefused) as refused:
        average(tmp_path, states, decay=0.5)
    assert 'tensor "layer.w"' in refused.value.message
    assert 'ckpt_200.pt"' in refused.value.message
    assert f"holds {bad} at index (3, 2)" in refused.value.message
    assert "allow_nonfinite=True" in refused.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt"]


def test_the_index_of_a_complex_number_that_is_not_finite(tmp_path: Path) -> None:
    """Complex numbers are folded as pairs, but counted as one in messages."""
    states = [{"c": torch.ones(6, dtype=torch.complex64)} for _ in range(2)]
    states[0]["c"][4] = torch.tensor(complex(0, math.nan))
    with pytest.raises(InputRefused, match=r"at index \(4,\)"):
        average(tmp_path, states, decay=0.5)


def test_nonfinite_numbers_can_be_folded(tmp_path: Path) -> None:
    """``allow_nonfinite`` folds them by the rules of IEEE 754; the statistics of such a tensor are undefined."""
    states = [{"w": torch.tensor([1.0, math.inf, math.nan, math.inf])}, {"w": torch.tensor([3.0, 1.0, 1.0, -math.inf])}]
    paths = write_series(tmp_path, states)
    report = ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors", allow_nonfinite=True)
    result = numbers(load(tmp_path / "ema.safetensors")["w"])
    assert result[:2] == [2.0, math.inf]
    assert math.isnan(result[2])
    assert math.isnan(result[3])
    (tensor,) = report.averages[0].tensors
    assert (tensor.norm, tensor.drift, tensor.cosine) == (None, None, None)


def test_the_gravest_failure_stops_all_workers(tmp_path: Path) -> None:
    """When one of several threads fails, the others stop and the run ends with that failure."""
    states = [{f"w{k}": torch.ones(100) for k in range(40)} for _ in range(2)]
    states[0]["w7"][0] = math.nan
    with pytest.raises(InputRefused, match='tensor "w7"'):
        average(tmp_path, states, decay=0.5, threads=4)


def test_progress_counts_every_byte_read(tmp_path: Path) -> None:
    """The bytes reported at the end are those in the plan and in the report."""
    paths = write_series(tmp_path, random_states(3))
    seen: list[int] = []
    with planned(make_options(paths, decay=0.5)) as plan:
        fold(plan, [Memory(plan.data_bytes)], lane_maker("cpu", plan), on_bytes=seen.append)
        assert seen[-1] == plan.read_bytes == 3 * 4 * (37 * 29 + 29 + 1)
        assert seen == sorted(seen)
