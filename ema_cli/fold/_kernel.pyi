# The CRC-32 of the C source that the kernel was compiled from.
SOURCE_CRC32: int

# The instruction set in use: avx512, avx2, neon or baseline.
def lane() -> str: ...
