"""The state of a live EMA as plain values and tensors, for ``torch.save`` and ``torch.distributed.checkpoint``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ema_cli.errors import UsageError
from ema_cli.text import quoted, shortlist
from ema_cli.training.averages import Cohort
from ema_cli.training.model_tensors import as_sharded
from ema_cli.weights.methods import Method


def state_of(methods: Sequence[Method], step: int, cohorts: Sequence[Cohort]) -> dict[str, Any]:
    """Return the averages under the names of their tensors, whatever cohort they are in, and the rest.

    What has no tensors is in tuples, which ``torch.distributed.checkpoint`` stores and loads as one value.
    """
    return {
        "methods": tuple(method.plain() for method in methods),
        "step": step,
        "cohorts": tuple(
            {
                "names": tuple(cohort.averages[0]),
                "first_step": cohort.first_step,
                "last_step": cohort.last_step,
                "updates": cohort.updates,
            }
            for cohort in cohorts
        ),
        "averages": [
            {name: tensor for cohort in cohorts for name, tensor in cohort.averages[number].items()}
            for number in range(len(methods))
        ],
    }


def cohorts_from(
    state: Mapping[str, Any],
    methods: Sequence[Method],
    own: Mapping[str, torch.Tensor],
    *,
    device: torch.device | None,
) -> list[Cohort]:
    """Return copies of the averages in a state, sharded as the model is.

    Args:
        state: what ``state_of`` returned.
        methods: those of the EMA that goes on.
        own: the tensors of its model.
        device: where the averages are kept; by default where they are in the state.

    Raises:
        ema_cli.errors.UsageError: the state was made with other methods or for another model.

    """
    expected = [method.plain() for method in methods]
    if list(state["methods"]) != expected:
        raise UsageError(f"the state was made with {list(state['methods'])}, and this EMA has {expected}")
    names = [name for cohort in state["cohorts"] for name in cohort["names"]]
    _refuse(names, own, "the model has no")
    for average in state["averages"]:
        _refuse(names, average, "the state has no average of")
    return [
        Cohort(
            first_step=cohort["first_step"],
            last_step=cohort["last_step"],
            updates=cohort["updates"],
            averages=tuple(
                {
                    name: as_sharded(average[name], own[name]).to(device or average[name].device, copy=True)
                    for name in cohort["names"]
                }
                for average in state["averages"]
            ),
        )
        for cohort in state["cohorts"]
    ]


def _refuse(names: Sequence[str], known: Mapping[str, torch.Tensor], fact: str) -> None:
    unknown = [quoted(name) for name in names if name not in known]
    if unknown:
        raise UsageError(f"{fact} {shortlist(unknown)}")
