"""Count the functions and files of the package that one run enters: how far a reader has to walk through the code.

    python scripts/walk.py               # this checkout
    python scripts/walk.py OTHER_CHECKOUT
    python scripts/walk.py --list        # also name the functions

Averages three small safetensors files in a temporary folder, with the command line in this process. The first part of
the walk ends where the first byte of a checkpoint is read; the second is the rest of the run, worker threads included.
A function is counted once in each part. Module and class bodies, lambdas and comprehensions are not counted, and
neither are functions that only run while a module of the package is imported: decorators, declarations, tables.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
from safetensors.numpy import save_file


class Walk:
    """The functions of a package that are entered, before and after the first read of a file."""

    def __init__(self, package: Path) -> None:
        self._prefix = f"{package}{os.sep}"
        self._reading = False
        self.until_first_read: dict[CodeType, None] = {}
        self.rest: dict[CodeType, None] = {}

    def hook(self, frame: FrameType, event: str, argument: object) -> None:
        """Take an event of ``sys.setprofile``."""
        if event == "c_call" and argument is os.preadv:
            self._reading = True
        if event == "call" and self._is_in_package(frame.f_code) and _is_named_function(frame.f_code):
            stack = [frame.f_code]
            while frame.f_back is not None:
                frame = frame.f_back
                stack.append(frame.f_code)
            if not any(code.co_name == "<module>" and self._is_in_package(code) for code in stack):
                (self.rest if self._reading else self.until_first_read)[stack[0]] = None

    def _is_in_package(self, code: CodeType) -> bool:
        return code.co_filename.startswith(self._prefix)


def _is_named_function(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


def walk(checkout: Path) -> Walk:
    """Run one average with the package in ``checkout``."""
    sys.path.insert(0, str(checkout))
    found = Walk(checkout / "ema_cli")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for step in (100, 200, 300):
            save_file({"w": np.full((4, 4), step, dtype=np.float32)}, f"ckpt_{step}.safetensors")
        files = [f"ckpt_{step}.safetensors" for step in (100, 200, 300)]
        sys.argv = ["ema-avg", *files, "--decay", "0.5", "-o", "ema.safetensors", "--quiet"]
        threading.setprofile(found.hook)
        sys.setprofile(found.hook)
        try:
            from ema_cli.cli import main  # noqa: PLC0415 - from the checkout

            main()
        except SystemExit as done:
            if done.code:
                raise
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            os.chdir("/")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--list", action="store_true", help="name the functions in the order in which they are entered")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    found = walk(checkout)
    sys.stdout.write("                                functions  files\n")
    for title, codes in (
        ("until the first byte is read", found.until_first_read),
        ("from there to the end", found.rest),
    ):
        files = {code.co_filename for code in codes}
        sys.stdout.write(f"{title:<32}{len(codes):>9}{len(files):>7}\n")
        for code in codes if arguments.list else ():
            place = Path(code.co_filename).relative_to(checkout / "ema_cli")
            sys.stdout.write(f"    {place}:{code.co_firstlineno} {code.co_qualname}\n")


if __name__ == "__main__":
    main()
