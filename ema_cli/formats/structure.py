"""What a reader returns: the structure of a checkpoint, or the reason why it is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from ema_cli.errors import InputRefused, Proposal, RunWarning
from ema_cli.record import record
from ema_cli.records.series import FoundStep
from ema_cli.storage.checksums import RecordTable
from ema_cli.storage.extents import TensorLayout
from ema_cli.text import quoted

MOST_TENSORS = 300_000
"""In one checkpoint; more would not fit into the 512 MB that reading the structure may take."""
LONGEST_NAME_BYTES = 65_536
MOST_DIMENSIONS = 64
"""The limit of numpy."""
SIZE_LIMIT = 1 << 62
"""Valid sizes, strides and offsets are below this."""
Keys = tuple[str, ...]
"""Dotted paths to the weights (``--key``), ``.`` for the top level; empty to find them."""
ONE_SHARD = (
    "and this file has one rank's shard of it; name the folder with the files of all ranks, or save with "
    "torch.distributed.checkpoint"
)
"""Why a part of a tensor cannot be averaged."""
QUANTIZE_LATER = "average the training checkpoints, then quantize the average"
"""What to do about weights that are codes."""
_VERBS = ("cannot", "contradicts", "declares", "has", "holds", "is", "names", "refers")
"""A reason that begins with one of these continues the name of the file; any other follows a colon."""


@record
class Structure:
    """Everything that a checkpoint holds except tensor data, before names are cleaned and layouts are shared."""

    format: str
    layouts: tuple[TensorLayout, ...]
    offsets: Sequence[int]
    """Byte offset in its file of the first element of each tensor, or of each part of a tensor in several parts."""
    files: Sequence[int] = ()
    """The number of the file of each of these offsets; empty when there is one file."""
    digest: bytes
    """SHA-256 of the bytes that were parsed."""
    records: Mapping[int, RecordTable] = field(default_factory=dict)
    """Checksums that the files have of their records, by the number of the file."""
    key: str = ""
    """Dotted path to the weights; empty for the top level."""
    steps: tuple[FoundStep, ...] = ()
    metadata: dict[str, str] | None = None
    ignored: tuple[str, ...] = ()
    """What else the checkpoint holds, by name."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Tensors that are not plain numbers: name and reason. They are refused only if they are wanted."""
    quantized: str = ""
    """How a configuration beside the weights says that they are quantized; empty if it does not."""
    choice: tuple[str, ...] = ()
    """Which weights were taken, and what else there is, in words."""
    warnings: tuple[str, ...] = ()
    """Warnings about the choice of the weights."""
    second_copy: str = ""
    """Where the checkpoint holds the same weights once more, which a trainer may load instead; empty if nowhere."""
    twins: tuple[tuple[int, int, int], ...] = ()
    """More places of tensors, which other ranks have stored too: number of the tensor, number of the file, byte."""
    dropped: tuple[RunWarning, ...] = ()
    """Warnings about trained numbers of the checkpoint that are not among its tensors."""
    side_files: tuple[str, ...] = ()
    """Files of a checkpoint folder that belong to the model and not to the training: configuration, tokenizer."""
    paths: tuple[tuple[str, ...], ...] = ()
    """Of each tensor of a DCP folder, its path in the nested state dict that was saved; empty for other formats."""
    stem: str = "model"
    """The name of the weights in a folder, without suffix."""


class UnreadableTensor(InputRefused):
    """A tensor is valid but not plain numbers. It is refused only where it is wanted."""


class NoWeights(InputRefused):
    """A file is valid but holds no weights, such as the state of an optimizer."""


class SeveralModels(InputRefused):
    """A folder holds several models, and ``models`` are the names of the files to choose from."""

    models: tuple[str, ...] = ()


def refuse_keys(message: str) -> InputRefused:
    """Return the refusal of ``--key`` for a format without nested tensors."""
    return InputRefused(
        message, hint="leave out --key", proposals=[Proposal(reason="leave out --key", changes={"key": ()})]
    )


def writable_name(name: str) -> bool:
    """Whether a safetensors header can hold a tensor of this name: it is UTF-8, not too long and not reserved."""
    try:
        return len(name.encode()) <= LONGEST_NAME_BYTES and name != "__metadata__"
    except UnicodeEncodeError:
        return False


def are_sizes(values: Iterable[object]) -> bool:
    """Whether all ``values`` are valid sizes, strides or offsets: integers from 0 up to ``SIZE_LIMIT``."""
    return all([type(value) is int and 0 <= value < SIZE_LIMIT for value in values])  # noqa: C419 - few, and faster


def refusal_of(name: str, refused: InputRefused) -> InputRefused:
    """Return the refusal with a message that begins with the name of the file or folder.

    Args:
        name: of the file or folder.
        refused: its message continues the name, or begins with it already.

    """
    if refused.message.startswith(quoted(name)):
        return refused
    verb = refused.message.partition(" ")[0] in _VERBS
    message = f"{quoted(name)}{'' if verb else ':'} {refused.message}"
    named = type(refused).__new__(type(refused), message)  # the constructor of a subclass may take other arguments
    vars(named).update(vars(refused), message=message)
    return named
