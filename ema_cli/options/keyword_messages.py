"""Messages for Python: they name an option as its keyword, where those for the command line name its flag.

``--half-life 4`` -> ``half_life=4``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ema_cli.errors import EmaAvgError
from ema_cli.options.average import Options
from ema_cli.options.declaration import Option, declared
from ema_cli.text import regex

_FLAG = regex(
    r"""(?P<kept> "[^"]*" | ema-avg\ [^;]* )  # a name, a command
      | (?<![\w-]) (?P<flag> --[a-z][\w-]* | -o ) (?! [\w-] )
        (?: \ (?!--|-[a-z]\b) (?P<value> "[^"]*" | '[^']*' | \S+? (?= [,;:)]* \.? (?:\s|$) ) ) )?""",
    re.VERBOSE,
)
_OF_VERIFY_AND_UPDATE_BN = (
    Option(name="inputs", flag="--input", default=(), help="", panel=""),
    Option(name="samples", flag="--samples", kind="whole number", default=0, help="", panel=""),
    Option(name="output_only", flag="--output-only", kind="switch", default=False, help="", panel=""),
    Option(name="batches", flag="--batches", kind="whole number", default=None, help="", panel=""),
)
"""Options of other commands that messages name."""
_STRING = r'"[^"]*"'
_REPEATED = regex(rf"\b(?P<name>\w+)={_STRING}(?: (?P=name)={_STRING})+")


@contextmanager
def keywords_in_errors() -> Iterator[None]:
    """Let errors name options as keywords: their messages name them as flags of the command line."""
    try:
        yield
    except EmaAvgError as error:
        error.message, error.hint = in_keywords(error.message), in_keywords(error.hint)
        error.args = (error.message,)
        raise


def in_keywords(text: str) -> str:
    """Return a message with keywords in place of flags: ``--half-life 4`` becomes ``half_life=4``."""
    known = (*declared(Options), *_OF_VERIFY_AND_UPDATE_BN)
    options = {flag: one for one in known for flag in (one.flag, one.short) if flag}

    def replaced(found: re.Match[str]) -> str:
        option, value = options.get(found["flag"]), found["value"]
        if found["kept"] or option is None:
            return found[0]
        if option.kind == "switch":
            return f"{option.name}={not option.negated}" + (f" {value}" if value else "")
        is_word = value is not None and value.isalpha() and value.islower() and value not in option.words
        if value is None or (is_word and found.end() < len(text)):  # a plain word continues the sentence
            return option.name + (f" {value}" if value else "")
        literal = value if option.kind in ("number", "whole number") else '"' + value.strip("'\"") + '"'
        if option.kind == "pairs" and "=" in literal:
            literal = "{" + literal.replace("=", '": "', 1) + "}"
        return f"{option.name}={literal}"

    return _REPEATED.sub(_as_list, _FLAG.sub(replaced, text))


def _as_list(repeated: re.Match[str]) -> str:
    """Return ``key=["a", "b"]`` for ``key="a" key="b"``."""
    return f"{repeated['name']}=[{', '.join(re.findall(_STRING, repeated[0]))}]"
