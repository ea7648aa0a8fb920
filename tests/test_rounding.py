"""The one rounding of the fold, against integers and fractions.

The libraries' casts round twice and are no judges.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ema_cli.dtypes import BY_NAME, DTYPES
from ema_cli.fold.conversion import LARGEST, NUMPY_TYPES, components, decode, round_to
from tests.helpers.exact import FORMATS, Format, rounded, value_of

NAMES = sorted(FORMATS)
SMALL = [name for name in NAMES if FORMATS[name].bits <= 16]
PATTERNS = st.integers(0, 2**64 - 1).map(lambda bits: float(struct.unpack("<d", struct.pack("<Q", bits))[0]))


def codes_of(values: NDArray[np.float64], name: str) -> list[int]:
    """Round with the program and return the bits as integers."""
    raw = round_to(values, BY_NAME[name]).raw
    assert raw.dtype == np.uint8
    return [int(code) for code in raw.view(f"<u{FORMATS[name].bits // 8}")]


def same(a: float, b: float) -> bool:
    """Whether two numbers are equal, including the sign of a zero; all NaNs are equal."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


def assert_rounds(values: list[float], name: str) -> None:
    """Each value becomes the code of the correctly rounded number."""
    form = FORMATS[name]
    for value, code in zip(values, codes_of(np.array(values), name), strict=True):
        assert same(value_of(code, form), rounded(value, form)), (value.hex(), hex(code), name)


def finite_values(form: Format) -> list[float]:
    """Return every positive finite number of a small type, in order."""
    return [value for code in range(1 << (form.bits - 1)) if math.isfinite(value := value_of(code, form))]


@pytest.mark.parametrize("name", NAMES)
@given(values=st.lists(PATTERNS, min_size=1, max_size=20))
@settings(deadline=None)
def test_any_float64_is_rounded_correctly(name: str, values: list[float]) -> None:
    """Over all bit patterns: NaN, infinities, subnormals, zeros of both signs, and numbers that are too large."""
    assert_rounds(values, name)


@pytest.mark.parametrize("name", NAMES)
@given(value=st.floats(-1e6, 1e6, allow_subnormal=True))
@settings(deadline=None)
@example(value=5e-324)
@example(value=-0.0)
@example(value=2.0**-149)
@example(value=math.nextafter(2.0**-150, 1))
@example(value=2.0**-150)
def test_usual_values_are_rounded_correctly(name: str, value: float) -> None:
    """In the usual range of model weights."""
    assert_rounds([value, value * 2.0**-20, value * 2.0**-130], name)


@pytest.mark.parametrize("name", SMALL)
def test_every_midpoint_and_its_neighbours(name: str) -> None:
    """Between all neighboring numbers of a type: below, on and above the middle, for both signs.

    These are the values that a cast through float32 gets wrong.
    """
    form = FORMATS[name]
    numbers = finite_values(form)
    middles = np.array(numbers[:-1]) / 2 + np.array(numbers[1:]) / 2
    near = np.stack([np.nextafter(middles, -np.inf), middles, np.nextafter(middles, np.inf)])
    even = [code + code % 2 for code in range(len(middles))]
    expected = [list(range(len(middles))), even, list(range(1, len(numbers)))]
    for values, codes in zip(near, expected, strict=True):
        assert codes_of(np.ascontiguousarray(values), name) == codes
        negative = [code | 1 << (form.bits - 1) if code or form.signed_zero else 0 for code in codes]
        assert codes_of(np.ascontiguousarray(-values), name) == negative


@pytest.mark.parametrize("name", SMALL)
def test_every_number_of_a_type_rounds_to_itself(name: str) -> None:
    """Decoding and rounding are inverse for every code that is not NaN, and ``decode`` is exact."""
    form = FORMATS[name]
    codes = np.arange(1 << form.bits, dtype=f"<u{form.bits // 8}")
    values = np.empty(len(codes))
    with np.errstate(invalid="ignore"):  # signaling NaNs
        decode(codes.view(np.uint8), BY_NAME[name], values)
    assert all(same(float(value), value_of(code, form)) for code, value in enumerate(values))
    numbers = ~np.isnan(values)
    assert np.array_equal(np.array(codes_of(values[numbers], name)), codes[numbers])


@pytest.mark.parametrize("name", NAMES)
def test_the_edge_of_what_is_too_large(name: str) -> None:
    """Half a unit above the largest number the type overflows; just below that it does not."""
    form = FORMATS[name]
    largest = float(form.largest)
    unit = largest - rounded(Fraction(largest) * (1 - Fraction(2) ** -form.precision), form)
    edge = largest + unit / 2
    values = [largest, math.nextafter(edge, 0), edge, math.nextafter(edge, math.inf), 2 * largest, math.inf, -math.inf]
    assert_rounds(values, name)
    assert same(value_of(codes_of(np.array([math.nextafter(edge, 0)]), name)[0], form), largest)


@pytest.mark.parametrize("name", ["F64", "C64"])
def test_wide_types(name: str) -> None:
    """float64 keeps its bits, whatever they are; complex numbers are rounded as pairs of float32."""
    values = np.array([0.1, -0.0, 5e-324, math.inf, 1 / 3, -1e-40])
    raw = round_to(values, BY_NAME[name]).raw
    if name == "F64":
        assert raw.tobytes() == values.tobytes()
    else:
        expected = [rounded(float(value), FORMATS["F32"]) for value in values]
        assert raw.view(np.float32).tolist() == expected


def test_the_tables_cover_every_averaged_type() -> None:
    """Each type that is averaged can be decoded and has its largest number; complex ones have two components."""
    averaged = [dtype for dtype in DTYPES if dtype.averaged]
    assert {dtype.name for dtype in averaged} == set(NUMPY_TYPES) == set(LARGEST)
    assert all(NUMPY_TYPES[dtype.name].itemsize * components(dtype) == dtype.itemsize for dtype in averaged)
    assert all(LARGEST[name] == float(form.largest) for name, form in FORMATS.items())
