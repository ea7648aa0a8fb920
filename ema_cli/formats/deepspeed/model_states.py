"""What the model states of a rank say about the weights: shapes, buffers, frozen parameters and shared names.

Source: ``_common_checkpoint_state`` in ``deepspeed/runtime/engine.py``. Shapes are an ``OrderedDict`` of ``torch.Size``
per parameter group, in the order in which the optimizer joined the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ema_cli.errors import InputRefused
from ema_cli.formats.state_dict.tree import Tensor, named, parts
from ema_cli.formats.structure import MOST_DIMENSIONS, MOST_TENSORS, SIZE_LIMIT, are_sizes, writable_name
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor
from ema_cli.record import record
from ema_cli.text import quoted

Shape = tuple[int, ...]
Shapes = tuple[tuple[str, Shape], ...]
"""Names of parameters and their shapes, in order."""
_SHARDED_EXPERTS = ("ds_autoep_layers", "autoep_layers")


@record
class ModelStates:
    """The model states of one rank."""

    groups: tuple[Shapes, ...]
    """The trained parameters of each parameter group."""
    frozen: Shapes
    """Parameters that are not trained, of which each rank has a fragment."""
    fragments: dict[str, Tensor]
    shared: tuple[tuple[str, str], ...]
    """A second name, and the name of the parameter that it means."""
    buffers: frozenset[str]
    module: dict[str, Tensor]
    """The tensors of the model: buffers, and from ZeRO stage 3 placeholders for the parameters."""
    step: int | None

    @property
    def trained(self) -> Shapes:
        """The trained parameters of all groups."""
        return tuple(pair for group in self.groups for pair in group)


def model_states_in(root: object) -> ModelStates:
    """Return what a pickle says.

    Raises:
        InputRefused: it does not declare the shapes of parameters, or shapes that cannot be.

    """
    members = named(root)
    for key in _SHARDED_EXPERTS:
        if members.get(key):
            raise InputRefused("has experts that are partitioned over some of the ranks, which cannot be joined here")
    declared = members.get("param_shapes")
    groups = declared if isinstance(declared, list) else [declared]
    if declared is None or not all(isinstance(group, dict) for group in groups):
        raise InputRefused("does not declare the shapes of the parameters (param_shapes)")
    if sum(map(len, map(parts, groups))) > MOST_TENSORS:
        raise InputRefused(f"declares more than {MOST_TENSORS:,} parameters")
    steps = members.get("global_steps")
    states = ModelStates(
        groups=tuple(tuple(_shapes(group)) for group in groups),
        frozen=tuple(_shapes(members.get("frozen_param_shapes") or {})),
        fragments=_tensors(members.get("frozen_param_fragments")),
        shared=tuple((name, of) for name, of in named(members.get("shared_params")).items() if isinstance(of, str)),
        buffers=frozenset(_texts(members.get("buffer_names"))),
        module=_tensors(members.get("module")),
        step=steps if type(steps) is int else None,
    )
    _refuse_repeated([*states.trained, *states.frozen])
    return states


def _shapes(group: object) -> Iterator[tuple[str, Shape]]:
    for name, shape in parts(group).items():
        if not isinstance(name, str) or not writable_name(name):
            raise InputRefused("declares a parameter with a name that cannot be written")
        if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS or not are_sizes(shape):
            raise InputRefused(f"declares a damaged shape of {quoted(name)}")
        if math.prod(shape) >= SIZE_LIMIT:
            raise InputRefused(f"declares {quoted(name)} with more elements than any file holds")
        yield name, shape


def _refuse_repeated(shapes: list[tuple[str, Shape]]) -> None:
    seen = set[str]()
    for name, _ in shapes:
        if name in seen:
            raise InputRefused(f"declares {quoted(name)} twice")
        seen.add(name)


def _tensors(value: object) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named(value).items() if isinstance(tensor, TensorRef | UnsupportedTensor)}


def _texts(value: object) -> Iterator[str]:
    return (text for text in (value if isinstance(value, list | tuple) else ()) if isinstance(text, str))
