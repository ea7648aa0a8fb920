"""The training of ``scripts/demo``, and what averages of its checkpoints are worth on images that it never sees.

    python scripts/noisy_digits.py train demo/run      checkpoints as trainers write them, twice:
                                                       demo/run/*.pt nested, demo/run/safetensors/* flat
    python scripts/noisy_digits.py compare             the table at the end of the demo

A small network with BatchNorm reads handwritten digits, 1,197 for training and 600 held out. It is hard on purpose:
every image has noise, a fifth of the training labels are wrong, and the learning rate (SGD with momentum) is high and
constant, so that the last of 1,000 steps still fluctuate: averaging is made for this case. There is a checkpoint every
80 steps, from step 40 on. Network, rate and noise were chosen so that averages gain visibly, with the seeds 100 to 103;
without wrong labels they gain four to five points, about half as much. The table has the seeds 0 to N - 1; each has its
own initialization, order, noise and held-out images. The averages have the settings of the README; none was tuned here.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from digits import HELD_OUT, Data, accuracy, load_data, mislabeled, network, noisy
from real_runs import Task, digits, steps_of
from safetensors.torch import load_file, save_file
from swa_common import checkpoint, constant, difference, ema_avg, train

STEPS = 1000
SAVED = 13
"""Checkpoints, at equal distances: the first after half of such a distance, the last at the end."""
RATE = 0.3
LAST = "last checkpoint"
BEST = "best single checkpoint, with hindsight"
TRAP = "--decay 0.999"
DECAY = "--decay 0.8"
COPIED = "--decay 0.8 --buffers last"
RECOMPUTED = "--decay 0.8, then ema-avg update-bn"
AVERAGES = (TRAP, DECAY, "--per step --half-life 100", "--method uniform --last 5", COPIED)
UPDATE = ("--model", "scripts.digits:network", "--data", "scripts.digits:training_batches")
CERTAIN = 3
"""A difference counts if it is above so many standard errors."""
Scores = Mapping[str, Sequence[float]]
"""The accuracy of each row, in percent, one per seed."""


def task_of(seed: int) -> Task:
    """Return the training of a seed, on the split with its number."""
    return digits(seed, rate=RATE, network=network, data=mislabeled(load_data(seed)[0]))


def held_out(seed: int) -> Data:
    """Return the held-out images of a seed, with noise, and their labels."""
    images, labels = load_data(seed)[1]
    return noisy(images), labels


def saved_steps(steps: int) -> range:
    """Return the steps of the checkpoints."""
    gap = 2 * steps // (2 * SAVED - 1)
    return range(steps - gap * (SAVED - 1), steps + 1, gap)


def train_once(folder: Path, steps: int) -> None:
    """Train seed 0, show how it goes, and save each checkpoint nested, as training loops do, and flat."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "safetensors").mkdir(parents=True)
    task, unseen = task_of(0), held_out(0)
    saved = saved_steps(steps)
    for step, loss in steps_of(task, constant, steps):
        if step == 1 or step in saved:
            right = accuracy(task.model, unseen)
            name = f"  saved ckpt_{step}.pt" if step in saved else ""
            print(f"step {step:>5,}  loss {loss.item():.2f}  held-out accuracy {right:4.1f} %{name}", flush=True)
        if step in saved:
            state = {"model": task.state(), "optimizer": task.optimizer.state_dict(), "step": step}
            torch.save({**state, "args": argparse.Namespace(lr=RATE)}, folder / f"ckpt_{step}.pt")
            save_file(task.state(), checkpoint(folder / "safetensors", step))


def averaged(run: Path, seed: int) -> dict[str, Path]:
    """Average the checkpoints of a run on the command line; return the file of each average."""
    files = {name: run.with_name(f"{number}.safetensors") for number, name in enumerate((*AVERAGES, RECOMPUTED))}
    for options in AVERAGES:
        ema_avg(run, *options.split(), "--quiet", output=files[options])
    ema_avg("update-bn", files[DECAY], *UPDATE, "--quiet", output=files[RECOMPUTED], SPLIT=str(seed))
    return files


