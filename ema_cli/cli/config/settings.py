"""Settings from files and from the environment: which keys there are, and what their values may be.

Input -> output: a TOML table or the environment, and the options of a command -> a ``Setting`` per option. All
functions are pure. ``sources`` finds the files, and ``precedence`` says which setting wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ema_cli.errors import UsageError
from ema_cli.naming import did_you_mean
from ema_cli.options.declaration import Kind, Option
from ema_cli.text import plural, quoted, redacted, safe_text

PREFIX = "EMA_AVG_"
RESERVED = ("EMA_AVG_DEBUG", "EMA_AVG_NUMPY")
"""Variables with this prefix that are not options."""
ONLY_FLAGS = ("help", "version", "config", "show-config", "allow-remote")
"""Options that cannot be configured: those that choose the configuration, those that only show something, and the
permission to open URLs that the user has not named."""
_MOST_FAULTS = 10
_MOST_VALUES = 1_000
"""Values of one repeatable option."""
_LONGEST_TEXT = 100_000
"""Characters of one text that is no list."""
_LIST = "the options are listed by: ema-avg --show-config"
_MOST_INTEGER = 1 << 1000
"""Larger integers cannot be converted to a float."""
_SWITCHES = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}

_FORMER = {("geometry", "full"): "sample"}
"""Values that earlier versions had, by key and value, and what replaces them: configuration files stay usable."""
_MEANINGS: dict[Kind, str] = {
    "switch": "true or false",
    "number": "a number",
    "whole number": "a whole number",
    "text": "text in quotes",
    "list": "a list of numbers, or text with commas",
    "pairs": 'a table, or a list of "KEY=VALUE"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The value of an option, and where it comes from."""

    value: Any
    """As Click takes it: text for a path, a list for a repeatable option."""
    origin: Literal["file", "environment", "flag"]
    where: str
    """Path of the file, name of the variable, or the flag."""


Settings = Mapping[str, Setting]
"""By the name of the parameter."""


def from_table(table: Mapping[str, Any], options: Sequence[Option], path: Path, place: str = "") -> dict[str, Setting]:
    """Return the settings of a TOML table.

    Args:
        table: the values by key; ``half_life`` is ``half-life``.
        options: those that the keys can name.
        path: the file, for messages.
        place: the place of the table in the file, for messages: ``job 3``.

    Raises:
        UsageError: unknown keys and values of a wrong type; one message reports all of them.

    """
    by_key = {one.key: one for one in options}
    where = quoted(str(path)) + (f", {place}" if place else "")
    if len(table) > 2 * len(options):  # each with - and with _
        raise UsageError(f"{where}: it has {len(table):,} keys, more than there are options", hint=_LIST)

    def one(name: str) -> tuple[str, Setting]:
        option = by_key.get(name.replace("_", "-"))
        if option is None and isinstance(table[name], dict):
            hint = f"remove the table header [{safe_text(name)}]: options are at the top of the file"
            raise UsageError(f"{where}: there is no option {quoted(name)}", hint=hint)
        if option is None:
            raise _unknown(f"{where}: ", name, list(by_key))
        value = _checked(option, table[name], f"{where}: {name} = {_shown(table[name])}")
        return option.parameter, Setting(value=value, origin="file", where=f"{path}")

    return _all_settings(one, table)


def from_environment(environment: Mapping[str, str], options: Sequence[Option]) -> dict[str, Setting]:
    """Return the settings of the variables ``EMA_AVG_...``. An empty variable counts as not set.

    Raises:
        UsageError: unknown variables, and values of a wrong type; one message reports all of them.

    """
    ours = [name for name in sorted(environment) if name.startswith(PREFIX) and name not in RESERVED]
    if not ours:
        return {}
    by_variable = {PREFIX + one.key.upper().replace("-", "_"): one for one in options}

    def one(name: str) -> tuple[str, Setting]:
        option = by_variable.get(name)
        if option is None:
            raise _unknown("the environment: ", name, [*by_variable, *RESERVED])
        text = environment[name]
        value = _checked(option, _from_text(option, text), f"{name}={quoted(text)}")
        return option.parameter, Setting(value=value, origin="environment", where=name)

    return _all_settings(one, [name for name in ours if environment[name] or name not in by_variable])


def _all_settings(one: Callable[[str], tuple[str, Setting]], names: Iterable[str]) -> dict[str, Setting]:
    """Return the settings of ``names``, or raise one error that reports all that are wrong."""
    settings, faults = {}, []
    for name in names:
        try:
            parameter, setting = one(name)
            if parameter in settings:
                raise UsageError(f"{setting.where}: {quoted(name)} is given twice, with - and with _")
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
        return UsageError(f"{where}{quoted(name)} can only be given on the command line", hint=f"--{plain}")
    close = did_you_mean(name.replace("_", "-"), known) or did_you_mean(name, known)
    return UsageError(f"{where}there is no option {quoted(name)}", hint=close or _LIST)


def _from_text(option: Option, text: str) -> object:
    """Return the value of a variable's text; text of a wrong form stays text, and is refused later."""
    if option.many:
        return [_one_from_text(option.kind, part.strip()) for part in text.split(",")]
    return _one_from_text(option.kind, text)


def _one_from_text(kind: Kind, text: str) -> object:
    try:
        if kind == "switch":
            return _SWITCHES.get(text.lower(), text)
        if kind in ("number", "whole number"):
            return int(text) if kind == "whole number" else float(text)
    except ValueError:
        pass
    return text


def _checked(option: Option, value: object, subject: str) -> object:
    """Return a value as Click takes it.

    Raises:
        UsageError: it is of a wrong type.

    """
    if isinstance(value, str):
        value = _FORMER.get((option.key, value), value)
    if option.kind == "pairs" and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        value = [f"{name}={text}" for name, text in value.items()]
    if option.kind == "list" and isinstance(value, list) and value and all(map(_is_number, value)):
        return ",".join(map(repr, value))
    values = value if option.many and isinstance(value, list) else [value]
    if len(values) > _MOST_VALUES:
        raise UsageError(f"{subject}: it has {len(values):,} values, more than {_MOST_VALUES:,}")
    if option.kind != "list" and any(isinstance(one, str) and len(one) > _LONGEST_TEXT for one in values):
        raise UsageError(f"{subject}: it has more than {_LONGEST_TEXT:,} characters")
    if not values or not all(_is_right(option, one) for one in values):
        meaning = f"one of {', '.join(option.words)}" if option.words else _MEANINGS[option.kind]
        several = ", or a list of such" if option.many and option.kind != "pairs" else ""
        raise UsageError(f"{subject}: it must be {meaning}{several}", hint=_nearest_word(option, values))
    return list(map(option.word, values)) if option.many else option.word(value)


def _nearest_word(option: Option, values: Sequence[object]) -> str:
    known = (*option.words, *option.aliases)
    return next(filter(None, (did_you_mean(one, known) for one in values if isinstance(one, str))), "")


def _is_right(option: Option, value: object) -> bool:
    match option.kind:
        case "switch":
            return isinstance(value, bool)
        case "number":
            return _is_number(value)
        case "whole number":
            return isinstance(value, int) and _is_number(value)
    if option.words:
        return isinstance(value, str) and (value in option.words or value in option.aliases)
    return isinstance(value, str) and "\0" not in value


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) < _MOST_INTEGER


def _shown(value: object) -> str:
    """Return the value of a key as a message shows it."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return safe_text(str(redacted(value)))
    except ValueError:  # a number with more digits than Python prints
        return "..."
