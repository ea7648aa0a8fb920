"""What the probe sees of real training runs, as they are and with faults: the limits of its verdicts come from here.

    python scripts/probe_runs.py                  three seeds, about ten minutes on one core
    python scripts/probe_runs.py --seeds 1

Every run is written as files and planned by ``ema_cli.plan``. The first table has, per run, the worst value of all
seeds; the second, per fault, in how many of the runs it was reported.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch
from real_runs import State, real_series
from safetensors.torch import save_file

import ema_cli
from ema_cli.evidence.verdicts import LEAST_FOR_DISTANCE
from ema_cli.records.series_evidence import Evidence

Fault = Callable[[list[State], list[State]], list[State]]
"""Makes a wrong series of a run and of the same run with another seed."""


def middle(states: list[State]) -> int:
    """Return the position at which a fault is made: 5, or the middle of fewer."""
    return min(5, len(states) // 2)


def alphabetical(states: list[State], _: list[State]) -> list[State]:
    """Order them by name: 1, 10, 11, 2, 3, ..."""
    return [states[n - 1] for n in sorted(range(1, len(states) + 1), key=str)]


def shuffled(states: list[State], _: list[State]) -> list[State]:
    """Order them by chance."""
    return random.Random(1).sample(states, len(states))


def neighbors_swapped(states: list[State], _: list[State]) -> list[State]:
    """Exchange two neighbors."""
    k = middle(states)
    return [*states[:k], states[k + 1], states[k], *states[k + 2 :]]


def replaced(states: list[State], state: State) -> list[State]:
    """Put another state in the middle."""
    k = middle(states)
    return [*states[:k], state, *states[k + 1 :]]


def doubled(state: State) -> State:
    """Return the weights at twice their scale."""
    return {name: 2 * value if value.is_floating_point() else value for name, value in state.items()}


FAULTS: dict[str, tuple[str, Fault]] = {
    "last first": ("evidence-order", lambda a, _: [a[-1], *a[:-1]]),
    "last second": ("evidence-order", lambda a, _: [a[0], a[-1], *a[1:-1]]),
    "last in the middle": ("evidence-order", lambda a, _: [*a[: middle(a) + 1], a[-1], *a[middle(a) + 1 : -1]]),
    "first and last swapped": ("evidence-order", lambda a, _: [a[-1], *a[1:-1], a[0]]),
    "two neighbors swapped": ("evidence-order", neighbors_swapped),
    "alphabetical: 1, 10, 2": ("evidence-order", alphabetical),
    "shuffled": ("evidence-order", shuffled),
    "one file of another run": ("evidence-outlier", lambda a, b: replaced(a, b[middle(a)])),
    "the first of another run": ("evidence-outlier", lambda a, b: [b[0], *a[1:]]),
    "one file at twice the scale": ("evidence-outlier", lambda a, _: replaced(a, doubled(a[middle(a)]))),
    "half of it of another run": ("evidence-unrelated", lambda a, b: [*a[: middle(a) + 1], *b[middle(a) + 1 :]]),
    "two runs alternating": ("evidence-unrelated", lambda a, b: [(a, b)[n % 2][n] for n in range(len(a))]),
    "two files of two runs": ("evidence-unrelated", lambda a, b: [a[-1], b[-1]]),
    "one file twice": ("evidence-copies", lambda a, _: replaced(a, a[middle(a) - 1])),
}


def probe(states: Sequence[State]) -> Evidence:
    """Write the checkpoints as steps 1, 2, ..., and return what the probe sees in this order."""
    with tempfile.TemporaryDirectory() as folder:
        for number, state in enumerate(states, 1):
            save_file(
                {name: value.contiguous() for name, value in state.items()}, f"{folder}/step_{number}.safetensors"
            )
        found = ema_cli.plan(folder, decay=0.8, order="step").evidence
    assert found is not None
    return found


def farthest(evidence: Evidence) -> float:
    """Return the largest distance of a checkpoint to its nearest, relative to the largest among the others."""
    count = len(evidence.distances)
    ratios = [0.0]
    for i in range(1, count if count >= LEAST_FOR_DISTANCE else 1):
        others = [evidence.distances[j] for j in range(1, count) if j != i]
        largest = max(row[j] for row in others for j in range(1, count) if j != i)
        ratios.append(min(evidence.distances[i][j] for j in range(count) if j != i) / largest if largest else 0.0)
    return max(ratios)


def row_of(name: str, found: Sequence[Evidence]) -> str:
    """Return the worst values of a run over its seeds."""
    cosine = min(cosine for one in found for cosine in one.nearest_cosines if cosine is not None)
    paths = [one for one in found if one.path_ratio is not None and one.typical_ratio is not None]
    path = max((one.path_ratio or 0 for one in paths), default=0)
    typical = [one.typical_ratio or 0 for one in paths] or [0]
    verdicts = ", ".join(sorted({code.removeprefix("evidence-") for one in found for code in one.verdicts}))
    distance = max(map(farthest, found))
    spread = f"{min(typical):.2f} to {max(typical):.2f}"
    return f"| {name} | {cosine:.2f} | {distance:.2f} | {path:.2f} | {spread} | {verdicts or '-'} |"


def runs(seeds: int) -> Iterator[tuple[str, list[list[State]]]]:
    """Yield every run with its checkpoints of each seed, and as bfloat16."""
    for found in zip(*(real_series(seed) for seed in range(seeds)), strict=True):
        name, states = found[0][0], [states for _, states in found]
        yield name, states
        yield f"{name}, bfloat16", [[narrow(state) for state in of_seed] for of_seed in states]


def narrow(state: State) -> State:
    """Return the weights as bfloat16."""
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = max(2, parser.parse_args().seeds)
    torch.set_num_threads(1)
    reported: dict[str, list[Evidence]] = {fault: [] for fault in FAULTS}
    print("| run | cosine to the nearest | farthest | path | typical path | verdicts |")
    print("|---|---:|---:|---:|---:|---|")
    for name, states in runs(seeds):
        print(row_of(name, [probe(of_seed) for of_seed in states]), flush=True)
        for fault, (_, spoil) in FAULTS.items():
            reported[fault] += [probe(spoil(a, b)) for a, b in zip(states, [*states[1:], states[0]], strict=True)]
    print(
        "\n| fault | reported | cosine to the nearest, least | path, least | path, median |\n|---|---:|---:|---:|---:|"
    )
    for fault, found in reported.items():
        code = FAULTS[fault][0]
        count = sum(code in one.verdicts for one in found)
        cosines = [min(c for c in one.nearest_cosines if c is not None) for one in found]
        paths = sorted(one.path_ratio for one in found if one.path_ratio is not None and one.order_decided)
        lengths = f"{paths[0]:.2f} | {paths[len(paths) // 2]:.2f}" if code == "evidence-order" and paths else "|"
        print(f"| {fault} | {count} of {len(found)} | {min(cosines):z.2f} to {max(cosines):z.2f} | {lengths} |")


if __name__ == "__main__":
    main()
