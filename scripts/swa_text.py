"""Averages of checkpoints against learning-rate decay, on a small language model of the text of Python's own library.

    python scripts/swa_text.py                 the table and the plot of scripts/README.md, in about ten minutes
    python scripts/swa_text.py --tune          how learning rates and windows were chosen: other text, other seeds
    python scripts/swa_text.py --quick         seconds, for a test

A transformer (2 layers, width 64, context 64, AdamW) predicts the next character of the modules of the standard
library. Per seed it is trained with four learning rates at one budget: constant, constant and then cyclical, constant
and then decayed to zero, and a cosine to zero; all with warm-up. ``ema-avg`` averages the checkpoints on disk in the
usual ways. The loss is that of modules which no training sees.
"""

from __future__ import annotations

import copy
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from real_runs import CharTransformer, Rate, Task
from safetensors.torch import load_file
from swa_common import (
    COLORS,
    Line,
    Row,
    checkpoint,
    command_line,
    constant,
    cosine,
    cyclical,
    decayed,
    difference,
    ema_avg,
    estimate,
    plot,
    table,
    train,
)
from torch import nn
from torch.nn import functional

WIDTH = 64
CONTEXT = 64
CHARACTERS = 128
BATCH = 8
WARM_UP = 100
LOW = 0.01
"""Of the cyclical learning rate, relative to the largest."""
TUNING_SEEDS = (101, 102)
"""Not those of the table, 1 to N."""
TUNED_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The length of the trainings, in steps; the last quarter is decayed, cyclical, or averaged."""

    steps: int
    every: int
    """From one checkpoint to the next."""
    cycle: int
    """Of the cyclical learning rate; a multiple of ``every``."""
    windows: int
    """Pieces of unseen text for the loss, of ``CONTEXT`` characters."""
    points: int
    """Of a line in the plot, if it began at step 0."""

    @property
    def quarter(self) -> int:
        """The step at which the last quarter begins."""
        return self.steps * 3 // 4


FULL = Budget(steps=2400, every=25, cycle=75, windows=512, points=16)
QUICK = Budget(steps=80, every=5, cycle=10, windows=32, points=4)


EMA = ("--per", "step", "--half-life", "100")
SWA = ("--method", "uniform", "--from", "{quarter}")
LAWA = ("--method", "uniform", "--last", "10")
WSM = ("--method", "lr-decay", "--shape", "1-sqrt", "--from", "{quarter}")
WSM_COSINE = ("--method", "lr-decay", "--shape", "cosine", "--from", "{quarter}")
POWER = ("--sigma-rel", "0.05")
CYCLES = ("--method", "uniform", "--from", "{quarter}", "--every", "{cycle}")
ROWS = (
    Row(training="constant", name="last checkpoint"),
    Row(training="constant", name="SWA", options=SWA),
    Row(training="constant", name="LAWA", options=LAWA),
    Row(training="constant", name="EMA per step", options=EMA),
    Row(training="constant", name="WSM", options=WSM),
    Row(training="constant", name="WSM", options=WSM_COSINE),
    Row(training="constant", name="power", options=POWER),
    Row(training="cyclical", name="last checkpoint"),
    Row(training="cyclical", name="SWA of the low points", options=CYCLES),
    Row(training="decayed", name="last checkpoint"),
    Row(training="decayed", name="EMA per step", options=EMA),
    Row(training="decayed", name="LAWA", options=LAWA),
    Row(training="cosine", name="last checkpoint"),
    Row(training="cosine", name="EMA per step", options=EMA),
    Row(training="cosine", name="LAWA", options=LAWA),
)
HEAD = ("learning rate: weights", "held-out loss", "minus the last checkpoint", "minus the decayed run")
BRANCHES = ("cyclical", "decayed")
"""Trainings that begin at the last quarter, with the weights of the constant one."""
CURVES = {
    "constant": "constant",
    "cyclical": "cyclical",
    "decayed": "decayed to zero",
    "cosine": "cosine to zero",
    "ema": "EMA of the constant run",
}
LARGEST = {"constant": 4e-3, "cosine": 8e-3}
"""Chosen with ``--tune``; that of the constant rate is also that of its cyclical and decayed ends."""
TUNED_WINDOWS = (
    ("--per", "step", "--half-life", "50"),
    ("--per", "step", "--half-life", "100"),
    ("--per", "step", "--half-life", "200"),
    ("--method", "uniform", "--last", "5"),
    ("--method", "uniform", "--last", "10"),
    ("--method", "uniform", "--last", "24"),
    ("--method", "lr-decay", "--shape", "1-sqrt", "--last", "10"),
    ("--method", "lr-decay", "--shape", "1-sqrt", "--last", "24"),
    ("--method", "lr-decay", "--shape", "1-sqrt", "--last", "48"),
    ("--method", "lr-decay", "--shape", "cosine", "--last", "24"),
    ("--sigma-rel", "0.02"),
    ("--sigma-rel", "0.05"),
    ("--sigma-rel", "0.1"),
)


@cache
def text_of(part: str) -> torch.Tensor:
    """Return the characters of the standard library's modules in a part: each tenth module is in another part."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    others = {"held-out": modules[::10], "validation": modules[5::10]}
    chosen = others.get(part) or [module for n, module in enumerate(modules) if n % 5]
    text = "".join(module.read_text(encoding="utf-8") for module in chosen)
    return torch.tensor([min(ord(character), CHARACTERS - 1) for character in text])


