"""``--show-config``: each option with its value and where that comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ema_cli.cli.config.command import Configured
from ema_cli.cli.config.settings import Key, Origin
from ema_cli.cli.console import Console
from ema_cli.report.model import SCHEMA_VERSION
from ema_cli.text import safe_text

_UNSET = "-"


def show(found: Configured, parameters: Mapping[str, Any], console: Console) -> None:
    """Print the effective values on stdout, as lines or as the JSON document."""
    values = {key.parameter: _plain(parameters[key.parameter]) for key in found.keys}
    if console.style.json:
        console.document(_document(found, values))
        return
    console.result(f"# settings from {found.file.path}" if found.file else "# there is no file with settings")
    names = max(len(key.name) for key in found.keys)
    shown = {key.parameter: _written(values[key.parameter]) for key in found.keys}
    width = max(map(len, shown.values()))
    for key in found.keys:
        console.result(f"{key.name:{names}}  {shown[key.parameter]:{width}}  {_explained(found, key)}")


def _document(found: Configured, values: Mapping[str, Any]) -> dict[str, object]:
    dropped = {one.parameter: one for one in found.dropped}
    return {
        "schema_version": SCHEMA_VERSION,
        "file": str(found.file.path) if found.file else None,
        "options": {
            key.name: {
                "value": values[key.parameter],
                "origin": _origin(found, key).kind,
                "where": _origin(found, key).where or None,
                "dropped": _plain(dropped[key.parameter].setting.value) if key.parameter in dropped else None,
            }
            for key in found.keys
        },
    }


def _origin(found: Configured, key: Key) -> Origin:
    setting = found.settings.get(key.parameter)
    return setting.origin if setting else Origin(kind="default")


def _explained(found: Configured, key: Key) -> str:
    """Return the origin of a value; of one that was dropped, what it was."""
    for one in found.dropped:
        if one.parameter == key.parameter:
            by = next(other.name for other in found.keys if other.parameter == one.by)
            was = _written(_plain(one.setting.value))
            return f"default; {was} of {safe_text(one.setting.origin.label)} is dropped for --{by}"
    return safe_text(_origin(found, key).label)


def _plain(value: Any) -> Any:  # noqa: ANN401 - what Click parsed
    """Return a value as JSON has it; nothing said is ``None``."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] or None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _written(value: Any) -> str:  # noqa: ANN401
    """Return a value as TOML has it, on one line."""
    return _UNSET if value is None else safe_text(json.dumps(value, ensure_ascii=False))
