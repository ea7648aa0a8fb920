"""The compiled kernel gives the bits of numpy for every type, length, alignment and number, in every lane."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ema_cli.dtypes import BY_NAME
from ema_cli.fold import conversion, statistics
from ema_cli.fold.conversion import LARGEST, NUMPY_TYPES, Bytes, Float64, decode, round_to
from ema_cli.fold.kernel import CODES, READS_FILES, kernel
from ema_cli.fold.lanes import CompiledLane, Lane, NumpyLane
from ema_cli.fold.statistics import squares
from ema_cli.records.plan import ROW_ELEMENTS

pytestmark = pytest.mark.skipif(kernel is None, reason="the kernel was not built")

LANES = ("avx512", "avx2", "baseline")
NAMES = sorted(CODES.keys() - {"C64"})  # complex numbers are pairs of float32
LENGTHS = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 1023, 1024, 1025, 2048, 2049, 4097]))
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(params=LANES, autouse=True)
def lane(request: pytest.FixtureRequest) -> Iterator[str]:
    """Use the loops of one instruction set, if the processor has it."""
    assert kernel is not None
    fastest = kernel.lane()
    try:
        kernel.use(request.param)
    except ValueError:
        pytest.skip("the processor has not these instructions")
    with np.errstate(all="ignore"):
        yield request.param
    if fastest in LANES:
        kernel.use(fastest)


def codes(seed: int, count: int, name: str, misaligned: int = 0) -> Bytes:
    """Return elements with any bits, among them NaN, infinity and numbers below the normal ones, at any address."""
    itemsize = NUMPY_TYPES[name].itemsize
    drawn = np.random.default_rng(seed).integers(0, 256, count * itemsize + misaligned, dtype=np.uint8)
    return drawn[misaligned:]


def numbers(seed: int, count: int, name: str) -> Float64:
    """Return float64 of any bits, near the limits and midpoints of a type, and of ordinary size."""
    rng = np.random.default_rng(seed)
    any_bits = rng.integers(0, 2**64, count, dtype=np.uint64).view(np.float64)
    coded = np.empty(count)
    decode(codes(seed, count, name), BY_NAME[name], coded)
    near = np.where(rng.random(count) < 0.5, coded, (coded + np.roll(coded, 1)) / 2)
    near = np.nextafter(near, rng.choice([-np.inf, np.inf], count), where=rng.random(count) < 0.5, out=near.copy())
    ordinary = rng.standard_normal(count) * 10.0 ** rng.integers(-9, 9, count)
    return np.choose(rng.integers(0, 3, count), [any_bits, near, ordinary])


def same_bits(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Whether numbers have the same bits; all NaN are the same."""
    return bool(np.all((a.view(np.uint64) == b.view(np.uint64)) | (np.isnan(a) & np.isnan(b))))


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS, count=LENGTHS)
def test_rounding(name: str, seed: int, count: int) -> None:
    """Any float64 becomes the same code, and both say whether all fit."""
    values = numbers(seed, count, name)
    compiled = round_to(values, BY_NAME[name])
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(conversion, "kernel", None)
        plain = round_to(values, BY_NAME[name])
    assert compiled.raw.tobytes() == plain.raw.tobytes()
    assert compiled.fits == plain.fits == bool(np.all(np.abs(values) < LARGEST[name]))


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=SEEDS,
    count=LENGTHS,
    misaligned=st.integers(0, 7),
    weights=st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.1, -0.3, 1e-300]), min_size=3, max_size=3), min_size=1),
    averages=st.integers(1, 3),
)
def test_weighted_sums(
    *, name: str, seed: int, count: int, misaligned: int, weights: list[list[float]], averages: int
) -> None:
    """Any blocks with any weights, zero among them, have the same sums; unread sums of zero weights do not matter."""
    lanes = (kind(block_elements=max(count, 1), averages=averages) for kind in (CompiledLane, NumpyLane))
    weights = [row[:averages] for row in weights] + [[0.5] * averages]
    compiled, plain = (
        sums_of(lane, seed, count=count, misaligned=misaligned, weights=weights, name=name) for lane in lanes
    )
    for a, b in zip(compiled, plain, strict=True):
        assert same_bits(a, b)


