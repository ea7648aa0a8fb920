"""System calls of this process that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable


def close_and_fail(descriptor: int, original: Callable[[int], None] = os.close) -> None:
    """Close as Linux does when it reports an error: the descriptor is closed all the same."""
    original(descriptor)
    raise OSError(errno.EIO, os.strerror(errno.EIO))
