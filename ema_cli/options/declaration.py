"""How an option is declared: once, as a field of a record, with everything that others need to know about it.

The command line, configuration files, environment variables, the metadata of outputs and the table of the
documentation read these declarations. Nothing here knows how they present an option.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields, replace
from functools import cache
from operator import index
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ema_cli.errors import UsageError
from ema_cli.naming import did_you_mean
from ema_cli.options.plain_values import plain
from ema_cli.record import record
from ema_cli.text import quoted

PANELS = ("Inputs", "Weights", "Compute", "Batch", "Output", "Run")
"""The groups of options, in the order of the help."""

Kind = Literal["switch", "number", "whole number", "text", "list", "pairs"]
_DECLARATION = "option"
_KINDS: dict[object, Kind] = {bool: "switch", float: "number", int: "whole number"}
_NOUNS = {"number": "a number", "whole number": "a whole number"}


@record
class TextForm:
    """A form in which a value is written as text: on the command line, in a file, or in a call from Python."""

    parse: Callable[[str], Any]
    """Returns the value; raises ``ValueError`` for text of another form."""
    noun: str
    """``a size``"""
    example: str
    others: tuple[type, ...] = ()
    """Types of values that are no text and need no parsing, in a call from Python."""


@record
class Option:
    """One option. ``option`` declares it; the name and what follows from the type are filled in by ``declared``."""

    default: Any
    help: str
    """One or two sentences, without the default."""
    panel: str
    """One of ``PANELS``."""
    flag: str = ""
    """By default the name with dashes; ``--no-NAME`` for a switch that is on unless it is given."""
    short: str = ""
    """A second flag of one letter, such as ``-o``."""
    brief: str = ""
    """A few words, for the options that most runs need: they are on the first page of the help."""
    metavar: str = ""
    """What stands for the value in the help. Where it replaces a long list of choices, the record checks them alone."""
    unset: str = ""
    """What applies if the option is not given, in words, where the default is ``None`` or empty."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other words for some of the choices: ``bf16`` for ``bfloat16``. Only the choice itself is stored anywhere."""
    form: TextForm | None = None
    """How text becomes a value (each value of a repeatable option); ``None`` if text needs no parsing."""
    in_fingerprint: bool | Literal["given"] = False
    """Whether it decides the bytes of an output, and so is part of the output's ``options_fingerprint``. ``given``:
    only if it is not the default, so that outputs of versions without this option stay up to date."""
    kept_on_continue: bool = False
    """Whether its value is stored in the output's metadata, and must be the same when that average is continued."""
    unstored: tuple[str, ...] = ()
    """Values that the metadata leave out, with ``None``: they all mean the same for a continued average."""
    default_warned: bool = False
    """Whether a warning is about the default: it is silent if the default was given by hand. Such an option is
    ``None`` on the command line and in Python until it is given."""
    single_is_bare: bool = False
    """Whether metadata and reports store a single value of a repeatable option as text: it once had only one."""
    in_found_file: Literal["any", "below", "never"] = "any"
    """Whether a configuration file that was found, not named, can set it: ``below``: if the file is in the working
    directory, to a relative path below it. An option that names a file or removes a protection is not for ``any``."""
    on_command_line: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its parameter on the command line."""

    name: str = ""
    """The field of the record, and the keyword in Python."""
    kind: Kind = "text"
    many: bool = False
    """Whether it can be repeated: a list of values."""
    words: tuple[str, ...] = ()
    """The only values that there are; empty for any value."""

    @property
    def key(self) -> str:
        """The key in a configuration file: the flag without its dashes."""
        return self.flag[2:]

    @property
    def negated(self) -> bool:
        """Whether the flag switches it off."""
        return self.default is True

    @property
    def parameter(self) -> str:
        """The name of the flag's parameter on the command line, where a negated switch has the opposite value."""
        return f"no_{self.name}" if self.negated else self.name

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the help lists in place of a metavar."""
        return () if self.metavar else self.words

    @property
    def meaning(self) -> str:
        """The help, with the other words for the choices."""
        if not self.aliases:
            return self.help
        meant = {one: [alias for alias, word in self.aliases.items() if word == one] for one in self.words}
        phrases = [f"{' and '.join(aliases)} for {one}" for one, aliases in meant.items() if aliases]
        return f"{self.help} Also {', '.join(phrases)}."

    def plain(self, value: Any) -> Any:  # noqa: ANN401
        """Return a value as metadata and reports store it: several as a list; if one is text, none is ``None``."""
        if not isinstance(value, tuple):
            return value
        if not self.single_is_bare:
            return list(value)
        return list(value) if len(value) > 1 else next(iter(value), None)

    def decides(self, value: Any) -> bool:  # noqa: ANN401
        """Whether a value is part of the fingerprint of an output."""
        return value != self.default if self.in_fingerprint == "given" else self.in_fingerprint

    def read(self, value: Any) -> Any:  # noqa: ANN401 - of any option
        """Return the value that the record holds for a value given on the command line, in a file or from Python.

        Args:
            value: as it is, of numpy or torch, or as text; one or several for a repeatable option; ``None`` for the
                default.

        Raises:
            UsageError: text that has not the form of this option, or no number where one is needed.

        """
        value = plain(value)
        if value is None:
            return self.default() if self.default is dict else self.default
        if self.kind == "pairs" and isinstance(value, Mapping):
            return dict(value)
        if self.many:
            is_one = isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)
            several = (value,) if is_one else value
            return (dict if self.kind == "pairs" else tuple)(self._read_one(one) for one in several)
        if self.kind == "list" and not isinstance(value, str):
            return self._read_one(",".join(str(plain(one)) for one in value))
        return self._read_one(value)

    def word(self, value: Any) -> Any:  # noqa: ANN401
        """Return the choice that a word means, or the value itself if any value is possible.

        Raises:
            UsageError: it is none of the choices; the error names them, and those that were probably meant.

        """
        meant = self.aliases.get(value, value) if isinstance(value, str) else value
        if not self.words or meant is None or meant in self.words:
            return meant
        message = f"{self.flag} {quoted(str(value))} is none of {', '.join(self.words)}"
        raise UsageError(message, hint=did_you_mean(str(value), (*self.words, *self.aliases)))

    def number(self, text: str | float) -> float:
        """Return the number, or whole number, that a text on the command line means.

        Raises:
            UsageError: it is none; for a number with a comma, the error says to write a point.

        """
        try:
            return int(text) if self.kind == "whole number" else float(text)
        except ValueError as error:
            pointed = str(text).replace(",", ".", 1)
            hint = f"write a point: {self.flag} {pointed}" if self.kind == "number" and _is_number(pointed) else ""
            raise UsageError(f"{self.flag} {quoted(str(text))} is not {_NOUNS[self.kind]}", hint=hint) from error

    def _read_one(self, value: Any) -> Any:  # noqa: ANN401
        value = plain(value)
        noun = self.form.noun if self.form else _NOUNS.get(self.kind, "text")
        if self.kind == "switch" and not isinstance(value, bool):
            raise UsageError(f"{self.name} must be True or False, not {quoted(str(value))}")
        try:
            if self.form is not None:
                return value if isinstance(value, self.form.others) else self.form.parse(os.fspath(value))
            if self.kind in _NOUNS:
                return float(value) if self.kind == "number" else index(value)
            if self.kind == "text" and not self.words:
                return os.fspath(value)
        except (TypeError, ValueError, OverflowError) as error:
            hint = f"{self.flag} {self.form.example}" if self.form else ""
            raise UsageError(f"{self.flag} {quoted(str(value))} is not {noun}", hint=hint) from error
        return self.word(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def option(default: Any, **declaration: Any) -> Any:  # noqa: ANN401 - stands where a field's default does
    """Declare a field of a record as an option; the keywords are attributes of ``Option``.

    The annotation of the field says what values there are:

    * ``bool``: a switch; ``int``, ``float``: a number; ``Literal``: one of these words; anything else: text
    * ``tuple[X, ...]``: the option can be repeated
    * ``tuple[X, ...] | None``: one text with commas
    * ``Mapping[str, str]``: ``KEY=VALUE``, repeatable

    A module of options does not postpone the evaluation of annotations: every start would compile each from its text.
    """
    held = Option(default=default, **declaration)
    given: dict[str, Any] = {"default_factory": dict} if default is dict else {"default": default}
    return field(**given, metadata={_DECLARATION: held})


def declared(record: type) -> tuple[Option, ...]:
    """Return the options that a record declares, in the order of the panels."""
    return _declared(record)


@cache
def _declared(record: type) -> tuple[Option, ...]:
    hints = get_type_hints(record)
    found = [_completed(one, hints[one.name]) for one in fields(record) if _DECLARATION in one.metadata]
    return tuple(by_panel(found))


def by_panel(options: Iterable[Option]) -> list[Option]:
    """Return options in the order of their panels."""
    return sorted(options, key=lambda one: PANELS.index(one.panel))


def _completed(declaration: Any, hint: Any) -> Option:  # noqa: ANN401 - a field and its type
    """Return the option of a field, with what follows from its name and its type."""
    held: Option = declaration.metadata[_DECLARATION]
    is_union = get_origin(hint) in (Union, UnionType)
    parts = [part for part in get_args(hint) if part is not NoneType] if is_union else [hint]
    inner = parts[0] if len(parts) == 1 else str
    is_tuple, is_pairs = get_origin(inner) is tuple, get_origin(inner) is Mapping
    element = get_args(inner)[0] if is_tuple else inner
    kind: Kind = "text" if held.form else _KINDS.get(element, "text")
    if is_pairs or (is_tuple and held.default is None):
        kind = "pairs" if is_pairs else "list"
    dashed = declaration.name.replace("_", "-")
    return replace(
        held,
        name=declaration.name,
        flag=held.flag or (f"--no-{dashed}" if held.default is True else f"--{dashed}"),
        kind=kind,
        many=kind != "list" and (is_tuple or is_pairs),
        words=get_args(element) if get_origin(element) is Literal else (),
    )


def read_values(record: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of each option of a record, read from what was given by name; else its default.

    Raises:
        UsageError: a value has not the form of its option.

    """
    return {one.name: one.read(given.get(one.name)) for one in declared(record)}
