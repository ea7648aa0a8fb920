"""The only module that prints: what was asked for on stdout, all else on stderr; ``--json`` is one document on stdout.

Each of the two streams may be a terminal, a pipe or a file, or closed. On a terminal, tables fit its width and lines
wrap between words; elsewhere tables are as wide as they need to be, unless ``COLUMNS`` is set, and lines are whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TextIO

from ema_cli.cli import ci
from ema_cli.cli.ci import Service
from ema_cli.cli.process import is_lost
from ema_cli.distributed.launch import Launch
from ema_cli.errors import EmaAvgError, OutputError, RunWarning
from ema_cli.record import record
from ema_cli.text import redacted, safe_text

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.markdown import Markdown

    from ema_cli.cli.table import Table
    from ema_cli.cli.wrapping import Styled

    Part = str | Styled | Table | Markdown
    """What is printed: a line, a line with styles, a table that fits, a document."""

_NO_LIMIT = 1_000_000
"""Columns of a pipe or a file, and characters of a line."""
_STYLED = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""Variables by which rich may print styles where there is no terminal."""
_MOST_DIGITS = 6
_LONGEST_MESSAGE = 4_000


@record
class Style:
    """How much is printed, and how."""

    json: bool = False
    """One JSON document on stdout instead of the result lines."""
    quiet: bool = False
    """Errors only."""
    verbose: bool = False
    """Everything: full tables, what was ignored."""
    color: bool = True
    service: Service = "none"
    """The CI service that reads the log."""


