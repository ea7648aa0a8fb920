"""Files inside a checkpoint folder: how each is read, and how several become one structure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ema_cli.errors import InputRefused
from ema_cli.formats.file import read_file
from ema_cli.formats.folder import Folder
from ema_cli.formats.foreign_formats import refuse_pointer
from ema_cli.formats.json_text import JsonError, parse_object
from ema_cli.formats.structure import Keys, Structure, refusal_of
from ema_cli.record import record
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, regex

_MOST_JSON_BYTES = 1 << 25
_MOST_JSON_ENTRIES = 500_000
"""Both are several times the largest models' need, and bound the memory of a parse to 500 MB."""
_SIDE_FILE = regex(
    r"(?:config|generation_config|adapter_config|model_config|preprocessor_config|processor_config"
    r"|image_processor_config|video_preprocessor_config|feature_extractor_config|scheduler_config"
    r"|special_tokens_map|added_tokens|vocab|tokenizer(?:_\w+)?|chat_template|modules|sentence_bert_config"
    r"|config_sentence_transformers|target_vocab|source_vocab|normalizer|phoneme_\w+)\.json"
    r"|tokenizer\.model(?:\.v\d+)?|spiece\.model|sentencepiece[\w.]*\.model|source\.spm|target\.spm|bpe\.codes"
    r"|vocab\.txt|merges\.txt|dict\.txt|entity_vocab\.json|tekken\.json|chat_template\.\w+|[A-Za-z]\w*\.py"
)
"""Configuration, tokenizer, preprocessing, and the model's own code, which is copied as text and never run."""
_TOOLS = ("zero_to_fp32.py",)
"""Scripts that convert the checkpoint in their folder."""

Read = Callable[[ByteSource, Keys, LayoutPool], Structure]
"""Reads the structure of a file; the second argument is ``--key``."""


@record
class Member:
    """A file of a folder with its structure."""

    name: str
    number: int
    """Of the open file."""
    structure: Structure


@record
class MergedTensors:
    """The tensors of several members in one order: the same for all checkpoints of equal structure."""

    layouts: tuple[TensorLayout, ...]
    origins: tuple[tuple[int, int], ...]
    """Of each tensor, or of each part: the position of its member, and its position among the member's tensors."""
    dropped: tuple[str, ...] = ()
    """Tensors of the members that are not among them."""


def read_member(folder: Folder, name: str, keys: Keys, pool: LayoutPool, *, read: Read = read_file) -> Member:
    """Open one file of a folder and read its structure.

    Raises:
        InputRefused: it cannot be used; the message names the file.

    """
    number = folder.open(name)
    try:
        return Member(name=name, number=number, structure=read(folder.sources[number], keys, pool))
    except InputRefused as refused:
        raise refusal_of(name, refused) from refused


def read_only_member(folder: Folder, name: str, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the structure of a checkpoint that has all its tensors in one file of a folder.

    Raises:
        InputRefused: it cannot be used; the message names the file.

    """
    member = read_member(folder, name, keys, pool)
    structure = member.structure
    records = {member.number: structure.records[0]} if structure.records else {}
    return replace(structure, files=(member.number,) * len(structure.offsets), records=records)


def merged_structure(members: Sequence[Member], merged: MergedTensors, *, form: str, digest: bytes) -> Structure:
    """Return the structure of a checkpoint with tensors in several files; ``form`` is the format, in words."""
    return Structure(
        format=form,
        layouts=merged.layouts,
        offsets=tuple(members[which].structure.offsets[position] for which, position in merged.origins),
        files=tuple(members[which].number for which, _ in merged.origins),
        records={one.number: one.structure.records[0] for one in members if one.structure.records},
        digest=digest,
        metadata=members[0].structure.metadata,
        dropped=tuple(dict.fromkeys(warning for one in members for warning in one.structure.dropped)),
        unreadable=tuple({name: why for one in members for name, why in one.structure.unreadable}.items()),
    )


def read_json(folder: Folder, name: str, pool: LayoutPool) -> tuple[dict[str, object], bytes]:
    """Read a JSON object of a folder; return it, and a hash of its bytes.

    Raises:
        InputRefused: it is not a JSON object, or too large.

    """
    return parse_json(folder.read(name, most=_MOST_JSON_BYTES), name, pool)


def parse_json(raw: bytes, name: str, pool: LayoutPool, *, nan: bool = False) -> tuple[dict[str, object], bytes]:
    """Parse a JSON object of a folder, once for all checkpoints with the same bytes; return it, and their hash.

    Raises:
        InputRefused: it is not a JSON object, or too large.

    """
    digest = hashlib.sha256(raw).digest()
    try:
        made = pool.branch(name).remember(digest, lambda: parse_object(raw, most=_MOST_JSON_ENTRIES, nan=nan))
    except JsonError as error:
        refuse_pointer(raw, name)
        raise InputRefused(f"{quoted(name)} is damaged: it {error}") from error
    return made, digest


def joint_digest(digests: Iterable[bytes]) -> bytes:
    """Return one hash for the bytes that were parsed in several files."""
    return hashlib.sha256(b"".join(digests)).digest()


def find_side_files(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the files that an averaged model needs to be loaded, in order.

    A README is not among them, as it describes the original.
    """
    return tuple(sorted(name for name in names if _SIDE_FILE.fullmatch(name) and name not in _TOOLS))
