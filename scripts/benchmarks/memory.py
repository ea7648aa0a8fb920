"""Peak memory, and averages that stay in memory."""

import sys

from .commands import naive, ours
from .measure import Job, Rows, Settings, in_turn, peak, size
from .series import Series, on_disk

_STREAMED = """
import sys, ema_cli
for decay in sys.argv[1].split():
    for name, array in ema_cli.average_tensors(sys.argv[3:], decay=float(decay)):
        pass
"""
_USED = """
import glob, sys, ema_cli, torch
from safetensors.torch import load_file
decays, out, *paths = sys.argv[1:]
decays = [float(decay) for decay in decays.split()]
def use(state):
    return [tensor.sum() for tensor in state.values()]  # load_file reads a tensor when it is used
"""
_LOADED = f"""{_USED}
for decay in decays:
    use(ema_cli.load_average(paths, decay=decay))
"""
_THROUGH_FILES = f"""{_USED}
ema_cli.average(paths, decay=decays, output=out + "/ema_{{decay}}.safetensors")
for path in glob.glob(out + "/*.safetensors"):
    use(load_file(path))
"""
_LOOPED = f"""{_USED}
for decay in decays:
    state = load_file(paths[0])
    for path in paths[1:]:
        for k, v in load_file(path).items():
            state[k].mul_(decay).add_(v, alpha=1 - decay)
    use(state)
"""


def memory(settings: Settings) -> Rows:
    """Measure peak resident memory; large models are sparse files of zeros, which changes no buffer."""
    yield "peak resident memory", "ema-avg", "naive loop"
    least = in_turn("the least", {"true": Job(["true"])}, settings)["true"]
    yield f"(the least that this can measure: `true` has {peak(least)})", "", ""
    model, large, many = settings.model_bytes, settings.large_bytes, f"64 x {settings.many:,} small tensors"
    pair = Series(2, 40, model // 160, sparse=True)
    small = Series(64, settings.many, 256)
    for label, series, compare, decays in (
        (f"2 x {size(model)} `.safetensors`", pair, True, [0.9]),
        (f"64 x {size(model)} `.safetensors`", pair._replace(checkpoints=64), False, [0.9]),
        (f"2 x {size(large)} `.safetensors`", pair._replace(elements=large // 160), False, [0.9]),
        (f"2 x {size(model)} `.safetensors`, 4 decays in one pass", pair, False, [0.8, 0.9, 0.99, 0.999]),
        (f"2 x {size(model)} `.pt`", pair._replace(suffix=".pt", sparse=False), True, [0.9]),
        (f"{many} `.safetensors`", small, True, [0.9]),
        (f"{many} `.pt`", small._replace(suffix=".pt"), True, [0.9]),
    ):
        with on_disk(series, settings) as paths:
            jobs = {label: Job(ours(paths, settings, *decays))}
            if compare:
                jobs["naive"] = Job(naive(paths, settings))
            peaks = [peak(sample) for sample in in_turn(label, jobs, settings).values()]
        yield label, *peaks, *([] if compare else [""])


def in_memory(settings: Settings) -> Rows:
    """Compare averages in memory with averages that are written and loaded, and with the loop everybody writes."""
    yield "in memory, warm", "averages", "time", "CPU time", "peak memory"
    ways = {
        "`average_tensors` (numpy)": _STREAMED,
        "`load_average` in a loop": _LOADED,
        "`average` to files (one read), `load_file`": _THROUGH_FILES,
        "naive loop with torch": _LOOPED,
    }
    series = Series(settings.checkpoints, 40, settings.model_bytes // 4 // 40)
    with on_disk(series, settings) as paths:
        for decays in ("0.9", "0.5 0.8 0.9"):
            jobs = {
                way: Job([sys.executable, "-W", "ignore", "-c", code, decays, settings.out, *paths], paths)
                for way, code in ways.items()
            }
            for way, sample in in_turn(f"decays {decays}", jobs, settings).items():
                figures = f"{sample.seconds:.2f} s", f"{sample.cpu_seconds:.2f} s", peak(sample)
                yield way, str(len(decays.split())), *figures
