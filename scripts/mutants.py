"""Change the program a little, many times, and see whether its tests notice: how much the tests check, not only run.

    COVERAGE_OF_FORKS=$PWD/.coverage.forks pytest -n 2 --dist loadgroup --cov=ema_cli --cov-context=test --cov-report=
    python scripts/mutants.py --coverage .coverage --count 100 --seed 1 ema_cli/weights ema_cli/planning

The first command, with the extra "dev", records which tests execute which lines. The second draws places at random: a
comparison is flipped, an arithmetic operator or a constant changed, and/or swapped, a not dropped. In a copy of the
repository the tests that execute the line run until one fails. A change that no test notices is harmless or untested.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = {
    "Lt": "< <=",
    "LtE": "<= <",
    "Gt": "> >=",
    "GtE": ">= >",
    "Eq": "== !=",
    "NotEq": "!= ==",
    "Is": "is is not",
    "In": "in not in",
    "Add": "+ -",
    "Sub": "- +",
    "Mult": "* /",
    "Div": "/ *",
    "FloorDiv": "// *",
    "Mod": "% *",
    "Pow": "** *",
    "And": "and or",
    "Or": "or and",
}
"""Nodes of the syntax tree: how each is written, and its replacement."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one place in a file."""

    path: Path
    """Below the root of the repository."""
    lines: tuple[int, int]
    """Of the place itself, and of the statement around it."""
    source: bytes
    """The whole file after the change."""

    def diff(self) -> str:
        """Return the lines that differ, with the place."""
        before = (ROOT / self.path).read_text(encoding="utf-8").splitlines()
        changed = difflib.unified_diff(before, self.source.decode().splitlines(), lineterm="", n=0)
        shown = [line for line in changed if line[0] in "+-" and line[:3] not in ("+++", "---")]
        return "\n".join([f"{self.path}:{self.lines[0]}", *shown])


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every change of a file; annotations, decorators and f-strings are not changed."""
    source = (ROOT / path).read_bytes()
    starts = list(accumulate(map(len, source.splitlines(keepends=True)), initial=0))

    def visit(node: ast.AST, statement: int) -> Iterator[Mutant]:
        statement = node.lineno if isinstance(node, ast.stmt) else statement
        for begin, end, new in _changes(node, source, starts):
            changed = source[:begin] + new.encode() + source[end:]
            yield Mutant(path, (getattr(node, "lineno", statement), statement), changed)
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and field not in ("annotation", "returns", "decorator_list"):
                    yield from visit(child, statement)

    tree = ast.parse(source)
    for text in [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]:
        text.values.clear()
    yield from visit(tree, 1)


def _changes(node: ast.AST, source: bytes, starts: list[int]) -> Iterator[tuple[int, int, str]]:
    """Yield the start and the end of an operator or a value, and its replacement."""

    def span(node: ast.expr) -> tuple[int, int]:
        last, column = node.end_lineno or 0, node.end_col_offset or 0
        return starts[node.lineno - 1] + node.col_offset, starts[last - 1] + column

    for left, operator, right in _operations(node):
        old, _, new = OPERATORS.get(type(operator).__name__, "").partition(" ")
        if old:
            begin = source.index(old.encode(), span(left)[1], span(right)[0])
            yield begin, begin + len(old), new
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield span(node)[0], span(node)[0] + len("not"), ""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield *span(node), repr(not node.value if isinstance(node.value, bool) else node.value + 1)


def _operations(node: ast.AST) -> Iterable[tuple[ast.expr, ast.AST, ast.expr]]:
    """Return each operator of a node with the operands on both sides."""
    if isinstance(node, ast.Compare):
        return zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
    if isinstance(node, ast.BoolOp):
        return [(left, node.op, right) for left, right in pairwise(node.values)]
    return [(node.left, node.op, node.right)] if isinstance(node, ast.BinOp) else []


def tests_of(mutant: Mutant, data: CoverageData) -> list[str]:
    """Return the tests that execute the place, or its file where the line is executed by an import alone."""
    name = next((name for name in data.measured_files() if name.endswith(f"/{mutant.path}")), "")
    by_line = data.contexts_by_lineno(name)
    for lines in ([mutant.lines[0]], [mutant.lines[1]], by_line):
        contexts = {context for line in lines for context in by_line.get(line, ())}
        found = {re.sub(r"(@\w+)?(\|\w+)?$", "", context) for context in contexts} - {""}  # without group and phase
        if found:
            return sorted(found)
    return []


def outcome(mutant: Mutant, tests: list[str], copy: Path, seconds: float) -> str:
    """Run tests with the change made in a copy of the repository; return the result."""
    if not tests:
        return "not executed"
    listed = copy / "tests.txt"
    listed.write_text("\n".join(tests), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", f"@{listed}"]
    changed = copy / mutant.path
    changed.write_bytes(mutant.source)
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        shutil.copyfile(ROOT / mutant.path, changed)
    if done.returncode in (1, 2):  # a test failed, or the package cannot even be imported
        return "caught"
    return "survived" if done.returncode == 0 else f"not tried: {done.stdout.strip().splitlines()[-1:]}"


def main() -> None:
    """Draw the changes, run the tests of each, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", default=[Path("ema_cli")], help="folders and modules")
    parser.add_argument("--coverage", type=Path, default=Path(".coverage"), help="database with a context per test")
    parser.add_argument("--count", type=int, default=50, help="of changes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="at the same time")
    parser.add_argument("--most", type=int, default=300, help="tests of a change, drawn at random if there are more")
    parser.add_argument("--seconds", type=float, default=300, help="after which a change counts as noticed: it hangs")
    given = parser.parse_args()
    data, draw = CoverageData(str(given.coverage)), random.Random(given.seed)
    data.read()
    files = [file for path in given.paths for file in (sorted((ROOT / path).rglob("*.py")) or [ROOT / path])]
    places = [mutant for file in files for mutant in mutants_of(file.resolve().relative_to(ROOT))]
    mutants = draw.sample(places, min(given.count, len(places)))
    chosen = [draw.sample(tests, min(given.most, len(tests))) for tests in (tests_of(one, data) for one in mutants)]
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def judge(mutant: Mutant, tests: list[str]) -> str:
        copy = copies.get()
        try:
            return outcome(mutant, tests, copy, given.seconds)
        finally:
            copies.put(copy)

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(given.jobs) as pool:
        for number in range(given.jobs):
            ignored = shutil.ignore_patterns(".*", "__pycache__")
            copies.put(Path(shutil.copytree(ROOT, Path(folder, str(number)), ignore=ignored)))
        for mutant, tests, found in zip(mutants, chosen, pool.map(judge, mutants, chosen), strict=True):
            counts[found.partition(":")[0]] += 1
            if found != "caught":
                print(f"{found}, {len(tests)} tests: {mutant.diff()}\n", flush=True)
    tried = counts.total() - counts["not tried"]
    print(f"{len(places):,} places, {len(mutants)} drawn with seed {given.seed}: {dict(counts)}")
    print(f"share caught: {counts['caught'] / max(1, tried):.1%} of {tried}")


if __name__ == "__main__":
    main()
