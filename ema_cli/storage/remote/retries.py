"""Try again what failed in a store for a reason that may pass."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ema_cli.storage.remote.failure_causes import failure_of
from ema_cli.storage.remote.failures import reading_error
from ema_cli.storage.remote.store_failure import FailureKind
from ema_cli.storage.url import Url

Answer = TypeVar("Answer")
RETRY_DELAY_SECONDS = 0.2
"""Delay before the second try, doubled before each further try, and varied by half. Tests set it to 0."""
TRIES = 5
TRIES_OF_BUSY_S3 = 8
"""Tries for an object of S3 that its library does not ask for: a bucket may be too busy for half a minute."""
TRIES_OF_PATIENT = 2
"""Tries for stores with libraries that retry on their own, for half a minute."""
PATIENT = ("gs", "gcs", "hf")
RETRYING_SECONDS = 120
"""No try begins later than this after the first."""
LONGEST_WAIT_SECONDS = 60
"""A store that asks to wait for longer is not asked again."""


def retry(
    ask: Callable[[], Answer], url: Url, *, tries_of_busy: int = TRIES, closed: threading.Event | None = None
) -> Answer:
    """Return the answer of a store; retry after errors that may pass, such as a busy server or a lost connection.

    It stops once ``closed`` is set, and after ``tries_of_busy`` tries if the store is busy. The last error is raised.
    """
    closed = closed or threading.Event()
    begin, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            return ask()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - every library has its own
            last, failure = error, failure_of(error, url)
        # Varied so that threads do not retry together.
        wait = max(failure.wait_seconds, RETRY_DELAY_SECONDS * 2 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311
        most = TRIES_OF_PATIENT if url.scheme in PATIENT else TRIES
        if most == TRIES and failure.kind is FailureKind.BUSY:
            most = tries_of_busy
        in_time = wait <= LONGEST_WAIT_SECONDS and time.monotonic() + wait - begin <= RETRYING_SECONDS
        if tries >= most or not (failure.may_pass and in_time) or closed.wait(wait):
            raise last


def read_or_raise(
    ask: Callable[[], Answer],
    url: Url,
    *,
    place: str = "",
    opened: bool = False,
    tries_of_busy: int = TRIES,
    closed: threading.Event | None = None,
) -> Answer:
    """Return the answer of a store about an input, with retries.

    Args:
        ask: asks the store.
        url: of the input.
        place: continues "cannot be read" in the message, such as ``at byte 5``.
        opened: the object existed before, so if it is missing now it was removed.
        tries_of_busy: at most, if the store is busy, and its library does not try on its own.
        closed: set when the answer is no longer needed.

    Raises:
        NothingMatched: the object does not exist.
        InputRefused: access is denied, or the store cannot do what is needed.
        InputChanged: the object was changed or removed; the store is failing, or cannot be reached.

    """
    try:
        return retry(ask, url, tries_of_busy=tries_of_busy, closed=closed)
    except MemoryError:
        raise
    except Exception as error:
        raise reading_error(error, url, place=place, opened=opened) from error
