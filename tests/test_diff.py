"""Comparing two checkpoints: the numbers are those of torch, and equal means the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ema_cli.compare import Comparison, Distance, compare
from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.events import Event, Progress
from ema_cli.options.average import Options
from tests.helpers.makers import DTYPES, every_kind, fifo, random_tensor
from tests.helpers.program import Run
from tests.helpers.series import FORMATS, State, open_files, random_states, to_numpy

BLOCK = 1 << 16
"""Elements that are compared at once."""


def found(a: Path, b: Path, **options: Any) -> Comparison:
    """Compare two files, and leave none open."""
    before = open_files()
    try:
        return compare(Options(paths=(str(a), str(b)), **options))
    finally:
        assert open_files() == before


def write(path: Path, state: State) -> Path:
    """Write a state in the format of the suffix."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def distance(folder: Path, a: torch.Tensor, b: torch.Tensor) -> Distance:
    """Return the distance of two tensors, each alone in a file."""
    (tensor,) = found(write(folder / "a.safetensors", {"w": a}), write(folder / "b.safetensors", {"w": b})).tensors
    return tensor.distance


def by_torch(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float, float]:
    """Return max |a-b|, ||a-b|| / ||b|| and the cosine with torch, in float64."""
    x, y = (torch.from_numpy(to_numpy(tensor)).flatten() for tensor in (a, b))
    cosine = torch.dot(x, y) / (x.norm() * y.norm())
    return (x - y).abs().max().item(), ((x - y).norm() / y.norm()).item(), cosine.item()


def assert_distance(measured: Distance, a: torch.Tensor, b: torch.Tensor) -> None:
    """A distance is that of torch: the largest exactly, the others up to their summation."""
    largest, relative, cosine = by_torch(a, b)
    assert measured.max_abs == largest
    assert measured.relative_l2 == pytest.approx(relative, rel=1e-12)
    assert measured.cosine == pytest.approx(cosine, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("pair", [("zip", "legacy"), ("legacy", "safetensors"), ("safetensors", "zip")])
def test_the_numbers_are_those_of_torch(pair: tuple[str, str], tmp_path: Path) -> None:
    """Per tensor and in total, whatever the two formats."""
    paths, states = [], random_states(2)
    for form, state, name in zip(pair, states, "ab", strict=True):
        suffix, save = FORMATS[form]
        paths.append(tmp_path / f"{name}{suffix}")
        save(state, paths[-1])
    comparison = found(paths[0], paths[1])
    assert not comparison.equal
    for tensor in comparison.tensors:
        a, b = (state[tensor.name] for state in states)
        if a.numel():
            assert_distance(tensor.distance, a, b)
            assert tensor.distance.differing == (a != b).sum().item()
    whole = [torch.cat([value.flatten() for value in state.values()]) for state in states]
    assert_distance(comparison.total, whole[0], whole[1])


FLOATS = [d for d in DTYPES if (d.is_floating_point or d.is_complex) and d is not torch.float8_e8m0fnu]
"""All but the scales, which are no numbers to average."""


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """Random bits of every type, in tensors of several blocks; only finite numbers have a distance."""
    torch.manual_seed(0)
    a, b = (torch.randn(BLOCK + 77).to(dtype) for _ in range(2))
    assert_distance(distance(tmp_path, a, b), a, b)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if not (dtype.is_floating_point or dtype.is_complex)])
def test_integers_are_compared_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """Differences up to 2^64 - 1 are exact; integers have no norms."""
    torch.manual_seed(0)
    a, b = random_tensor(dtype, 500), random_tensor(dtype, 500)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    measured = distance(tmp_path, a, b)
    assert measured.max_abs == max(abs(int(x) - int(y)) for x, y in pairs)
    assert measured.differing == sum(x != y for x, y in pairs)
    assert (measured.relative_l2, measured.cosine) == (None, None)


def test_the_widest_integers(tmp_path: Path) -> None:
    """Neither the span of int64 nor a mixture with uint64 overflows."""
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    top = torch.tensor([2**64 - 1, 5], dtype=torch.uint64)
    bottom = torch.tensor([low, 5], dtype=torch.int64)
    assert distance(tmp_path, torch.tensor([low]), torch.tensor([high])).max_abs == 2**64 - 1
    mixed = distance(tmp_path, top, bottom)
    assert (mixed.max_abs, mixed.differing) == (2**64 - 1 - low, 1)


