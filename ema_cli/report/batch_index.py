"""The index of a batch: every job with its outputs and reports. Its schema grows with that of the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ema_cli.report.model import Command, Tool
from ema_cli.report.render import is_page


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed."""

    exit_code: int
    """What the main job would have ended with."""
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """One job. Paths are relative to the folder of the index, or to the working directory where there is none."""

    run: str
    """As it was named."""
    status: str
    """``written``, ``up_to_date`` or ``failed``; ``planned`` in a dry run."""
    outputs: tuple[str, ...]
    reports: tuple[str, ...]
    checkpoints: int
    seconds: float
    warnings: tuple[str, ...]
    """Their codes; the reports have the sentences."""
    error: JobError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """How the jobs came out, counted."""

    jobs: int
    written: int
    up_to_date: int
    planned: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchIndex:
    """All jobs of a batch, in order."""

    schema_version: str
    tool: Tool
    command: Command
    jobs: tuple[JobEntry, ...]
    summary: BatchSummary


def to_json(index: BatchIndex) -> str:
    """Return the index as JSON, ASCII only, without NaN."""
    return json.dumps(dataclasses.asdict(index), indent=1, allow_nan=False) + "\n"


def to_html(index: BatchIndex) -> str:
    """Return the index as one HTML page."""
    from ema_cli.report import batch_html  # noqa: PLC0415 - jinja2 takes a moment

    return batch_html.to_html(index)


WRITERS: dict[str, Callable[[BatchIndex], str]] = {".json": to_json, ".html": to_html}
"""How an index is written, by the suffix of its file; a new format is one more function here."""


def is_index(path: Path) -> bool:
    """Whether a file is an index that may be overwritten by a newer one."""
    if path.suffix == ".html":
        return is_page(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(document["jobs"], list) and document["tool"]["name"] == "ema-avg"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
