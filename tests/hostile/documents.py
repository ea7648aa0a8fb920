"""Documents of a JSON Schema: real ones, changed in places that the schema knows, and texts that JSON readers dislike.

A place is changed to a value of its type that attacks (a URL, the name of a device, a number at a limit), to a value
of another type, or to nothing; lists grow, shrink and repeat. Most documents still have the form of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

URLS = (
    *("http://127.0.0.1:9/a.safetensors", "https://127.0.0.1:9/a?x=1", "HTTP://127.0.0.1:9/", "ftp://127.0.0.1:9/a"),
    *("s3://bucket/a.pt", "gs://bucket/a.pt", "hf://org/name/a.pt", "az://container/a", "abfs://c/a", "memory://a"),
    *("dir://a", "reference://a", "generic://a", "zip://a::file:///etc/passwd", "simplecache::http://127.0.0.1:9/a"),
    *("file:///etc/passwd", "file://localhost/etc/passwd", "file://x", "local:///etc/passwd", "github://o:r@m/a"),
    *("http://[", "http://[::1]:9/", "http://a:b@127.0.0.1:9/?***", "s3://***@bucket/a", "s3://", "://", "a://", "::"),
)
PATHS = (
    *("", ".", "..", "/", "//", "~", "~root", "*", "**", "[", "\\\\host\\share\\a", "C:\\a", "a\0b", "a\nb", "x" * 300),
    *("/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/proc/self/fd/0", "/etc/passwd", "/etc"),
    *("../" * 40 + "etc", "a/" * 3000, "ema.safetensors", "ema.report.json"),
    *("c1.safetensors", "c2.safetensors", "c3.safetensors"),
)
TEXTS = (
    *("\x1b[31mred", "\u202ex", "\ud800", "\u2028", "::error::x", "##vso[task]x", "\r", "\x00", "\ufeff", "x" * 70_000),
    *("<script>x</script>", "<img src=http://127.0.0.1:9/>", '"><a href="javascript:x">', "![a](http://127.0.0.1:9/)"),
    *("{{ 7 * 7 }}", "{% for x in y %}", "${HOME}", "%s%n", "|", "`", "</style>", "&#x3c;", "-->", "]]>", "NaN"),
    *("averaged", "copied", "concatenated", "scaled", "checkpoint", "average", "again", "companion", "weights"),
    *("F32", "BF16", "I64", "F8_E4M3", "C64", "uniform", "ema", "power", "step", "0-0-0", "-", "w", "n", "0" * 64),
    *("1.1", "2.0", "1e999"),
)
INTEGERS = (0, 1, 2, 3, -1, 255, 2**31, 2**53 + 1, 2**62 - 1, 2**62, 2**63, 2**64, -(2**62), 10**30, 10**400)
NUMBERS = (0.0, -0.0, 0.5, -1.5, 1e-9, 5e-324, 1e308, -1e308, 1.7976931348623157e308, 1e17, 0.1)
_SCALARS: Mapping[str, Sequence[Any]] = {
    "integer": INTEGERS,
    "number": (*NUMBERS, *INTEGERS[:4]),
    "boolean": (False, True),
    "string": (*URLS, *PATHS, *TEXTS),
}
_FOLLOWED = ("path", "outputs", "reports")
"""Keys of values that name files: they are changed more often than others."""
_DEEPEST = 8
_TWICE = "\ufffd"
"""Ends a key that the text shall have twice."""
_MARK = "@raw {}@"
_RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400, "1" * 5000, "[" * 900 + "]" * 900, "-0", "01", "'"),
    *('{"a":' * 900 + "1" + "}" * 900, "[" * 50_000, '"\\ud800"', '"\\u0000"', "tru", "", "//", "0.1e-99999", "1E5"),
)
"""Values as text: what is no JSON, or what some readers take and some refuse."""


@dataclass(frozen=True, slots=True)
class Place:
    """A value inside a document."""

    parent: Any
    key: Any
    """Of a mapping, or the number in a list."""
    schema: Mapping[str, Any]


class Documents:
    """Makes hostile documents of one schema.

    Args:
        schema: draft 2020-12, as far as ``scripts/make_schema.py`` uses it.

    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._definitions = schema.get("$defs", {})

    def made(self, random: Random) -> Any:
        """Return a document of the schema that nobody wrote."""
        return self._value(self._schema, random, depth=0)

    def changed(self, document: Any, random: Random) -> bytes:
        """Return the text of a document with one to six changes, made in place."""
        for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
            places = self._places(document, self._schema)
            followed = [place for place in places if place.key in _FOLLOWED]
            if followed and random.randrange(3) == 0:
                place = random.choice(followed)
                place.parent[place.key] = random.choice(random.choice((URLS, PATHS)))
            elif places:
                random.choice(_CHANGES)(self, random.choice(places), random)
        text = json.dumps(document, allow_nan=True)
        for number, raw in enumerate(_RAW):
            text = text.replace(f'"{_MARK.format(number)}"', raw)
        return _as_bytes(text.replace(json.dumps(_TWICE)[1:-1], ""), random)

    def value_of(self, schema: Mapping[str, Any], random: Random) -> Any:
        """Return a value of the type that a place has."""
        return self._value(schema, random, depth=1)

    def _places(self, value: Any, schema: Mapping[str, Any]) -> list[Place]:
        """Return all places in a value, with their schemas."""
        schema = self._resolved(schema, value)
        if isinstance(value, dict):
            known = schema.get("properties", {})
            inner = [Place(value, key, known.get(key, {})) for key in value]
        elif isinstance(value, list):
            inner = [Place(value, number, schema.get("items", {})) for number in range(len(value))]
        else:
            return []
        return [*inner, *(one for place in inner for one in self._places(place.parent[place.key], place.schema))]

    def _resolved(self, schema: Mapping[str, Any], value: Any = None) -> Mapping[str, Any]:
        """Return a schema without references; of alternatives the one that is not null, unless the value is."""
        while "$ref" in schema or "anyOf" in schema:
            if "$ref" in schema:
                schema = self._definitions[schema["$ref"].rpartition("/")[2]]
            elif value is None:
                return {"type": "null"}
            else:
                schema = next(one for one in schema["anyOf"] if one.get("type") != "null")
        return schema

    def _value(self, schema: Mapping[str, Any], random: Random, depth: int) -> Any:
        if "anyOf" in schema:
            schema = random.choice(schema["anyOf"])
        schema = self._resolved(schema, "")
        if schema.get("type") == "object":
            properties, needed = schema.get("properties", {}), schema.get("required", ())
            kept = [name for name in properties if name in needed or random.randrange(2)]
            return {name: self._value(properties[name], random, depth + 1) for name in kept}
        if schema.get("type") == "array":
            count = random.choice((0, 1, 2, 3, 3)) if depth < _DEEPEST else 0
            return [self._value(schema.get("items", {}), random, depth + 1) for _ in range(count)]
        return random.choice(_SCALARS.get(schema.get("type", ""), (None,)))