def sums_of(
    lane: Lane, seed: int, *, count: int, misaligned: int, weights: list[list[float]], name: str
) -> list[Float64]:
    """Return the sums of blocks of random codes."""
    with np.errstate(all="ignore"):
        lane.start(count)
        for n, row in enumerate(weights):
            raw = codes(seed + n, count, name, misaligned)
            buffer = lane.buffer(len(raw))
            buffer[...] = raw
            lane.add(buffer, BY_NAME[name], row)
        return [total.copy() for total in lane.sums()]


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS, count=LENGTHS, misaligned=st.integers(0, 7))
def test_misaligned_blocks(name: str, seed: int, count: int, misaligned: int) -> None:
    """Blocks at any address have the sums of numpy."""
    assert kernel is not None
    raw = codes(seed, count, name, misaligned)
    values, expected = np.zeros(count), np.empty(count)
    kernel.fold(values, count, (raw,), (CODES[name],), np.array([0.3]), bytearray(1))
    decode(raw.copy(), BY_NAME[name], expected)
    with np.errstate(all="ignore"):
        assert same_bits(values, expected * 0.3)


@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS, count=LENGTHS)
def test_sums_of_squares(name: str, seed: int, count: int) -> None:
    """The sums of squares are the same, and close to those of numpy's own order."""
    rng = np.random.default_rng(seed)
    average = rng.standard_normal(count)
    raw = rng.standard_normal(count).astype(NUMPY_TYPES[name]).view(np.uint8)
    compiled = squares(average, raw, BY_NAME[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "kernel", None)
        assert squares(average, raw, BY_NAME[name]) == compiled
    assert compiled[0][0] == pytest.approx(float(np.sum(average**2)), rel=1e-14)


@pytest.mark.skipif(not READS_FILES, reason="the processor has no carry-less multiplication")
@pytest.mark.parametrize("name", NAMES)
@given(seed=SEEDS, count=LENGTHS, files=st.integers(1, 9), averages=st.integers(1, 3), misaligned=st.integers(0, 7))
def test_blocks_read_from_a_file(
    *,
    name: str,
    seed: int,
    count: int,
    files: int,
    averages: int,
    misaligned: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Reading gives the sums of blocks in memory, the CRC-32 of each block, and the elements that are picked."""
    assert kernel is not None
    blocks = [codes(seed + n, count, name) for n in range(files)]
    path = tmp_path_factory.getbasetemp() / "blocks"
    path.write_bytes(bytes(misaligned) + b"".join(block.tobytes() for block in blocks))
    weights = np.random.default_rng(seed).random((files, averages))
    picks = np.unique(np.random.default_rng(seed).integers(0, max(count, 1), min(count, 5)))
    rows, crcs = np.zeros((files, len(picks) + 2)), np.zeros(files, dtype=np.uint32)
    sums, started, slots = np.empty((averages, count + 1)), bytearray(averages), np.empty((2, count * 8 + 8), np.uint8)
    descriptor = os.open(path, os.O_RDONLY)
    places = np.array([(descriptor, misaligned + n * len(blocks[0]), CODES[name]) for n in range(files)])
    of_sums, of_slots = (sums, count), (slots, slots.shape[1])
    done = kernel.read(*of_sums, places, weights, started, *of_slots, crcs, picks, rows[:, 1:-1])
    os.close(descriptor)
    assert done == files
    assert crcs.tolist() == [zlib.crc32(block.data) for block in blocks]
    values = [np.empty(count) for _ in blocks]
    for block, out in zip(blocks, values, strict=True):
        decode(block, BY_NAME[name], out)
    assert same_bits(rows[:, 1:-1].copy(), np.array([out[picks] for out in values]))
    with np.errstate(all="ignore"):
        for k in range(averages):
            expected = values[0] * weights[0, k]
            for out, weight in zip(values[1:], weights[1:, k], strict=True):
                expected = expected + out * weight
            assert same_bits(sums[k, :count], expected)


@pytest.mark.skipif(not READS_FILES, reason="the processor has no carry-less multiplication")
@given(data=st.binary(max_size=700), start=st.integers(0, 40))
def test_crc32(data: bytes, start: int) -> None:
    """The CRC-32 is that of zlib, at any length and address."""
    assert kernel is not None
    assert kernel.crc32(memoryview(data)[start:]) == zlib.crc32(memoryview(data)[start:])


@pytest.mark.skipif(not READS_FILES, reason="the processor has no carry-less multiplication")
def test_a_file_that_ends_early(tmp_path: Path) -> None:
    """Blocks up to the first that is not whole are added, and their number is returned."""
    assert kernel is not None
    path = tmp_path / "short"
    path.write_bytes(np.arange(25, dtype=np.float32).tobytes())
    with path.open("rb") as file:
        places = np.array([(file.fileno(), 40 * n, CODES["F32"]) for n in range(4)])
        sums, crcs = np.zeros((1, 10)), np.zeros(4, dtype=np.uint32)
        slots, none = np.empty((1, 80), np.uint8), np.empty(0, dtype=np.int64)
        done = kernel.read(sums, 10, places, np.ones((4, 1)), bytearray(1), slots, 80, crcs, none, None)
    assert done == 2
    assert sums[0].tolist() == [float(2 * n + 10) for n in range(10)]


def test_buffers_that_do_not_fit_are_refused() -> None:
    """Wrong lengths, types and picks are errors, never reads or writes outside the buffers."""
    assert kernel is not None
    four, raw, none = np.zeros(4), np.zeros(16, np.uint8), np.empty(0, dtype=np.int64)
    calls: list[Callable[[], object]] = [
        lambda: kernel.fold(four, 5, (raw,), (1,), np.ones(1), bytearray(1)),
        lambda: kernel.fold(four, 3, (raw,), (1,), np.ones(1), bytearray(1)),
        lambda: kernel.fold(four, 4, (raw,), (99,), np.ones(1), bytearray(1)),
        lambda: kernel.fold(four, 4, (raw,), (1,), np.ones(2), bytearray(1)),
        lambda: kernel.fold(four, 4, (raw,) * 65, (1,) * 65, np.ones(65), bytearray(1)),
        lambda: kernel.fold(four, 4, (raw,), (1, 1), np.ones(1), bytearray(1)),
        lambda: kernel.fold(four, -1, (raw,), (1,), np.ones(1), bytearray(1)),
        lambda: kernel.squares(four, raw, 1, np.zeros((3, 2))),
        lambda: kernel.squares(four, raw[1:], 1, np.zeros((3, 1))),
        lambda: kernel.squares(four, raw, -1, np.zeros((3, 1))),
        lambda: kernel.round_to(four, 1, np.empty(15, np.uint8), 1.0),
        lambda: kernel.round_to(four, 8, np.empty(16, np.uint8), 1.0),
    ]
    if READS_FILES:
        place = np.array([[0, 0, 1]])
        ones, crcs, rows = np.ones(1), np.zeros(1, np.uint32), np.zeros((1, 1))
        read = kernel.read
        calls += [
            lambda: read(four, 5, place, ones, bytearray(1), raw, 16, crcs, none, None),
            lambda: read(four, 4, place, ones, bytearray(1), raw, 15, crcs, none, None),
            lambda: read(four, 4, place, ones, bytearray(1), raw, 17, crcs, none, None),
            lambda: read(four, 4, place, ones, bytearray(1), raw, 16, crcs[:0], none, None),
            lambda: read(four, 4, place, np.ones(2), bytearray(1), raw, 16, crcs, none, None),
            lambda: read(four, 4, place, ones, bytearray(1), raw, 16, crcs, np.array([4]), rows),
            lambda: read(four, 4, place, ones, bytearray(1), raw, 16, crcs, np.array([-1]), rows),
            lambda: read(four, 4, place, ones, bytearray(1), raw, 16, crcs, np.array([1, 2]), rows),
            lambda: read(four, 4, np.array([[0, 0, 8]]), ones, bytearray(1), raw, 16, crcs, none, None),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=r"."):
            call()
    with pytest.raises(ValueError, match="no such lane"):
        kernel.use("mmx")


def test_a_row_is_summed_in_columns() -> None:
    """The order of a sum is fixed: element i is added to column i % 16, then the columns in halves."""
    average = np.random.default_rng(0).standard_normal(ROW_ELEMENTS)
    columns = [0.0] * 16
    for i, value in enumerate(average.tolist()):
        columns[i % 16] += value * value
    while len(columns) > 1:
        half = len(columns) // 2
        columns = [a + b for a, b in zip(columns[:half], columns[half:], strict=True)]
    assert squares(average, average.view(np.uint8), BY_NAME["F64"])[0] == (columns[0], 0.0)
