"""The options of the weights as Typer parameters: one panel of the help."""

from __future__ import annotations

from typing import Annotated

import typer

from ema_cli.weights.methods import DEFAULT_POWER, SPECS, Clock, Init, Per, Shape, Warmup

_WEIGHTS = "Weights"


def _method_names() -> list[str]:
    return list(SPECS)


MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="One of the methods below \\[default: ema, or the one whose options are given]. Repeatable.",
        metavar="METHOD",
        autocompletion=_method_names,
        rich_help_panel=_WEIGHTS,
    ),
]
DecayOption = Annotated[
    list[float] | None,
    typer.Option(
        "--decay",
        help="d of E_n = d E_(n-1) + (1-d) theta_n; 0 <= d < 1. Repeat it for several averages.",
        metavar="D",
        rich_help_panel=_WEIGHTS,
    ),
]
OneMinusDecayOption = Annotated[
    list[float] | None,
    typer.Option(
        "--one-minus-decay",
        help="Instead of --decay: 1-d, such as 1e-9. Repeatable.",
        metavar="X",
        rich_help_panel=_WEIGHTS,
    ),
]
HalfLifeOption = Annotated[
    list[float] | None,
    typer.Option(
        "--half-life",
        help="Instead of --decay: checkpoints or steps, as --per says, after which a share has halved. Repeatable.",
        metavar="H",
        rich_help_panel=_WEIGHTS,
    ),
]
PerOption = Annotated[
    Per | None,
    typer.Option(
        "--per",
        help="What one decay of ema means: one checkpoint \\[default], or one training step.",
        rich_help_panel=_WEIGHTS,
    ),
]
InitOption = Annotated[
    Init | None,
    typer.Option(
        "--init",
        help="first: E_1 = theta_1 \\[default]. debias: from zero, divided by the weight gathered.",
        rich_help_panel=_WEIGHTS,
    ),
]
ClockOption = Annotated[
    Clock | None,
    typer.Option("--clock", help="What the steps count: the unit that is printed.", rich_help_panel=_WEIGHTS),
]
WarmupOption = Annotated[
    Warmup | None,
    typer.Option("--warmup", help="How the decay of ema-warmup grows \\[default: tf].", rich_help_panel=_WEIGHTS),
]
InvGammaOption = Annotated[
    float | None,
    typer.Option("--inv-gamma", help="Of --warmup inv-gamma \\[default: 1].", metavar="G", rich_help_panel=_WEIGHTS),
]
PowerOption = Annotated[
    float | None,
    typer.Option(
        "--power",
        help=f"Of --warmup inv-gamma \\[default: {DEFAULT_POWER:.4f}].",
        metavar="P",
        rich_help_panel=_WEIGHTS,
    ),
]
SigmaRelOption = Annotated[
    list[float] | None,
    typer.Option(
        "--sigma-rel",
        help="Width of a power profile, as a part of the training time. Repeatable.",
        metavar="S",
        rich_help_panel=_WEIGHTS,
    ),
]
ShapeOption = Annotated[
    Shape | None,
    typer.Option("--shape", help="Of the learning rate of lr-decay \\[default: 1-sqrt].", rich_help_panel=_WEIGHTS),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Weights by hand, in the order of the arguments; or --method manual and CKPT:WEIGHT.",
        metavar="W,W,...",
        rich_help_panel=_WEIGHTS,
    ),
]
NoNormalizeOption = Annotated[
    bool,
    typer.Option("--no-normalize", help="Do not divide weights by hand by their sum.", rich_help_panel=_WEIGHTS),
]
ContinueFromOption = Annotated[
    str | None,
    typer.Option(
        "--continue-from",
        help="Fold new checkpoints into this earlier output, as if all had been averaged at once.",
        metavar="PATH",
        rich_help_panel=_WEIGHTS,
    ),
]
