"""The options of the main job, but for those of the weights, as Typer parameters in the panels of the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ema_cli.cli.ci import CiMode
from ema_cli.cli.config.command import load
from ema_cli.options.average import BufferPolicy, GeometryMode, OnMissing, Order, OutputDtype, TiedPolicy

_INPUTS, _COMPUTE, _OUTPUT, _RUN = "Inputs", "Compute", "Output", "Run"

Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(
        help="Checkpoint files, folders that hold them, or quoted patterns.",
        metavar="CKPT...",
        show_default=False,
    ),
]
OrderOption = Annotated[
    Order,
    typer.Option(
        "--order",
        help="auto: by step if every checkpoint has one, else natural name order.",
        rich_help_panel=_INPUTS,
    ),
]
StepsOption = Annotated[
    str | None,
    typer.Option(
        "--steps",
        help="Steps by hand, in the order of the arguments.",
        metavar="S,S,...",
        rich_help_panel=_INPUTS,
    ),
]
FromOption = Annotated[
    int | None, typer.Option("--from", help="From this step on.", metavar="S", rich_help_panel=_INPUTS)
]
ToOption = Annotated[int | None, typer.Option("--to", help="Up to this step.", metavar="S", rich_help_panel=_INPUTS)]
EveryOption = Annotated[
    int,
    typer.Option(
        "--every",
        help="Every K-th checkpoint, counted back from the last.",
        metavar="K",
        rich_help_panel=_INPUTS,
    ),
]
LastOption = Annotated[
    int | None,
    typer.Option("--last", help="Only the last K checkpoints.", metavar="K", rich_help_panel=_INPUTS),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="Where the weights lie in a nested checkpoint \\[default: found, and printed].",
        metavar="A.B",
        rich_help_panel=_INPUTS,
    ),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        help="Only tensors whose name matches. Repeatable.",
        metavar="REGEX",
        rich_help_panel=_INPUTS,
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        help="No tensors whose name matches. Repeatable.",
        metavar="REGEX",
        rich_help_panel=_INPUTS,
    ),
]
StripPrefixOption = Annotated[
    str | None,
    typer.Option(
        "--strip-prefix",
        help="Prefix to take off every name \\[default: those of DDP, FSDP and torch.compile]; '' for none.",
        metavar="P",
        rich_help_panel=_INPUTS,
    ),
]
OnMissingOption = Annotated[
    OnMissing,
    typer.Option(
        "--on-missing",
        help="Where not all have the same tensors; last: copy those that others lack from the last checkpoint, and "
        "leave out those that it lacks.",
        rich_help_panel=_INPUTS,
    ),
]
BuffersOption = Annotated[
    BufferPolicy,
    typer.Option(
        "--buffers",
        help="BatchNorm running statistics: averaged, or copied. Integers and bools are always copied from the last.",
        rich_help_panel=_COMPUTE,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto.", metavar="DEVICE", rich_help_panel=_COMPUTE),
]
DtypeOption = Annotated[
    OutputDtype,
    typer.Option(
        "--dtype", help="Type of averaged tensors; same: as in the last checkpoint.", rich_help_panel=_COMPUTE
    ),
]
TiedOption = Annotated[
    TiedPolicy,
    typer.Option(
        "--tied",
        help="Tied tensors: written under every name, or under one, as safetensors' save_model does.",
        rich_help_panel=_OUTPUT,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Worker threads \\[default: cores, at most 4].", metavar="N", rich_help_panel=_COMPUTE
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Bound on the buffers of the fold \\[default: 32MB].",
        metavar="SIZE",
        rich_help_panel=_COMPUTE,
    ),
]
GeometryOption = Annotated[
    GeometryMode,
    typer.Option(
        "--geometry",
        help="Measure distances between the checkpoints for the report, on a sample of elements.",
        metavar="[sample|none]",
        parser=str,  # the options check the word, and explain that "full" was removed
        rich_help_panel=_COMPUTE,
    ),
]
AllowNonfiniteOption = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Fold NaN and infinity instead of refusing them.", rich_help_panel=_COMPUTE),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="The .safetensors file to write, or NAME/ for a folder as Hugging Face libraries read it; several "
        "averages need {decay}, {method} or the like in it.",
        metavar="PATH",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
MaxShardSizeOption = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        help="Write a folder, with files of at most this size \\[default for NAME/: 5GB].",
        metavar="SIZE",
        rich_help_panel=_OUTPUT,
    ),
]
ReportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        help="A further report: .html, .md or .json; OUT.report.json is always written. Repeatable.",
        metavar="PATH",
        rich_help_panel=_OUTPUT,
    ),
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        help="Extra metadata of the output. Repeatable.",
        metavar="KEY=VALUE",
        rich_help_panel=_OUTPUT,
    ),
]
Sha256Option = Annotated[
    bool, typer.Option("--sha256", help="Add a digest of every input to the report.", rich_help_panel=_OUTPUT)
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Overwrite an output that is not up to date.", rich_help_panel=_OUTPUT)
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="When interrupted, keep what is complete; go on with a run that was interrupted.",
        rich_help_panel=_RUN,
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="A warning fails the run (exit 8).", rich_help_panel=_RUN)]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Show the plan and stop, as ema-avg plan does.", rich_help_panel=_RUN),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON document on stdout: the report, the plan or the error.", rich_help_panel=_RUN
    ),
]
CiOption = Annotated[
    CiMode,
    typer.Option(
        "--ci", help="The CI service to speak to: annotations, summary, outputs, sections.", rich_help_panel=_RUN
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=_RUN)]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Full tables, and what was ignored.", rich_help_panel=_RUN)
]
NoColorOption = Annotated[
    bool, typer.Option("--no-color", help="No colours; NO_COLOR works too.", rich_help_panel=_RUN)
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="File with options \\[default: the nearest ema-avg.toml, or pyproject.toml with a \\[tool.ema-avg]].",
        metavar="FILE",
        callback=load,
        is_eager=True,
        rich_help_panel=_RUN,
    ),
]
ShowConfigOption = Annotated[
    bool,
    typer.Option(
        "--show-config", help="Show each option's value and where it comes from, and stop.", rich_help_panel=_RUN
    ),
]
