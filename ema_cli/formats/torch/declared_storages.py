"""The storages that a file of torch declares: each in one way, and of the size of its record.

Every tensor repeats the declaration of its storage. torch writes them all alike. Its loader believes the first of them,
and gives the tensors of the others a wrong type; other readers may believe the last. So a contradiction is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from ema_cli.errors import InputRefused
from ema_cli.formats.torch.storages import StorageRef, element_bytes, storage_from_persistent_id
from ema_cli.text import plural, quoted

SAVE_AGAIN = "copy it again, or save it again with the program that wrote it"
ONE_TYPE = "save copies, tensor.clone(), of tensors that share memory under several types"


class DeclaredStorages:
    """The storages by their keys."""

    def __init__(self) -> None:
        self.by_key: dict[str, StorageRef] = {}

    def load(self, pid: object) -> object:
        """Return the value of a persistent id, as ``storage_from_persistent_id`` does.

        Raises:
            PickleError: it is not a storage.
            InputRefused: the storage was declared with another type or size before.

        """
        found = storage_from_persistent_id(pid)
        if not isinstance(found, StorageRef):
            return found
        first = self.by_key.setdefault(found.key, found)
        if (first.dtype_name, first.elements) != (found.dtype_name, found.elements):
            raise InputRefused(
                f"declares storage {quoted(found.key)} in two ways: {_described(first)}, and {_described(found)}",
                hint=ONE_TYPE,
            )
        return first

    def compare(self, size_of: Callable[[str], int | None]) -> None:
        """Compare every declaration with the bytes in the file.

        Args:
            size_of: returns the bytes that the file has of the storage with a given key; ``None`` if it has none, which
                is refused only where a tensor needs them.

        Raises:
            InputRefused: a storage has more or fewer bytes than are declared.

        """
        for key, declared in self.by_key.items():
            size, itemsize = size_of(key), element_bytes(declared.kind)
            if size is not None and itemsize is not None and size != declared.elements * itemsize:
                both = f"declared with {_described(declared)}, stored with {plural(size, 'byte')}"
                raise InputRefused(f"contradicts itself about storage {quoted(key)}: {both}", hint=SAVE_AGAIN)


def _described(storage: StorageRef) -> str:
    return f"{plural(storage.elements, 'element')} of {quoted(storage.kind)}"
