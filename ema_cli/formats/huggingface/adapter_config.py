"""``adapter_config.json``: the rank and the scale of the updates of a peft adapter.

The update of a layer is ``scale * B A`` with ``scale = lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with
``use_rslora``. Layers can differ: ``rank_pattern`` and ``alpha_pattern`` map regular expressions that match the end of
the layer's name. Source: ``peft/tuners/lora/model.py``, ``get_pattern_key`` in ``peft/utils/other.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.formats.json_text import JsonError, read_config
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import open_source
from ema_cli.text import quoted

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model."
_BASE = "base_model.model."
"""What peft writes before the name of a layer in a file of weights."""
_LARGEST_RANK = 1 << 31
_LONGEST_NAME = 1000
_PATTERN = "the pattern {} of rank_pattern or alpha_pattern"


@record
class AdapterConfig:
    """The configuration of an adapter."""

    values: Mapping[str, object]
    """As in the file."""
    rank: int
    """``r``."""
    alpha: float
    """``lora_alpha``."""
    rank_stabilized: bool
    """``use_rslora``."""
    ranks: Mapping[str, int]
    """``rank_pattern``."""
    alphas: Mapping[str, float]
    """``alpha_pattern``."""

    @property
    def settings(self) -> dict[str, str]:
        """Everything that decides ranks and scales, by its key in the file, as text."""
        return {
            "r": f"{self.rank}",
            "lora_alpha": repr(self.alpha).removesuffix(".0"),
            "use_rslora": f"{self.rank_stabilized}",
            "rank_pattern": f"{dict(self.ranks)}",
            "alpha_pattern": f"{dict(self.alphas)}",
        }

    def rank_of(self, module: str) -> int:
        """Return the rank of a layer."""
        key = _matching(self.ranks, module)
        return self.rank if key is None else self.ranks[key]

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a layer."""
        key = _matching(self.alphas, module)
        return self.alpha if key is None else self.alphas[key]

    def scale(self, alpha: float, rank: int) -> float:
        """Return the factor of B A."""
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_adapter_config(checkpoint: Checkpoint) -> AdapterConfig | None:
    """Return the configuration of an adapter, ``None`` if there is none.

    Raises:
        InputRefused: it cannot be read, or does not have the form of peft.

    """
    path = checkpoint.path
    if ADAPTER_CONFIG not in checkpoint.side_files:
        if not path.name.startswith(_ADAPTER_WEIGHTS):
            return None
        path = path.parent
    try:
        with open_source(path / ADAPTER_CONFIG) as source:
            values = read_config(source)
        return _config(values) if "r" in values else None
    except NothingMatched:
        return None
    except (JsonError, TypeError, ValueError, OverflowError) as error:
        reason = error if isinstance(error, JsonError) else "has no valid rank and alpha"
        raise InputRefused(f"{quoted(str(path / ADAPTER_CONFIG))} {reason}") from error


def layer_of(module: str) -> str:
    """Return the name that patterns match, of a layer in a file of weights."""
    return module.removeprefix(_BASE)


def _config(values: Mapping[str, object]) -> AdapterConfig:
    rank, alpha = values["r"], values.get("lora_alpha", 8)
    return AdapterConfig(
        values=values,
        rank=_whole(rank),
        alpha=_number(alpha),
        rank_stabilized=values.get("use_rslora") is True,
        ranks={key: _whole(value) for key, value in _patterns(values, "rank_pattern").items()},
        alphas={key: _number(value) for key, value in _patterns(values, "alpha_pattern").items()},
    )


def _patterns(values: Mapping[str, object], key: str) -> dict[str, object]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise TypeError(key)
    return found


def _whole(value: object) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
        raise ValueError(value)
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _matching(patterns: Mapping[str, object], module: str) -> str | None:
    """Return the first key that matches a layer, as peft does.

    Raises:
        InputRefused: a pattern is not valid, or could take very long.

    """
    layer = layer_of(module)
    if patterns and len(layer) > _LONGEST_NAME:
        raise InputRefused(f"the name {quoted(layer)} is too long to compare it with patterns")
    return next((key for key in patterns if _compiled(key).match(layer)), None)


@lru_cache(maxsize=4096)
def _compiled(key: str) -> re.Pattern[str]:
    repetitions = len(re.findall(r"[*+?{]", key))
    if len(key) > _LONGEST_NAME or repetitions > 1 or (repetitions and "(" in key):
        raise InputRefused(f"{_PATTERN.format(quoted(key))} is too complex")
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise InputRefused(f"{_PATTERN.format(quoted(key))} is not a regular expression: {error}") from error
