"""Exact arithmetic as the judge of floating point: element types as integers and fractions, no casts of any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A binary floating-point type, as its standard describes it."""

    bits: int
    precision: int
    """Bits of the significand, the hidden one included."""
    least_exponent: int
    """Of the normal numbers."""
    largest: Fraction
    infinity: bool
    """Whether the type has infinities; without, numbers that are too large are NaN."""
    signed_zero: bool = True

    @property
    def mantissa_bits(self) -> int:
        """Stored bits of the significand."""
        return self.precision - 1


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def ieee(bits: int, precision: int) -> Format:
    """Return an IEEE 754 type: the all-ones exponent is for infinity and NaN."""
    top = (1 << (bits - precision - 1)) - 1
    largest = (2 - _power(1 - precision)) * _power(top)
    return Format(bits=bits, precision=precision, least_exponent=1 - top, largest=largest, infinity=True)


FORMATS = {
    "F32": ieee(32, 24),
    "F16": ieee(16, 11),
    "BF16": ieee(16, 8),
    "F8_E5M2": ieee(8, 3),
    # OCP 8-bit floating point, table 2: E4M3 has no infinity and one NaN per sign.
    "F8_E4M3": Format(bits=8, precision=4, least_exponent=-6, largest=Fraction(448), infinity=False),
    # Noune et al. 2022 (arXiv 2206.02915): the code of the negative zero is the only NaN.
    "F8_E4M3FNUZ": Format(
        bits=8, precision=4, least_exponent=-7, largest=Fraction(240), infinity=False, signed_zero=False
    ),
    "F8_E5M2FNUZ": Format(
        bits=8, precision=3, least_exponent=-15, largest=Fraction(57344), infinity=False, signed_zero=False
    ),
}


def value_of(code: int, form: Format) -> float:
    """Return the number with the bits ``code``. A Python float represents every such number exactly."""
    sign = -1.0 if code >> (form.bits - 1) else 1.0
    magnitude = code & ((1 << (form.bits - 1)) - 1)
    if not form.signed_zero and sign < 0 and magnitude == 0:
        return math.nan
    exponent, mantissa = divmod(magnitude, 1 << form.mantissa_bits)
    if exponent == 0:
        value = mantissa * _power(form.least_exponent - form.mantissa_bits)
    else:
        scale = form.least_exponent + exponent - 1 - form.mantissa_bits
        value = ((1 << form.mantissa_bits) + mantissa) * _power(scale)
    if value > form.largest:
        return sign * math.inf if form.infinity and mantissa == 0 else math.nan
    return sign * float(value)


def rounded(value: float | Fraction, form: Format) -> float:
    """Return ``value`` rounded to nearest, ties to even; too large becomes infinity, or NaN for a type without it."""
    if isinstance(value, float) and not math.isfinite(value):
        return value if form.infinity else math.nan
    if value == 0:
        return float(value) if form.signed_zero else 0.0
    exact = Fraction(value)
    exponent = max(_floor_log2(abs(exact)), form.least_exponent)
    unit = _power(exponent - form.mantissa_bits)
    nearest = round(exact / unit) * unit  # round() of a Fraction takes ties to even
    sign = math.copysign(1.0, exact)
    if abs(nearest) > form.largest:
        return sign * math.inf if form.infinity else math.nan
    if nearest == 0:
        return sign * 0.0 if form.signed_zero else 0.0
    return float(nearest)


def _floor_log2(value: Fraction) -> int:
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if _power(guess) <= value else guess - 1


def ema_shares(checkpoints: int, decay: float) -> list[Fraction]:
    """Run the recurrence ``E_1 = theta_1, E_n = d E_(n-1) + (1 - d) theta_n`` on the shares of each theta."""
    d = Fraction(decay)
    shares = [Fraction(1)]
    for _ in range(checkpoints - 1):
        shares = [d * share for share in shares] + [1 - d]
    return shares