def scores_of(run: Path, seed: int, averages: Mapping[str, Path]) -> dict[str, float]:
    """Return the accuracy of each row."""
    unseen = held_out(seed)
    single = {int(path.stem.partition("_")[2]): accuracy_of(path, unseen) for path in run.iterdir()}
    of_averages = {name: accuracy_of(path, unseen) for name, path in averages.items()}
    return {LAST: single[max(single)], BEST: max(single.values()), **of_averages}


def accuracy_of(weights: Path, unseen: Data) -> float:
    """Return the accuracy of a file of weights."""
    model = network()
    model.load_state_dict(load_file(weights), strict=True)
    return accuracy(model, unseen)


def measured(seeds: int, steps: int) -> Iterator[dict[str, float]]:
    """Train every seed while ``ema-avg`` averages those before it; yield the accuracy of each row, per seed."""
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(max_workers=2) as pool:
        runs = [Path(root) / str(seed) / "run" for seed in range(seeds)]
        averages = []
        for seed, run in enumerate(runs):
            train(task_of(seed), constant, steps, saved_steps(steps), run)
            averages.append(pool.submit(averaged, run, seed))
            print(f"seed {seed}  trained", flush=True)
        for seed, run in enumerate(runs):
            yield scores_of(run, seed, averages[seed].result())


def compare(seeds: int, steps: int) -> None:
    """Measure all seeds, and print the table and what follows from it."""
    found = []
    for seed, scores in enumerate(measured(seeds, steps)):
        print(f"seed {seed}  {LAST} {scores[LAST]:.1f} %, {DECAY} {scores[DECAY]:.1f} %", flush=True)
        found.append(scores)
    by_row = {name: [scores[name] for scores in found] for name in found[0]}
    print(
        f"\nAccuracy on {HELD_OUT} held-out images of each of {seeds} splits: {HELD_OUT * seeds:,} predictions per row."
        f"\nSeeds 0 to {seeds - 1}, none left out; differences are paired by seed, ± standard error.\n"
    )
    print("\n".join(table(by_row)))
    print(f"\nOPTIONS: ema-avg RUN OPTIONS -o OUT\nupdate-bn: ema-avg update-bn OUT {' '.join(UPDATE)} -o NEW")
    print(f"\n{textwrap.fill(conclusion(by_row), 80, break_on_hyphens=False)}")


def table(scores: Scores) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{'checkpoint, or OPTIONS':<39}   mean  lowest highest  minus the last"
    for name, values in scores.items():
        mean, least, most = (f"{value:5.1f} %" for value in (sum(values) / len(values), min(values), max(values)))
        gain = difference(values, scores[LAST]).text(1, sign=True) if name != LAST else ""
        yield f"{name:<39}{mean} {least} {most}  {gain:>12}".rstrip()


def conclusion(scores: Scores) -> str:
    """Return what follows from the scores, as one sentence."""

    def against(name: str, other: str, words: str) -> str:
        found = difference(scores[name], scores[other])
        if abs(found.mean) <= CERTAIN * found.error or not found.mean:
            return f"not measurably different from {words} ({found.text(1, sign=True)})"
        return f"{abs(found.mean):.1f} points {'better' if found.mean > 0 else 'worse'} than {words}"

    return (
        f"What follows here: {DECAY} is {against(DECAY, LAST, 'the last checkpoint')} and "
        f"{against(DECAY, BEST, 'the best single one')}; {TRAP}, which returns the oldest, is "
        f"{against(TRAP, LAST, 'the last')}; averaged BatchNorm statistics are "
        f"{against(DECAY, RECOMPUTED, 'recomputed ones')}, and copied ones (--buffers last) are "
        f"{against(COPIED, DECAY, 'averaged ones')}."
    )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train").add_argument("folder", type=Path)
    commands.add_parser("compare").add_argument("--seeds", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "train":
        train_once(arguments.folder, arguments.steps)
    else:
        compare(arguments.seeds, arguments.steps)


if __name__ == "__main__":
    main()
