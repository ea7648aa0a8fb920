"""The scales of LoRA updates: a layer's update is ``scale * B A``, and the scale is not in the factors.

It is ``alpha / r``, where alpha is in ``adapter_config.json`` (peft) or in a tensor of one element (kohya).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cached_property

from ema_cli.errors import InputRefused
from ema_cli.formats.huggingface.adapter_config import AdapterConfig, read_adapter_config
from ema_cli.planning.lora_pairs import FactorPair
from ema_cli.records.series import Checkpoint
from ema_cli.storage.extents import Chain, Located, Mosaic
from ema_cli.text import quoted

STRUCT_CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "U8": "B"}
"""The codes of Python's ``struct`` for types that it knows."""


class UpdateScales:
    """The scales of the updates of checkpoints."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._positions: dict[int, dict[str, int]] = {}
        """Positions of the tensors by name, for each list of layouts by its id."""

    @cached_property
    def configs(self) -> Sequence[AdapterConfig | None]:
        """The configuration of each checkpoint.

        Raises:
            InputRefused: one cannot be used.

        """
        return [read_adapter_config(checkpoint) for checkpoint in self._checkpoints]

    def of(self, i: int, pair: FactorPair) -> float | None:
        """Return the scale of an update, with the pair as checkpoint ``i`` has it; ``None`` if it is not stored.

        Raises:
            InputRefused: the configuration cannot be used.
            InputChanged: the file cannot be read.

        """
        name = self.alpha_name(i, pair)
        if name is not None:
            return self.alpha(i, name) / pair.rank
        config = self.configs[i]
        return None if config is None else config.scale(config.alpha_of(pair.module), pair.rank)

    def alpha_name(self, i: int, pair: FactorPair) -> str | None:
        """Return the name of the tensor that holds alpha, ``None`` if there is none."""
        layouts, positions = self._checkpoints[i].index.layouts, self._names(i)
        present = [name for name in _alpha_names(pair) if name in positions]
        return next((name for name in present if layouts[positions[name]].elements == 1), None)

    def alpha(self, i: int, name: str) -> float:
        """Return the number in a tensor of one element.

        Raises:
            InputRefused: it is of a type that is not read.
            InputChanged: the file cannot be read.

        """
        return _scalar(self._checkpoints[i].index.extent(self._names(i)[name]))

    def _names(self, i: int) -> dict[str, int]:
        layouts = self._checkpoints[i].index.layouts
        if id(layouts) not in self._positions:
            self._positions[id(layouts)] = {layout.name: position for position, layout in enumerate(layouts)}
        return self._positions[id(layouts)]


def _alpha_names(pair: FactorPair) -> Iterator[str]:
    yield f"{pair.stem}.alpha"
    yield f"{pair.module}.alpha" if pair.module else "alpha"


def _scalar(extent: Located) -> float:
    if isinstance(extent, Mosaic):
        return _scalar(extent.tiles[0][1])
    if isinstance(extent, Chain):
        return _scalar(extent.link(0))
    dtype = extent.layout.dtype
    if dtype.name not in ("BF16", *STRUCT_CODES):
        raise InputRefused(f"{quoted(extent.layout.name)} is an alpha in {dtype.torch_name}, which is not read")
    raw = extent.source.read(extent.offset, dtype.itemsize)
    if dtype.name == "BF16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    return float(struct.unpack(f"<{STRUCT_CODES[dtype.name]}", raw)[0])
