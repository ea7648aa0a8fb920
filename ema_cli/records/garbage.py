"""The garbage collector, stopped where millions of values are made and none of them is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Stop the garbage collector: the new values would start it again and again, and it looks at all values each time.

    Memory that only circular garbage holds is freed afterwards.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
