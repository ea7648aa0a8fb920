"""The words that users read: plain English, and no words of the project's former private language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ema_cli"
WORST = {
    r"\btold\b|\btells? of\b": "reported, lists",
    r"\bgo(?:es|ing|ne)? on (?:from|with)\b": "continued from",
    r"\blies? (?:before|beside|in|on|there|under|where)\b|\bwhat lies\b": "is, is stored",
    r"\bstands? (?:in for|there|where)\b": "is used instead; is",
    r"\bstrangers?\b": "foreign file",
    r"\bcarried over\b|\bcompanions?\b(?!-)": "copied, side file",
    r"\b(?:is|are) few for\b": "needs about 1,000",
    r"\bcounts? as\b": "effective checkpoints",
    r"\blr x\b": "LR scale",
    r"\bheld of tried\b": "passed of tried",
    r"\bas (?:it|they) (?:was|were)\b": "unchanged",
    r"\bcaveats?\b|\bcautions?\b": "warning",
    r"\bE_1 = theta_1$": "starting from the first",
    r"\b(?:has|have) (?:it|them) not\b|\bwhat it has not\b": "lacks it",
    r"\bto warn of\b": "No warnings",
    r"\bweight gathered\b": "sum of the weights",
    r"^left out\b": "skipped",
    r"\bearlier (?:average|output)s?\b": "previous average, existing output",
    r"\bway out\b": "hint",
}
"""Pattern -> what to write instead."""
NAME = re.compile(r"[\w.-]+")


def docstrings(tree: ast.AST) -> set[ast.expr]:
    """Return the strings that are statements: docstrings of modules, classes, functions and fields."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the text that a module can show, with its line; the parts of an f-string together."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = docstrings(tree)
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {node} & (skipped | inside):
            yield node.lineno, node.value


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Return each text with its location: strings of the package, templates, help topics and the README.

    A single word is a name, such as a code or a key of JSON, and names that others rely on stay as they are.
    """
    return tuple((place, text) for place, text in _all_texts() if not NAME.fullmatch(text))


def _all_texts() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from ((f"{path.relative_to(ROOT)}:{line}", text) for line, text in strings(path))
    for path in [ROOT / "README.md", *sorted(PACKAGE.rglob("*.md")), *sorted(PACKAGE.rglob("*.j2"))]:
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield f"{path.relative_to(ROOT)}:{line}", text


@pytest.mark.parametrize("pattern", WORST)
def test_nobody_reads_the_old_words(pattern: str) -> None:
    """No message, help text, template or topic has a word of the private language."""
    found = [f"{place}: {text.strip()[:100]}" for place, text in texts() if re.search(pattern, text)]
    assert not found, f"write {WORST[pattern]!r} instead:\n" + "\n".join(found)
