"""The configuration of joined LoRA updates: new ranks and alphas, in the file of peft or for the user."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from ema_cli.errors import InputRefused, RunWarning
from ema_cli.formats.huggingface.adapter_config import ADAPTER_CONFIG, AdapterConfig, layer_of
from ema_cli.planning.lora_exact import ExactUpdates, JoinedUpdate
from ema_cli.records.files import SideFile
from ema_cli.records.plan import Action
from ema_cli.text import quoted

_SCALE_NOT_STORED = "lora-scale-not-stored"


def joined_config(config: AdapterConfig, updates: Sequence[JoinedUpdate]) -> bytes:
    """Return ``adapter_config.json`` with the ranks and alphas of the updates.

    Raises:
        InputRefused: it has lists in lists without end.

    """
    values = dict(config.values)
    ranks = {layer_of(update.pair.module): update.rank for update in updates}
    alphas = {layer_of(update.pair.module): _plain(update.alpha or 0) for update in updates}
    values["r"], values["rank_pattern"] = _with_pattern(ranks)
    values["lora_alpha"], values["alpha_pattern"] = _with_pattern(alphas)
    try:
        return (json.dumps(values, indent=2) + "\n").encode()
    except RecursionError as error:
        raise InputRefused(f"{quoted(ADAPTER_CONFIG)} is nested too deeply") from error


def _with_pattern(by_layer: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return a value for all layers, and a pattern if they differ: longest names first, as the first match counts.

    peft reads each key as a regular expression that matches the end of a name.
    """
    values = list(by_layer.values())
    if len(set(values)) == 1:
        return values[0], {}
    longest_first = sorted(by_layer, key=len, reverse=True)
    return max(values), {re.escape(layer): by_layer[layer] for layer in longest_first}


def _plain(alpha: float) -> float:
    return int(alpha) if alpha.is_integer() else alpha


def warn_of_scale(exact: ExactUpdates, side_files: Sequence[SideFile], *, folder: bool) -> Iterator[RunWarning]:
    """Yield a warning if the output does not store the rank and alpha that it needs; ``side_files`` are its own."""
    stored = [update for update in exact.updates if any(t.action is Action.SCALED for t in update.tensors.values())]
    if len(stored) == len(exact.updates) or any(side.name == ADAPTER_CONFIG for side in side_files):
        return
    ranks = sorted({update.rank for update in exact.updates})
    before = sorted({update.pair.rank for update in exact.updates})
    rank = f"rank {_span(ranks)} instead of {_span(before)}"
    if exact.config is None:
        yield RunWarning(
            code=_SCALE_NOT_STORED,
            message=f"the output has {rank}, and no alpha is stored with the factors",
            hint="where you set rank and alpha, give the new rank, and alpha so that alpha / r stays (alpha / sqrt(r) "
            "with rsLoRA)",
        )
    else:
        alphas = sorted({update.alpha for update in exact.updates if update.alpha is not None})
        yield RunWarning(
            code=_SCALE_NOT_STORED,
            message=f"the output has {rank} and needs lora_alpha {_span(alphas)} in {quoted(ADAPTER_CONFIG)}, which "
            f"{'is not in the output' if folder else 'a single file does not have'}",
            hint="" if folder else "-o FOLDER/ writes it",
        )


def _span(values: Sequence[float]) -> str:
    low, high = values[0], values[-1]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
