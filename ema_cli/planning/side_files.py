"""What an output folder takes over from the folder of the last checkpoint: configuration, tokenizer and the like.

The files are copied as they are, with one exception: where the weights change their type, ``config.json`` says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePath

from ema_cli.errors import InputRefused, NothingMatched, RunWarning
from ema_cli.records.files import FileRole, SideFile, is_weights
from ema_cli.records.series import Checkpoint
from ema_cli.storage.locations import open_source
from ema_cli.storage.source import ByteSource
from ema_cli.text import human_bytes, quoted

_LARGEST_BYTES = 1_000_000_000
_LARGEST_CONFIG_BYTES = 1 << 24
_CONFIG = "config.json"
_DTYPE = re.compile(r'"(torch_dtype|dtype)"\s*:\s*"([^"\\]*)"')
"""How transformers writes the type of the weights, under the older and the newer name."""


def find_companions(checkpoint: Checkpoint, dtype: str | None) -> tuple[tuple[SideFile, ...], tuple[RunWarning, ...]]:
    """Return the files that are carried over from the folder of ``checkpoint``, and why others are not.

    Args:
        checkpoint: the last one.
        dtype: the torch name of the type that the weights get, if one was asked for.

    """
    found: list[SideFile] = []
    warnings: list[RunWarning] = []
    for name in checkpoint.companions:
        if PurePath(name).name != name or is_weights(name):
            continue  # a path leads elsewhere; and the weights are our own
        place = checkpoint.path / name
        try:
            with open_source(place) as source:
                if source.size() > _LARGEST_BYTES:
                    size = f"{human_bytes(source.size())}, more than {human_bytes(_LARGEST_BYTES)}"
                    raise InputRefused(f"{quoted(str(place))} has {size}")
                content = _with_dtype(source, dtype, warnings) if dtype is not None and name == _CONFIG else None
                nbytes = source.size() if content is None else len(content)
                state = source.state
        except (InputRefused, NothingMatched) as refused:
            warnings.append(_not_carried(refused.message))
            continue
        origin = place if content is None else None
        found.append(
            SideFile(name=name, role=FileRole.COMPANION, nbytes=nbytes, content=content, source=origin, state=state)
        )
    return tuple(found), tuple(warnings)


def _not_carried(message: str) -> RunWarning:
    return RunWarning(code="companion-left-out", message=f"not carried over: {message}", hint="copy it by hand")


def _with_dtype(source: ByteSource, dtype: str, warnings: list[RunWarning]) -> bytes | None:
    """Return a configuration with the new type of the weights, ``None`` where it names none or cannot be read."""
    try:
        if source.size() > _LARGEST_CONFIG_BYTES:
            raise ValueError("it is too large")
        text = source.read(0, source.size()).decode("utf-8")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("it is no JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        reason = "it is no JSON" if isinstance(error, RecursionError | json.JSONDecodeError) else str(error)
        message = f"{quoted(source.name)} is carried over as it is, so it does not say that the weights are {dtype}"
        warnings.append(RunWarning(code="config-not-updated", message=f"{message}: {reason}"))
        return None
    keys = [key for key in ("torch_dtype", "dtype") if isinstance(document.get(key), str)]
    for key in keys:
        text = _replaced(text, key, dtype)
    return text.encode() if keys else None


def _replaced(text: str, key: str, dtype: str) -> str:
    """Return a JSON text with one value of its outermost object changed, and all else as it was."""
    wanted = {**json.loads(text), key: dtype}
    for candidate in _candidates(text, key, dtype):
        if json.loads(candidate) == wanted:
            return candidate
    return json.dumps(wanted, indent=2) + "\n"


def _candidates(text: str, key: str, dtype: str) -> Iterator[str]:
    """Yield the text with each value of that key changed: an object inside may have one, too."""
    for found in _DTYPE.finditer(text):
        if found.group(1) == key:
            begin, end = found.span(2)
            yield f"{text[:begin]}{dtype}{text[end:]}"
