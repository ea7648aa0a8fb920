"""Check that the GPU lane gives the bits of the CPU, and measure its speed and where it pays.

    scripts/gpu_check                                   # on a machine with an NVIDIA GPU; see scripts/README.md
    scripts/gpu_check --device cpu                      # the same steps on torch's cpu device, in seconds

1. Bits: every averaged type, 1 and 4 averages, odd lengths, all codes or random ones with NaN, infinity, denormals.
2. Start: torch, CUDA and the buffers of all threads, in a process of their own.
3. Speed: bytes per second of the lane, against copies from pinned memory alone, measured in the same run.
4. Break-even: whole runs of ``ema-avg``, on the CPU and the GPU in turn, against the rule of ``--device auto``.

The exit code is 1 if any bits differ, 2 if nothing could be checked. Figures never fail.
"""

import argparse
import filecmp
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ema_cli.dtypes import BY_NAME
from ema_cli.fold import break_even
from ema_cli.fold.conversion import NUMPY_TYPES, components
from ema_cli.fold.cuda import TorchLane, count_gpus
from ema_cli.fold.lanes import Lane, cpu_lane
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.planning.make_plan import default_threads

BLOCK = 1 << 20
"""Numbers of a block, as a run on a GPU has them."""
BLOCKS = (1 << 18, 1 << 19, BLOCK, 1 << 22)
CHECKPOINTS = 8
BUDGET_SECONDS = 240
"""After this time no further run is started."""
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0)

