"""``--show-config``: each option with its value and the origin of the value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ema_cli.cli.config.precedence import Configured
from ema_cli.cli.console import Console
from ema_cli.options.declaration import Option
from ema_cli.report.model import SCHEMA_VERSION
from ema_cli.text import safe_text, without_secrets

_UNSET = "-"


def show(found: Configured, parameters: Mapping[str, Any], console: Console) -> None:
    """Print the effective values on stdout, as lines or as the JSON document."""
    values = {option.parameter: _effective(option, parameters[option.parameter]) for option in found.options}
    if console.style.json:
        console.document(_document(found, values))
        return
    from ema_cli.cli.table import Column, Table  # noqa: PLC0415 - rich, which the version need not

    for warning in found.ignored:
        console.result(f"# {warning.message}")
    console.result(f"# settings from {found.file.path}" if found.file else "# no configuration file")
    rows = [(option.key, _written(values[option.parameter]), _explained(found, option)) for option in found.options]
    console.result(Table(columns=[Column(), Column(name=True), Column()], rows=rows, indent=0))


def _document(found: Configured, values: Mapping[str, Any]) -> dict[str, object]:
    dropped = {one.parameter: _plain(one.setting.value) for one in found.dropped}
    options = {}
    for option in found.options:
        setting = found.settings.get(option.parameter)
        options[option.key] = {
            "value": values[option.parameter],
            "origin": setting.origin if setting else "default",
            "where": setting.where if setting else None,
            "dropped": dropped.get(option.parameter),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "file": str(found.file.path) if found.file else None,
        "ignored": [warning.message for warning in found.ignored],
        "options": options,
    }


def _explained(found: Configured, option: Option) -> str:
    """Return the origin of a value, and the configured value that was dropped for it."""
    for one in found.dropped:
        if one.parameter == option.parameter:
            by = next(other.key for other in found.options if other.parameter == one.by)
            was = _written(_plain(one.setting.value))
            return f"default; {was} of {safe_text(one.setting.where)} is dropped for --{by}"
    setting = found.settings.get(option.parameter)
    return safe_text(setting.where) if setting else "default"


def _effective(option: Option, value: Any) -> Any:  # noqa: ANN401 - what Click parsed
    return _plain(option.default if value is None and option.default_warned else value)


def _plain(value: Any) -> Any:  # noqa: ANN401 - what Click parsed
    """Return a value as JSON has it, without secrets; an empty list, which means not given, is ``None``."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] or None
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(f"{value}", whole=True)


def _written(value: Any) -> str:  # noqa: ANN401
    """Return a value as TOML has it, on one line."""
    return _UNSET if value is None else safe_text(json.dumps(value, ensure_ascii=False))
