"""Open the checkpoints that were found: one after the other on a disk, several at a time in a store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from functools import partial

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import parse_shard_name
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import Options
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location, is_folder
from ema_cli.storage.remote.daemon_pool import DaemonPool
from ema_cli.storage.url import Url
from ema_cli.text import quoted

_OPENERS = DaemonPool("open", threads=16)


def open_in_turn(
    locations: Sequence[Location], options: Options, pool: LayoutPool
) -> Generator[Callable[[], Checkpoint]]:
    """Yield, for each location in turn, what returns its checkpoint or raises why there is none.

    Close the generator: what was opened in a store and not asked for is closed then.
    """
    open_one = partial(_open, options=options, pool=pool)
    if not any(isinstance(location, Url) for location in locations):
        yield from (partial(open_one, location) for location in locations)
        return
    futures = deque(_OPENERS.submit(partial(open_one, location)) for location in locations)
    try:
        while futures:
            yield futures.popleft().result
    finally:
        for future in futures:
            future.cancel()
            future.add_done_callback(_close)


def _open(location: Location, options: Options, pool: LayoutPool) -> Checkpoint:
    _refuse_shard(location)
    return open_checkpoint(location, pool=pool, key=options.key, strip_prefix=options.strip_prefix)


def _close(future: Future[Checkpoint]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().index.close()


def _refuse_shard(location: Location) -> None:
    """Refuse one shard of a model, which by itself is no model."""
    found = parse_shard_name(location.name)
    if found is not None and found.count > 1 and not is_folder(location):
        message = f"{quoted(str(location))} is one shard of a model, number {found.number:,} of {found.count:,}"
        raise InputRefused(message, hint=f"name the folder that holds all of them: {location.parent}")
