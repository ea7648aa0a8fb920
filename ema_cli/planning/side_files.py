"""The side files that an output folder gets from the folder of the last checkpoint: configuration, tokenizer etc.

The files are copied unchanged, with one exception: ``config.json`` gets the new type if the weights change theirs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import PurePath
from types import MappingProxyType

from ema_cli.errors import InputRefused, NothingMatched, RunWarning
from ema_cli.formats.huggingface.weight_names import is_index
from ema_cli.formats.json_text import MOST_CONFIG_BYTES
from ema_cli.options.average import Options
from ema_cli.planning.linked_files import open_inside
from ema_cli.planning.named_files import names_missing
from ema_cli.records.files import FileRole, SideFile, is_weights
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import Location
from ema_cli.storage.source import ByteSource
from ema_cli.text import human_bytes, quoted, regex, shortlist

_LARGEST_BYTES = 1_000_000_000
_CONFIG = "config.json"
_DTYPE = regex(r'"(torch_dtype|dtype)"\s*:\s*"([^"\\]*)"')
"""The type of the weights as transformers writes it, under the older and the newer key."""


def plan_side_files(
    last: Checkpoint, options: Options, changed: Mapping[str, bytes] = MappingProxyType({})
) -> tuple[tuple[SideFile, ...], tuple[RunWarning, ...]]:
    """Return the files that an output folder gets from the last checkpoint, and warnings about those it cannot get.

    Files in ``changed`` get the content given there.
    """
    if options.max_shard_size is None:
        return (), ()
    dtype = None if options.dtype == "same" else options.dtype
    found: list[SideFile] = []
    warnings: list[RunWarning] = []
    folder = last.path.parent if is_index(last.path.name) else last.path
    for name in last.side_files:
        if PurePath(name).name != name or is_weights(name):
            continue  # a path leads out of the folder, and the weights are averaged
        try:
            found.append(_plan_side_file(folder / name, last.side_files, dtype, warnings, changed.get(name)))
        except (InputRefused, NothingMatched) as refused:
            message, hint = f"not copied: {refused.message}", refused.hint or "copy it yourself"
            warnings.append(RunWarning(code="companion-left-out", message=message, hint=hint))
    return tuple(found), tuple(warnings)


def _plan_side_file(
    path: Location, names: Collection[str], dtype: str | None, warnings: list[RunWarning], content: bytes | None
) -> SideFile:
    """Return the copy of a side file, one of ``names``; ``content`` replaces its own.

    Raises:
        NothingMatched: it does not exist.
        InputRefused: it is a link out of its folder, cannot be read, is too large, or names files that are not copied.

    """
    with open_inside(path) as source:
        if source.size() > _LARGEST_BYTES:
            size = f"{human_bytes(source.size())}, more than {human_bytes(_LARGEST_BYTES)}"
            raise InputRefused(f"{quoted(str(path))} has {size}")
        missing = names_missing(path.name, source, names)
        if missing:
            message = f"{quoted(str(path))} needs {shortlist(map(quoted, missing))}, which is not a side file beside it"
            raise InputRefused(message, hint="copy both yourself")
        if dtype is not None and path.name == _CONFIG:
            content = _with_dtype(source, dtype, warnings)
        return SideFile(
            name=path.name,
            role=FileRole.SIDE_FILE,
            nbytes=source.size() if content is None else len(content),
            content=content,
            source=path if content is None else None,
            state=source.state,
        )


def _with_dtype(source: ByteSource, dtype: str, warnings: list[RunWarning]) -> bytes | None:
    """Return a configuration with the new type of the weights, ``None`` if it has none or cannot be read."""
    try:
        if source.size() > MOST_CONFIG_BYTES:
            raise ValueError("the file is too large")
        text = source.read(0, source.size()).decode("utf-8")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("the file is not a JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        reason = "the file is not JSON" if isinstance(error, RecursionError | json.JSONDecodeError) else str(error)
        message = f"{quoted(source.name)} is copied unchanged and does not say that the weights are {dtype}"
        warnings.append(RunWarning(code="config-not-updated", message=f"{message}: {reason}"))
        return None
    keys = [key for key in ("torch_dtype", "dtype") if isinstance(document.get(key), str)]
    for key in keys:
        text = _replaced(text, key, dtype)
    return text.encode() if keys else None


def _replaced(text: str, key: str, dtype: str) -> str:
    """Return a JSON text with one value of its outermost object changed; nested objects may have the key, too."""
    wanted = {**json.loads(text), key: dtype}
    for found in _DTYPE.finditer(text):
        begin, end = found.span(2)
        candidate = f"{text[:begin]}{dtype}{text[end:]}"
        if found.group(1) == key and json.loads(candidate) == wanted:
            return candidate
    return json.dumps(wanted, indent=2) + "\n"
