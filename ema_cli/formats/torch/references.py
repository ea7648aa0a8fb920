"""What a file of torch refers to in its storages, anywhere: in the weights, in the optimizer, in other parts.

A tensor whose bytes are replaced changes everywhere. So whoever replaces them must know all that share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
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

    @property
    def is_known(self) -> bool:
        """Whether it is a tensor or a storage; an object of another kind has its own way to refer to a storage."""
        return self.itemsize > 0


_UNKNOWN = StoredView("", 0, (), (), 0)
"""An object of another kind, such as a sparse tensor, that refers to a storage in its own way."""


class References:
    """The tensors of a file by storage.

    Args:
        root: the inert value of its pickle.
        storages: that the pickle declares.

    """

    def __init__(self, root: object, storages: CountedStorages) -> None:
        self._root = root
        self._counts = storages.counts

    def of(self, keys: Collection[str]) -> dict[str, list[StoredView]]:
        """Return all that refers to each of some storages; several paths may lead to one object.

        Raises:
            InputRefused: the file has too many values to examine.

        """
        views: dict[str, list[StoredView]] = {key: [] for key in keys}
        objects: dict[str, set[int]] = {key: set() for key in keys}
        for node, found in _references(self._root):
            storage = found.storage if isinstance(found, TensorRef) else found
            if storage.key in views:
                objects[storage.key].add(id(found))
                views[storage.key].append(_view(node.path, found))
        for key, found_objects in objects.items():
            if self._counts[key] > len(found_objects):
                views[key].append(_UNKNOWN)
        return views

    def paths_with(self, name: str) -> list[str]:
        """Return the paths that have ``name`` as a part of a key.

        Raises:
            InputRefused: as ``of`` does.

        """
        return [node.path for node, _ in _references(self._root) if node.has(name)]


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

    def has(self, name: str) -> bool:
        """Whether a key of the path has ``name`` in it."""
        here: _Node | None = self
        while here is not None:
            if name in here.name:
                return True
            here = here.above
        return False

    def is_inside_itself(self) -> bool:
        here = self.above
        while here is not None:
            if here.value is self.value:
                return True
            here = here.above
        return False


def _references(root: object) -> Iterator[tuple[_Node, TensorRef | StorageRef]]:
    """Yield every tensor and storage with its place: several times if several paths lead to it.

    Raises:
        InputRefused: there are too many values.

    """
    todo = [_Node(root, "", None, 0)]
    count = 0
    while todo:
        node = todo.pop()
        if isinstance(node.value, TensorRef | StorageRef):
            yield node, node.value
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
