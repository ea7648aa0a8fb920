"""The nested values of a pickle as a tree of named parts: mappings and pickled modules, with tensors as leaves.

Values may be shared and may contain themselves. A walk counts every name that it meets, so a small file with shared
values cannot make it long.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import islice

from ema_cli.errors import InputRefused
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.structure import MOST_TENSORS
from ema_cli.formats.torch.objects import TensorRef, UnsupportedTensor

Tensor = TensorRef | UnsupportedTensor


class Repeated(dict[object, object]):
    """Tensors with flat names that repeat those of the weights: an average, or state of an optimizer."""


MOST_DEPTH = 64
"""Levels of values that are examined."""
MOST_ENTRIES = 1000
"""Entries of a list that are examined and can be named."""
_MOST_TEXT = 1 << 26
"""Bytes of all names of one walk together."""
_CALLS = {"encode": "<bytes>", "tuple": "<tuple>"}
"""What calls of these names return: protocol 2 has no opcode for bytes, and the reader makes tuples in keys inert."""


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of tensors by name; ``None`` for one that is not plain."""
    return {name: tensor.shape if isinstance(tensor, TensorRef) else None for name, tensor in tensors.items()}


def is_module(node: object) -> bool:
    """Whether ``node`` is a pickled ``nn.Module``."""
    return isinstance(node, Inert) and isinstance(node.state, dict) and "_parameters" in node.state


def parts(node: object) -> Mapping[object, object]:
    """Return the items of a mapping, or the members of a module; of anything else nothing."""
    if isinstance(node, Inert):
        if isinstance(node.state, dict) and is_module(node):
            return dict(_module_members(node.state))
        return node.items
    return node if isinstance(node, dict) else {}


def named(node: object) -> dict[str, object]:
    """Return the parts of ``node`` with string keys."""
    return {name: value for name, value in parts(node).items() if isinstance(name, str)}


def unnamed(node: object) -> list[tuple[str, object]]:
    """Return the parts of ``node`` under keys that are not strings, with the keys as text: the first that it has."""
    found = ((spelled(key), value) for key, value in parts(node).items() if not isinstance(key, str))
    return list(islice(found, MOST_ENTRIES))


def spelled(key: object) -> str:
    """Return a key as text; of a key that is not a scalar, which may be large, only the type."""
    if isinstance(key, Inert):
        return _CALLS.get(key.kind.name, "<object>") if isinstance(key.kind, Global) else "<object>"
    return str(key) if key is None or isinstance(key, str | int | float) else f"<{type(key).__name__}>"


def follow(root: object, path: str) -> object:
    """Return the value at a dotted path, by the longest name that matches at each level; ``None`` if there is none."""
    here = parts(root) or numbered(root)
    if path in here:
        return here[path]
    pieces = path.split(".")
    for length in range(len(pieces) - 1, 0, -1):
        child = here.get(".".join(pieces[:length]))
        if child is not None:
            return follow(child, ".".join(pieces[length:]))
    return None


def numbered(node: object) -> dict[str, object]:
    """Return the entries of a list or a tuple by their numbers: ``"0"``, ``"1"``; of anything else nothing."""
    listed = node if isinstance(node, list | tuple) else ()
    return {str(number): entry for number, entry in enumerate(listed[:MOST_ENTRIES])}


def join(path: str, name: str) -> str:
    """Return the dotted path of the part ``name`` of the value at ``path``."""
    return f"{path}.{name}" if path else name


def leaves(root: object) -> Iterator[tuple[str, object]]:
    """Walk depth first, in order, and yield the leaves. A value that contains itself, or is too deep, is a leaf.

    Raises:
        InputRefused: there are too many names, or they are too long.

    """
    todo: list[tuple[str, str, object, tuple[int, ...]]] = [("", "", root, ())]
    met = text = 0
    while todo:
        above_path, name, node, above = todo.pop()
        path = join(above_path, name)
        text += sys.getsizeof(path)
        members = None if id(node) in above or len(above) > MOST_DEPTH else _members(node)
        if members is None:
            yield path, node
            continue
        met += len(members)
        if met > MOST_TENSORS or text > _MOST_TEXT:
            raise InputRefused(f"holds more than {MOST_TENSORS:,} values, or names of excessive length")
        within = (*above, id(node))
        todo.extend((path, name, child, within) for name, child in reversed(members))


def _members(node: object) -> list[tuple[str, object]] | None:
    """Return the named parts of a mapping or a module; ``None`` for anything else."""
    if isinstance(node, dict) or is_module(node) or (isinstance(node, Inert) and node.items):
        return list(named(node).items())
    return None


def _module_members(state: dict[object, object]) -> Iterator[tuple[object, object]]:
    """Yield the members that ``nn.Module.state_dict`` would: parameters, persistent buffers, then submodules."""
    transient = state.get("_non_persistent_buffers_set")
    skipped = set[str]()
    if isinstance(transient, Inert):
        written = transient.args[0] if transient.args else []
        members = [*transient.entries, *(written if isinstance(written, list) else [])]
        skipped = {name for name in members if isinstance(name, str)}
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in parts(state.get(group)).items():
            if value is not None and not (group == "_buffers" and name in skipped):
                yield name, value