@given(
    st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=20),
)
def test_undefined_numbers_are_none(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[float, float]]) -> None:
    """For any numbers, every result is finite or ``None``, and equal bits have distance 0."""
    a, b = (torch.tensor([pair[side] for pair in pairs], dtype=torch.float32) for side in (0, 1))
    measured = distance(tmp_path_factory.getbasetemp(), a, b)
    differing = int((a.view(torch.int32) != b.view(torch.int32)).sum())
    assert measured.differing == differing
    for number in (measured.max_abs, measured.relative_l2, measured.cosine):
        assert number is None or math.isfinite(number)
    expected = (a.double() - b.double())[a.view(torch.int32) != b.view(torch.int32)].abs()
    if differing and expected.isfinite().all():
        assert measured.max_abs == expected.max().item()
    assert (measured.max_abs is None) == (not expected.isfinite().all().item())
    assert measured.cosine is None or -1 <= measured.cosine <= 1


def test_equal_means_the_same_bits(tmp_path: Path) -> None:
    """NaN equals NaN of the same bits, -0.0 is not 0.0, and another NaN is another number."""
    nan, infinity = float("nan"), float("inf")
    special = torch.tensor([nan, infinity, -0.0, 1.0])
    same = distance(tmp_path, special, special)
    assert (same.differing, same.max_abs, same.relative_l2, same.cosine) == (0, 0, None, None)
    moved = distance(tmp_path, special, torch.tensor([nan, infinity, -0.0, 3.5]))
    assert (moved.differing, moved.max_abs, moved.relative_l2, moved.cosine) == (1, 2.5, None, None)
    zero = distance(tmp_path, torch.tensor([0.0, 3.0]), torch.tensor([-0.0, 3.0]))
    assert (zero.differing, zero.max_abs, zero.relative_l2, zero.cosine) == (1, 0, 0, 1)
    quiet, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    assert distance(tmp_path, quiet, quiet).differing == 0
    assert distance(tmp_path, quiet, other).differing == 1


def test_every_layout_equals_itself_in_another_format(tmp_path: Path) -> None:
    """Views, transposed and tied tensors of every type are equal to the same tensors in safetensors."""
    state = {name: value.detach().as_subclass(torch.Tensor) for name, value in every_kind().items()}
    a, b = write(tmp_path / "a.pt", state), write(tmp_path / "b.safetensors", state)
    comparison = found(a, b)
    assert comparison.equal
    assert len(comparison.tensors) == len(state)
    assert comparison.different == ()


@pytest.mark.parametrize("name", sorted(name for name, value in every_kind().items() if value.numel()))
def test_one_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    """In a tensor of any type and layout the last byte is changed, and it alone is different."""
    state = {key: value.detach().as_subclass(torch.Tensor).contiguous().clone() for key, value in every_kind().items()}
    a = write(tmp_path / "a.pt", every_kind())
    state[name].flatten().view(torch.uint8).numpy()[-1] ^= 1
    comparison = found(a, write(tmp_path / "b.safetensors", state))
    assert [(tensor.name, tensor.distance.differing) for tensor in comparison.different] == [(name, 1)]


def test_another_type_is_different_and_measured(tmp_path: Path) -> None:
    """A rounded copy is not equal, and its distance is the rounding; whole numbers in floats are not compared."""
    a = torch.randn(100, generator=torch.Generator().manual_seed(0))
    b = a.bfloat16()
    assert_distance(distance(tmp_path, a, b), a, b)
    exact = torch.tensor([1.0, 2.0])
    comparison = found(
        write(tmp_path / "a.pt", {"w": exact, "n": torch.tensor([1]), "i": torch.tensor([1])}),
        write(tmp_path / "b.pt", {"w": exact.half(), "n": torch.tensor([1.0]), "i": torch.tensor([1]).int()}),
    )
    results = {tensor.name: (tensor.equal, tensor.distance.differing) for tensor in comparison.tensors}
    assert results == {"w": (False, 0), "n": (False, None), "i": (False, 0)}


def test_the_total_is_about_floats(tmp_path: Path) -> None:
    """A counter does not hide a small distance of the weights; its elements are counted with the others."""
    a = write(tmp_path / "a.pt", {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([7_000])})
    b = write(tmp_path / "b.pt", {"w": torch.tensor([1.5, 2.0]), "n": torch.tensor([8_000])})
    total = found(a, b).total
    assert (total.differing, total.max_abs) == (2, 0.5)
    assert total.relative_l2 == pytest.approx(0.5 / 2.5)


