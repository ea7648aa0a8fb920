"""Reading a run of elements gives what numpy gives, whatever the strides, and takes memory for the run only."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from ema_cli.dtypes import BY_NAME
from ema_cli.storage import strided_read
from ema_cli.storage.extents import (
    Extent,
    Mosaic,
    Part,
    TensorIndex,
    TensorLayout,
    contiguous_strides,
    normal_strides,
    span,
)
from ema_cli.storage.source import ByteSource

ITEMS = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}


class Memory(ByteSource):
    """Bytes in memory that record how they were read."""

    name = "memory"
    identity = "memory"
    version = 0

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []
        self.announced: list[tuple[int, int]] = []

    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.data)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Copy a range that must be inside the bytes."""
        view = memoryview(buffer).cast("B")
        assert 0 <= offset <= offset + len(view) <= len(self.data)
        self.reads.append((offset, len(view)))
        view[:] = self.data[offset : offset + len(view)]

    def will_need(self, offset: int, length: int) -> None:
        """Record the announced range, which must be inside the bytes."""
        assert 0 <= offset < offset + length <= len(self.data)
        self.announced.append((offset, length))


def extent_of(source: ByteSource, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> Extent:
    """Return the extent of a tensor in ``source``."""
    normal = normal_strides(shape, strides)
    layout = TensorLayout(name="t", dtype=BY_NAME[ITEMS[item]], shape=shape, strides=normal)
    return Extent(source=source, offset=offset, layout=layout)


shapes = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int, int, int, int]:
    """Draw shape, strides, offset, item size and a range of flat indices."""
    shape = draw(shapes)
    strides = tuple(draw(st.integers(0, 12)) for _ in shape)
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        dense = contiguous_strides([shape[axis] for axis in order])
        strides = tuple(dense[order.index(axis)] for axis in range(len(shape)))
    start = draw(st.integers(0, math.prod(shape)))
    stop = draw(st.integers(start, math.prod(shape)))
    return shape, strides, draw(st.integers(0, 9)), draw(st.sampled_from(sorted(ITEMS))), start, stop


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(views(), st.integers(0, 40))
def test_any_range_equals_numpy(view: tuple[tuple[int, ...], tuple[int, ...], int, int, int, int], always: int) -> None:
    """A range of any strided view equals the same range of numpy's raveled view, however small one read may be."""
    shape, strides, offset, item, start, stop = view
    reach = span(shape, strides)
    stored = np.random.default_rng(0).integers(0, 256, (offset + reach) * item, dtype=np.uint8)
    elements = stored.view(f"u{item}")[offset:]
    wanted = as_strided(elements, shape, [stride * item for stride in strides]).ravel()[start:stop]
    out = np.zeros((stop - start) * item, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided_read, "_ALWAYS", always)
        strided_read.read_elements(extent_of(Memory(stored.tobytes()), offset * item, shape, strides, item), start, out)
    assert out.tobytes() == wanted.tobytes()


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(st.lists(st.integers(0, 5), max_size=5), st.data())
def test_boxes_cover_a_range_in_order(shape: list[int], data: st.DataObject) -> None:
    """The boxes of a range are its flat indices, in order, once each; there are at most two per dimension."""
    total = math.prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    indices = np.arange(total).reshape(shape)
    boxes = list(strided_read.flat_boxes(shape, start, stop))
    covered = [int(i) for box in boxes for i in indices[tuple(slice(*side) for side in box)].ravel()]
    assert covered == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape))


def test_a_contiguous_range_is_one_read() -> None:
    """Of a contiguous tensor exactly the wanted bytes are read, in one request."""
    source = Memory(bytes(range(200)))
    out = np.zeros(12, dtype=np.uint8)
    strided_read.read_elements(extent_of(source, 20, (5, 9), (9, 1), 4), 7, out)
    assert source.reads == [(20 + 7 * 4, 12)]