class Console:
    """Standard output and standard error of a command.

    Args:
        style: how it prints.
        launch: the place of this process, if it is one of several.

    """

    def __init__(self, style: Style, launch: Launch | None = None) -> None:
        self.style = style
        self.launch = launch
        self._rich: dict[bool, RichConsole] = {}
        self.at_end = contextlib.ExitStack()
        """What is done when everything is printed."""
        self.met = False
        """Whether other processes of one run know how this one ends."""

    @property
    def interactive(self) -> bool:
        """Whether progress bars can be shown: ``FORCE_COLOR`` alone does not make a log a terminal."""
        return _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    @property
    def rich(self) -> RichConsole:
        """The rich console of stderr."""
        return self._console(stderr=True)

    def result(self, *parts: Part, essential: bool = True) -> None:
        """Print on stdout what was asked for, unless quiet or under ``--json``.

        Args:
            parts: lines, texts and tables.
            essential: they are the result itself; if not, the result is a file, and they may be lost.

        Raises:
            OutputError: they are the result, and standard output is a file or device that cannot be written.

        """
        if not self.style.quiet and not self.style.json:
            with contextlib.nullcontext() if essential else contextlib.suppress(OutputError):
                self._print(*parts, stderr=False)

    def talk(self, *parts: Part, always: bool = False) -> None:
        """Print on stderr, unless quiet; ``always`` even then."""
        if always or not self.style.quiet:
            self._print(*parts)

    def warning(self, warning: RunWarning) -> None:
        """Show a warning and its hint."""
        if not self.style.quiet:
            self._labelled("warning", "yellow", f"{warning.message} ({warning.label})", warning.hint)
            self._annotate("warning", f"ema-avg: {warning.code}", warning.message, warning.hint)

    def error(self, error: EmaAvgError, code: int) -> None:
        """Show why the run failed: as the JSON document on stdout, or on stderr, also if stdout cannot be written."""
        self._annotate("error", "ema-avg", error.message, error.hint)
        if self.style.json:
            from ema_cli.report.model import SCHEMA_VERSION  # noqa: PLC0415 - this module is part of every start

            failure = {"exit_code": int(code), "message": error.message, "hint": error.hint}
            with contextlib.suppress(OutputError):
                self.document({"schema_version": SCHEMA_VERSION, "error": failure})
            if not is_lost(sys.stdout):
                return
        self._labelled("error", "red", error.message, error.hint)

    def failure(self, message: str, hint: str = "") -> None:
        """Show on stderr what failed while the command continues; stdout is only for the result."""
        self._annotate("error", "ema-avg", message, hint)
        self._labelled("failed", "red", message, hint)

    def _annotate(self, kind: Literal["warning", "error"], title: str, message: str, hint: str) -> None:
        if self.style.service == "github":
            self._raw(ci.command(ci.annotation(kind, title, message, hint)))

    def begin(self) -> None:
        """Stop a GitHub runner from interpreting printed text as commands."""
        if self.style.service == "github":
            self._raw(ci.silence())

    def end(self) -> None:
        """Let the runner interpret commands again, and do what is left."""
        self.at_end.close()
        if self.style.service == "github":
            self._raw(ci.resume())

    def section(self, title: str, *, begins: bool) -> None:
        """Open or close a collapsed section, if the log supports it."""
        if self.style.service == "gitlab" and not self.style.quiet:
            self._raw(ci.section(title, begins=begins))

    def _raw(self, line: str) -> None:
        """Print a line for the CI service on stderr."""
        with contextlib.suppress(ValueError):  # closed
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def document(self, document: object) -> None:
        """Print the one JSON document of the run, without secrets."""
        self.raw_document(json.dumps(redacted(document), indent=1, allow_nan=False))

    def raw_document(self, text: str) -> None:
        """Print the one JSON document of the run, given as text."""
        _write(sys.stdout, text.rstrip("\n"))

    def _labelled(self, label: str, color: str, message: str, hint: str) -> None:
        from ema_cli.cli.wrapping import Styled  # noqa: PLC0415 - rich, which JSON needs not

        first, *rest = message.split("\n")
        self._print(Styled((f"{label}: ", f"bold {color}"), clean(first)), *rest)
        if hint:
            is_question = hint.startswith("did you mean")
            self._print(Styled(("  " if is_question else "  try: ", "bold"), clean(hint)))

    def _print(self, *parts: Part, stderr: bool = True) -> None:
        """Print lines, texts and tables, each on lines of its own, without blanks at the ends of lines."""
        stream = sys.stderr if stderr else sys.stdout
        wraps = _is_terminal(stream)
        with contextlib.suppress(ValueError):  # closed
            for part in parts:
                if isinstance(part, str) and not wraps:  # needs no rich
                    _write(stream, clean(part, longest=_NO_LIMIT))
                    continue
                self._render(part, stderr=stderr, wraps=wraps)

    def _render(self, part: Part, *, stderr: bool, wraps: bool) -> None:
        """Print a part with its styles: a table in the width of the stream, a text wrapped if asked."""
        from ema_cli.cli.table import Table, lines_of  # noqa: PLC0415
        from ema_cli.cli.wrapping import Styled, wrapped  # noqa: PLC0415

        is_plain = not wraps and not _STYLED & os.environ.keys()
        width = _asked_width() or (_NO_LIMIT if is_plain else self._console(stderr=stderr).width)
        if isinstance(part, str):
            part = Styled(clean(part, longest=_NO_LIMIT))
        match part:
            case Styled():
                lines = iter([part])
            case Table():
                lines = lines_of(_cleaned(part), width)
            case _:
                self._console(stderr=stderr).print(part, width=width)
                return
        for line in lines:
            if is_plain:  # most of rich is for terminals
                _write(sys.stderr if stderr else sys.stdout, str(line))
                continue
            for text in wrapped(line.rich(), width) if wraps and line is part else [line.rich()]:
                self._console(stderr=stderr).print(text, soft_wrap=True)

    def _console(self, *, stderr: bool) -> RichConsole:
        if stderr not in self._rich:
            from rich.console import Console as RichConsole  # noqa: PLC0415 - not needed for JSON
            from rich.theme import Theme  # noqa: PLC0415

            terminal = _is_terminal(sys.stderr if stderr else sys.stdout)
            self._rich[stderr] = RichConsole(
                stderr=stderr,
                force_interactive=terminal,
                no_color=None if self.style.color else True,
                highlight=False,
                markup=False,
                emoji=False,
                theme=Theme({"bar.complete": "cyan", "progress.data.speed": "none", "progress.remaining": "none"}),
                width=None if terminal else _NO_LIMIT,
            )
        return self._rich[stderr]


def _cleaned(table: Table) -> Table:
    """Return a table without control characters and secrets in its cells."""
    rows = [[clean(cell, longest=_NO_LIMIT) if isinstance(cell, str) else cell for cell in row] for row in table.rows]
    return replace(table, rows=rows)


def _asked_width() -> int | None:
    """Return the number of columns in ``COLUMNS``, if it has one."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) or None if columns.isdecimal() and len(columns) < _MOST_DIGITS else None


def clean(line: str, *, longest: int = _LONGEST_MESSAGE) -> str:
    """Return a line without control characters that could move the cursor or begin a new line."""
    return safe_text(line, limit=longest, whole=False)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _write(stream: TextIO | None, text: str) -> None:
    """Print a result. It is no error if the reader is gone, but it is if a file cannot be written.

    Raises:
        OutputError: standard output is a file or device that cannot be written.

    """
    with contextlib.suppress(ValueError):  # closed
        if stream is not None:
            stream.write(f"{text}\n")
            stream.flush()
