"""The commands: parse, call the core, render. No decision about averaging is made here."""

from __future__ import annotations

import sys
from typing import cast

import typer

from ema_cli import __version__
from ema_cli.cli import checking
from ema_cli.cli import options as given
from ema_cli.cli import weight_options as weight
from ema_cli.cli.console import Console, Style
from ema_cli.cli.group import DEFAULT, DefaultGroup
from ema_cli.cli.help import MainCommand
from ema_cli.errors import UsageError
from ema_cli.methods import MethodName
from ema_cli.options import Options
from ema_cli.text import parse_bytes, quoted
from ema_cli.weight_options import split_weights

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

PLAN = "plan"
_MOST_DIGITS = 18

_AVERAGE_HELP = """\
Average training checkpoints into one safetensors file, with a report.

Streams the checkpoints tensor by tensor, in order, into a running EMA: E_1 = theta_1, E_n = d E_(n-1) + (1-d) theta_n.

  ema-avg run/ckpt_*.pt --decay 0.9 -o ema.safetensors\n
  ema-avg plan run/ --decay 0.999\n
  ema-avg run/ --per step --half-life 500 -o ema.safetensors\n
  ema-avg run/ --decay 0.8 --decay 0.9 -o 'ema_{decay}.safetensors'
"""
_PLAN_HELP = "Show order, shares, tensors, bytes and every problem of an average; reads no tensor data, writes nothing."


def _version(value: bool) -> None:
    if value:
        Console(Style()).result(f"ema-avg {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    *,
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True, show_default=False
    ),
) -> None:
    """Average training checkpoints."""


@app.command(
    PLAN,
    cls=MainCommand,
    help=_PLAN_HELP,
    short_help="Show what an average would do; read no tensor data, write nothing.",
)
@app.command(DEFAULT, cls=MainCommand, help=_AVERAGE_HELP, short_help="Average checkpoints; the word may be left out.")
def _average(
    context: typer.Context,
    *,
    checkpoints: given.Checkpoints,
    order: given.OrderOption = "auto",
    steps: given.StepsOption = None,
    from_step: given.FromOption = None,
    to_step: given.ToOption = None,
    every: given.EveryOption = 1,
    last: given.LastOption = None,
    key: given.KeyOption = None,
    include: given.IncludeOption = None,
    exclude: given.ExcludeOption = None,
    strip_prefix: given.StripPrefixOption = None,
    method: weight.MethodOption = None,
    decay: weight.DecayOption = None,
    one_minus_decay: weight.OneMinusDecayOption = None,
    half_life: weight.HalfLifeOption = None,
    per: weight.PerOption = None,
    init: weight.InitOption = None,
    clock: weight.ClockOption = None,
    warmup: weight.WarmupOption = None,
    inv_gamma: weight.InvGammaOption = None,
    power: weight.PowerOption = None,
    sigma_rel: weight.SigmaRelOption = None,
    shape: weight.ShapeOption = None,
    weights: weight.WeightsOption = None,
    no_normalize: weight.NoNormalizeOption = False,
    continue_from: weight.ContinueFromOption = None,
    buffers: given.BuffersOption = "average",
    device: given.DeviceOption = "cpu",
    dtype: given.DtypeOption = "same",
    threads: given.ThreadsOption = None,
    max_memory: given.MaxMemoryOption = None,
    geometry: given.GeometryOption = "sample",
    allow_nonfinite: given.AllowNonfiniteOption = False,
    output: given.OutputOption = None,
    report: given.ReportOption = None,
    metadata: given.MetadataOption = None,
    sha256: given.Sha256Option = False,
    force: given.ForceOption = False,
    strict: given.StrictOption = False,
    dry_run: given.DryRunOption = False,
    json: given.JsonOption = False,
    quiet: given.QuietOption = False,
    verbose: given.VerboseOption = False,
    no_color: given.NoColorOption = False,
) -> None:
    from ema_cli.cli.commands import average, plan  # noqa: PLC0415 - help and usage errors need none of it

    paths, by_hand = _parse_weights(checkpoints, method or [], weights)
    options = Options(
        paths=paths,
        order=order,
        steps=_parse_steps(steps),
        from_step=from_step,
        to_step=to_step,
        every=every,
        last=last,
        key=key,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        strip_prefix=strip_prefix,
        methods=cast("tuple[MethodName, ...]", tuple(method or ())),  # checked there
        decays=tuple(decay or ()),
        one_minus_decays=tuple(one_minus_decay or ()),
        half_lives=tuple(half_life or ()),
        per=per,
        init=init,
        clock=clock,
        warmup=warmup,
        inv_gamma=inv_gamma,
        power=power,
        sigma_rels=tuple(sigma_rel or ()),
        shape=shape,
        weights=by_hand,
        normalize=not no_normalize,
        continue_from=continue_from,
        buffers=buffers,
        device=device,
        dtype=dtype,
        threads=threads,
        max_memory=_parse_size(max_memory),
        geometry=geometry,
        allow_nonfinite=allow_nonfinite,
        output=output,
        reports=tuple(report or ()),
        metadata=_parse_metadata(metadata or []),
        sha256=sha256,
        force=force,
        strict=strict,
    )
    console = Console(Style(json=json, quiet=quiet, verbose=verbose, color=not no_color))
    if dry_run or context.info_name == PLAN:
        plan(options, console)
    else:
        average(options, console, argv=sys.argv)


@app.command("inspect")
def _inspect(
    *,
    checkpoints: given.Checkpoints,
    key: given.KeyOption = None,
    strip_prefix: given.StripPrefixOption = None,
    json: given.JsonOption = False,
    verbose: given.VerboseOption = False,
    no_color: given.NoColorOption = False,
) -> None:
    """Show what is in checkpoints: format, where the weights are, step, tensors, types, ties."""
    from ema_cli.cli.commands import inspect  # noqa: PLC0415

    console = Console(Style(json=json, verbose=verbose, color=not no_color))
    inspect(Options(paths=tuple(checkpoints), key=key, strip_prefix=strip_prefix), console)


app.command("diff", help=checking.DIFF_HELP)(checking.diff)
app.command("verify", help=checking.VERIFY_HELP)(checking.verify)


def _parse_steps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in parts):
        raise UsageError(f"--steps {quoted(text)} is not a list of whole numbers", hint="--steps 100,200,300")
    return tuple(int(part) for part in parts)


def _parse_weights(
    checkpoints: list[str], methods: list[str], weights: str | None
) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Return the paths and the weights by hand, which stand in ``--weights`` or behind each path."""
    if weights is None:
        return split_weights(checkpoints) if "manual" in methods else (tuple(checkpoints), None)
    try:
        return tuple(checkpoints), tuple(float(part) for part in weights.split(","))
    except ValueError as error:
        raise UsageError(f"--weights {quoted(weights)} is not a list of numbers", hint="--weights 1,2,3") from error


def _parse_size(text: str | None) -> int | None:
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--max-memory {quoted(text or '')} is not a size", hint="--max-memory 64MB") from error


def _parse_metadata(pairs: list[str]) -> dict[str, str]:
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--metadata {quoted(pair)} is not KEY=VALUE", hint="--metadata run=baseline")
        parsed[key] = value
    return parsed
