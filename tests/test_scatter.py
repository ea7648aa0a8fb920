"""Elements of tensors are written to their places as numpy would, and the bytes between them stay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from ema_cli.planning.byte_views import ByteView, overlapping, overlaps_itself, share_bytes, view_of
from ema_cli.records.files import Checksum, Place, PlacedFile, PlacedTensor
from ema_cli.storage.extents import contiguous_strides, normal_strides, span
from ema_cli.write import scatter
from ema_cli.write.file_areas import areas_of, merged
from ema_cli.write.scatter import PlacedTensors, put_between

FILLING = 0xA5
shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def dense_strides(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Draw strides of a tensor without elements in common: dimensions in any order, with room between them."""
    order = draw(st.permutations(range(len(shape))))
    strides = [0] * len(shape)
    step = draw(st.integers(1, 3))
    for axis in order:
        strides[axis] = step
        step = step * shape[axis] + draw(st.integers(0, 3))
    return tuple(strides)


def write(path: Path, tensors: PlacedTensors, begin: int, data: bytes) -> None:
    """Write bytes of the data section as a target does."""
    with path.open("r+b") as file:
        for piece in tensors.pieces(begin, memoryview(data)):
            assert piece.file == 0
            strides = contiguous_strides(piece.items.shape) if piece.strides is None else piece.strides
            put_between(file.fileno(), piece.offset, strides, piece.items)
            if piece.strides is None:
                assert piece.data.nbytes == piece.items.nbytes


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_strided_tensors_are_put_between_other_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Written in pieces of any size, in any order, a tensor is where numpy has it, and nothing else changes."""
    shape = data.draw(shapes)
    strides, item = data.draw(dense_strides(shape)), data.draw(st.sampled_from([1, 2, 4, 8]))
    begin, offset = data.draw(st.integers(0, 9)) * item, data.draw(st.integers(0, 9))
    place = Place(file=0, offset=offset, origin=(0,) * len(shape), shape=shape, strides=normal_strides(shape, strides))
    tensor = PlacedTensor(begin=begin, shape=shape, itemsize=item, places=(place,))
    count = math.prod(shape)
    values = np.random.default_rng(0).bytes(count * item)
    path = tmp_path_factory.mktemp("scatter") / "x"
    path.write_bytes(bytes([FILLING]) * (offset + span(shape, strides) * item + 7))
    expected = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    inner = expected[offset : offset + span(shape, strides) * item].view(f"V{item}")
    as_strided(inner, shape, [stride * item for stride in strides])[...] = np.frombuffer(values, f"V{item}").reshape(
        shape
    )
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=4))})
    pieces = list(itertools.pairwise(cuts))
    for first, last in data.draw(st.permutations(pieces)):
        write(path, PlacedTensors([tensor]), begin + first * item, values[first * item : last * item])
    assert path.read_bytes() == expected.tobytes()


@pytest.mark.parametrize(("slack", "always"), [(1, 1), (4, 1 << 14)])
def test_wide_gaps_are_not_read(tmp_path: Path, slack: int, always: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box whose elements are far apart is halved until it is dense, with the same result."""
    monkeypatch.setattr(scatter, "_SLACK", slack)
    monkeypatch.setattr(scatter, "_ALWAYS", always)
    path = tmp_path / "x"
    path.write_bytes(bytes([FILLING]) * 40_000)
    items = np.arange(24, dtype=np.uint16).reshape(2, 3, 4).view("V2")
    with path.open("r+b") as file:
        put_between(file.fileno(), 10, (9000, 700, 1), items)
    expected = np.full(40_000, FILLING, np.uint8)
    as_strided(expected[10:].view(np.uint16), (2, 3, 4), (18_000, 1400, 2))[...] = np.arange(24).reshape(2, 3, 4)
    assert path.read_bytes() == expected.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rectangles_are_contiguous_in_their_own_storage(data: st.DataObject) -> None:
    """A tensor in rectangles is written in contiguous pieces that fill every rectangle once."""
    rows, columns = data.draw(st.integers(1, 7)), data.draw(st.integers(2, 7))
    split = data.draw(st.integers(1, columns - 1))
    boxes = [((0, 0), (rows, split)), ((0, split), (rows, columns - split))]
    places = tuple(
        Place(file=number, offset=3 + number, origin=origin, shape=shape, strides=None)
        for number, (origin, shape) in enumerate(boxes)
    )
    tensors = PlacedTensors([PlacedTensor(begin=0, shape=(rows, columns), itemsize=2, places=places)])
    values = np.arange(rows * columns, dtype=np.uint16)
    found = [bytearray(3 + number + 2 * rows * shape[1]) for number, (_, shape) in enumerate(boxes)]
    cut = data.draw(st.integers(0, rows * columns))
    for first, part in ((cut, values[cut:]), (0, values[:cut])):
        for piece in tensors.pieces(2 * first, memoryview(part.tobytes())):
            assert piece.strides is None
            found[piece.file][piece.offset : piece.offset + len(piece.data)] = piece.data
    whole = values.reshape(rows, columns)
    assert [bytes(one[3 + number :]) for number, one in enumerate(found)] == [
        whole[:, :split].tobytes(),
        whole[:, split:].tobytes(),
    ]


