from typing_extensions import Buffer

# Number of what the functions take and give.
INTERFACE: int

# The instruction set in use: avx512, avx2, neon or baseline.
def lane() -> str: ...

# Use another one, for tests. ValueError if this processor has none of that name.
def use(lane: str, /) -> None: ...

# sums[k, i] += weights[g, k] * raws[g][i] for i < count, input by input, in the types that have these numbers;
# the first product replaces the sum where started[k] is 0. Weights of zero add nothing.
def fold(
    sums: Buffer, count: int, raws: tuple[Buffer, ...], codes: tuple[int, ...], weights: Buffer, started: bytearray, /
) -> None: ...

# Whether the module can read: the processor has instructions for CRC-32.
HAS_READS: bool

# Read count elements of each checkpoint and add them as fold does; return how many checkpoints could be read whole.
#
# places is (checkpoints, 3) int64: file descriptor, offset in bytes, type. memory is divided among the checkpoints; it
# has room for 1024 elements of 8 bytes of each. crcs is (checkpoints,) uint32, filled with the CRC-32 of each block.
# rows is (checkpoints, picks) float64, filled with the elements that have the numbers in picks.
#
# Then, unless squares is empty, fill it, (averages, 3, rows) float64, as the function of that name does, with the last
# checkpoint; and rounded, (averages, bytes), and fits, (averages,) bool, as round_to does. If no sum was started, sums
# is not used then, and may be smaller than count elements.
def average(
    sums: Buffer,
    count: int,
    places: Buffer,
    weights: Buffer,
    started: bytearray,
    memory: Buffer,
    crcs: Buffer,
    picks: Buffer,
    rows: Buffer | None,
    squares: Buffer,
    rounded: Buffer,
    fits: bytearray,
    code: int,
    limit: float,
    /,
) -> int: ...

# Sums of squares in rows of 1024: of the average, of its difference to the numbers in raw, and of these numbers.
# rows is (3, ceil(elements / 1024)) float64.
def squares(average: Buffer, raw: Buffer, code: int, rows: Buffer, /) -> None: ...

# Of each step numbers of rows of width numbers, the last of a row maybe fewer, the sum and the remainder, both rounded
# once as by math.fsum; a sum that is not finite has no remainder. sums is (rows, ceil(width / step), 2) float64.
def exact_sums(values: Buffer, width: int, step: int, sums: Buffer, /) -> None: ...

# Round float64 to a type; return whether all absolute values are below the limit. A NaN must be the usual one.
def round_to(values: Buffer, code: int, out: Buffer, limit: float, /) -> bool: ...
