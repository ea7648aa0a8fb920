"""Parts of a checkpoint under keys that are not strings: numbers, tuples, ``None``.

A tensor in such a part has no name, so it cannot be written. Optimizers number their parameters; their state is no part
of a model and is not reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from ema_cli.errors import RunWarning
from ema_cli.formats.state_dict.leaf_kinds import is_numpy_array
from ema_cli.formats.state_dict.leaves_among import WEIGHTS_DROPPED
from ema_cli.formats.state_dict.trainer_layouts import may_be_weights
from ema_cli.formats.state_dict.training_names import is_record
from ema_cli.formats.state_dict.tree import MOST_DEPTH, Tensor, join, named, numbered, parts, unnamed
from ema_cli.text import plural, quoted, shortlist

AS_STRINGS = "save it with names: {str(key): value for key, value in part.items()}"
Unnamed = tuple[str, tuple[object, ...]]
"""The path of a mapping, and its values under keys that are not strings: the first ``MOST_ENTRIES``."""
_MOST_VALUES = 20_000


def unnamed_below(path: str, root: object) -> Iterator[Unnamed]:
    """Yield the mappings at and below ``root`` with keys that are not strings. Each is examined once."""
    todo = [(path, root, 0)]
    seen = set[int]()
    while todo:
        above, node, depth = todo.pop()
        if id(node) in seen or depth > MOST_DEPTH or not parts(node):
            continue
        seen.add(id(node))
        found = unnamed_at(above, node)
        if found is not None:
            yield found
        inside = [(join(above, name), child, depth + 1) for name, child in named(node).items() if parts(child)]
        todo.extend(reversed([one for one in inside if may_be_weights(one[0].rpartition(".")[2], one[1])]))


def unnamed_at(path: str, node: object) -> Unnamed | None:
    """Return the parts of one mapping under keys that are not strings, if any of them has tensors."""
    values = tuple(value for _, value in unnamed(node))
    return (path, values) if any(_count([value]) for value in values) else None


def warn_of_unnamed(found: Sequence[Unnamed]) -> Iterator[RunWarning]:
    """Yield the warning about tensors that have no names."""
    counts = {path: _count(values) for path, values in found}
    if counts:
        places = [f"{quoted(path) if path else 'the top level'} ({count:,})" for path, count in counts.items()]
        total = sum(counts.values())
        yield RunWarning(
            code=WEIGHTS_DROPPED,
            message=f"{plural(total, 'tensor')} {'is' if total == 1 else 'are'} under keys that are not strings, and "
            f"not in the output: {shortlist(places)}",
            hint=AS_STRINGS,
        )


def _count(values: Sequence[object]) -> int:
    """Return the number of tensors and arrays in some values that may be weights; only the first are examined."""
    todo = [("", value, 0) for value in values]
    seen = set[int]()
    count = 0
    while todo and len(seen) < _MOST_VALUES:
        name, node, depth = todo.pop()
        if id(node) in seen or depth > MOST_DEPTH or is_record(name):
            continue
        if isinstance(node, Tensor) or is_numpy_array(node):
            count += 1
        elif may_be_weights(name, node):
            seen.add(id(node))
            members = [*islice(named(node).items(), _MOST_VALUES), *unnamed(node), *numbered(node).items()]
            todo.extend((part, value, depth + 1) for part, value in members)
    return count
