"""The compiled kernel gives the bits of numpy for every type, length, alignment and number, in every lane."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ema_cli.dtypes import BY_NAME
from ema_cli.fold import conversion, statistics
from ema_cli.fold.conversion import LARGEST, NUMPY_TYPES, Bytes, Float64, decode, round_to
from ema_cli.fold.kernel import CODES, READS_FILES, kernel
from ema_cli.fold.lanes import CompiledLane, Lane, NumpyLane
from ema_cli.fold.statistics import add_rows, squares
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
        assert squares(average, raw, BY_NAME[name]).tobytes() == compiled.tobytes()
    assert compiled[0][0] == pytest.approx(float(np.sum(average**2)), rel=1e-14)


@given(
    seed=SEEDS,
    width=st.integers(0, 40),
    in_block=st.integers(1, 9),
    scales=st.sampled_from([(0, 0), (-20, 20), (-320, 308), (-1100, -1000), (1023, 1024)]),
    signed=st.booleans(),
)
def test_exact_sums(*, seed: int, width: int, in_block: int, scales: tuple[int, int], signed: bool) -> None:
    """Sums are rounded once, and have the remainders of ``fsum``; sums that are too large have none."""
    rng = np.random.default_rng(seed)
    rows = np.ldexp(rng.random((3, width)), rng.integers(scales[0], scales[1] + 1, (3, width)))
    rows *= np.where(signed & (rng.random(rows.shape) < 0.5), -1, 1)
    rows[:, ::3] = np.where(rng.random(rows[:, ::3].shape) < 0.5, np.ldexp(1.0, -60), rows[:, ::3])  # midpoints
    rows[:, ::5] = np.where(rng.random(rows[:, ::5].shape) < 0.5, 1 + np.ldexp(1.0, -8), rows[:, ::5])
    compiled = add_rows(rows, in_block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "kernel", None)
        assert add_rows(rows, in_block).tobytes() == compiled.tobytes()


@pytest.mark.parametrize("values", [[1.0, np.inf], [np.inf, -np.inf], [np.nan, 1.0], [1.7e308, 1.7e308], [-0.0], []])
def test_sums_that_are_not_finite_have_no_remainder(values: list[float]) -> None:
    """They are infinite or NaN, in both; an empty sum is zero."""
    rows = np.array([values], dtype=np.float64)
    compiled = add_rows(rows, max(1, len(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "kernel", None)
        assert same_bits(add_rows(rows, max(1, len(values))), compiled)
    assert compiled[0, 0, 1] == 0
    assert not np.signbit(compiled[0, 0]).any() or not np.isfinite(values).all()


@dataclass(frozen=True, kw_only=True)
class Files:
    """Blocks of checkpoints, one after the other in a file, and what the kernel made of them."""

    blocks: list[Bytes]
    weights: Float64
    done: int
    sums: Float64 | None
    crcs: list[int]
    rows: Float64
    squares: Float64
    rounded: Bytes
    fits: bytes


def average(
    path: Path,
    blocks: list[Bytes],
    name: str,
    *,
    picks: NDArray[np.int64],
    averages: int,
    out: str,
    memory_of_each: int,
    misaligned: int = 0,
) -> Files:
    """Write blocks to a file, at an odd position, and let the kernel average them with random weights.

    ``memory_of_each`` is the number of bytes for each of 1024 elements of each block, ``misaligned`` their first byte.
    """
    assert kernel is not None
    count = len(blocks[0]) // NUMPY_TYPES[name].itemsize
    path.write_bytes(b"123" + b"".join(block.tobytes() for block in blocks))
    rng = np.random.default_rng(count)
    weights = rng.random((len(blocks), averages)) * (rng.random((len(blocks), averages)) < 0.8)  # some are zero
    weights[0] = weights[-1] = 0.3
    rows, crcs = np.zeros((len(blocks), len(picks) + 2)), np.zeros(len(blocks), dtype=np.uint32)
    half = len(blocks) // 2 if len(picks) % 2 else 0  # with one call, which needs a row of sums, or with two
    sums = np.empty((averages, count + 1 if half else min(count, ROW_ELEMENTS)))
    memory = np.empty(misaligned + len(blocks) * ROW_ELEMENTS * memory_of_each, np.uint8)[misaligned:]
    squared = np.empty((averages, 3, -(-count // ROW_ELEMENTS)))
    rounded = np.empty((averages, count * NUMPY_TYPES[out].itemsize), np.uint8)
    fits = bytearray(averages)
    with path.open("rb") as file:
        places = np.array([(file.fileno(), 3 + n * len(blocks[0]), CODES[name]) for n in range(len(blocks))])
        results = squared, rounded, fits, CODES[out], LARGEST[out]
        started = bytearray(averages)
        nothing = np.empty(0), np.empty(0, np.uint8), bytearray(), 0, 0.0
        done = 0
        for part, outputs in ((slice(half), nothing), (slice(half, None), results)):
            given = places[part], weights[part], started, memory, crcs[part], picks, rows[part, 1:-1], *outputs
            done += kernel.average(sums, count, *given) if len(places[part]) else 0
    return Files(
        blocks=blocks,
        weights=weights,
        done=done,
        sums=sums[:, :count] if half else None,
        crcs=crcs.tolist(),
        rows=rows[:, 1:-1].copy(),
        squares=squared,
        rounded=rounded,
        fits=bytes(fits),
    )


@pytest.mark.skipif(not READS_FILES, reason="the processor has no instructions for CRC-32")
@pytest.mark.parametrize("name", NAMES)
@given(
    seed=SEEDS,
    count=st.one_of(LENGTHS, st.sampled_from([32_767, 32_768, 40_000, 65_537])),
    files=st.sampled_from([*range(1, 10), 17, 33]),
    averages=st.integers(1, 3),
    out=st.sampled_from(NAMES),
    memory_of_each=st.sampled_from([8, 8, 100, 1000]),
)
@settings(max_examples=40)
def test_blocks_read_from_a_file(
    *,
    name: str,
    seed: int,
    count: int,
    files: int,
    averages: int,
    out: str,
    memory_of_each: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Reading gives what blocks in memory give: sums, CRC-32s, picked elements, squares and rounded numbers."""
    blocks = [codes(seed + n, count, name) for n in range(files)]
    picks = np.unique(np.random.default_rng(seed).integers(0, max(count, 1), min(count, 5)))
    path = tmp_path_factory.getbasetemp() / "blocks"
    found = average(path, blocks, name, picks=picks, averages=averages, out=out, memory_of_each=memory_of_each)
    assert found.done == files
    assert found.crcs == [zlib.crc32(block.data) for block in blocks]
    values = [np.empty(count) for _ in blocks]
    for block, decoded in zip(blocks, values, strict=True):
        decode(block, BY_NAME[name], decoded)
    assert same_bits(found.rows, np.array([decoded[picks] for decoded in values]))
    for k in range(averages):
        expected = values[0] * found.weights[0, k]
        for decoded, weight in zip(values[1:], found.weights[1:, k], strict=True):
            expected = expected + decoded * weight if weight else expected
        assert found.sums is None or same_bits(found.sums[k], expected)
        if not count:
            continue
        if out == "F64":
            assert same_bits(found.rounded[k].view(np.float64), expected)
        rounded = round_to(expected, BY_NAME[out])
        assert bool(found.fits[k]) == rounded.fits
        if rounded.fits:
            assert found.rounded[k].tobytes() == rounded.raw.tobytes()
        if np.isfinite(found.squares[k]).all():
            sums = add_rows(found.squares[k], found.squares.shape[-1])[:, 0]
            assert sums.tobytes() == squares(expected, blocks[-1], BY_NAME[name]).tobytes()


