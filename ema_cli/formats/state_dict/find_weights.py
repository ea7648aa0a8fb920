"""The search for the model's weights in the nested values of a training checkpoint.

Input -> output: the inert value of a pickle -> ``StateDict`` (the tensors by name, and the key of the weights).

The rule, in order: the given ``--key``; a child with a usual name (``state_dict``, ``model``, ...); a pickled module;
the only child with tensors; the top level if it has tensors; else the same one level deeper. Optimizers, schedulers
and the like are never searched. A trainer's own average (``ema``) is used only if there is nothing else. If two
children could be the model, the checkpoint is refused, and the message names them; an average of another model than the
only other child is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ema_cli.errors import InputRefused, Proposal, RunWarning
from ema_cli.formats.state_dict.found_weights import FoundWeights, weights_below
from ema_cli.formats.state_dict.keyed_parts import weights_at
from ema_cli.formats.state_dict.leaf_kinds import is_matrix
from ema_cli.formats.state_dict.leaves_among import Leaves
from ema_cli.formats.state_dict.missing_weights import no_weights
from ema_cli.formats.state_dict.name_copies import nested_copies
from ema_cli.formats.state_dict.prefixes import without_wrappers
from ema_cli.formats.state_dict.trainer_averages import RAW_BESIDE_AVERAGE, USUAL_IN_LIGHTNING, is_average
from ema_cli.formats.state_dict.trainer_layouts import USUAL_NAMES, is_parameter, may_be_weights, refuse_placeholders
from ema_cli.formats.state_dict.tree import Tensor, is_module, join, named, parts
from ema_cli.formats.state_dict.unwritten import averages_another_model, describe_unwritten
from ema_cli.formats.structure import Keys
from ema_cli.record import record
from ema_cli.text import quoted, shortlist

_SEARCH_DEPTH = 3
_USUAL_DEPTH = 8
"""Levels below a child with a usual name that are searched for tensors (Megatron nests its layers)."""
_MOST_KEYS = 8
"""Keys in one proposed command."""
_MOST_SINGLE = 2
"""Parts that are proposed alone."""
_OTHER_DEPTH = 2
"""The same below a child with any other name."""


@record
class StateDict:
    """The weights of a checkpoint."""

    key: str
    """Dotted path to them, empty for the top level."""
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]
    """Names of everything beside or among them that is not a tensor of the model."""
    choice: tuple[str, ...] = ()
    """Which weights were taken, and what else there is, in words."""
    warnings: tuple[str, ...] = ()
    """Warnings about the choice."""
    dropped: tuple[RunWarning, ...] = ()
    """Warnings about trained numbers that are not among the tensors."""
    among: Leaves = ()
    """Name and value of the leaves among them that are not tensors."""


def find_state_dict(root: object, keys: Keys = ()) -> StateDict:
    """Return the weights in ``root``.

    Args:
        root: the value of the pickle.
        keys: dotted paths to the weights, ``.`` for the top level; empty to find them.

    Raises:
        UsageError: there are no tensors under a key.
        InputRefused: there are no weights, or several candidates.

    """
    root = nested_copies(root) if isinstance(root, dict) else root
    found = weights_at(root, keys, lambda: _weights_without_key(root)) if keys else _WeightSearch().run(root)
    if found is None:
        raise no_weights(root)
    refuse_placeholders(root, found.tensors)
    unwritten = describe_unwritten(found, by_key=bool(keys))
    return StateDict(
        key=found.key,
        tensors=found.tensors,
        ignored=found.ignored,
        choice=unwritten.choice,
        warnings=unwritten.warnings,
        dropped=unwritten.dropped,
        among=found.among,
    )


def _weights_without_key(root: object) -> dict[str, Tensor]:
    try:
        found = _WeightSearch().run(root)
    except InputRefused:
        return {}
    return without_wrappers(found.tensors) if found else {}


class _WeightSearch:
    """Searches for the weights. Each value is examined once, however often the pickle shares it."""

    def __init__(self) -> None:
        self._candidates: dict[int, dict[str, object]] = {}
        self._holds: dict[tuple[int, int], bool] = {}

    def run(self, root: object) -> FoundWeights | None:
        level = {id(root): ("", root)}
        seen = set(level)
        for _ in range(_SEARCH_DEPTH):
            for path, node in level.values():
                found = self._best_of(path, node, _USUAL_DEPTH)
                if found is not None:
                    return found
            level = {
                id(child): (join(path, name), child)
                for path, node in level.values()
                for name, child in self._children(node).items()
                if id(child) not in seen and parts(child)
            }
            seen.update(level)
        return None

    def _best_of(self, path: str, node: object, depth: int) -> FoundWeights | None:
        """Return the weights among the children of ``node``, or in ``node`` itself; ``None`` to look deeper."""
        if is_module(node) or depth == 0:
            return weights_below(path, node)
        children = self._children(node)
        holding = [name for name, child in children.items() if self._holds_tensors(child, _OTHER_DEPTH)]
        averages = [name for name in holding if is_average(name)]
        usual = self._usual(children)
        if usual is not None and not self._is_checkpoint_itself(children[usual]):
            return weights_below(join(path, usual), children[usual]).below(path, node, usual)
        own = [name for name, value in children.items() if isinstance(value, Tensor)]
        weights = [name for name in own if is_parameter(name, children[name])]
        candidates = [usual] if usual is not None else [name for name in holding if name not in averages]
        if not candidates and not weights:
            candidates = averages
        if not candidates:
            whole = weights or (own and len(own) == len(parts(node)))
            found = weights_below(path, node, without=frozenset(averages)) if whole else None
            if found and not any(map(is_matrix, found.tensors.values())):
                _refuse_foreign_averages(path, weights, children, averages, found)
            return found
        if usual is None and (len(candidates) > 1 or weights):
            raise _several_models(path, [*candidates, *weights], with_tensors=bool(weights))
        found = self._best_of(join(path, candidates[0]), children[candidates[0]], depth - 1)
        if found and usual is None and candidates[0] not in averages:
            _refuse_foreign_averages(path, candidates, children, averages, found)
        return found and found.below(path, node, candidates[0])

    def _usual(self, children: dict[str, object]) -> str | None:
        """Return the child with a usual name; beside Lightning's average, the raw weights."""
        names = (RAW_BESIDE_AVERAGE, *USUAL_NAMES) if USUAL_IN_LIGHTNING in children else USUAL_NAMES
        return next((name for name in names if self._holds_tensors(children.get(name), _USUAL_DEPTH)), None)

    def _is_checkpoint_itself(self, node: object) -> bool:
        """Whether ``node`` has weights beside an optimizer or an average, and no tensors directly in it."""
        if is_module(node) or any(isinstance(child, Tensor) for child in self._children(node).values()):
            return False
        return len(self._children(node)) < len(named(node)) or any(map(is_average, self._children(node)))

    def _children(self, node: object) -> dict[str, object]:
        """Return the parts of ``node`` that may be weights."""
        known = self._candidates.get(id(node))
        if known is None:
            known = {name: value for name, value in named(node).items() if may_be_weights(name, value)}
            self._candidates[id(node)] = known
        return known

    def _holds_tensors(self, node: object, depth: int) -> bool:
        """Whether ``node`` is a module, or holds a tensor at most ``depth`` levels below itself."""
        if is_module(node):
            return True
        if depth == 0 or not parts(node):
            return False
        known = self._holds.get((id(node), depth))
        if known is None:
            children = self._children(node).values()
            known = any(isinstance(child, Tensor) or self._holds_tensors(child, depth - 1) for child in children)
            self._holds[id(node), depth] = known
        return known


def _refuse_foreign_averages(
    path: str, chosen: Sequence[str], children: Mapping[str, object], averages: Sequence[str], found: FoundWeights
) -> None:
    """Raise if an average is that of another model than the one that was chosen only as nothing else is there."""
    foreign = [name for name in averages if averages_another_model(children[name], found.tensors)]
    if foreign:
        raise _several_models(path, [*foreign, *chosen], with_tensors=False)


def _several_models(path: str, names: Sequence[str], *, with_tensors: bool) -> InputRefused:
    """Return the refusal of a checkpoint with several models, or one in several parts, some of them tensors."""
    paths = [join(path, name) for name in names]
    whole = with_tensors or len(paths) > _MOST_KEYS
    choices = [(path or ".",)] if whole else [*((one,) for one in paths[:_MOST_SINGLE]), tuple(paths)]
    reason = f"to average {'' if whole else 'one of them, or '}all of them, under different prefixes"
    return InputRefused(
        f"holds several models, or parts of one: {shortlist(map(quoted, paths))}",
        hint="choose one with --key NAME, several with --key NAME --key OTHER, or take all of them with --key .",
        proposals=[Proposal(reason=reason, changes={"key": keys}) for keys in choices],
    )
