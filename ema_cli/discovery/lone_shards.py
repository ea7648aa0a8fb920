"""Files named alone that are a shard of a checkpoint: the folder with all shards is what can be averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from ema_cli.discovery.patterns import matches
from ema_cli.errors import InputRefused, Proposal
from ema_cli.formats.dcp.dcp_names import METADATA, is_data
from ema_cli.formats.file_names import parse_shard_name
from ema_cli.storage.locations import Location, literal, locate, names_in
from ema_cli.text import quoted

_MOST_FOLDERS = 8
"""Folders that a command names one by one."""
_REASON = "name the folder with all shards"


def lone_shard(location: Location) -> InputRefused | None:
    """Return the refusal of a file that is a shard by its name; ``None`` for any other."""
    shard = parse_shard_name(location.name)
    hint = f"name the folder that contains all shards: {location.parent}"
    if shard is not None and shard.count > 1:
        return InputRefused(f"{quoted(str(location))} is one of the {shard.count:,} shards of a model", hint=hint)
    if is_data(location.name) or location.name == METADATA:
        return InputRefused(f"{quoted(str(location))} is one file of a distributed checkpoint (DCP)", hint=hint)
    return None


def proposals_for_shards(names: Sequence[str]) -> Iterator[Proposal]:
    """Yield the command with the folders of the shards in ``names``, the command line, instead of the shards.

    If these are all folders of another folder, that one is named.
    """
    found = [location for name in names for location in _matches(name)]
    paths = dict.fromkeys(location.parent if lone_shard(location) else location for location in found)
    above = {path.parent for path in paths}
    if len(above) == 1 and len(paths) > 1:
        (run,) = above
        with suppress(OSError):
            folders = {name for name, inside in names_in(run).items() if inside}
            if folders == {path.name for path in paths}:
                yield Proposal(reason=_REASON, changes={"paths": (str(run),)})
                return
    if len(paths) <= _MOST_FOLDERS:
        yield Proposal(reason=_REASON, changes={"paths": tuple(literal(path) for path in paths)})


def _matches(name: str) -> Sequence[Location]:
    try:
        return matches(name)
    except (OSError, InputRefused):
        return [locate(name)]
