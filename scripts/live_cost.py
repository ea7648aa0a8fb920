"""Measure what a live EMA costs per training step, against torch's class, ema-pytorch, and a class written by hand.

    python scripts/live_cost.py
    pip install --no-deps --target /tmp/peer ema-pytorch && PYTHONPATH=/tmp/peer python scripts/live_cost.py

All contenders are updated in turn in one process, on one thread, d = 0.999: the figures are medians of processor time,
and the ratios hold on a busy machine too. Memory is the peak of a process of its own over that of the model alone.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ema_cli import EMA

DECAY = 0.999
Call = Callable[[], object]


class ByHand:
    """The shadow class as it is usually written: a new tensor per parameter and step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.shadow = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Fold the current weights into the average."""
        for name, parameter in self.model.named_parameters():
            self.shadow[name] = DECAY * self.shadow[name] + (1 - DECAY) * parameter


def transformer(width: int, layers: int, words: int) -> nn.Module:
    """Return a model with the shapes of a transformer: 12 tensors per layer, and an embedding."""
    layer = [nn.TransformerEncoderLayer(width, 4, 4 * width) for _ in range(layers)]
    return nn.ModuleList([nn.Embedding(words, width), *layer])


def small_layers(count: int) -> nn.Module:
    """Return a model of many small tensors: weight and bias of layers and of their norms."""
    return nn.ModuleList(nn.ModuleList([nn.Linear(32, 32), nn.LayerNorm(32)]) for _ in range(count // 4))


def models(*, quick: bool) -> dict[str, Callable[[], nn.Module]]:
    """Return the makers of the models that are measured, by name."""
    width, layers, words, count = (64, 2, 100, 80) if quick else (768, 12, 20_000, 3_000)
    return {
        "transformer, float32": lambda: transformer(width, layers, words),
        "transformer, bfloat16": lambda: transformer(width, layers, words).bfloat16(),
        "small tensors, float32": lambda: small_layers(count),
        "small tensors, bfloat16": lambda: small_layers(count).bfloat16(),
    }


def ours(model: nn.Module, decay: float | tuple[float, ...] = DECAY, every: int = 1) -> Call:
    """Return the update of the class of this package, after its first one."""
    ema = EMA(model, decay, every=every)
    ema.register()
    return ema.update


def of_torch(model: nn.Module) -> Call:
    """Return the update of torch's class, after the first one, which copies."""
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    averaged.update_parameters(model)
    return lambda: averaged.update_parameters(model)


def of_ema_pytorch(model: nn.Module, *, use_foreach: bool) -> Call:
    """Return the update of ema-pytorch, set to average every step from the first one."""
    averaged = import_module("ema_pytorch").EMA(
        model, beta=DECAY, update_every=1, update_after_step=0, use_foreach=use_foreach
    )
    averaged.update()
    averaged.update()
    update: Call = averaged.update
    return update


CONTENDERS: dict[str, Callable[[nn.Module], Call]] = {
    "torch `AveragedModel`": of_torch,
    "`ema_cli.EMA`": ours,
    "two averages": lambda model: ours(model, decay=(0.999, 0.9999)),
    "`every=10`": lambda model: ours(model, every=10),
    "by hand": lambda model: ByHand(model).update,
    "ema-pytorch": lambda model: of_ema_pytorch(model, use_foreach=False),
    "ema-pytorch, foreach": lambda model: of_ema_pytorch(model, use_foreach=True),
}
JUDGE = next(iter(CONTENDERS))


