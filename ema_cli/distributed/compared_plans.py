"""The plans of all ranks, compared: they must see the same files, and have the same options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any, NoReturn

from ema_cli._version import __version__
from ema_cli.errors import InputRefused, UsageError
from ema_cli.options.average import Options
from ema_cli.records.plan import Plan
from ema_cli.text import quoted

_OWN = ("threads", "device", "max_memory", "config", "config_warnings")
"""Options that may differ: they decide nothing of the output."""
_DIGITS = 12
_SAME_FILES = "all ranks need the same files: use a file system that all hosts share, and start none while files come"


def describe_plan(plan: Plan, options: Options) -> bytes:
    """Return what must be the same in all ranks, as JSON."""
    names = [field.name for field in fields(options) if field.name not in _OWN]
    document = {
        "version": __version__,
        "options": {name: _plain(getattr(options, name)) for name in names},
        "inputs": [
            [str(checkpoint.path), checkpoint.index.size(), checkpoint.fingerprint.rpartition("-")[2]]
            for checkpoint in plan.checkpoints
        ],
        "tensors": _digest(
            (tensor.name, tensor.shape, tensor.dtype.name, str(tensor.action), tensor.offset, tensor.copied_from)
            for tensor in plan.tensors
        ),
        "outputs": _digest(
            (
                str(output.path),
                output.weighting.weights,
                [(file.name, file.header.hex(), file.begin, file.data_bytes) for file in output.files],
                [(file.name, file.nbytes) for file in (output.placement.files if output.placement else ())],
            )
            for output in plan.outputs
        ),
    }
    return json.dumps(document, sort_keys=True, default=str).encode()


def refuse_other_plans(documents: Sequence[bytes], name: Callable[[int], str]) -> None:
    """Raise if a rank has another plan than rank 0, with the first difference; ``name`` returns that of a rank.

    Raises:
        InputRefused: it sees other files.
        UsageError: its version or options differ.

    """
    for rank, document in enumerate(documents):
        if document != documents[0]:
            plans = f"plans {fingerprint(document)} and {fingerprint(documents[0])}"
            _refuse(f"{name(rank)}", json.loads(document), json.loads(documents[0]), plans)


def fingerprint(document: bytes) -> str:
    """Return a short digest of a plan."""
    return hashlib.sha256(document).hexdigest()[:_DIGITS]


def _refuse(rank: str, its: Mapping[str, Any], first: Mapping[str, Any], plans: str) -> NoReturn:
    if its["version"] != first["version"]:
        message = f"{rank} runs ema-avg {its['version']}, and rank 0 {first['version']} ({plans})"
        raise UsageError(message, hint="install one version on all hosts")
    for theirs, ours in zip_longest(its["inputs"], first["inputs"]):
        if theirs != ours:
            raise InputRefused(f"{rank} sees {_describe(theirs, ours)} ({plans})", hint=_SAME_FILES)
    for option, value in first["options"].items():
        if its["options"].get(option) != value:
            flag = option.replace("_", "-")
            message = f"{rank} has {flag} = {its['options'].get(option)}, and rank 0 {value} ({plans})"
            raise UsageError(message, hint="give all ranks the same options, environment and configuration file")
    raise InputRefused(f"{rank} sees other tensors than rank 0 ({plans})", hint=_SAME_FILES)


def _describe(theirs: list[Any] | None, ours: list[Any] | None) -> str:
    """Return how an input differs: paths, sizes, or structures."""
    if theirs is None or ours is None or theirs[0] != ours[0]:
        return f"{_name(theirs)} where rank 0 sees {_name(ours)}"
    if theirs[1] != ours[1]:
        return f"{quoted(ours[0])} with {theirs[1]:,} bytes; rank 0 with {ours[1]:,}"
    return f"other tensors or metadata in {quoted(ours[0])} than rank 0"


def _name(one: list[Any] | None) -> str:
    return "no further checkpoint" if one is None else quoted(one[0])


def _digest(parts: Any) -> str:  # noqa: ANN401 - anything that can be JSON
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, default=str).encode())
    return total.hexdigest()


def _plain(value: object) -> object:
    return [str(one) for one in value] if isinstance(value, tuple | list) else str(value)
