"""Everything that reads a report or an index of this program, run on hostile ones.

The report beside an average as ``verify`` reads it, as ``--continue-from`` does, and as the next run does that finds
the average up to date, with the pages it then writes; any valid report as a page; the index of a batch.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import ema_cli
from ema_cli.cli.commands import average
from ema_cli.cli.console import Console, Style
from ema_cli.errors import InputRefused
from ema_cli.formats.json_text import JsonError, parse_object
from ema_cli.options.average import Options, make_options
from ema_cli.pipeline import planned
from ema_cli.report import html
from ema_cli.report.batch_index import BatchIndex, BatchSummary, JobEntry
from ema_cli.report.model import Command, Tool
from ema_cli.report.render import is_index, render_report
from ema_cli.report.serialize import from_plain, to_json
from ema_cli.report.validation import find_fault
from ema_cli.verification.checks import verification_document, verify
from tests.helpers.reports import SCHEMA
from tests.hostile.documents import Documents
from tests.hostile.parser import Parser

_PAGES = ("page.html", "page.md", "page.json")
_SCRIPT = (Path(html.__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
_LINKS = ("href", "src", "action", "data", "srcset", "poster", "formaction")


def report_parsers(folder: Path) -> dict[str, Parser]:
    """Return these parsers; their files are in ``folder``."""
    checkpoints = _checkpoints(folder / "run")
    one, folders = folder / "run" / "ema.safetensors", folder / "run" / "ema_folder"
    part = folder / "run" / "part.safetensors"
    options = make_options(
        [str(path) for path in checkpoints],
        decay=0.5,
        output=str(one),
        report=[str(folder / "run" / name) for name in _PAGES],
        sha256=True,
    )
    _quietly(options)
    ema_cli.average(checkpoints, method="power", sigma_rel=0.2, output=folders, max_shard_size=40)
    ema_cli.average(checkpoints[:2], method="uniform-time", output=part)
    longer = folder / "run" / "longer.safetensors"
    ema_cli.average(checkpoints[2:], continue_from=part, output=longer)
    reports = [path.with_name(f"{path.stem}.report.json").read_bytes() for path in (one, folders, part, longer)]
    mutate = _Mutation(SCHEMA, reports)
    return {
        "verified": Parser(seeds=reports, mutate=mutate, run=lambda data: _verify(one, data)),
        "verified-folder": Parser(seeds=[reports[1]], mutate=mutate, run=lambda data: _verify(folders, data)),
        "continued": Parser(seeds=[reports[2]], mutate=mutate, run=_continue(part, checkpoints[2])),
        "current": Parser(seeds=[reports[0]], mutate=mutate, run=_current(options, one)),
        "pages": Parser(seeds=reports, mutate=mutate, run=_pages),
        "batch-index": _index(folder / "run" / "index.json"),
    }


class _Mutation:
    """Changes a seed by the schema of its document, and seldom makes a document of its own."""

    def __init__(self, schema: Mapping[str, Any], seeds: list[bytes]) -> None:
        self._documents = Documents(schema)
        self._parsed = {seed: json.loads(seed) for seed in seeds}

    def __call__(self, seed: bytes, random: Random) -> bytes:
        if random.randrange(20) == 0:
            return self._documents.changed(self._documents.made(random), random)
        return self._documents.changed(copy.deepcopy(self._parsed[seed]), random)


def _checkpoints(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"c{number}.safetensors" for number in (1, 2, 3)]
    for number, path in enumerate(paths, start=1):
        tensors = {"w": np.full((2, 3), number / 3, np.float32), "b.running_mean": np.full(4, number, np.float32)}
        save_file({**tensors, "n": np.array([number], np.int64)}, path)
    return paths


def _write(output: Path, data: bytes) -> None:
    output.with_name(f"{output.stem}.report.json").write_bytes(data)


def _verify(output: Path, data: bytes) -> None:
    _write(output, data)
    found = verify(output, samples=3)
    json.dumps(verification_document(found))
    found.raise_if_failed()


def _continue(part: Path, new: Path) -> Any:
    """Return what plans the continuation of an average whose last checkpoint is known from its report alone."""
    last = new.with_name("c2.safetensors")
    hidden = last.parent.parent / "elsewhere"
    hidden.mkdir()
    moved, copied = hidden / new.name, hidden / part.name
    new_bytes, part_bytes = new.read_bytes(), part.read_bytes()
    moved.write_bytes(new_bytes)
    copied.write_bytes(part_bytes)
    copied.with_name(f"{part.stem}.report.json").touch()
    options = make_options([str(moved)], continue_from=copied)

    def run(data: bytes) -> None:
        _write(copied, data)
        with planned(options):
            pass

    return run


def _current(options: Options, output: Path) -> Any:
    def run(data: bytes) -> None:
        _write(output, data)
        shown = _quietly(options)
        if not shown.replace("\n", "").isprintable():
            raise AssertionError(f"the terminal gets {shown!a}")
        _check_page((output.with_name(_PAGES[0])).read_text(encoding="utf-8"))

    return run


def _quietly(options: Options) -> str:
    """Average on the command line without a terminal; return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        average(options, Console(Style(verbose=True, color=False)), ["ema-avg"])
    return stdout.getvalue() + stderr.getvalue()


def _pages(data: bytes) -> None:
    """Write a valid report in every form."""
    try:
        report = from_plain(parse_object(data))
    except (JsonError, ValueError) as error:
        raise InputRefused("it is no report") from error
    fault = find_fault(report)
    if fault is not None:
        raise InputRefused(fault)
    _check_page(b"".join(render_report(report, ".html")).decode())
    for suffix in (".md", ".json"):
        render_report(report, suffix)


class _Page(HTMLParser):
    """Finds what a page of this program never has: links, sources, attributes that run, and another script."""

    scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Refuse a tag."""
        for name, value in attrs:
            inner = name in _LINKS and (value or "").startswith("#")
            if name.startswith("on") or (name in _LINKS and not inner):
                raise AssertionError(f"the page has <{tag} {name}={value!a}>")
        self.scripts += tag == "script"
        if self.scripts > 1 or tag in ("iframe", "object", "embed", "form", "base", "link", "img"):
            raise AssertionError(f"the page has <{tag}>")


def _check_page(text: str) -> None:
    page = _Page()
    page.feed(text)
    page.close()
    if _SCRIPT not in text:
        raise AssertionError("the script of the page is another")


def _index(path: Path) -> Parser:
    """An index that a batch finds where it will write its own."""
    job = JobEntry(
        run="run",
        status="written",
        outputs=("ema.safetensors",),
        reports=("ema.report.json",),
        checkpoints=3,
        seconds=1.5,
        warnings=("plain-mean",),
        error=None,
    )
    index = BatchIndex(
        schema_version="1.1",
        tool=Tool(name="ema-avg", version="0"),
        command=Command(argv=("ema-avg",), options={"jobs": 1}),
        jobs=(job, job),
        summary=BatchSummary(jobs=2, written=2, up_to_date=0, planned=0, failed=0, seconds=1.0),
    )
    seeds = [to_json(index).encode()]
    path.write_bytes(seeds[0])

    def run(data: bytes) -> None:
        path.write_bytes(data)
        if not is_index(path):
            raise InputRefused("it is no index")

    return Parser(seeds=seeds, mutate=_Mutation({}, seeds), run=run)
