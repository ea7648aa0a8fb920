"""The commands that check: two checkpoints against each other, and an output against its report and its inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from ema_cli.cli import options as given
from ema_cli.cli.console import Console, Style
from ema_cli.cli.exit import ExitCode
from ema_cli.options.average import DEFAULT_SAMPLES, Options
from ema_cli.storage.locations import locate

DIFF_HELP = (
    "Compare two checkpoints, tensor by tensor; exit 0 if they are equal, 1 if not.\n\n"
    "Equal means: the same names and, under each, the same shape, the same type and the same bits of every element. "
    "-0.0 is not 0.0, and NaN equals NaN of the same bits. Formats, order and what lies beside the weights do not "
    "matter.\n\n"
    "Told are, per tensor, how many elements differ, max |a-b|, ||a-b|| / ||b|| and the cosine of a and b, in float64; "
    "integers are compared exactly, complex numbers as pairs. What is undefined is shown as -, and is null in JSON."
)
VERIFY_HELP = (
    "Check an output against its report and its inputs; exit 10 if anything is not as it was.\n\n"
    "Checked are the report, the size and the SHA-256 of the output, its tensors, the fingerprint of every input and "
    "the digest of its weights (or its SHA-256, if the report has one), and random pieces of tensors, recomputed from "
    "the inputs and compared bit for bit."
)

FirstCheckpoint = Annotated[
    str, typer.Argument(help="A checkpoint file of any format.", metavar="A", show_default=False)
]
SecondCheckpoint = Annotated[
    str, typer.Argument(help="Another one, which distances are relative to.", metavar="B", show_default=False)
]
VerifiedOutput = Annotated[
    str,
    typer.Argument(
        help="A file or folder that ema-avg wrote, with its report beside it.", metavar="OUT", show_default=False
    ),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", help="Pieces of tensors to recompute from the inputs.", metavar="N")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Which pieces are drawn.", metavar="N")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Do not read the inputs whole to compare the digests of their weights.")
]
OutputOnlyOption = Annotated[
    bool, typer.Option("--output-only", help="Check the file and its report; leave the inputs alone.")
]


def diff(
    *,
    a: FirstCheckpoint,
    b: SecondCheckpoint,
    key: given.KeyOption = None,
    include: given.IncludeOption = None,
    exclude: given.ExcludeOption = None,
    strip_prefix: given.StripPrefixOption = None,
    json: given.JsonOption = False,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
    no_color: given.NoColorOption = False,
) -> None:
    """Compare two checkpoints."""
    from ema_cli.cli.views.check_view import show_comparison  # noqa: PLC0415 - numpy, which help and usage errors need not
    from ema_cli.cli.views.progress import ProgressDisplay  # noqa: PLC0415
    from ema_cli.compare import compare, comparison_document  # noqa: PLC0415

    console = Console(Style(json=json, quiet=quiet, verbose=verbose, color=not no_color))
    options = Options(
        paths=(a, b),
        key=key,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        strip_prefix=strip_prefix,
    )
    with ProgressDisplay(console) as progress:
        found = compare(options, progress.show)
    if json:
        console.document(comparison_document(found))
    else:
        show_comparison(found, console)
    if not found.equal:
        raise typer.Exit(ExitCode.DIFFERENT)


def verify(
    *,
    output: VerifiedOutput,
    samples: SamplesOption = DEFAULT_SAMPLES,
    seed: SeedOption = 0,
    quick: QuickOption = False,
    output_only: OutputOnlyOption = False,
    json: given.JsonOption = False,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
    no_color: given.NoColorOption = False,
) -> None:
    """Verify an output."""
    from ema_cli.cli.views.check_view import show_verification  # noqa: PLC0415
    from ema_cli.cli.views.progress import ProgressDisplay  # noqa: PLC0415
    from ema_cli.verify.checks import verification_document  # noqa: PLC0415
    from ema_cli.verify.checks import verify as check  # noqa: PLC0415

    console = Console(Style(json=json, quiet=quiet, verbose=verbose, color=not no_color))
    with ProgressDisplay(console) as progress:
        found = check(
            locate(output),
            samples=samples,
            seed=seed,
            quick=quick,
            output_only=output_only,
            listener=progress.show,
        )
    if json:
        console.document(verification_document(found))
        raise typer.Exit(ExitCode.OK if found.ok else ExitCode.VERIFICATION)
    show_verification(found, console)