def test_names_and_shapes_that_differ(tmp_path: Path) -> None:
    """A tensor that only one side has is named; a tensor of another shape is not measured."""
    a = write(tmp_path / "a.pt", {"w": torch.zeros(2, 3), "x": torch.zeros(1), "same": torch.ones(1)})
    b = write(tmp_path / "b.pt", {"w": torch.zeros(3, 2), "y": torch.zeros(1), "same": torch.ones(1)})
    comparison = found(a, b)
    assert (comparison.only_in_a, comparison.only_in_b) == (("x",), ("y",))
    assert {tensor.name: tensor.distance.differing for tensor in comparison.tensors} == {"w": None, "same": 0}
    assert [tensor.name for tensor in comparison.different] == ["w"]
    assert found(a, b, include=("same",)).equal
    assert found(a, b, exclude=("^[wxy]$",)).equal
    assert found(a, b, include=("x", "same")).only_in_a == ("x",)
    assert not found(a, b, include=("x",)).equal
    with pytest.raises(UsageError, match="select no tensor"):
        found(a, b, include=("nothing",))


def test_a_key_is_for_the_nested_side(tmp_path: Path) -> None:
    """It finds the weights of a nested checkpoint compared with a flat file, and is refused when both are flat."""
    state = {"w": torch.ones(3)}
    nested, flat = tmp_path / "nested.pt", write(tmp_path / "flat.safetensors", state)
    torch.save({"model": {"w": torch.zeros(3)}, "ema": state}, nested)
    assert not found(nested, flat).equal
    assert found(nested, flat, key=("ema",)).equal
    assert found(flat, nested, key=("ema",)).equal
    with pytest.raises(InputRefused, match="--key does not apply"):
        found(flat, flat, key=("ema",))
    with pytest.raises(UsageError, match="--key"):
        found(nested, flat, key=("nothing",))


def test_a_prefix_is_taken_off_where_it_is(tmp_path: Path) -> None:
    """Wrappers' prefixes are removed automatically, and another one on request; one that no name has is an error."""
    plain = write(tmp_path / "plain.safetensors", {"w": torch.ones(3)})
    wrapped = write(tmp_path / "wrapped.pt", {"module.w": torch.ones(3)})
    lightning = write(tmp_path / "lightning.pt", {"net.w": torch.ones(3)})
    assert found(plain, wrapped).equal
    assert not found(plain, wrapped, strip_prefix="").equal
    assert not found(plain, lightning).equal
    assert found(plain, lightning, strip_prefix="net.").equal
    assert found(lightning, plain, strip_prefix="net.").equal
    with pytest.raises(UsageError, match="--strip-prefix"):
        found(plain, plain, strip_prefix="net.")


def test_missing_and_strange_files_are_refused(tmp_path: Path) -> None:
    """Each is an error of its kind, and none makes the program wait."""
    good = write(tmp_path / "good.pt", {"w": torch.ones(3)})
    with pytest.raises(NothingMatched):
        found(good, tmp_path / "missing.pt")
    with pytest.raises(NothingMatched):
        found(good, tmp_path / "missing.pt", key=("a",))
    for path in (fifo(tmp_path / "fifo.pt"), Path("/dev/zero")):
        with pytest.raises(InputRefused, match="not a regular file"):
            found(path, good)
    with pytest.raises(InputRefused, match=r'is a folder, but not a checkpoint: it contains "fifo.pt", "good.pt"'):
        found(tmp_path, good)
    with pytest.raises(UsageError, match="two checkpoints"):
        compare(Options(paths=(str(good),)))


def test_progress_comes_to_the_announced_end(tmp_path: Path) -> None:
    """The bytes add up to both files' tensors, except those that cannot be compared."""
    a = write(tmp_path / "a.pt", {"w": torch.zeros(3 * BLOCK), "x": torch.zeros(5)})
    b = write(tmp_path / "b.pt", {"w": torch.zeros(3 * BLOCK).bfloat16(), "x": torch.zeros(6)})
    events: list[Event] = []
    compare(Options(paths=(str(a), str(b))), events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done_bytes for event in progress] == [BLOCK * 6, BLOCK * 12, BLOCK * 18]
    assert {event.total_bytes for event in progress} == {BLOCK * 18}


