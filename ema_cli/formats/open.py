"""Open one checkpoint, a file or a folder: read its structure and clean the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.formats.file import read_file
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import read_folder
from ema_cli.formats.huggingface.model_folder import read_indexed_model
from ema_cli.formats.huggingface.weight_names import is_index
from ema_cli.formats.state_dict.prefixes import strip_prefixes
from ema_cli.formats.structure import ONE_SHARD, Keys, Structure, refusal_of
from ema_cli.formats.torch_ranks.rank_file_names import group_of_first, is_rank_file
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import LayoutPool, TensorIndex, TensorLayout
from ema_cli.storage.locations import Location, is_file, is_folder, open_source
from ema_cli.storage.source import ByteSource


def open_checkpoint(
    path: Location,
    *,
    pool: LayoutPool,
    keys: Keys = (),
    strip_prefix: str | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Checkpoint:
    """Read the structure of a checkpoint; its files stay open for the fold.

    Args:
        path: a file of any supported format, whatever its name, a folder that is one checkpoint, or the index of the
            shards of a model.
        pool: shares layouts between the checkpoints of a run.
        keys: dotted paths to the weights in a nested checkpoint; empty to find them.
        strip_prefix: prefix to remove from the names; ``None`` for the prefixes of known wrappers.
        wanted: whether a tensor is selected, by its name; others need not have a prefix.

    Raises:
        NothingMatched: the file does not exist.
        InputRefused: the checkpoint cannot be used; the message names the file and the reason.
        InputChanged: a file was replaced while the checkpoint was being opened.

    """
    with ExitStack() as opened:
        try:
            structure, sources = _read(path, keys, pool, opened)
            layouts = pool.intern(structure.layouts)
            unreadable = tuple(name for name, _ in structure.unreadable)
            clean = pool.remember_of(
                layouts,
                (unreadable, keys, strip_prefix, wanted),
                lambda: _clean_names(layouts, unreadable, pool, keys=keys, strip_prefix=strip_prefix, wanted=wanted),
            )
        except InputRefused as refused:
            raise refusal_of(str(path), refused) from refused
        opened.pop_all()
    reasons = (reason for _, reason in structure.unreadable)
    index = TensorIndex(sources, clean.layouts, structure.offsets, structure.files, structure.records)
    return Checkpoint(
        path=path,
        format=structure.format,
        index=index,
        key=structure.key,
        stripped=clean.prefixes,
        steps=structure.steps,
        fingerprint=f"{index.size()}-{index.version}-{structure.digest.hex()[:32]}",
        metadata=structure.metadata or {},
        ignored=structure.ignored,
        unreadable=tuple(zip(clean.unreadable, reasons, strict=True)),
        quantized=structure.quantized,
        warnings=(*structure.warnings, *clean.warnings),
        choice=structure.choice,
        second_copy=structure.second_copy,
        twins=structure.twins,
        dropped=structure.dropped,
        paths=structure.paths if strip_prefix is None else _renamed_paths(structure.paths, layouts, clean.layouts),
        side_files=structure.side_files,
        stem=structure.stem,
    )


def look_at(path: Location) -> Checkpoint | None:
    """Return a checkpoint whose files are closed again; ``None`` if it is none that can be opened."""
    try:
        checkpoint = open_checkpoint(path, pool=LayoutPool())
    except EmaAvgError:
        return None
    checkpoint.index.close()
    return checkpoint


@record
class _CleanNames:
    """The tensors of a checkpoint under names without the prefixes of wrappers."""

    layouts: tuple[TensorLayout, ...]
    unreadable: tuple[str, ...]
    """The names of those that cannot be read."""
    prefixes: tuple[str, ...]
    warnings: tuple[str, ...]


def _clean_names(
    layouts: tuple[TensorLayout, ...],
    unreadable: tuple[str, ...],
    pool: LayoutPool,
    *,
    keys: Keys,
    strip_prefix: str | None,
    wanted: Callable[[str], bool] | None,
) -> _CleanNames:
    bare = [
        layout.name
        for layout in layouts
        if not layout.dtype.averaged or (wanted is not None and not wanted(layout.name))
    ]
    names = [*(layout.name for layout in layouts), *unreadable]
    clean = strip_prefixes(names, strip_prefix, parts=keys if len(keys) > 1 else (), bare=bare)
    if clean.prefixes:
        pairs = zip(layouts, clean.names, strict=False)
        layouts = pool.intern(tuple(layout._replace(name=name) for layout, name in pairs))
    return _CleanNames(
        layouts=layouts,
        unreadable=tuple(clean.names[len(layouts) :]),
        prefixes=clean.prefixes,
        warnings=clean.warnings,
    )


def _renamed_paths(
    paths: tuple[tuple[str, ...], ...], layouts: tuple[TensorLayout, ...], renamed: tuple[TensorLayout, ...]
) -> tuple[tuple[str, ...], ...]:
    """Return the paths of tensors whose names, the ends of the paths, lost a prefix that the user gave.

    Those of wrappers stay in the paths: the trainer that saved them asks for them.
    """
    if layouts is renamed:
        return paths
    return tuple(map(_renamed_path, paths, (one.name for one in layouts), (one.name for one in renamed)))


def _renamed_path(path: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    begin = next((number for number in range(len(path)) if ".".join(path[number:]) == old), None)
    return path if begin is None else (*path[:begin], new)


def _read(path: Location, keys: Keys, pool: LayoutPool, opened: ExitStack) -> tuple[Structure, list[ByteSource]]:
    """Return the structure of a file or a folder, and its open files, which ``opened`` closes."""
    indexed = is_index(path.name) and not is_folder(path) and is_file(path)
    if not is_folder(path) and not indexed:
        source = opened.enter_context(open_source(path))
        structure = read_file(source, keys, pool)
        return _with_other_ranks(path, structure, keys, pool, opened) or (structure, [source])
    folder = Folder(path.parent if indexed else path)
    opened.callback(folder.close)
    structure = read_indexed_model(folder, path.name, keys, pool) if indexed else read_folder(folder, keys, pool)
    folder.raise_if_replaced()
    return structure, folder.sources


def _with_other_ranks(
    path: Location, structure: Structure, keys: Keys, pool: LayoutPool, opened: ExitStack
) -> tuple[Structure, list[ByteSource]] | None:
    """Return the structure of the files of all ranks if a file is that of the first, and has shards; else nothing."""
    if not is_rank_file(path.name) or not any(ONE_SHARD in reason for _, reason in structure.unreadable):
        return None
    folder = Folder(path.parent)
    opened.callback(folder.close)
    names = group_of_first(folder, path.name)
    if not names:
        return None
    from ema_cli.formats.torch_ranks.folder import read_rank_group  # noqa: PLC0415 - few files are those of ranks

    whole = read_rank_group(folder, names, keys, pool)
    folder.raise_if_replaced()
    return whole, folder.sources
