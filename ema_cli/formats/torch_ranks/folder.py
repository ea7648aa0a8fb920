"""A folder in which every rank saved its own part of the weights with ``torch.save``.

FSDP's sharded state dicts consist of tensors that state which part of the whole they are, so the files of all ranks
define the whole tensors. Without any such statement, the files are read only if all ranks have the same tensors bit
for bit, as data-parallel ranks have: how other parts fit together would be a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import find_side_files, joint_digest
from ema_cli.formats.state_dict.find_weights import StateDict, find_state_dict
from ema_cli.formats.state_dict.steps import read_steps
from ema_cli.formats.structure import Keys, Structure, refusal_of
from ema_cli.formats.torch_ranks.joined_ranks import JoinedRanks, RankJoiner
from ema_cli.formats.torch_ranks.rank_archive import RankArchive
from ema_cli.formats.torch_ranks.rank_copies import compare_copies
from ema_cli.formats.torch_ranks.rank_file_names import rank_groups
from ema_cli.formats.weights_beside import add_weights_beside
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted

_ONE_SAVE = "check that all files are of a single save"


def read_torch_ranks(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint in the files of all ranks.

    Raises:
        UsageError: there are no tensors under one of ``keys``.
        InputRefused: a file cannot be used, ranks are missing, or the files do not state how they fit together.

    """
    (names,) = rank_groups(folder.files).values()
    structure = read_rank_group(folder, names, keys, pool)
    side_files = find_side_files(folder.files)
    others = folder.others(side_files)
    whole = replace(structure, side_files=side_files, ignored=(*structure.ignored, *others))
    return add_weights_beside(folder, whole)


def read_rank_group(folder: Folder, names: Mapping[int, str], keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint in some files of a folder, by rank; raise as ``read_torch_ranks``."""
    files = [RankArchive(folder, names[rank]) for rank in sorted(names)]
    digest = joint_digest(file.digest for file in files)
    joined = pool.remember(("torch ranks", digest, keys), lambda: _join(files, keys))
    _announce(joined, files)
    warnings = compare_copies(joined, files)
    offsets = tuple(files[place.rank].locate(place) for place in joined.places)
    return Structure(
        format=f"torch zip, parts of {plural(len(files), 'rank')}",
        layouts=joined.layouts,
        offsets=offsets,
        files=tuple(files[place.rank].number for place in joined.places),
        digest=digest,
        records={file.number: file.archive.checksums() for file in files},
        key=joined.first.key,
        steps=tuple(read_steps(joined.root, files[0].source, files[0].archive.storage)),
        ignored=joined.first.ignored,
        unreadable=joined.unreadable,
        choice=joined.first.choice,
        warnings=(*joined.first.warnings, *warnings),
        dropped=joined.first.dropped,
    )


def _announce(joined: JoinedRanks, files: list[RankArchive]) -> None:
    """Announce the storages that will be located, by file: in a store each may be a request."""
    keys: dict[int, dict[str, None]] = {}
    for place in (*joined.places, *(place for copy in joined.copies for place in (copy.first, copy.other))):
        keys.setdefault(place.rank, {})[place.key] = None
    for rank, found in keys.items():
        files[rank].archive.announce(found)


def _join(files: list[RankArchive], keys: Keys) -> JoinedRanks:
    """Parse the files one after the other; only what is needed of each is kept."""
    joiner = RankJoiner()
    first: tuple[StateDict, object, object] | None = None
    for rank, file in enumerate(files):
        try:
            root = file.parse()
            chosen = find_state_dict(root, keys)
            joiner.add(rank, chosen.tensors)
            steps = [(step.source, step.value) for step in read_steps(root, file.source, file.archive.storage)]
        except InputRefused as refused:
            raise refusal_of(file.name, refused) from refused
        first = first or (chosen, root, steps)
        if (chosen.key, steps) != (first[0].key, first[2]):
            raise InputRefused(
                f"has files of different saves: the steps in {quoted(files[0].name)} and {quoted(file.name)} differ",
                hint=_ONE_SAVE,
            )
    if first is None:
        raise InputRefused("has no files of ranks")
    return joiner.joined(replace(first[0], tensors={}), first[1])
