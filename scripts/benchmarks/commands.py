"""The contenders of most tables: ema-avg, the loop that everybody writes, and reading and copying the same bytes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .measure import Settings

EMA_AVG = str(Path(sys.executable).with_name("ema-avg"))
DECAY = 0.9
WHOLE = ("--read-back", "all")
"""The options of a run that reads its whole output back from the disk."""
NAIVE = """
import os, sys, torch
from safetensors.torch import load_file, save_file
out, first, *rest = sys.argv[1:]
load = load_file if first.endswith(".safetensors") else torch.load
avg = load(first)
for path in rest:
    for k, v in load(path).items():
        avg[k].mul_(0.9).add_(v, alpha=1 - 0.9)
save_file(avg, out)
with open(out, "rb") as file:
    os.fsync(file.fileno())
"""
_CAT_AND_COPY = """
copies=$1
shift
cat "$@" > /dev/null || exit
for number in $(seq "$copies"); do cp "$1" "$0$number" || exit; done
sync "$0"*
"""


def ours(inputs: Sequence[Path], settings: Settings, *decays: float) -> Sequence[object]:
    """Return the command of ema-avg."""
    out = settings.out / ("out_{decay}.safetensors" if len(decays) > 1 else "out.safetensors")
    return [EMA_AVG, *inputs, *(part for decay in decays or [DECAY] for part in ("--decay", decay)), "-o", out]


def ours_read_back(inputs: Sequence[Path], settings: Settings) -> Sequence[object]:
    """Return the command of ema-avg that reads its whole output back."""
    return [*ours(inputs, settings), *WHOLE]


def naive(inputs: Sequence[Path], settings: Settings) -> Sequence[object]:
    """Return the command of the naive loop; its output is synced."""
    return [sys.executable, "-c", NAIVE, settings.out / "out.safetensors", *inputs]


def cat_and_copy(inputs: Sequence[Path], settings: Settings) -> Sequence[object]:
    """Return the denominator of every ratio: ``cat`` of the inputs plus a copy of one, synced."""
    return cat_and_copies(inputs, settings, 1)


def cat_and_copies(inputs: Sequence[Path], settings: Settings, copies: int) -> Sequence[object]:
    """Return the same command with several copies."""
    return ["sh", "-c", _CAT_AND_COPY, settings.out / "copy", copies, *inputs]
