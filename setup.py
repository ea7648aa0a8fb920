"""The compiled kernel of the fold: optional, so that the package installs without a compiler, too."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "ema_cli/fold/_kernel.c"

setup(
    ext_modules=[
        Extension(
            "ema_cli.fold._kernel",
            [SOURCE],
            optional=True,
            py_limited_api=True,
            define_macros=[
                ("Py_LIMITED_API", "0x030b0000"),
                # The program does not use a kernel that was compiled from another source than the one beside it.
                ("SOURCE_CRC32", f"{zlib.crc32(Path(SOURCE).read_bytes())}LL"),
            ],
            # Without fused operations: the results are those of numpy, bit for bit.
            extra_compile_args=["-O3", "-ffp-contract=off"],
        ),
    ],
)