def test_a_transposed_matrix_is_read_in_bounded_pieces() -> None:
    """No single read of a strided tensor is much larger than requested, and few reads are made."""
    rows, columns = 3000, 40
    stored = np.arange(rows * columns, dtype=np.uint32)
    source = Memory(stored.tobytes())
    out = np.zeros(5 * rows * 4, dtype=np.uint8)
    strided_read.read_elements(extent_of(source, 0, (columns, rows), (1, columns), 4), 10 * rows, out)
    assert out.tobytes() == stored.reshape(rows, columns).T[10:15].tobytes()
    assert max(length for _, length in source.reads) <= 4 * max(4 * 5 * rows, 1 << 14)
    assert len(source.reads) < 32


def test_a_far_stretched_view_reads_no_gaps() -> None:
    """Two elements a megabyte apart are two small reads, not one of a megabyte."""
    source = Memory(bytes(1 << 20) + b"\x07")
    out = np.zeros(2, dtype=np.uint8)
    strided_read.read_elements(extent_of(source, 0, (2,), (1 << 20,), 1), 0, out)
    assert out.tolist() == [0, 7]
    assert sum(length for _, length in source.reads) == 2


def test_64_dimensions_are_read() -> None:
    """The deepest shape that a reader accepts can also be read with strides."""
    shape = (2, *[1] * 62, 3)
    source = Memory(bytes(range(6)))
    out = np.zeros(4, dtype=np.uint8)
    strided_read.read_elements(extent_of(source, 0, shape, (1, *[0] * 62, 2), 1), 1, out)
    assert out.tolist() == [2, 4, 1, 3]


@given(shapes)
def test_contiguous_strides_are_numpys(shape: tuple[int, ...]) -> None:
    """The strides of C order are those of numpy, and are stored as no strides."""
    strides = contiguous_strides(shape)
    assert strides == np.empty(shape, dtype=np.uint8).strides
    assert normal_strides(shape, strides) is None
    assert span(shape, strides) == math.prod(shape)


def test_strides_of_single_and_empty_dimensions_mean_nothing() -> None:
    """The stride of a dimension of one index, or of an empty tensor, does not make a tensor strided."""
    assert normal_strides((1, 3), (99, 1)) is None
    assert normal_strides((0, 3), (7, 7)) is None
    assert normal_strides((2, 3), (1, 2)) == (1, 2)
    assert span((0, 3), (7, 7)) == 0


def test_ties_are_equal_places() -> None:
    """Names are tied when type, shape, strides and location are equal; views and empty tensors are not ties."""
    f32, i32 = BY_NAME["F32"], BY_NAME["I32"]
    rows = (
        ("a", f32, (4,), 0),
        ("b", f32, (4,), 0),
        ("c", f32, (2, 2), 0),
        ("d", i32, (4,), 0),
        ("e", f32, (4,), 16),
        ("f", f32, (0,), 0),
        ("g", f32, (0,), 0),
    )
    layouts = tuple(TensorLayout(name=n, dtype=dtype, shape=shape, strides=None) for n, dtype, shape, _ in rows)
    index = TensorIndex([Memory(bytes(32))], layouts, [offset for *_, offset in rows])
    assert index.ties() == {"b": "a"}
    assert [extent.offset for extent in index if isinstance(extent, Extent)] == [0, 0, 0, 0, 16, 0, 0]
    assert len(index) == len(rows)


Rectangle = tuple[tuple[int, int], ...]


def cut(rectangle: Rectangle, draw: st.DrawFn, depth: int = 3) -> list[Rectangle]:
    """Cut a rectangle of an index space into some, at random places."""
    sides = [axis for axis, (start, stop) in enumerate(rectangle) if stop - start > 1]
    if depth == 0 or not sides or not draw(st.booleans()):
        return [rectangle]
    axis = draw(st.sampled_from(sides))
    start, stop = rectangle[axis]
    middle = draw(st.integers(start + 1, stop - 1))
    halves = [(*rectangle[:axis], side, *rectangle[axis + 1 :]) for side in ((start, middle), (middle, stop))]
    return [piece for half in halves for piece in cut(half, draw, depth - 1)]