def seconds(call: Call, times: int = 1) -> float:
    """Return the processor time of a call, the mean of several."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Return the median processor time of each call, all of them taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds(call, 10 if "every" in name else 1))
    return {name: statistics.median(times) for name, times in taken.items()}


def show_updates(made: dict[str, Callable[[], nn.Module]], rounds: int) -> None:
    """Print the table of the updates."""
    print("| model | parameters | tensors | contender | per update | ratio |")
    print("|---|---:|---:|---|---:|---:|")
    for name, make in made.items():
        model = make()
        calls = {}
        for contender, begin in CONTENDERS.items():
            with contextlib.suppress(ModuleNotFoundError):
                calls[contender] = begin(model)
        found = medians(calls, rounds)
        counts = [parameter.numel() for parameter in model.parameters()]
        head = f"| {name} | {sum(counts) / 1e6:.1f} M | {len(counts):,} |"
        for contender, time_ in found.items():
            print(f"{head} {contender} | {1000 * time_:.2f} ms | {time_ / found[JUDGE]:.2f} |")
            head = "| | | |"


def show_uses(made: dict[str, Callable[[], nn.Module]], rounds: int) -> None:
    """Print the table of what the average is used by, after its update."""
    print("\n| model | update | apply | restore | copy of the model |")
    print("|---|---:|---:|---:|---:|")
    for name, make in made.items():
        model = make()
        ema = EMA(model, DECAY)
        ema.register()
        calls: dict[str, Call] = {
            "update": ema.update,
            "apply": ema.apply_shadow,
            "restore": ema.restore,
            "copy": ema.average_model,
        }
        times = [f"{1000 * time_:.1f} ms" for time_ in medians(calls, rounds).values()]
        print(f"| {name} | {' | '.join(times)} |")


@torch.no_grad()
def show_rounding(steps: int) -> None:
    """Print how far the averages of a bfloat16 model are from a fold in 64 bits, after a random walk."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False).bfloat16()
    ema, averaged = EMA(model, DECAY), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    ema.register()
    averaged.update_parameters(model)
    exact, walk, first = model.weight.double(), model.weight.float(), model.weight.clone()
    for _ in range(steps):
        walk += 1e-3 * torch.randn_like(walk)
        model.weight.copy_(walk)
        ema.update()
        averaged.update_parameters(model)
        exact = DECAY * exact + (1 - DECAY) * model.weight.double()
    print("\n| bfloat16 model | distance to a fold in 64 bits | elements that never moved |\n|---|---:|---:|")
    found = {
        JUDGE: averaged.module.get_parameter("weight"),
        "`ema_cli.EMA`": ema.shadow["weight"],
        "last weights": model.weight,
    }
    for name, tensor in found.items():
        distance = ((tensor - exact).norm() / exact.norm()).item()
        print(f"| {name} | {distance:.1e} | {torch.eq(tensor, first).double().mean().item():.0%} |")


def show_memory() -> None:
    """Print the peak memory of a process for each contender, over that of the model alone."""
    print("\n| memory, as multiples of the model | float32 | bfloat16 |\n|---|---:|---:|")
    for contender in [*CONTENDERS, "apply and restore"]:
        ratios = []
        for name in ("transformer, float32", "transformer, bfloat16"):
            command = [sys.executable, __file__, "--peak", name, contender]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            ratios.append(f"{float(done.stdout):.1f}" if done.returncode == 0 else "")
        if any(ratios):
            print(f"| {contender} | {' | '.join(ratios)} |")


def peak(make: Callable[[], nn.Module], contender: str) -> float:
    """Return how much the memory of this process grows, as a multiple of the model."""
    model = make()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of a process begins with that of its parent
    before = memory("VmRSS")
    if contender in CONTENDERS:
        CONTENDERS[contender](model)()
    else:
        ema = EMA(model, DECAY)
        ema.register()
        with ema.applied():
            pass
    return (memory("VmHWM") - before) / sum(parameter.nbytes for parameter in model.parameters())


def memory(field: str) -> int:
    """Return a size in bytes from the status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small models, no memory")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "CONTENDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = models(quick=given.quick)
    if given.peak:
        print(peak(made[given.peak[0]], given.peak[1]))
        return
    show_updates(made, given.rounds)
    show_uses(made, given.rounds)
    show_rounding(20 if given.quick else 2000)
    if not given.quick:
        show_memory()


if __name__ == "__main__":
    main()
