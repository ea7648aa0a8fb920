"""The nested state dict that a torch.distributed.checkpoint folder was saved from, and the weights in it.

A save makes one flat list of names of nested dictionaries, and the default planner writes down the paths. The tree
is built again from those, with a reference in place of each tensor, so that the weights are found by the rule for
every checkpoint. torchtitan puts the parameters at the top level, beside ``optimizer`` and ``train_state``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ema_cli.errors import InputRefused
from ema_cli.formats.dcp.saved_items import Saved, SavedTensor, Stored
from ema_cli.formats.state_dict.search import find_state_dict
from ema_cli.formats.state_dict.steps import KEYS
from ema_cli.formats.state_dict.tree import follow
from ema_cli.formats.structure import MOST_TENSORS
from ema_cli.formats.torch.objects import StorageRef, TensorRef
from ema_cli.text import quoted, shortlist

_OF_TRAINING = frozenset({"optimizer", "optimizers", "optim", "lr_scheduler", "lr_schedulers"})
"""What flat names begin with that are no parameters."""
_MOST_NODES = 8 * MOST_TENSORS
_LARGEST_COUNTER_BYTES = 1 << 20
"""A step is no larger object than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What of a folder is read: the weights, and what tells the step."""

    key: str
    tensors: dict[str, SavedTensor]
    """The weights, by their names in the model."""
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...]
    """The names of those that are read."""
    ends: dict[str, int]
    """How far each file must reach, by its name."""
    counters: dict[str, Stored]
    """Objects, and tensors of one number, that may hold a step, by the key of the step."""


@dataclass(frozen=True, slots=True)
class _Object:
    """A leaf that is not a tensor."""

    stored: Stored


def choose(saved: Saved, key: str | None) -> Chosen:
    """Return the weights among what was saved.

    Args:
        saved: everything that the folder declares.
        key: dotted path to the weights; ``None`` to find them.

    Raises:
        UsageError: there is nothing under ``key``.
        InputRefused: no weights were found, or several that could be meant, or in shapes that are not theirs.

    """
    root = _tree(saved)
    found = find_state_dict(root, key)
    names = {name: leaf.storage.key for name, leaf in found.tensors.items() if isinstance(leaf, TensorRef)}
    reshaped = [quoted(name) for name, flat in names.items() if flat in saved.reshaped]
    if reshaped:
        raise InputRefused(
            f"holds tensors that Megatron stored in another shape than they have: {shortlist(reshaped)}",
            hint="convert it with Megatron's own tools, or save it with --ckpt-format torch",
        )
    tensors = {name: item for name, flat in names.items() if isinstance(item := saved.items[flat], SavedTensor)}
    counters = dict(_counters(root, saved))
    chunks = (chunk.stored for tensor in tensors.values() for chunk in tensor.chunks)
    return Chosen(
        key=found.key,
        tensors=tensors,
        ignored=found.ignored,
        notes=found.notes,
        ends=saved.ends,
        files=tuple(dict.fromkeys(stored.file for stored in (*chunks, *counters.values()))),
        counters=counters,
    )


def _tree(saved: Saved) -> dict[str, object]:
    root: dict[str, object] = {}
    nodes = 0
    for name, item in saved.items.items():
        *above, last = _path(saved.paths.get(name, (name,)))
        node = root
        nodes += len(above)
        for part in above:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise InputRefused(f"declares {quoted(name)} inside something that is not a dictionary")
            node = child
        if last in node:
            raise InputRefused(f"declares two items at the path of {quoted(name)}")
        node[last] = _leaf(name, item)
        if nodes > _MOST_NODES:
            raise InputRefused(f"nests its items in more than {_MOST_NODES:,} dictionaries")
    return root


def _leaf(name: str, item: SavedTensor | Stored) -> object:
    """Return what stands for an item: a tensor whose storage is called by its flat name, or an object."""
    if isinstance(item, Stored):
        return _Object(item)
    storage = StorageRef(key=name, kind="", elements=0)
    return TensorRef(storage=storage, dtype_name=item.dtype_name, offset=0, shape=item.shape, strides=())


def _path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path; one of a single flat name is parted where the name is of an optimizer and not of the model."""
    first, _, rest = path[0].partition(".")
    return (first, rest) if len(path) == 1 and rest and first in _OF_TRAINING else path


def _counters(root: Mapping[str, object], saved: Saved) -> Iterator[tuple[str, Stored]]:
    """Yield where a step may stand: under one of its keys, or in an object that lies where the key begins."""
    for key in KEYS:
        pieces = key.split(".")
        for length in range(len(pieces), 0, -1):
            path = ".".join(pieces[:length])
            match follow(root, path):
                case _Object(stored=stored) if stored.length <= _LARGEST_COUNTER_BYTES:
                    yield path, stored
                case TensorRef(shape=(), storage=StorageRef(key=name)):
                    item = saved.items[name]
                    if isinstance(item, SavedTensor):
                        yield path, item.chunks[0].stored
