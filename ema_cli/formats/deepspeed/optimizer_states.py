"""What the optimizer states of a rank say about its partition of the weights.

Stage 3 names the flat tensors of a rank ``fp32_flat_groups``; stages 1 and 2, and the optimizer of bfloat16, name them
``single_partition_of_fp32_groups``. Source: ``state_dict`` in ``deepspeed/runtime/zero/stage3.py``,
``stage_1_and_2.py`` and ``bf16_optimizer.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Inert
from ema_cli.formats.state_dict.tree import named, parts
from ema_cli.formats.structure import MOST_TENSORS, are_sizes
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.record import record
from ema_cli.text import plural

_STAGE_3 = 3
_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}
"""The names in ``ZeroStageEnum`` of ``deepspeed/runtime/zero/config.py``."""


@record
class OptimizerStates:
    """The partition of one rank."""

    stage: int
    """Of ZeRO; the optimizer of bfloat16 does not state it, and is like stage 1."""
    count: int | None
    """The number of ranks that the weights are partitioned over."""
    flat: tuple[TensorRef, ...]
    """One flat tensor per parameter group, or several at stage 3."""
    paddings: tuple[tuple[int, ...], ...]
    """Stages 1 and 2: elements of padding after each parameter of each group; empty if there are none."""
    step: object
    """Of the optimizer: a number, or a tensor of one element; ``None`` if it does not count."""


def optimizer_states_in(root: object) -> OptimizerStates:
    """Return what a pickle says.

    Raises:
        InputRefused: it is not the state of a ZeRO optimizer, or of a kind that cannot be joined.

    """
    states = named(named(root).get("optimizer_state_dict"))
    stage = _stage(states.get("zero_stage"))
    flat = states.get("fp32_flat_groups" if stage == _STAGE_3 else "single_partition_of_fp32_groups")
    if not isinstance(flat, list | tuple) or not all(isinstance(one, TensorRef) for one in flat):
        raise InputRefused("is not the state of a ZeRO optimizer: it has no partition of float32 weights")
    if len(flat) > MOST_TENSORS:
        raise InputRefused(f"has {plural(len(flat), 'flat tensor')}, more than the limit of {MOST_TENSORS:,}")
    if states.get("ds_zero_partition_groups"):
        raise InputRefused("has experts that are partitioned over some of the ranks, which cannot be joined here")
    return OptimizerStates(
        stage=stage,
        count=_count(states.get("partition_count")),
        flat=tuple(one for one in flat if isinstance(one, TensorRef)),
        paddings=_paddings(states.get("param_alignment_paddings")),
        step=_step(states),
    )


def _stage(value: object) -> int:
    """Return a stage: a number, or a member of an enumeration.

    Python pickles a member as the call of its class with its number; 3.11.0 to 3.11.3 as ``getattr`` with its name.
    """
    if isinstance(value, Inert) and value.args:
        value = value.args[-1]
    stage = _STAGES.get(value) if isinstance(value, str) else value
    return stage if type(stage) is int else 1


def _count(value: object) -> int | None:
    """Return the number of ranks, which may be stated for each parameter group."""
    counts = {one for one in (value if isinstance(value, list | tuple) else (value,)) if type(one) is int}
    if len(counts) > 1:
        raise InputRefused(
            "partitions its parameter groups over different numbers of ranks, as for experts, which cannot be joined "
            "here"
        )
    return next(iter(counts), None)


def _paddings(value: object) -> tuple[tuple[int, ...], ...]:
    groups = value if isinstance(value, list) else []
    fits = sum(len(group) for group in groups if isinstance(group, list | tuple)) <= MOST_TENSORS
    if not fits or not all(isinstance(group, list | tuple) and are_sizes(group) for group in groups):
        raise InputRefused("has damaged paddings of the parameters (param_alignment_paddings)")
    return tuple(tuple(group) for group in groups)


def _step(states: dict[str, object]) -> object:
    """Return the step that the inner optimizer counts: of its first tensor, or of its first parameter group."""
    return next((found["step"] for found in _counting(states) if found.get("step") is not None), None)


def _counting(states: dict[str, object]) -> Iterator[dict[str, object]]:
    for key in ("optimizer_state_dict", "base_optimizer_state"):
        inner = named(states.get(key))
        yield named(next(iter(parts(inner.get("state")).values()), None))
        groups = inner.get("param_groups")
        yield named(groups[0] if isinstance(groups, list) and groups else None)