def test_the_command_line(tmp_path: Path, ema_avg: Run) -> None:
    """Equal is exit 0, different exit 1; stdout has the table of the tensors that differ, and ends with the result."""
    states = random_states(2)
    write(tmp_path / "a.pt", states[0])
    write(tmp_path / "b.safetensors", {**states[1], "new": torch.zeros(1)})
    same = ema_avg("diff", "a.pt", "a.pt")
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout.splitlines()[-1] == "equal  a.pt  a.pt  4 tensors"
    done = ema_avg("diff", "a.pt", "b.safetensors")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1].startswith("different: 3 of 4 common tensors, 1 only in b; max |a-b| ")
    assert 'only in b: 1 tensor: "new"' in done.stdout
    assert "1,073 of 1,073" in next(line for line in done.stdout.splitlines() if "layer.weight" in line)
    assert "empty" not in done.stdout
    assert "empty" in ema_avg("diff", "a.pt", "b.safetensors", "-v").stdout
    quiet = ema_avg("diff", "a.pt", "b.safetensors", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")


def test_the_json_document(tmp_path: Path, ema_avg: Run) -> None:
    """One document with every tensor, in which undefined numbers are null; an error is a document too."""
    write(tmp_path / "a.pt", {"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor([2**62])})
    write(tmp_path / "b.pt", {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([-(2**62) - 1])})
    done = ema_avg("diff", "a.pt", "b.pt", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (document["schema_version"], document["equal"]) == ("1.6", False)
    by_name = {tensor["name"]: tensor for tensor in document["tensors"]}
    assert by_name["w"]["max_abs"] is None
    assert by_name["w"]["differing"] == 1
    assert by_name["n"]["max_abs"] == 2**63 + 1
    assert json.loads(ema_avg("diff", "a.pt", "a.pt", "--json").stdout)["equal"] is True
    failed = ema_avg("diff", "a.pt", "missing.pt", "--json")
    assert failed.returncode == 7
    assert json.loads(failed.stdout)["error"]["exit_code"] == 7


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["a.pt"], 2),
        (["a.pt", "a.pt", "a.pt"], 2),
        (["a.pt", "a.pt", "--include", "("], 2),
        (["a.pt", "missing.pt"], 7),
        (["a.pt", "text.pt"], 3),
        (["a.pt", "."], 3),
    ],
)
def test_failures_have_their_exit_codes(arguments: list[str], code: int, tmp_path: Path, ema_avg: Run) -> None:
    """A user's or a file's fault has its own exit code, and never counts as a difference."""
    write(tmp_path / "a.pt", {"w": torch.ones(3)})
    (tmp_path / "text.pt").write_text("this is a note, not a checkpoint")
    done = ema_avg("diff", *arguments)
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_is_cut_and_cannot_be_forged(tmp_path: Path, ema_avg: Run) -> None:
    """The 20 most different tensors are shown; names from a file are made safe."""
    names = [f"t{number:02}" for number in range(29)] + ["x\x1b[31m[red]\ny"]
    write(tmp_path / "a.safetensors", {name: torch.tensor([1.0 + n]) for n, name in enumerate(names)})
    write(tmp_path / "b.safetensors", {name: torch.ones(1) for name in names})
    short = ema_avg("diff", "a.safetensors", "b.safetensors").stdout
    assert "and 9 more (-v shows them)" in short
    assert "t28" in short
    assert "t09" not in short
    assert "\x1b" not in short
    assert "t09" in ema_avg("diff", "a.safetensors", "b.safetensors", "-v").stdout


@pytest.mark.parametrize("exponent", [-300, -165, -162, -161, 160, 300])
def test_numbers_with_squares_beyond_float64_are_undefined(exponent: int, tmp_path: Path, ema_avg: Run) -> None:
    """If tensors differ, never a distance of zero or a cosine of one: null instead, and the exit code is 1."""
    for name, values in (("a", (2.0, 3.0)), ("b", (1.5, 3.0))):
        write(tmp_path / f"{name}.pt", {"w": torch.tensor(values, dtype=torch.float64) * 10.0**exponent})
    done = ema_avg("diff", "a.pt", "b.pt", "--json")
    (tensor,) = json.loads(done.stdout)["tensors"]
    assert done.returncode == 1
    assert (tensor["relative_l2"], tensor["cosine"]) == (None, None)
    assert tensor["max_abs"] == pytest.approx(0.5 * 10.0**exponent)
