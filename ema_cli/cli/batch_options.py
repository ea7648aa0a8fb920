"""The options of ``ema-avg batch``: those of the main job, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ema_cli.cli.main_options import MainOptions

_BATCH = "Batch"

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Run folders, or folders to search for them: a folder that holds checkpoints is a run.",
        metavar="DIR...",
        show_default=False,
    ),
]
BatchOutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="The file of each run, or NAME/ for a folder; {run} is the run's folder, {name} the name of that, besides "
        "{decay} and the like.",
        metavar="PATH",
        rich_help_panel=_BATCH,
    ),
]
JobsOption = Annotated[
    int, typer.Option("--jobs", "-j", help="How many runs at a time.", metavar="N", rich_help_panel=_BATCH)
]
IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index", help="One list of all runs and their reports (.json).", metavar="PATH", rich_help_panel=_BATCH
    ),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="TOML file of runs, each with options of its own: \\[\\[job]] tables and \\[defaults].",
        metavar="FILE",
        rich_help_panel=_BATCH,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions(MainOptions):
    """What the command line says of a batch."""

    output: BatchOutputOption = "{run}/ema.safetensors"
    jobs: JobsOption = 1
    index: IndexOption = None
    manifest: ManifestOption = None