@st.composite
def mosaics(draw: st.DrawFn) -> tuple[TensorIndex, np.typing.NDArray[np.uint16], list[Memory]]:
    """Draw a tensor in rectangles over two files, some of them transposed, and its numbers."""
    shape = draw(shapes)
    numbers = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 1 << 16, shape, dtype=np.uint16)
    data, parts, offsets, files = [b"..", b"...."], [], [], []
    for rectangle in cut(tuple((0, size) for size in shape), draw):
        order = draw(st.permutations(range(len(shape))))
        piece = numbers[tuple(slice(*side) for side in rectangle)]
        dense = contiguous_strides([piece.shape[axis] for axis in order])
        strides = tuple(dense[order.index(axis)] for axis in range(len(shape)))
        origin = tuple(start for start, _ in rectangle)
        parts.append(Part(origin=origin, shape=piece.shape, strides=normal_strides(piece.shape, strides)))
        files.append(draw(st.integers(0, 1)))
        offsets.append(len(data[files[-1]]))
        data[files[-1]] += piece.transpose(order).tobytes()
    plain = TensorLayout(name="plain", dtype=BY_NAME["U16"], shape=(1,), strides=None)
    layout = TensorLayout(name="t", dtype=BY_NAME["U16"], shape=shape, strides=None, parts=tuple(parts))
    sources = [Memory(each) for each in data]
    return TensorIndex(sources, (plain, layout, plain), [0, *offsets, 2], [0, *files, 1]), numbers, sources


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(mosaics(), st.data())
def test_a_tensor_in_rectangles_is_put_together(
    drawn: tuple[TensorIndex, np.typing.NDArray[np.uint16], list[Memory]], data: st.DataObject
) -> None:
    """Any range of a tensor in rectangles equals numpy's, and everything that is read was announced."""
    index, numbers, sources = drawn
    start = data.draw(st.integers(0, numbers.size))
    stop = data.draw(st.integers(start, numbers.size))
    located = index.extent(1)
    assert isinstance(located, Mosaic)
    strided_read.announce(located, start, stop - start)
    out = np.zeros(2 * (stop - start), dtype=np.uint8)
    strided_read.read_elements(located, start, out)
    assert out.tobytes() == numbers.ravel()[start:stop].tobytes()
    for source in sources:
        announced = {byte for offset, length in source.announced for byte in range(offset, offset + length)}
        assert announced >= {byte for offset, length in source.reads for byte in range(offset, offset + length)}


@settings(deadline=None)
@given(mosaics())
def test_places_go_on_behind_a_tensor_in_rectangles(
    drawn: tuple[TensorIndex, np.typing.NDArray[np.uint16], list[Memory]],
) -> None:
    """The tensors before and after a tensor with several locations keep their locations."""
    index, _, sources = drawn
    before, after = index.extent(0), index.extent(2)
    assert isinstance(before, Extent)
    assert isinstance(after, Extent)
    assert (before.source, before.offset, after.source, after.offset) == (sources[0], 0, sources[1], 2)
    assert index.ties() == {}
    assert index.size() == sum(source.size() for source in sources)


def test_ties_need_the_same_file() -> None:
    """Equal offsets in two files are two tensors; equal locations in one file are tied, in rectangles too."""
    parts = tuple(Part(origin=(row,), shape=(1,), strides=None) for row in range(2))
    whole = [TensorLayout(name=name, dtype=BY_NAME["U8"], shape=(2,), strides=None) for name in "ab"]
    cut_up = [TensorLayout(name=name, dtype=BY_NAME["U8"], shape=(2,), strides=None, parts=parts) for name in "cde"]
    offsets, files = [0, 0, 4, 4, 4, 4, 4, 4], [0, 1, 0, 1, 0, 1, 1, 0]
    index = TensorIndex([Memory(bytes(8)), Memory(bytes(8))], (*whole, *cut_up), offsets, files)
    assert index.ties() == {"d": "c"}
