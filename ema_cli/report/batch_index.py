"""The index of a batch: every job with its outputs and reports. It has the schema version of the report."""

from __future__ import annotations

from ema_cli.record import record
from ema_cli.report.model import Command, Tool


@record
class JobError:
    """Why a job failed."""

    exit_code: int
    """Exit code of the same error in a single run."""
    message: str
    hint: str


@record
class JobEntry:
    """One job. Paths are relative to the folder of the index, or to the working directory without an index file."""

    run: str
    """The folder, as named on the command line or in the manifest."""
    status: str
    """``written``, ``up_to_date`` or ``failed``; ``planned`` in a dry run."""
    outputs: tuple[str, ...]
    reports: tuple[str, ...]
    checkpoints: int
    seconds: float
    warnings: tuple[str, ...]
    """Warning codes; the reports have the messages."""
    error: JobError | None


@record
class BatchSummary:
    """Number of jobs by status."""

    jobs: int
    written: int
    up_to_date: int
    planned: int
    failed: int
    seconds: float


@record
class BatchIndex:
    """All jobs of a batch, in order."""

    schema_version: str
    tool: Tool
    command: Command
    jobs: tuple[JobEntry, ...]
    summary: BatchSummary