def _text(random: Random) -> str:
    return random.choice(random.choice((URLS, PATHS, TEXTS)))


def _as_bytes(text: str, random: Random) -> bytes:
    """Return a text as it is, seldom with what no JSON has: cut, a mark at the beginning, more at the end."""
    match random.randrange(60):
        case 0:
            return text[: random.randrange(len(text) + 1)].encode(errors="surrogatepass")
        case 1:
            return text.encode(random.choice(("utf-16", "utf-32", "utf-8-sig")), errors="surrogatepass")
        case 2:
            return text.encode() + random.choice((b"\0", b"{}", b"]", b" " * 10_000, b"\xff"))
    return text.encode(errors="surrogatepass")


def _of_its_type(documents: Documents, place: Place, random: Random) -> None:
    place.parent[place.key] = documents.value_of(place.schema, random)


def _of_another_type(_: Documents, place: Place, random: Random) -> None:
    place.parent[place.key] = random.choice((None, True, 0, 1.5, "", [], {}, [[]], [None], {"a": 1}, _text(random)))


def _raw(_: Documents, place: Place, random: Random) -> None:
    place.parent[place.key] = _MARK.format(random.randrange(len(_RAW)))


def _remove(_: Documents, place: Place, __: Random) -> None:
    del place.parent[place.key]


def _rename(_: Documents, place: Place, random: Random) -> None:
    if isinstance(place.parent, dict):
        place.parent[_text(random)] = place.parent.pop(place.key)


def _repeat(_: Documents, place: Place, random: Random) -> None:
    """Repeat an entry of a list, or name a key twice."""
    if isinstance(place.parent, list):
        count = random.choice((1, 1, 2, 8, 100, 2000))
        place.parent[place.key : place.key] = [place.parent[place.key]] * count
    else:
        place.parent[f"{place.key}{_TWICE}"] = place.parent[place.key]


def _swap(_: Documents, place: Place, random: Random) -> None:
    """Exchange two values of one mapping or list."""
    keys = list(place.parent) if isinstance(place.parent, dict) else range(len(place.parent))
    other = random.choice(keys)
    place.parent[place.key], place.parent[other] = place.parent[other], place.parent[place.key]


def _urls(_: Documents, place: Place, random: Random) -> None:
    """Put one URL into every text below a place."""
    url = random.choice(URLS)
    place.parent[place.key] = _with_every_text(place.parent[place.key], url)


def _with_every_text(value: Any, text: str) -> Any:
    match value:
        case str():
            return text
        case list():
            return [_with_every_text(one, text) for one in value]
        case dict():
            return {key: _with_every_text(one, text) for key, one in value.items()}
    return value


_Change = Callable[[Documents, Place, Random], None]
_CHANGES: Sequence[_Change] = (
    *(_of_its_type, _of_its_type, _of_its_type, _of_its_type, _of_another_type, _raw),
    *(_remove, _rename, _repeat, _repeat, _swap, _urls),
)
