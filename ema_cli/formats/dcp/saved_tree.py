"""The nested state dict that a torch.distributed.checkpoint folder was saved from, and the weights in it.

A save flattens nested dictionaries into one list of names, and the default planner records the paths. The tree is
rebuilt from them, with a reference for each tensor, so the weights are found by the same rule as in any checkpoint.
torchtitan puts the parameters at the top level, beside ``optimizer`` and ``train_state``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from ema_cli.errors import InputRefused, RunWarning
from ema_cli.formats.dcp.saved_items import ByteRange, SavedItems, SavedTensor, TreePath
from ema_cli.formats.state_dict.find_weights import find_state_dict
from ema_cli.formats.state_dict.leaf_kinds import EXTRA_STATE
from ema_cli.formats.state_dict.step_keys import KEYS
from ema_cli.formats.state_dict.tree import follow
from ema_cli.formats.structure import MOST_TENSORS, Keys
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.formats.torch.storages import StorageRef
from ema_cli.record import record
from ema_cli.text import quoted, shortlist

_OPTIMIZERS = frozenset({"optimizer", "optimizers", "optim", "lr_scheduler", "lr_schedulers"})
"""First parts of flat names that are not parameters."""
_MOST_NODES = 8 * MOST_TENSORS
_LARGEST_OBJECT_BYTES = 1 << 20
"""A larger object is not read."""
_MOST_OBJECTS = 16
"""Among the weights."""


@record
class ChosenItems:
    """The items of a folder that are read: the weights, what is among them, and those that may hold the step."""

    key: str
    tensors: dict[str, SavedTensor]
    """The weights, by their names in the model."""
    paths: tuple[TreePath, ...]
    """Of each of them."""
    ignored: tuple[str, ...]
    choice: tuple[str, ...]
    warnings: tuple[str, ...]
    dropped: tuple[RunWarning, ...]
    """These three as in ``StateDict``."""
    files: dict[str, int]
    """The least size of each file with these items, by name."""
    counters: dict[str, ByteRange]
    """Objects, and tensors of one number, that may hold the step, by the key of the step."""
    objects: dict[str, ByteRange]
    """A few small objects among the weights, by name: numbers, which are not tensors, may be weights."""


@dataclass(frozen=True, slots=True)
class _Object:
    """A leaf that is not a tensor."""

    stored: ByteRange

    def is_read(self, name: str) -> bool:
        """Whether it may be a number that is a weight: small, and no state of a layer."""
        return self.stored.length <= _LARGEST_OBJECT_BYTES and EXTRA_STATE not in name.split(".")


def choose(saved: SavedItems, keys: Keys) -> ChosenItems:
    """Return the weights among the saved items: those under ``keys``, or those that ``find_state_dict`` finds.

    Raises:
        UsageError: there are no tensors under one of ``keys``.
        InputRefused: there are no weights, or several candidates, or the weights were reshaped.

    """
    root = _tree(saved)
    found = find_state_dict(root, keys)
    names = {name: leaf.storage.key for name, leaf in found.tensors.items() if isinstance(leaf, TensorRef)}
    reshaped = [quoted(name) for name, flat in names.items() if flat in saved.reshaped]
    if reshaped:
        raise InputRefused(
            f"holds tensors that Megatron stored in a different shape: {shortlist(reshaped)}",
            hint="convert it with Megatron's own tools, or save with --ckpt-format torch",
        )
    tensors = {name: item for name, flat in names.items() if isinstance(item := saved.items[flat], SavedTensor)}
    counters = dict(_counters(root, saved))
    objects = {name: leaf.stored for name, leaf in found.among if isinstance(leaf, _Object) and leaf.is_read(name)}
    objects = dict(islice(objects.items(), _MOST_OBJECTS))
    chunks = (chunk.stored for tensor in tensors.values() for chunk in tensor.chunks)
    return ChosenItems(
        key=found.key,
        tensors=tensors,
        paths=tuple(_saved_path(saved, flat) for flat in names.values()),
        ignored=found.ignored,
        choice=found.choice,
        warnings=found.warnings,
        dropped=found.dropped,
        files={stored.file: saved.ends[stored.file] for stored in (*chunks, *counters.values(), *objects.values())},
        counters=counters,
        objects=objects,
    )


def _tree(saved: SavedItems) -> dict[str, object]:
    root: dict[str, object] = {}
    nodes = 0
    for name, item in saved.items.items():
        *above, last = _path(saved.paths.get(name, (name,)))
        node = root
        nodes += len(above)
        for part in above:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise InputRefused(f"declares {quoted(name)} inside an item that is not a dictionary")
            node = child
        if last in node:
            raise InputRefused(f"declares two items at the path of {quoted(name)}")
        node[last] = _leaf(name, item)
        if nodes > _MOST_NODES:
            raise InputRefused(f"nests its items in more than {_MOST_NODES:,} dictionaries")
    return root


def _leaf(name: str, item: SavedTensor | ByteRange) -> object:
    """Return the leaf for an item: a tensor with its flat name as the key of its storage, or an object."""
    if isinstance(item, ByteRange):
        return _Object(item)
    storage = StorageRef(key=name, kind="", elements=0)
    return TensorRef(storage=storage, dtype_name=item.dtype_name, offset=0, shape=item.shape, strides=())


def _saved_path(saved: SavedItems, name: str) -> TreePath:
    """Return the path that torch joined to a flat name; other planners may record other paths."""
    path = saved.paths.get(name, ())
    return path if ".".join(path) == name else (name,)


def _path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path; a single flat name is split if it is a part of an optimizer."""
    first, _, rest = path[0].partition(".")
    return (first, rest) if len(path) == 1 and rest and first in _OPTIMIZERS else path


def _counters(root: Mapping[str, object], saved: SavedItems) -> Iterator[tuple[str, ByteRange]]:
    """Yield the items that may hold a step: those at one of its keys, and objects at the beginning of a key."""
    for key in KEYS:
        pieces = key.split(".")
        for length in range(len(pieces), 0, -1):
            path = ".".join(pieces[:length])
            match follow(root, path):
                case _Object(stored=stored) if stored.length <= _LARGEST_OBJECT_BYTES:
                    yield path, stored
                case TensorRef(shape=(), storage=StorageRef(key=name)):
                    item = saved.items[name]
                    if isinstance(item, SavedTensor):
                        yield path, item.chunks[0].stored