def debiased_shares(checkpoints: int, decay: float) -> list[Fraction]:
    """Run ``E_0 = 0, E_n = d E_(n-1) + (1 - d) theta_n`` and divide by the sum of its weights, ``1 - d^N``."""
    d = Fraction(decay)
    shares: list[Fraction] = []
    for _ in range(checkpoints):
        shares = [d * share for share in shares] + [1 - d]
    return [share / (1 - d**checkpoints) for share in shares]


DIGITS = 80
"""Of the step-by-step sums."""


def per_step_shares(
    steps: Sequence[int], complement: Fraction, *, debias: bool = False, hold: bool = False
) -> list[Decimal]:
    """Take every training step once: ``E = d E + (1 - d) theta(s)`` for s = t_1 + 1, ..., T, on the shares.

    theta(s) is on the line between the checkpoints around s or, with ``hold``, is the next checkpoint. E begins as
    theta_1; with ``debias``, as ``(1 - d) theta_1``, and the end is divided by the sum.
    """
    with localcontext() as context:
        context.prec = DIGITS
        new = Decimal(complement.numerator) / Decimal(complement.denominator)
        shares = [Decimal(0)] * len(steps)
        power = Decimal(1)
        for i in range(len(steps) - 1, 0, -1):
            gap = steps[i] - steps[i - 1]
            for j in range(gap, 0, -1):  # the step that is j after the checkpoint before it, latest first
                along = Decimal(1) if hold else Decimal(j) / gap
                shares[i] += new * power * along
                shares[i - 1] += new * power * (1 - along)
                power *= 1 - new
        shares[0] += new * power if debias else power
        total = sum(shares)
        return [share / total for share in shares]


def per_step_shares_closed(steps: Sequence[int], complement: Fraction, *, debias: bool = False) -> list[Decimal]:
    """The same on lines by the textbook formula, for gaps with too many steps to walk; 400 digits are enough for it."""
    with localcontext() as context:
        context.prec = 400
        new = Decimal(complement.numerator) / Decimal(complement.denominator)
        d = 1 - new
        shares = [Decimal(0)] * len(steps)
        for i in range(1, len(steps)):
            gap, kept = steps[i] - steps[i - 1], d ** (steps[-1] - steps[i])
            mean = d * (1 - d**gap) / (gap * new)  # of d^1 ... d^D
            shares[i] += kept * (1 - mean)
            shares[i - 1] += kept * (mean - d**gap)
        kept = d ** (steps[-1] - steps[0])
        shares[0] += new * kept if debias else kept
        total = sum(shares)
        return [share / total for share in shares]


def power_shares(steps: Sequence[int], p: float) -> list[Decimal]:
    """Integrate the profile ``p t^(p-1) / T^p`` against the checkpoints' hats, by antiderivatives at 200 digits."""
    with localcontext() as context:
        context.prec = 200
        end, exponent = Decimal(steps[-1]), Decimal(p)
        times = [Decimal(step) / end for step in steps]

        def below(t: Decimal, q: Decimal) -> Decimal:
            return t**q if t else Decimal(0)

        shares = [below(times[0], exponent)] + [Decimal(0)] * (len(steps) - 1)
        for i in range(1, len(steps)):
            start, stop = times[i - 1], times[i]
            mass = below(stop, exponent) - below(start, exponent)
            moment = (below(stop, exponent + 1) - below(start, exponent + 1)) * exponent / (exponent + 1)
            later = (moment - start * mass) / (stop - start)
            shares[i] += later
            shares[i - 1] += mass - later
        total = sum(shares)
        return [share / total for share in shares]


def warmup_shares(decays: Sequence[Decimal]) -> list[Decimal]:
    """Fold step by step, with a decay of its own for each update."""
    with localcontext() as context:
        context.prec = DIGITS
        shares = [Decimal(1)]
        for decay in decays:
            shares = [decay * share for share in shares] + [1 - decay]
        return shares


FORM_OF = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
DTYPES = [torch.float64, torch.complex64, *FORM_OF]
