"""Recognize the factors of LoRA updates, by their names and by their shapes.

An update is the product B A of two factors that share an axis of length r, the rank. Two tensors are a pair if their
names differ in one word that follows ``lora``, and if their shapes have the rank in the right places.

Names: ``lora_A.weight``, ``lora_A.NAME.weight``, ``lora_embedding_A`` (peft), ``lora_a.weight`` (torchtune), ``lora_A``
(loralib), ``lora_down.weight`` (kohya), ``lora.down.weight``, ``to_q_lora.down.weight``,
``lora_linear_layer.down.weight`` (diffusers), ``lora_a`` with both factors transposed (MLX), ``lora_adapter.linear_in``
(NeMo).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ema_cli.dtypes import DType, Kind
from ema_cli.record import record
from ema_cli.text import regex

_FACTOR = regex(
    r"(?P<stem>(?:.*[._])?(?i:lora)[^.]*?)(?P<between>[._])(?P<side>A|B|a|b|down|up|linear_in|linear_out)"
    r"(?P<rest>(?:\.(?!(?i:lora))[^.]+){0,2})"
)
"""A word for one side behind ``lora``; then at most the name of an adapter and ``weight``."""
_OTHER_SIDE = {"A": "B", "a": "b", "down": "up", "linear_in": "linear_out"}
_LONGEST = 1000
"""Characters of a name; the pattern takes quadratic time."""
_MATRIX = 2
Shapes = Mapping[str, tuple[DType, tuple[int, ...]]]
"""Element types and shapes by name."""


@record
class FactorPair:
    """The two factors of an update."""

    stem: str
    """Their common name, up to the word for the side: ``layers.0.q_proj.lora``."""
    down: str
    """Name of A: (r, in), or (r, in, height, width) of a convolution."""
    up: str
    """Name of B: (out, r), or (out, r, 1, 1) of a convolution."""
    rank: int
    transposed: bool = False
    """Whether A is (in, r) and B is (r, out)."""

    @property
    def module(self) -> str:
        """The layer that has the factors: ``layers.0.q_proj``."""
        return self.stem.rpartition(".")[0]

    def rank_axis(self, name: str) -> int:
        """Return the axis of a factor that has the length of the rank."""
        return int((name == self.up) is not self.transposed)


def find_pairs(shapes: Shapes) -> Iterator[FactorPair]:
    """Yield the pairs among the tensors of a checkpoint, in their order."""
    for name in shapes:
        found = _match(name)
        if found is not None and found["side"] in _OTHER_SIDE:
            up = f"{found['stem']}{found['between']}{_OTHER_SIDE[found['side']]}{found['rest']}"
            pair = _pair(found, name, up, shapes) if up in shapes else None
            if pair is not None:
                yield pair


def is_factor(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has the name of a factor, whatever its partner is."""
    return len(shape) >= _MATRIX and _match(name) is not None


def _match(name: str) -> re.Match[str] | None:
    return _FACTOR.fullmatch(name) if len(name) <= _LONGEST and "lora" in name.lower() else None


def _pair(found: re.Match[str], down: str, up: str, shapes: Shapes) -> FactorPair | None:
    (down_type, a), (up_type, b) = shapes[down], shapes[up]
    if down_type.kind is not Kind.FLOAT or up_type.kind is not Kind.FLOAT or min(len(a), len(b)) < _MATRIX:
        return None
    usual = len(a) == len(b) and a[0] == b[1] and all(size == 1 for size in b[2:])
    transposed = len(a) == len(b) == _MATRIX and a[1] == b[0]
    if transposed and usual:  # all sizes are equal: MLX alone transposes, and its names end with the side
        transposed = found["side"] == "a" and not found["rest"]
    if not (usual or transposed) or 0 in (*a, *b):
        return None
    return FactorPair(stem=found["stem"], down=down, up=up, rank=a[1] if transposed else a[0], transposed=transposed)