def test_bytes_of_several_tensors_are_divided() -> None:
    """A run of small tensors is written tensor by tensor; one without places, and an empty one, are passed over."""
    place = [Place(file=0, offset=at, origin=(0,), shape=(2,), strides=None) for at in (50, 0)]
    tensors = [
        PlacedTensor(begin=0, shape=(2,), itemsize=1, places=(place[0],)),
        PlacedTensor(begin=2, shape=(0,), itemsize=1, places=()),
        PlacedTensor(begin=2, shape=(3,), itemsize=1, places=()),
        PlacedTensor(begin=5, shape=(2,), itemsize=1, places=(place[1],)),
    ]
    pieces = [(one.offset, bytes(one.data)) for one in PlacedTensors(tensors).pieces(1, memoryview(b"bcdefg"))]
    assert pieces == [(51, b"b"), (0, b"fg")]


@st.composite
def byte_views(draw: st.DrawFn) -> tuple[ByteView, frozenset[int]]:
    """Draw a view and the bytes that it has."""
    shape = draw(shapes)
    regular = draw(st.booleans())
    strides = draw(dense_strides(shape)) if regular else tuple(draw(st.integers(0, 12)) for _ in shape)
    begin, item = draw(st.integers(0, 40)), draw(st.sampled_from([1, 2, 4]))
    firsts = [begin + item * sum(map(int.__mul__, index, strides)) for index in np.ndindex(*shape)]
    return view_of(begin, shape, strides, item), frozenset(first + byte for first in firsts for byte in range(item))


@settings(max_examples=400, deadline=None)
@given(byte_views(), byte_views())
def test_views_that_share_bytes_are_found(
    one: tuple[ByteView, frozenset[int]], other: tuple[ByteView, frozenset[int]]
) -> None:
    """No common byte is missed; views of one regular tensor are told apart exactly (below)."""
    assert one[0].end == max(one[1]) + 1
    assert share_bytes(one[0], other[0]) or not one[1] & other[1]
    assert share_bytes(other[0], one[0]) == share_bytes(one[0], other[0])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_slices_of_one_tensor_are_told_apart(data: st.DataObject) -> None:
    """Two boxes of one tensor, with its dimensions in any order, share bytes if and only if they share elements."""
    shape = data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=3).map(tuple))
    base = (
        np.arange(math.prod(shape), dtype=np.int32)
        .reshape(shape)
        .transpose(data.draw(st.permutations(range(len(shape)))))
    )

    def box() -> tuple[ByteView, set[int]]:
        bounds = [sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2))) for size in base.shape]
        part = base[tuple(slice(*pair) for pair in bounds)]
        strides = [stride // 4 for stride in part.strides]
        return view_of(4 * int(part.reshape(-1)[0]), part.shape, strides, 4), set(part.reshape(-1).tolist())

    one, other = box(), box()
    assert share_bytes(one[0], other[0]) == bool(one[1] & other[1])


@pytest.mark.parametrize(
    ("shape", "strides", "found"),
    [((3, 4), (4, 1), False), ((4, 3), (1, 4), False), ((3, 4), (1, 0), True), ((3, 3), (1, 1), True), ((), (), False)],
)
def test_elements_in_common(shape: Sequence[int], strides: Sequence[int], found: bool) -> None:
    """An expanded tensor, or a sliding window, has elements in common."""
    assert overlaps_itself(view_of(8, shape, strides, 4)) is found


def test_many_interleaved_views_are_not_compared_for_ever() -> None:
    """After a number of comparisons, what may share bytes counts as sharing."""
    columns = [(view_of(4 * column, (50,), (50,), 4), column) for column in range(50)]
    assert not list(overlapping(columns, most=10_000))
    assert list(overlapping(columns, most=100))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_byte_is_in_one_area(data: st.DataObject) -> None:
    """Tensors, mixed areas, copied ranges and checksums are the whole file, without overlaps, cut at the checksums."""
    size = 60
    bounds = sorted(data.draw(st.sets(st.integers(0, size), min_size=6, max_size=6)))
    solid, mixed, checked = bounds[0:2], bounds[2:4], bounds[4:6]
    places = (
        Place(file=0, offset=solid[0], origin=(0,), shape=(solid[1] - solid[0],), strides=None),
        Place(file=0, offset=mixed[0], origin=(0,), shape=((mixed[1] - mixed[0] + 1) // 2,), strides=(2,)),
    )
    tensors = [PlacedTensor(begin=0, shape=one.shape, itemsize=1, places=(one,)) for one in places]
    checksum = Checksum(begin=checked[0], nbytes=checked[1] - checked[0], fields=(size + 2, size + 10))
    (areas,) = areas_of([PlacedFile(name="x", nbytes=size + 20, checksums=(checksum,))], tensors)
    fields = [(at, at + 4) for at in checksum.fields]
    ranges = sorted([*areas.copied, *areas.mixed, (solid[0], solid[1]), *fields])
    assert merged(ranges) == [(0, size + 20)]
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    assert not any(begin < bound < end for begin, end in areas.copied for bound in checked)
    assert [areas.is_mixed(at) for at in range(size)] == [
        any(b <= at < e for b, e in areas.mixed) for at in range(size)
    ]
