"""``ema-avg update-bn``: the only command that runs code of the user, which the user names."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import typer

from ema_cli.cli.console import Console
from ema_cli.cli.exit import DEBUG_VARIABLE
from ema_cli.cli.options import CommandLine, Given, takes
from ema_cli.cli.process import foreign_code, raise_if_terminated
from ema_cli.errors import EmaAvgError, UsageError
from ema_cli.fold.devices import check_torch
from ema_cli.text import without_secrets

commands = typer.Typer()
_UPDATE_HELP = """\
Recompute the BatchNorm statistics of an average on your data, and write a copy with the new ones.

Loads the average into your model and passes your data through it once, in training mode, with the semantics of \
torch.optim.swa_utils.update_bn. Only running statistics of BatchNorm layers change; all other bytes are copied.

  ema-avg update-bn ema.safetensors --model train:build --data train:loader -o new.safetensors\n
  ema-avg update-bn ema.safetensors --model pkg.nets:net --data pkg.data:loader --batches 200 -o new.safetensors

This runs your code: the module that --model names, the module that --data names, and what they import.
"""
_SHOWN = ("json", "quiet", "verbose", "color")

AverageArgument = Annotated[
    str, typer.Argument(help="An average, or a checkpoint of any format.", metavar="CKPT", show_default=False)
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Your model: a torch.nn.Module, or a function without arguments that returns one. Modules are imported as "
        "python -m does, from the current folder too.",
        metavar="MODULE:NAME",
        show_default=False,
        rich_help_panel="Inputs",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="Your data: an iterable of batches, such as a DataLoader, or a function that returns one. A batch is a "
        "tensor, a tuple or list that begins with one, or a dict of the model's arguments.",
        metavar="MODULE:NAME",
        show_default=False,
        rich_help_panel="Inputs",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="The .safetensors file to write, or NAME/ for a folder if CKPT is one.",
        metavar="PATH",
        show_default=False,
        rich_help_panel="Output",
    ),
]
BatchesOption = Annotated[
    int | None,
    typer.Option(
        "--batches",
        help="Stop after this number of batches. \\[default: all]",
        metavar="N",
        show_default=False,
        rich_help_panel="Compute",
    ),
]


@commands.command("update-bn", help=_UPDATE_HELP)
@takes(only=("key", "strip_prefix", "device", "force", "strict", "allow", *_SHOWN))
def update_statistics(
    *,
    average: AverageArgument,
    model: ModelOption,
    data: DataOption,
    output: OutputOption = None,
    batches: BatchesOption = None,
    given: Given,
    line: CommandLine,
) -> None:
    """Recompute BatchNorm statistics."""
    check_torch("update-bn")
    from ema_cli.cli.views.progress import ProgressDisplay  # noqa: PLC0415 - help and usage errors need none of it
    from ema_cli.cli.views.update_view import show_update  # noqa: PLC0415
    from ema_cli.training.batch_norm.data_pass import UserCode  # noqa: PLC0415 - torch
    from ema_cli.training.batch_norm.update_bn import update_options, update_with  # noqa: PLC0415
    from ema_cli.training.batch_norm.user_code import make_data, make_model  # noqa: PLC0415

    options = update_options(average, output=output, **given)
    code = UserCode(
        make_model=lambda: make_model(model),
        make_data=lambda: make_data(data),
        model=model,
        data=data,
        blame=lambda role: _blaming(f"--{role} {model if role == 'model' else data}"),
        around=foreign_code,
    )
    console = Console(line.style())
    with closing(ProgressDisplay(console)) as progress:
        report = update_with(options, code, batches=batches, listener=progress.show, argv=sys.argv)
    if line.json:
        console.document(dataclasses.asdict(report))
    else:
        show_update(report, console)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Report an exception of the user's code as the user's fault, in one line with its place.

    Raises:
        UsageError: instead of any other exception.

    """
    from ema_cli.training.batch_norm.user_code import place_of, reason_of  # noqa: PLC0415 - torch

    try:
        yield
        raise_if_terminated()
    except (EmaAvgError, MemoryError):
        raise
    except BaseException as fault:
        raise_if_terminated()
        if os.environ.get(DEBUG_VARIABLE):
            sys.stderr.write(without_secrets("".join(traceback.format_exception(fault))))
        place = place_of(fault)
        where = f" at {place}" if place else ""
        hint = f"the traceback is shown with {DEBUG_VARIABLE}=1"
        if isinstance(fault, SystemExit):
            hint = 'put what a module does as a program under: if __name__ == "__main__":'
        raise UsageError(f"{name} failed{where}: {reason_of(fault)}", hint=hint) from fault
