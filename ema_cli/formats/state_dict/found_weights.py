"""The weights that were found under a key, with everything beside and among them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Inert
from ema_cli.formats.state_dict.trainer_averages import wrapped_counter
from ema_cli.formats.state_dict.trainer_layouts import is_parameter, may_be_weights
from ema_cli.formats.state_dict.tree import MOST_ENTRIES, Tensor, is_module, join, leaves, named, parts, spelled
from ema_cli.formats.state_dict.unnamed_parts import Unnamed, unnamed_at, unnamed_below
from ema_cli.formats.structure import QUANTIZE_LATER
from ema_cli.formats.torch.objects import UnsupportedTensor
from ema_cli.record import record
from ema_cli.text import quoted


@record
class FoundWeights:
    """The tensors below a key."""

    key: str
    """Dotted path, empty for the top level."""
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...] = ()
    """Names of everything beside or among them that is not a tensor of the model."""
    beside: tuple[tuple[str, object], ...] = ()
    """Path and value of what is beside them."""
    among: tuple[tuple[str, object], ...] = ()
    """Name and value of the leaves among them that are not tensors."""
    unnamed: tuple[Unnamed, ...] = ()
    """Values beside and among them under keys that are not strings."""
    renamed: str = ""
    """How the names differ from those in the checkpoint, in words."""
    counter: str = ""
    """The counter of an averaged model, which was removed from the tensors."""

    def below(self, path: str, node: object, name: str) -> FoundWeights:
        """Return the weights as found under ``name`` of the value ``node`` at ``path``, with everything beside that."""
        ignored = [spelled(other) for other in parts(node) if other != name]
        beside = [(join(path, other), value) for other, value in named(node).items() if other != name]
        unnamed = [one for one in [unnamed_at(path, node)] if one is not None]
        return replace(
            self,
            ignored=(*ignored, *self.ignored),
            beside=(*beside, *self.beside),
            unnamed=(*unnamed, *self.unnamed),
        )


def weights_below(path: str, node: object, *, without: frozenset[str] = frozenset()) -> FoundWeights:
    """Return the tensors below ``node`` by dotted names, in order.

    A mapping at the top level is a whole checkpoint, which may have an optimizer beside the weights; ``without`` has
    the names of further parts of it that are not the model's.

    Raises:
        InputRefused: tensors have no names, or two have the same.

    """
    beside: list[tuple[str, object]] = []
    unnamed = tuple(unnamed_below(path, node))
    if not path and not is_module(node):
        everything = named(node)
        node = {
            name: value for name, value in everything.items() if may_be_weights(name, value) and name not in without
        }
        beside = [(name, value) for name, value in everything.items() if name not in node]
    tensors: dict[str, Tensor] = {}
    among: list[tuple[str, object]] = []
    for name, leaf in leaves(node):
        if hides_weights(leaf):
            raise _in_a_list(name, leaf)
        if not name or not isinstance(leaf, Tensor):
            among.append((name, leaf))
        elif name in tensors:
            raise InputRefused(f"holds two tensors with the name {quoted(name)}")
        else:
            tensors[name] = leaf
    ignored = tuple(name for name, _ in (*beside, *among))
    return _without_counter(
        FoundWeights(
            key=path, tensors=tensors, ignored=ignored, beside=tuple(beside), among=tuple(among), unnamed=unnamed
        )
    )


def hides_weights(leaf: object) -> bool:
    """Whether a list among the weights holds tensors or state dicts. Scalars such as losses do not count."""
    entries = leaf.entries if isinstance(leaf, Inert) else leaf
    if not isinstance(entries, list | tuple):
        return False
    return any(
        isinstance(value, Tensor) and is_parameter("", value)
        for entry in entries[:MOST_ENTRIES]
        for value in (entry, *islice(parts(entry).values(), MOST_ENTRIES))
    )


def _without_counter(found: FoundWeights) -> FoundWeights:
    """Remove the counter of an averaged model from its weights, so that they lose their prefix."""
    counter = wrapped_counter(found.tensors)
    if counter is None:
        return found
    others = {name: tensor for name, tensor in found.tensors.items() if name != counter}
    return replace(found, tensors=others, ignored=(*found.ignored, counter), counter=counter)


def _in_a_list(name: str, leaf: object) -> InputRefused:
    """Return the refusal of a list of tensors among the weights: quantized modules keep their codes in one."""
    if isinstance(leaf, list | tuple) and any(isinstance(e, UnsupportedTensor) and e.is_quantized for e in leaf):
        return InputRefused(f"is quantized: {quoted(name)} holds codes, which cannot be averaged", hint=QUANTIZE_LATER)
    return InputRefused(f"holds tensors in a list, without names: {quoted(name)}")