def windows(text: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the characters from each start (n,) on, and those that follow each of them; both (n, CONTEXT)."""
    window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, 1:]


def loss_of(model: nn.Module, text: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy per character, in nats."""
    given, following = windows(text, starts)
    return functional.cross_entropy(model(given).flatten(0, 1), following.flatten())


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A model in training; a seed has one initialization and one order of the text."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: torch.Generator

    def task(self) -> Task:
        """Return what one step does."""
        text = text_of("training")

        def loss() -> torch.Tensor:
            starts = torch.randint(0, len(text) - CONTEXT, (BATCH,), generator=self.batches)
            return loss_of(self.model, text, starts)

        return Task(model=self.model, optimizer=self.optimizer, loss=loss, state=self.model.state_dict)

    def copy(self) -> Training:
        """Return a copy, to be trained on with another learning rate."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        return Training(model=model, optimizer=optimizer, batches=self.batches.clone_state())


def begun(seed: int, rate: float) -> Training:
    """Return a training before its first step."""
    torch.manual_seed(seed)
    model = CharTransformer(CHARACTERS, width=WIDTH, context=CONTEXT)
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1),
        batches=torch.Generator().manual_seed(seed + 1000),
    )


@torch.no_grad()
def unseen_loss(weights: Path, part: str, count: int) -> float:
    """Return the loss of a file of weights on ``count`` windows of a part, evenly spaced."""
    model = CharTransformer(CHARACTERS, width=WIDTH, context=CONTEXT)
    model.load_state_dict(load_file(weights), strict=True)
    text = text_of(part)
    starts = torch.linspace(0, len(text) - CONTEXT - 1, count).long()
    return float(loss_of(model.eval(), text, starts))


def warmed_up(rate: Rate) -> Rate:
    """Return a learning rate with a linear warm-up."""
    return lambda step: rate(step) * min(1.0, step / WARM_UP)


def train_all(folder: Path, seed: int, budget: Budget, largest: Mapping[str, float]) -> None:
    """Train with each learning rate; those that are constant at first have the first three quarters in common."""
    steps, quarter = budget.steps, budget.quarter
    saved = range(budget.every, steps + 1, budget.every)
    stable = begun(seed, largest["constant"])
    train(stable.task(), warmed_up(constant), quarter, saved, folder / "constant")
    ends = {"constant": constant, "cyclical": cyclical(quarter, budget.cycle, LOW), "decayed": decayed(quarter, steps)}
    for name, rate in ends.items():
        train(stable.copy().task(), warmed_up(rate), steps, saved, folder / name, after=quarter)
    train(begun(seed, largest["cosine"]).task(), warmed_up(cosine(steps)), steps, saved, folder / "cosine")


def arguments_of(row: Row, budget: Budget) -> list[str]:
    """Return the options of a row with its numbers."""
    return [option.format(quarter=budget.quarter, cycle=budget.cycle // budget.every) for option in row.options]


def averaged(source: Path, options: Sequence[str]) -> Path:
    """Return the average of a run's checkpoints, made by the command line."""
    return ema_avg(source, *options, "--force", "--quiet", output=source.parent / "average.safetensors")


def losses_of(folder: Path, part: str, budget: Budget, rows: Sequence[Row]) -> list[float]:
    """Return the loss of each row."""
    return [
        unseen_loss(
            averaged(folder / row.training, arguments_of(row, budget))
            if row.options
            else checkpoint(folder / row.training, budget.steps),
            part,
            budget.windows,
        )
        for row in rows
    ]


def curves(folder: Path, budget: Budget) -> Iterator[tuple[str, int, float]]:
    """Yield the losses along each training, and that of the EMA so far of the constant rate: name, step, loss."""
    between = budget.steps // budget.points
    for step in range(budget.steps // 4, budget.steps + 1, between):
        for name in ("constant", "cyclical", "decayed", "cosine"):
            if name in BRANCHES and step < budget.quarter:
                continue
            run = "constant" if name in BRANCHES and step == budget.quarter else name
            yield CURVES[name], step, unseen_loss(checkpoint(folder / run, step), "held-out", budget.windows)
        weights = averaged(folder / "constant", [*EMA, "--to", str(step)])
        yield CURVES["ema"], step, unseen_loss(weights, "held-out", budget.windows)


def reproduce(seeds: Sequence[int], budget: Budget, records: Path) -> None:
    """Train every seed, print the table and write the plot."""
    losses: list[list[float]] = []
    along: dict[str, dict[float, list[float]]] = {name: defaultdict(list) for name in CURVES.values()}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as root:
            train_all(Path(root), seed, budget, LARGEST)
            losses.append(losses_of(Path(root), "held-out", budget, ROWS))
            for name, step, loss in curves(Path(root), budget):
                along[name][step].append(loss)
        print(f"seed {seed}", file=sys.stderr, flush=True)
    print(table(HEAD, list(results(list(zip(*losses, strict=True)), budget))))
    draw(along, records / "swa_text.svg")


def results(losses: Sequence[Sequence[float]], budget: Budget) -> Iterator[list[str]]:
    """Yield the lines of the table; ``losses`` are those of each row by seed."""
    lasts = {row.training: values for row, values in zip(ROWS, losses, strict=True) if not row.options}
    for row, values in zip(ROWS, losses, strict=True):
        options = f" `{' '.join(arguments_of(row, budget))}`" if row.options else ""
        compared = [difference(values, lasts[name]).text(4, sign=True) for name in (row.training, "decayed")]
        yield [
            f"{row.training}: {row.name}{options}",
            estimate(values).text(4),
            compared[0] if row.options else "",
            compared[1] if values is not lasts["decayed"] else "",
        ]


def draw(along: Mapping[str, Mapping[float, Sequence[float]]], path: Path) -> None:
    """Write the plot of the losses along the trainings."""
    lines = {
        name: Line(
            color=color,
            points={step: estimate(values) for step, values in along[name].items()},
            dashed=name == CURVES["ema"],
        )
        for name, color in zip(along, COLORS, strict=False)
    }
    means = [point.mean for line in lines.values() for point in line.points.values()]
    plot(
        path,
        lines,
        title="Loss on unseen text along the training (mean and standard error over seeds)",
        x="step",
        y="loss per character (nats)",
        limits=(min(means) - 0.06, max(means) + 0.02),
    )


def tune(seeds: Sequence[int], budget: Budget) -> None:
    """Print the loss on the validation part for each learning rate and window."""
    found: dict[float, list[list[float]]] = defaultdict(list)
    rows = [Row(training=name, name="last checkpoint") for name in ("constant", "cyclical", "decayed", "cosine")]
    rows += [Row(training="constant", name=" ".join(options), options=options) for options in TUNED_WINDOWS]
    for rate in TUNED_RATES:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as root:
                train_all(Path(root), seed, budget, dict.fromkeys(("constant", "cosine"), rate))
                found[rate].append(losses_of(Path(root), "validation", budget, rows))
            print(f"rate {rate}, seed {seed}", file=sys.stderr, flush=True)
    print(
        table(
            ["training", "weights", *(f"rate {rate:g}" for rate in TUNED_RATES)],
            [
                [row.training, row.name, *(f"{estimate([loss[n] for loss in found[rate]]).mean:.4f}" for rate in found)]
                for n, row in enumerate(rows)
            ],
        )
    )


def main() -> None:
    """Parse the command line."""
    arguments = command_line(__doc__, seeds=5)
    torch.set_num_threads(1)
    budget = QUICK if arguments.quick else FULL
    if arguments.tune:
        tune(TUNING_SEEDS, budget)
    else:
        reproduce(range(1, arguments.seeds + 1), budget, arguments.out)


if __name__ == "__main__":
    main()
