from collections.abc import Buffer

# Number of what the functions take and give.
INTERFACE: int

# The instruction set in use: avx512, avx2, neon or baseline.
def lane() -> str: ...

# sums[k, i] += weights[g, k] * raws[g][i] for i < count, input by input, in the types that have these numbers;
# the first product replaces the sum where started[k] is 0. Weights of zero add nothing.
def fold(
    sums: Buffer, count: int, raws: tuple[Buffer, ...], codes: tuple[int, ...], weights: Buffer, started: bytearray, /
) -> None: ...

# Sums of squares in rows of 1024: of the average, of its difference to the numbers in raw, and of these numbers.
# rows is (3, ceil(elements / 1024)) float64.
def squares(average: Buffer, raw: Buffer, code: int, rows: Buffer, /) -> None: ...

# Round float64 to a type; return whether all absolute values are below the limit. A NaN must be the usual one.
def round(values: Buffer, code: int, out: Buffer, limit: float, /) -> bool: ...