_START = """
import sys, time
started = time.perf_counter()
import numpy, torch
imported = time.perf_counter()
from ema_cli.dtypes import BY_NAME
from ema_cli.fold.cuda import TorchLane
device, block, threads = torch.device(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
lanes = [TorchLane(device, block_elements=block, averages=1) for _ in range(threads)]
for lane in lanes:
    lane.start(block)
    lane.add(lane.buffer(4 * block), BY_NAME["F32"], [0.5])
    lane.add(lane.buffer(4 * block), BY_NAME["F32"], [0.5])
    lane.sums()
print(imported - started, time.perf_counter() - imported)
"""


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    for row in (titles, ["---"] * len(titles), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def describe(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured with."""
    version = subprocess.run([sys.executable, "-m", "ema_cli", "version"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = {
        "ema_avg": version.stdout.splitlines(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "threads": default_threads(),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
    return found


# Bits


def codes(name: str, count: int, seed: int) -> NDArray[np.uint8]:
    """Return ``count`` numbers of a type as bytes: every code if there are few, else random ones and special values."""
    kind = NUMPY_TYPES[name]
    rng = np.random.default_rng(seed)
    if kind.itemsize <= 2:
        every = np.arange(256**kind.itemsize, dtype=f"u{kind.itemsize}")
        return rng.permuted(np.resize(every, count)).view(np.uint8)
    found = rng.integers(0, 256, count * kind.itemsize, dtype=np.uint8).view(kind)
    tiny, largest = np.finfo(kind).smallest_subnormal, np.finfo(kind).max
    special = np.array([*SPECIAL, tiny, -tiny, largest, -largest], dtype=kind)
    found[: len(special)] = special[: len(found)]
    return rng.permuted(found).view(np.uint8)


def sums_of(lane: Lane, name: str, averages: int, count: int) -> list[NDArray[np.uint64]]:
    """Return the bits of the sums of four blocks of ``count`` elements, any NaN as the same one; a weight is zero."""
    numbers = count * components(BY_NAME[name])
    lane.start(numbers)
    for row in range(4):
        filled = codes(name, numbers, row)
        raw = lane.buffer(len(filled))
        raw[:] = filled
        lane.add(raw, BY_NAME[name], [0.0 if row and k == 1 else 1 / (3 + row + k) for k in range(averages)])
    return [np.where(np.isnan(total), np.nan, total).view(np.uint64) for total in lane.sums()]


def check_bits(device: torch.device, longest: int) -> list[dict[str, Any]]:
    """Return a row for each type and number of averages: elements compared, and how many sums differ."""
    found = []
    for name in NUMPY_TYPES:
        for averages in (1, 4):
            cpu = cpu_lane(block_elements=2 * longest, averages=averages)
            gpu = TorchLane(device, block_elements=2 * longest, averages=averages)
            compared = differing = 0
            for count in (1, 7, 255, longest // 2 + 1, longest - 1, longest):
                with np.errstate(all="ignore"):
                    both = sums_of(cpu, name, averages, count), sums_of(gpu, name, averages, count)
                compared += averages * count
                differing += sum(int(np.count_nonzero(a != b)) for a, b in zip(*both, strict=True))
            found.append({"type": name, "averages": averages, "sums": compared, "differing": differing})
    return found


# Start and speed


def measure_start(device: torch.device, block: int, rounds: int) -> dict[str, float]:
    """Return the seconds that a run on the device takes to start: medians of as many processes as there are rounds."""
    command = [sys.executable, "-c", _START, str(device), str(block), str(default_threads())]
    shown = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(rounds)]
    imports, rest = (statistics.median(map(float, column)) for column in zip(*shown, strict=True))
    return {"torch": imports, "device_and_buffers": rest, "total": imports + rest}


def copy_rate(device: torch.device, nbytes: int, seconds: float) -> float:
    """Return the bytes per second of copies from pinned memory to the device, nothing else going on."""
    is_cuda = device.type == "cuda"
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=is_cuda)
    there = torch.empty(nbytes, dtype=torch.uint8, device=device)
    there.copy_(host)
    copied, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        for _ in range(8):
            there.copy_(host, non_blocking=True)
        if is_cuda:
            torch.cuda.synchronize(device)
        copied += 8 * nbytes
    return copied / (time.perf_counter() - started)


def lane_rate(device: torch.device, name: str, averages: int, block: int, *, threads: int, seconds: float) -> float:
    """Return the bytes per second that the lanes of all threads take: blocks of eight checkpoints in pinned memory."""
    dtype = BY_NAME[name]
    nbytes = block // components(dtype) * dtype.itemsize
    lanes = [TorchLane(device, block_elements=block, averages=averages) for _ in range(threads)]
    some = codes(name, 1 << 12, 0)
    weights = [1 / (2 + k) for k in range(averages)]

    def fold(lane: TorchLane) -> None:
        lane.start(block)
        for _ in range(CHECKPOINTS):
            lane.add(lane.buffer(nbytes), dtype, weights)
        lane.sums()

    def prepare(lane: TorchLane) -> None:
        for _ in range(CHECKPOINTS):  # more than the ring has buffers
            lane.buffer(nbytes)[:] = np.resize(some, nbytes)
        fold(lane)

    def work(lane: TorchLane) -> int:
        added = 0
        while time.perf_counter() < started + seconds:
            fold(lane)
            added += CHECKPOINTS * nbytes
        return added

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(prepare, lanes))
        started = time.perf_counter()
        added = sum(pool.map(work, lanes))
        return added / (time.perf_counter() - started)


def measure_speed(device: torch.device, block: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row per type and number of averages, and per size of the blocks, each with its share of the copies."""
    cases = [("F32", 1, size) for size in BLOCKS if size <= 4 * block]
    cases += [(name, averages, block) for name in NUMPY_TYPES for averages in (1, 4)]
    found = []
    for name, averages, size in dict.fromkeys(cases):
        copies = copy_rate(device, size * NUMPY_TYPES[name].itemsize, seconds)
        rate = lane_rate(device, name, averages, size, threads=default_threads(), seconds=seconds)
        row = {"type": name, "averages": averages, "block": size, "bytes_per_second": rate}
        found.append({**row, "copies_bytes_per_second": copies, "share": rate / copies})
    return found


# Break-even


def write_series(folder: Path, nbytes: int) -> list[Path]:
    """Write checkpoints of ``nbytes`` float32 each, in tensors of 16 MB at most."""
    rng = np.random.default_rng(0)
    sizes = [min(1 << 22, nbytes // 4 - start) for start in range(0, nbytes // 4, 1 << 22)]
    paths = [folder / f"step_{10 * number}.safetensors" for number in range(1, CHECKPOINTS + 1)]
    for path in paths:
        save_file({f"w{i}": rng.standard_normal(size, dtype=np.float32) for i, size in enumerate(sizes)}, path)
    return paths


def decays(averages: int) -> list[float]:
    """Return as many decays."""
    return [0.5 + 0.05 * k for k in range(averages)]


def timed_run(paths: Sequence[Path], averages: int, device: str, folder: Path) -> float:
    """Return the seconds of a whole process that averages ``paths`` into ``folder``; inputs are in the page cache."""
    for old in folder.glob("*"):
        old.unlink()
    options = [part for decay in decays(averages) for part in ("--decay", f"{decay:.2f}")]
    output = folder / "{decay}.safetensors"
    command = [sys.executable, "-m", "ema_cli", *map(str, paths), *options, "--device", device, "-o", str(output)]
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def rule(paths: Sequence[Path], averages: int, folder: Path) -> break_even.BreakEven:
    """Return what ``--device auto`` estimates for a run."""
    output = folder / "{decay}.safetensors"
    with planned(make_options(paths, decay=decays(averages), output=output, probe=False)) as plan:
        return break_even.estimate(plan)


def measure_runs(device: str, folder: Path, until: float, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield a row per size and number of averages: the fastest run on each device, and what the rule says."""
    sizes, counts, rounds = ((1 << 18, 1 << 20), (4,), 1) if quick else ((1 << 25, 1 << 28), (1, 4, 8), 2)
    outputs = {name: folder / name for name in ("cpu", "gpu")}
    for place in outputs.values():
        place.mkdir()
    for size in sizes:
        inputs = folder / str(size)
        inputs.mkdir()
        paths = write_series(inputs, size)
        for averages in counts:
            if time.monotonic() > until:
                print(f"no time is left for {averages} averages of {CHECKPOINTS} x {size:,} bytes\n")
                continue
            times: dict[str, list[float]] = {"cpu": [], "gpu": []}
            for number in range(rounds):
                if number and time.monotonic() > until:
                    break
                for name, taken in times.items():
                    taken.append(timed_run(paths, averages, "cpu" if name == "cpu" else device, outputs[name]))
            names = sorted(path.name for path in outputs["cpu"].glob("*.safetensors"))
            same, *_ = filecmp.cmpfiles(outputs["cpu"], outputs["gpu"], names, shallow=False)
            estimated = rule(paths, averages, folder)
            yield {
                "bytes": CHECKPOINTS * size,
                "averages": averages,
                "cpu_seconds": min(times["cpu"]),
                "gpu_seconds": min(times["gpu"]),
                "rule_cpu_seconds": estimated.cpu_seconds,
                "rule_gpu_seconds": estimated.gpu_seconds,
                "auto": "gpu" if estimated.gpu_pays else "cpu",
                "differing_files": [name for name in names if name not in same],
            }


def crossing(cpu: tuple[float, float], gpu: tuple[float, float]) -> float | None:
    """Return the bytes from which on the GPU is faster, ``None`` if it never is; each device is start and s/byte."""
    gain = cpu[1] - gpu[1]
    return max(0.0, (gpu[0] - cpu[0]) / gain) if gain > 0 else None


def break_evens(runs: Sequence[dict[str, Any]], start: float, copies: float) -> list[dict[str, Any]]:
    """Return per number of averages the input bytes from which a GPU pays.

    By the runs: lines through the smallest and the largest size. By the rule: with its constants, and with the
    measured ``start`` (seconds) and ``copies`` (bytes per second) instead.
    """
    found = []
    for averages in dict.fromkeys(row["averages"] for row in runs):
        rows = [row for row in runs if row["averages"] == averages]
        if len(rows) < 2:
            continue
        lines = []
        for name in ("cpu_seconds", "gpu_seconds"):
            slope = (rows[-1][name] - rows[0][name]) / (rows[-1]["bytes"] - rows[0]["bytes"])
            lines.append((rows[0][name] - slope * rows[0]["bytes"], slope))
        cpu = (0.0, rows[-1]["rule_cpu_seconds"] / rows[-1]["bytes"])
        by_rule = crossing(cpu, (break_even.START_SECONDS, 1 / break_even.COPY_BYTES_PER_SECOND))
        measured = crossing(cpu, (start, 1 / copies))
        found.append({"averages": averages, "runs": crossing(*lines), "rule": by_rule, "measured_rule": measured})
    return found


# All of it


def check(device: torch.device, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run all steps, print their tables, and return everything that was measured."""
    until = time.monotonic() + BUDGET_SECONDS
    block, seconds = (1 << 12, 0.01) if quick else (BLOCK, 0.4)
    found: dict[str, Any] = {"environment": describe(device)}
    table(("", "environment"), list(found["environment"].items()))
    found["bits"] = check_bits(device, 1 << 12 if quick else 1 << 17)
    table(("type", "averages", "sums compared", "different"), [list(row.values()) for row in found["bits"]])
    found["start"] = start = measure_start(device, block, 1 if quick else 3)
    table(("start", "s"), [(name, f"{taken:.2f}") for name, taken in start.items()])
    found["speed"] = measure_speed(device, block, seconds)
    show_speed(found["speed"])
    found["runs"] = list(measure_runs(str(device), folder, until, quick=quick))
    show_runs(found["runs"])
    copies = statistics.median(row["copies_bytes_per_second"] for row in found["speed"])
    found["break_even"] = break_evens(found["runs"], start["total"], copies)
    show_break_even(found["break_even"])
    found["constants"] = {"START_SECONDS": start["total"], "COPY_BYTES_PER_SECOND": copies}
    if not quick:
        print(f"for ema_cli/fold/break_even.py: START_SECONDS {start['total']:.1f}, COPY_BYTES_PER_SECOND {copies:.1e}")
    return found


def show_speed(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rates of the lane."""
    titles = ("type", "averages", "block", "lane, GB/s", "copies alone, GB/s", "share")
    shown = []
    for row in rows:
        rates = [f"{row[name] / 1e9:.2f}" for name in ("bytes_per_second", "copies_bytes_per_second")]
        shown.append([row["type"], row["averages"], f"{row['block']:,}", *rates, f"{row['share']:.0%}"])
    table(titles, shown)


def show_runs(rows: Sequence[dict[str, Any]]) -> None:
    """Print the times of whole runs."""
    titles = (
        "input, GB",
        "averages",
        "CPU, s",
        "GPU, s",
        "rule: CPU, s",
        "rule: GPU, s",
        "faster",
        "auto",
        "same bytes",
    )
    times = ("cpu_seconds", "gpu_seconds", "rule_cpu_seconds", "rule_gpu_seconds")
    shown = []
    for row in rows:
        faster = "gpu" if row["gpu_seconds"] < row["cpu_seconds"] else "cpu"
        same = "no" if row["differing_files"] else "yes"
        seconds = [f"{row[name]:.2f}" for name in times]
        shown.append([f"{row['bytes'] / 1e9:.3f}", row["averages"], *seconds, faster, row["auto"], same])
    table(titles, shown)


def show_break_even(rows: Sequence[dict[str, Any]]) -> None:
    """Print from which input on a GPU pays."""
    titles = ("averages", "GPU pays from, GB: whole runs", "rule of auto", "rule with the figures of this run")
    shown = [
        [row["averages"]]
        + ["never" if row[name] is None else f"{row[name] / 1e9:.1f}" for name in ("runs", "rule", "measured_rule")]
        for row in rows
    ]
    table(titles, shown)


def main() -> int:
    """Check, print, write the JSON document, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu tests this script")
    parser.add_argument("--json", type=Path, help="where to write everything that was measured")
    parser.add_argument("--folder", type=Path, help="where to put 7 GB of temporary files")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and (device.index or 0) >= count_gpus():
        parser.error(f"torch {torch.__version__} finds {count_gpus()} GPUs: --python PATH with a torch for CUDA")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = check(device, Path(folder), quick=device.type == "cpu")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    differing = any(row["differing"] for row in found["bits"]) or any(row["differing_files"] for row in found["runs"])
    print("BITS DIFFER" if differing else "all bits are those of the CPU")
    return int(differing)


if __name__ == "__main__":
    sys.exit(main())
