"""What a reader returns: the structure of a checkpoint, before names are cleaned and layouts shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ema_cli.errors import InputRefused
from ema_cli.records.series import FoundStep
from ema_cli.storage.checksums import RecordTable
from ema_cli.storage.extents import TensorLayout

MOST_TENSORS = 300_000
"""Of one checkpoint: more would not fit into the 512 MB that reading its structure may take."""
LONGEST_NAME_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything that stands in a checkpoint except tensor data."""

    format: str
    layouts: tuple[TensorLayout, ...]
    offsets: tuple[int, ...]
    """Byte offset of the first element of each tensor, or of each part of it, in its file."""
    files: tuple[int, ...] = ()
    """The number of the file of each of those places; empty when there is one file."""
    digest: bytes
    """A hash of the bytes that were parsed."""
    records: Mapping[int, RecordTable] = field(default_factory=dict)
    """What the files have checksums of, by their number."""
    key: str = ""
    steps: tuple[FoundStep, ...] = ()
    metadata: dict[str, str] | None = None
    ignored: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    """Tensors of the model that have no plain numbers, by name, each with the reason; refused only if wanted."""
    quantized: str = ""
    """How a configuration beside the weights says that they are quantized; empty if it does not."""
    notes: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    """Files of a checkpoint folder that belong to the model and not to the training: configuration, tokenizer."""
    stem: str = "model"
    """What a folder calls its weights, without suffix."""


class UnreadableTensor(InputRefused):
    """A tensor is sound, but has no plain numbers: it is refused where it is wanted, and only there."""


def writable_name(name: str) -> bool:
    """Whether a tensor of this name can stand in a safetensors header: it is UTF-8, not too long and not reserved."""
    try:
        return len(name.encode()) <= LONGEST_NAME_BYTES and name != "__metadata__"
    except UnicodeEncodeError:
        return False
