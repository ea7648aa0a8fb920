"""What a file of torch refers to in its storages, anywhere: in the weights, in the optimizer, in other parts.

A tensor whose bytes are replaced changes everywhere. So whoever replaces them must know all that share them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Inert
from ema_cli.formats.state_dict.tree import MOST_DEPTH, spelled
from ema_cli.formats.torch.declared_storages import DeclaredStorages
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.formats.torch.storages import StorageRef, element_bytes

_MOST_VALUES = 10_000_000
_KINDS = (dict, list, tuple, Inert, TensorRef, StorageRef)
"""Values that may refer to storages."""
_OF_MODULES = "_flat_weights"
"""A list in a pickled recurrent module with its own parameters once more."""


class CountedStorages(DeclaredStorages):
    """The storages, and how often each is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def load(self, pid: object) -> object:
        """Return the value of a persistent id."""
        found = super().load(pid)
        if isinstance(found, StorageRef):
            self.counts[found.key] += 1
        return found


class StoredView(NamedTuple):
    """A tensor somewhere in a file."""

    path: str
    """Its keys from the top, with dots."""
    begin: int
    """Byte of its storage where it begins."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


class References:
    """The tensors of a file by storage.

    Args:
        root: the inert value of its pickle.
        storages: that the pickle declares.

    Raises:
        InputRefused: it has too many values to examine.

    """

    def __init__(self, root: object, storages: CountedStorages) -> None:
        self._counts = storages.counts
        self._views: defaultdict[str, list[StoredView]] = defaultdict(list)
        self._objects: defaultdict[str, set[int]] = defaultdict(set)
        for path, found in _references(root):
            storage = found.storage if isinstance(found, TensorRef) else found
            self._objects[storage.key].add(id(found))
            self._views[storage.key].append(_view(path, found))

    def of(self, key: str) -> list[StoredView]:
        """Return all that refers to a storage."""
        return self._views[key]

    def paths_with(self, part: str) -> list[str]:
        """Return the paths that have ``part`` in them."""
        return [view.path for views in self._views.values() for view in views if part in view.path]

    def is_complete(self, key: str) -> bool:
        """Whether all references to a storage are known; an object of another kind may have some."""
        return self._counts[key] <= len(self._objects[key])


def _view(path: str, found: TensorRef | StorageRef) -> StoredView:
    """Return the view; of a storage, or a tensor of an unknown type, the whole storage."""
    if isinstance(found, TensorRef) and (dtype := BY_TORCH_NAME.get(found.dtype_name)) is not None:
        size = dtype.itemsize
        return StoredView(path, found.offset * size, found.shape, found.strides, size)
    storage = found.storage if isinstance(found, TensorRef) else found
    return StoredView(path, 0, (storage.elements,), (1,), element_bytes(storage.kind) or 1)


class _Node(NamedTuple):
    value: object
    name: str
    above: _Node | None
    depth: int

    @property
    def path(self) -> str:
        names, here = [], self
        while here.above is not None:
            names.append(here.name)
            here = here.above
        return ".".join(name for name in reversed(names) if name)

    def is_inside_itself(self) -> bool:
        here = self.above
        while here is not None:
            if here.value is self.value:
                return True
            here = here.above
        return False


def _references(root: object) -> Iterator[tuple[str, TensorRef | StorageRef]]:
    """Yield every tensor and storage with its path: several times if several paths lead to it."""
    todo = [_Node(root, "", None, 0)]
    count = 0
    while todo:
        node = todo.pop()
        if isinstance(node.value, TensorRef | StorageRef):
            yield node.path, node.value
            continue
        if node.depth > MOST_DEPTH or node.is_inside_itself():
            continue
        inner = [_Node(value, name, node, node.depth + 1) for name, value in _inside(node.value)]
        count += len(inner)
        if count > _MOST_VALUES:
            raise InputRefused(f"holds more than {_MOST_VALUES:,} values, too many to find what shares its tensors")
        todo.extend(reversed(inner))


def _inside(value: object) -> Iterator[tuple[str, object]]:
    """Yield the values inside a value that may refer to tensors, with their names."""
    found: Iterator[tuple[str, object]]
    if isinstance(value, dict):
        found = ((spelled(key), inner) for key, inner in value.items() if key != _OF_MODULES)
    elif isinstance(value, list | tuple):
        found = ((str(number), inner) for number, inner in enumerate(value))
    elif isinstance(value, Inert):
        found = iter((("", value.args), ("", value.state), ("", value.items), ("", value.entries)))
    else:
        return
    yield from ((name, inner) for name, inner in found if isinstance(inner, _KINDS))
