"""The commands that look: ``inspect`` into checkpoints, ``diff`` at two, ``verify`` at an output and its inputs."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ema_cli.cli.console import Console
from ema_cli.cli.exit import ExitCode
from ema_cli.cli.options import Checkpoints, CommandLine, Given, named, takes
from ema_cli.errors import UsageError
from ema_cli.options.average import DEFAULT_SAMPLES, make_options
from ema_cli.storage.locations import locate
from ema_cli.text import quoted

commands = typer.Typer()
_DIFF_HELP = (
    "Compare two checkpoints, tensor by tensor; exit 0 if they are equal, 1 if not.\n\n"
    "Equal means: the same names, and for each name the same shape, the same type and the same bits of every element. "
    "-0.0 is not 0.0, and NaN equals NaN of the same bits. Formats, the order of tensors and everything else in the "
    "checkpoints do not matter.\n\n"
    "For each tensor the result has the number of elements that differ, max |a-b|, ||a-b|| / ||b|| and the cosine of a "
    "and b, in float64. Integers are compared exactly, complex numbers as pairs. Undefined values are shown as -, and "
    "are null in JSON."
)
_VERIFY_HELP = (
    "Check an output against its report and its inputs; exit 10 if anything has changed.\n\n"
    "Checks the report, the size and the SHA-256 of the output, its tensors, the fingerprint of every input and the "
    "digest of its weights (or its SHA-256, if the report has one). Random pieces of tensors are recomputed from the "
    "inputs and compared bit for bit.\n\n"
    "The inputs are found from any directory; URLs are opened only with --allow-remote. If they were moved away from "
    "the output, --input names them again: ema-avg verify OUT --input CKPT...\n\n"
    "What can no longer be checked, such as an average that this one continues and has overwritten, is named in the "
    "last line, and is no failure."
)
_SHOWN = ("json", "quiet", "verbose", "color")

FirstCheckpoint = Annotated[
    str, typer.Argument(help="A checkpoint file of any format.", metavar="A", show_default=False)
]
SecondCheckpoint = Annotated[
    str,
    typer.Argument(help="Another one; distances are relative to it.", metavar="B", show_default=False),
]
VerifiedOutput = Annotated[
    str,
    typer.Argument(
        help="A file or folder that ema-avg wrote, with its report beside it.", metavar="OUT", show_default=False
    ),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", help="Number of tensor pieces to recompute from the inputs.", metavar="N")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed for the choice of pieces.", metavar="N")]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help="Skip the digests of the inputs' weights; they need all bytes of every input."),
]
OutputOnlyOption = Annotated[
    bool, typer.Option("--output-only", help="Check the output and its report only, not the inputs.")
]

InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="The inputs, if they are not where the report says: files, folders, patterns or URLs, in any order.",
        metavar="CKPT...",
        show_default=False,
    ),
]


@commands.command("inspect")
@takes(only=("key", "strip_prefix", *_SHOWN))
def inspect(context: typer.Context, *, checkpoints: Checkpoints = None, given: Given, line: CommandLine) -> None:
    """Show the content of checkpoints: format, where the weights are, step, tensors, types, ties."""
    from ema_cli.cli import commands as work  # noqa: PLC0415 - help and usage errors need none of it

    work.inspect(make_options(named(checkpoints, context), **given), Console(line.style()))


@commands.command("diff", help=_DIFF_HELP)
@takes(only=("key", "include", "exclude", "strip_prefix", *_SHOWN))
def diff(*, a: FirstCheckpoint, b: SecondCheckpoint, given: Given, line: CommandLine) -> None:
    """Compare two checkpoints."""
    from ema_cli.cli.views.check_view import show_comparison  # noqa: PLC0415 - numpy, which help and usage errors need not
    from ema_cli.cli.views.progress import ProgressDisplay  # noqa: PLC0415
    from ema_cli.compare import compare, comparison_document  # noqa: PLC0415

    options = make_options([a, b], **given)
    console = Console(line.style())
    with closing(ProgressDisplay(console)) as progress:
        found = compare(options, progress.show)
    if line.json:
        console.document(comparison_document(found))
    else:
        show_comparison(found, console)
    if not found.equal:
        raise typer.Exit(ExitCode.DIFFERENT)


@commands.command("verify", help=_VERIFY_HELP, context_settings={"allow_extra_args": True})
@takes(only=("allow_remote", *_SHOWN))
def verify(
    context: typer.Context,
    *,
    output: VerifiedOutput,
    inputs: InputsOption = None,
    samples: SamplesOption = DEFAULT_SAMPLES,
    seed: SeedOption = 0,
    quick: QuickOption = False,
    output_only: OutputOnlyOption = False,
    given: Given,
    line: CommandLine,
) -> None:
    """Verify an output."""
    from ema_cli.cli.views.check_view import show_verification  # noqa: PLC0415
    from ema_cli.cli.views.progress import ProgressDisplay  # noqa: PLC0415
    from ema_cli.verification.checks import verification_document  # noqa: PLC0415
    from ema_cli.verification.checks import verify as check  # noqa: PLC0415

    console = Console(line.style())
    with closing(ProgressDisplay(console)) as progress:
        found = check(
            locate(output),
            samples=samples,
            seed=seed,
            quick=quick,
            output_only=output_only,
            inputs=_inputs(inputs or [], context.args),
            allow_remote=bool(given["allow_remote"]),
            listener=progress.show,
        )
    if line.json:
        console.document(verification_document(found))
        raise typer.Exit(ExitCode.OK if found.ok else ExitCode.VERIFICATION)
    show_verification(found, console)


def _inputs(named: list[str], more: list[str]) -> list[str]:
    """Return all names of inputs, in the order of the command line: a shell puts several in place of a pattern.

    Raises:
        UsageError: names without the option, or names after several options, whose order is unknown.

    """
    if more and not named:
        raise UsageError(f"{quoted(more[0])} follows the output", hint="ema-avg verify OUT --input CKPT...")
    if more and len(named) > 1:
        raise UsageError("--input is repeated, and followed by several names", hint="give --input once")
    return [*named, *more]
