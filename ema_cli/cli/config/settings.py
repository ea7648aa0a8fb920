"""Settings from files and from the environment: which keys there are, and what their values may be.

Input -> output: a TOML table or the environment, and the keys of a command -> a ``Setting`` per option, with its
origin. All functions are pure. Files are found by ``config_files``; which setting wins is in ``precedence``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ema_cli.errors import UsageError
from ema_cli.text import plural, quoted, safe_text

PREFIX = "EMA_AVG_"
RESERVED = ("EMA_AVG_DEBUG",)
"""Variables that are no options."""
ONLY_FLAGS = ("help", "version", "config", "show-config")
"""Options of the command line alone."""
_MOST_FAULTS = 10
_MOST_INTEGER = 1 << 1000
"""What can be made a float."""
_SWITCHES = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}

Kind = Literal["switch", "number", "whole number", "text", "list", "pairs"]
_WORDS: dict[Kind, str] = {
    "switch": "true or false",
    "number": "a number",
    "whole number": "a whole number",
    "text": "text in quotes",
    "list": "a list of numbers, or text with commas",
    "pairs": 'a table, or a list of "KEY=VALUE"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An option that can be configured."""

    name: str
    """As it is written in a file: the flag without its dashes."""
    parameter: str
    """What the code calls it."""
    kind: Kind
    words: tuple[str, ...] = ()
    """What its text may be; empty for any text."""
    many: bool = False
    """Whether it has a list of values."""

    @property
    def variable(self) -> str:
        """The name of its environment variable."""
        return PREFIX + self.name.upper().replace("-", "_")

    @property
    def meaning(self) -> str:
        """What a value may be, in words."""
        words = f"one of {', '.join(self.words)}" if self.words else _WORDS[self.kind]
        return f"{words}, or a list of such" if self.many and self.kind != "pairs" else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value comes from."""

    kind: Literal["default", "file", "environment", "flag"]
    where: str = ""
    """The path of the file, the variable, or the flag."""

    @property
    def label(self) -> str:
        """The origin in a few words."""
        return self.where or self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The value of an option, and who says so."""

    value: Any
    """As Click takes it: text for a path, a list for a repeatable option."""
    origin: Origin


Settings = Mapping[str, Setting]
"""By the name of the parameter."""


def from_table(table: Mapping[str, Any], keys: Sequence[Key], path: Path, place: str = "") -> dict[str, Setting]:
    """Return the settings of a TOML table.

    Args:
        table: the values by key; ``half_life`` is ``half-life``.
        keys: those that there are.
        path: of the file, for messages.
        place: of the table in the file, for messages: ``job 3``.

    Raises:
        UsageError: unknown keys and values of a wrong type; all of them are told at once.

    """
    by_name = {key.name: key for key in keys}
    where = quoted(str(path)) + (f", {place}" if place else "")

    def one(name: str) -> tuple[str, Setting]:
        key = by_name.get(name.replace("_", "-"))
        if key is None:
            raise _unknown(f"{where}: ", name, list(by_name))
        value = _checked(key, table[name], f"{where}: {name} = {_shown(table[name])}")
        return key.parameter, Setting(value=value, origin=Origin(kind="file", where=f"{path}"))

    return _gather(one, table)


def from_environment(environment: Mapping[str, str], keys: Sequence[Key]) -> dict[str, Setting]:
    """Return the settings of the variables ``EMA_AVG_...``. An empty variable says nothing.

    Raises:
        UsageError: unknown variables, and values of a wrong type; all of them are told at once.

    """
    by_variable = {key.variable: key for key in keys}
    ours = [name for name in sorted(environment) if name.startswith(PREFIX) and name not in RESERVED]

    def one(name: str) -> tuple[str, Setting]:
        key = by_variable.get(name)
        if key is None:
            raise _unknown("the environment: ", name, [*by_variable, *RESERVED])
        text = environment[name]
        value = _checked(key, _from_text(key, text), f"{name}={quoted(text)}")
        return key.parameter, Setting(value=value, origin=Origin(kind="environment", where=name))

    return _gather(one, [name for name in ours if environment[name] or name not in by_variable])


def _gather(one: Callable[[str], tuple[str, Setting]], names: Iterable[str]) -> dict[str, Setting]:
    """Return the settings of ``names``, or raise what is wrong with any of them."""
    settings, faults = {}, []
    for name in names:
        try:
            parameter, setting = one(name)
            if parameter in settings:
                raise UsageError(f"{setting.origin.label}: {quoted(name)} is there twice, with - and with _")
            settings[parameter] = setting
        except UsageError as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [f"  {f.message}" + (f" ({f.hint})" if f.hint else "") for f in faults[:_MOST_FAULTS]]
        lines += [f"  and {len(faults) - _MOST_FAULTS:,} more"] if len(faults) > _MOST_FAULTS else []
        raise UsageError("\n".join([f"{plural(len(faults), 'setting')} cannot be used:", *lines]))
    return settings


def _unknown(where: str, name: str, known: Sequence[str]) -> UsageError:
    plain = name.removeprefix(PREFIX).lower().replace("_", "-")
    if plain in ONLY_FLAGS:
        return UsageError(f"{where}{quoted(name)} is an option of the command line alone", hint=f"--{plain}")
    close = get_close_matches(name if name in known else name.replace("_", "-"), known, n=1)
    close = close or get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "ema-avg --show-config lists the options"
    return UsageError(f"{where}there is no option {quoted(name)}", hint=hint)


def _from_text(key: Key, text: str) -> object:
    """Return the value that the text of a variable means; text that means none stays text, and is refused later."""
    if key.many:
        return [_one_from_text(key.kind, part.strip()) for part in text.split(",")]
    return _one_from_text(key.kind, text)


def _one_from_text(kind: Kind, text: str) -> object:
    try:
        if kind == "switch":
            return _SWITCHES.get(text.lower(), text)
        if kind in ("number", "whole number"):
            return int(text) if kind == "whole number" else float(text)
    except ValueError:
        pass
    return text


def _checked(key: Key, value: object, said: str) -> object:
    """Return a value as Click takes it.

    Raises:
        UsageError: it is of a wrong type.

    """
    if key.kind == "pairs" and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        value = [f"{name}={text}" for name, text in value.items()]
    if key.kind == "list" and isinstance(value, list) and value and all(map(_is_number, value)):
        return ",".join(map(repr, value))
    values = value if key.many and isinstance(value, list) else [value]
    if not values or not all(_is_right(key, one) for one in values):
        raise UsageError(f"{said}: it must be {key.meaning}")
    return list(values) if key.many else value


def _is_right(key: Key, value: object) -> bool:
    match key.kind:
        case "switch":
            return isinstance(value, bool)
        case "number":
            return _is_number(value)
        case "whole number":
            return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str) and "\0" not in value and (not key.words or value in key.words)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) < _MOST_INTEGER


def _shown(value: object) -> str:
    """Return a value of a file for a message."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    return safe_text(str(value))
