"""Adapters whose updates are not ``scale * B A`` with plain factors, so that ``--lora exact`` cannot join them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from ema_cli.errors import InputRefused
from ema_cli.formats.huggingface.adapter_config import AdapterConfig
from ema_cli.planning.lora_pairs import FactorPair, is_factor
from ema_cli.planning.matching import Chosen
from ema_cli.text import quoted, regex, safe_text

OTHERWISE = "merge each checkpoint into the base model and average the models, or leave out --lora"
_OF_AN_UPDATE = regex(r"[^.]*(?:lora|dora|magnitude)", re.IGNORECASE)
_VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "target_parameters")
"""Settings of peft with which an update is not ``scale * B A``, or has several ranks in one tensor."""
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "true", "false")
"""Initializations of peft that, when an adapter is loaded, do not change the base model by as many ranks as it has."""


def refuse_inexact(tensors: Chosen, pairs: Collection[FactorPair], checkpoint: str) -> None:
    """Raise if a checkpoint has factors without a partner, or other tensors that belong to an update.

    Raises:
        InputRefused: naming the first.

    """
    factors = {name for pair in pairs for name in (pair.down, pair.up)}
    modules = {f"{pair.module}." if pair.module else "" for pair in pairs}
    for name, (_, layout) in tensors.items():
        if name in factors:
            continue
        module = next((module for module in _prefixes(name) if module in modules), None)
        belongs = (
            module is not None and _OF_AN_UPDATE.match(name, len(module)) and not name.endswith((".bias", ".alpha"))
        )
        if belongs or is_factor(name, layout.shape):
            raise InputRefused(
                f"{checkpoint} has {quoted(name)}, with which a LoRA update is more than the product of two factors",
                hint=OTHERWISE,
            )


def _prefixes(name: str) -> Iterator[str]:
    """Yield what can be the module of a tensor, with its dot: longest first."""
    end = len(name)
    while (end := name.rfind(".", 0, end)) >= 0:
        yield name[: end + 1]
    yield ""


def refuse_settings(config: AdapterConfig, pairs: Iterable[FactorPair], checkpoint: str) -> None:
    """Raise if the configuration of an adapter gives its factors another meaning.

    Raises:
        InputRefused: naming the setting.

    """
    reason = next(_other_meanings(config.values), "")
    for pair in pairs if not reason else ():
        rank = config.rank_of(pair.module)
        if rank != pair.rank:
            reason = f"rank {rank}, but {quoted(pair.down)} has {pair.rank}"
            break
    if reason:
        raise InputRefused(
            f"the adapter_config.json of {checkpoint} has {reason}: not for --lora exact", hint=OTHERWISE
        )


def _other_meanings(values: Mapping[str, object]) -> Iterator[str]:
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        yield f"the type {safe_text(kind)}" if isinstance(kind, str) else "a peft_type that is not text"
    yield from (key for key in _VARIANTS if values.get(key))
    start = values.get("init_lora_weights", True)
    word = start.lower() if isinstance(start, str) else "" if isinstance(start, bool) else "unknown"
    if word and not word.startswith(_HARMLESS_STARTS):
        yield f"init_lora_weights {quoted(word)}, which changes the base model"
