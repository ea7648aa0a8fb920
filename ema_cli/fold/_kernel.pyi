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
SLOT_BYTES: int
MOST_AVERAGES: int

# Read count elements of each checkpoint and add them as fold does; return how many checkpoints could be read whole.
#
# places is (checkpoints, 3) int64: file descriptor, offset in bytes, type. slots holds tiles in SLOT_BYTES each, until
# all are full. crcs is (checkpoints,) uint32, filled with the CRC-32 of each block. rows is (checkpoints, picks)
# float64, filled with the elements that have the numbers in picks.
#
# Then, unless squares is empty, fill it, (averages, 3, rows) float64, as the function of that name does, with the last
# checkpoint; and rounded, (averages, bytes), and fits, (averages,) bool, as round_to does.
def average(
    sums: Buffer,
    count: int,
    places: Buffer,
    weights: Buffer,
    started: bytearray,
    slots: Buffer,
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
def crc32(raw: Buffer, /) -> int: ...

# Sums of squares in rows of 1024: of the average, of its difference to the numbers in raw, and of these numbers.
# rows is (3, ceil(elements / 1024)) float64.
def squares(average: Buffer, raw: Buffer, code: int, rows: Buffer, /) -> None: ...

# Round float64 to a type; return whether all absolute values are below the limit. A NaN must be the usual one.
def round_to(values: Buffer, code: int, out: Buffer, limit: float, /) -> bool: ...