@pytest.mark.skipif(not READS_FILES, reason="the processor has no instructions for CRC-32")
@given(seed=SEEDS, length=st.integers(0, 2000), start=st.integers(0, 40))
def test_crc32(seed: int, length: int, start: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The CRC-32 is that of zlib, at any length and address."""
    block, path = codes(seed, length, "F8_E5M2"), tmp_path_factory.getbasetemp() / "bytes"
    none = np.empty(0, dtype=np.int64)
    found = average(path, [block], "F8_E5M2", picks=none, averages=1, out="F32", memory_of_each=8, misaligned=start)
    assert found.crcs == [zlib.crc32(block.data)]


@pytest.mark.skipif(not READS_FILES, reason="the processor has no instructions for CRC-32")
def test_a_file_that_ends_early(tmp_path: Path) -> None:
    """The number of checkpoints before the first that is not whole is returned."""
    assert kernel is not None
    path = tmp_path / "short"
    path.write_bytes(np.arange(25, dtype=np.float32).tobytes())
    none = np.empty(0, dtype=np.int64)
    with path.open("rb") as file:
        places = np.array([(file.fileno(), 40 * n, CODES["F32"]) for n in range(4)])
        memory, crcs = np.empty(4 * 8 * ROW_ELEMENTS, np.uint8), np.zeros(4, dtype=np.uint32)
        results = np.empty(0), np.empty(0, np.uint8), bytearray(), 0, 0.0
        given = places, np.ones((4, 1)), bytearray(1), memory, crcs, none, None, *results
        assert kernel.average(np.zeros((1, 10)), 10, *given) == 2


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
        lambda: kernel.exact_sums(four, 3, 1, np.empty(6)),
        lambda: kernel.exact_sums(four, 0, 1, np.empty(0)),
        lambda: kernel.exact_sums(four, 2, 0, np.empty(0)),
        lambda: kernel.exact_sums(four, 4, 3, np.empty(3)),
        lambda: kernel.round_to(four, 1, np.empty(15, np.uint8), 1.0),
        lambda: kernel.round_to(four, 8, np.empty(16, np.uint8), 1.0),
    ]
    if READS_FILES:
        good = {
            "sums": four,
            "count": 4,
            "places": np.array([[0, 0, 1]]),
            "weights": np.ones(1),
            "started": bytearray(1),
            "memory": np.empty(8 * ROW_ELEMENTS, np.uint8),
            "crcs": np.zeros(1, np.uint32),
            "picks": none,
            "rows": None,
            "squares": np.empty((3, 1)),
            "rounded": np.empty(16, np.uint8),
            "fits": bytearray(1),
            "code": 1,
            "limit": 1.0,
        }
        wrong: list[dict[str, object]] = [
            {"count": 5},
            {"count": 5, "rounded": np.empty(20, np.uint8)},
            {"count": 5, "squares": none, "rounded": none, "fits": bytearray()},
            {"started": bytearray(b"\1"), "count": 5, "rounded": np.empty(20, np.uint8)},
            {"places": np.empty((0, 3), np.int64), "weights": none, "crcs": none},
            {
                "places": np.array([[0, 0, 1]] * 65),
                "weights": np.ones(65),
                "crcs": np.zeros(65, np.uint32),
                "memory": np.empty(65 * 8 * ROW_ELEMENTS, np.uint8),
            },
            {"count": -1},
            {"places": np.array([[0, 0, 8]])},
            {"places": np.array([[0, 0, -1]])},
            {"places": np.array([[0, 0, 1 << 32]])},
            {"weights": np.ones(2)},
            {"memory": np.empty(8 * ROW_ELEMENTS - 1, np.uint8)},
            {"crcs": np.zeros(2, np.uint32)},
            {"picks": np.array([4]), "rows": np.zeros((1, 1))},
            {"picks": np.array([-1]), "rows": np.zeros((1, 1))},
            {"picks": np.array([1, 2]), "rows": np.zeros((1, 1))},
            {"squares": np.empty((3, 2))},
            {"rounded": np.empty(15, np.uint8)},
            {"fits": bytearray(2)},
            {"code": 8},
        ]
        calls += [partial(kernel.average, *(good | changed).values()) for changed in wrong]
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
    assert squares(average, average.view(np.uint8), BY_NAME["F64"])[0].tolist() == [columns[0], 0.0]
