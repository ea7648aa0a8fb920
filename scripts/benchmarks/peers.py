"""Side by side: ema-avg and what users run instead, on the same weights in one go."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import peer_programs
from .commands import DECAY, EMA_AVG, NAIVE
from .exactness import Exactness, exactness, references
from .measure import Failed, Job, Rows, Sample, Settings, medians, note, peak, record, run, size
from .peer_environment import found_version, made_environment
from .peer_inputs import Inputs, peer_inputs
from .picture import Bar, bars
from .series import dtype_name

_MANY = 64
"""So many checkpoints have a quarter of the size, so that they fit into the page cache, and one round."""
_OUT = "out.safetensors"
_SYNCED = {"ema-avg": "file and folder", "naive loop": "file"}
"""What each program syncs by its source; the others sync nothing."""


class Peer(NamedTuple):
    """A program that averages checkpoints."""

    name: str
    average: str
    """``EMA`` or ``mean``."""
    command: Callable[[Inputs, Settings, Path], Sequence[object]]
    """From inputs, settings and the Python of the peers."""
    reads: str = "safetensors"
    """The field of the inputs that it reads."""
    output: str = _OUT
    module: str = ""
    """What must be importable, if anything beside torch and safetensors."""
    package: str = ""
    source: str = ""
    """The name of its script, if it is in no package."""


class Result(NamedTuple):
    """One row: a program on some checkpoints."""

    peer: Peer
    sample: Sample
    error: Exactness
    synced: str


class Field(NamedTuple):
    """Who takes part."""

    python: Path
    """Of the peers."""
    peers: list[Peer]
    """Without those that cannot run here, or have failed."""
    synced: dict[str, str]
    """What each syncs to the disk, once that is known."""


def _program(code: str, *, averages: bool = True) -> Callable[[Inputs, Settings, Path], Sequence[object]]:
    decay = [DECAY] if averages else []
    return lambda inputs, settings, python: [python, "-c", code, settings.out / _OUT, *decay, *inputs.safetensors]


def _naive(inputs: Inputs, settings: Settings, _: Path) -> Sequence[object]:
    return [sys.executable, "-c", NAIVE, settings.out / _OUT, *inputs.safetensors]


def _ours(inputs: Inputs, settings: Settings, _: Path) -> Sequence[object]:
    return [EMA_AVG, *inputs.safetensors, "--decay", DECAY, "-o", settings.out / _OUT]


def _mergekit(script: str) -> Callable[[Inputs, Settings, Path], Sequence[object]]:
    """Return the command of a mergekit script; an EMA is its linear merge with weights."""

    def command(inputs: Inputs, settings: Settings, python: Path) -> Sequence[object]:
        models = inputs.folders if script == "mergekit-yaml" else inputs.safetensors
        last = len(models) - 1
        weights = [(1 - DECAY if i else 1.0) * DECAY ** (last - i) for i in range(len(models))]
        entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)]
        path = settings.scratch / f"{script}.yaml"
        path.write_text(json.dumps({"merge_method": "linear", "dtype": dtype_name(inputs.dtype), "models": entries}))
        return [python.with_name(script), path, settings.out / "merged"]

    return command


def _timm(inputs: Inputs, settings: Settings, python: Path) -> Sequence[object]:
    some = ["--input", inputs.safetensors[0].parent, "--filter", "*.safetensors", "--no-sort"]
    out = ["--output", settings.out / _OUT, "--safetensors"]
    return [python, "-c", peer_programs.TIMM, settings.sources["timm"], *some, *out]


def _script(name: str, code: str) -> Callable[[Inputs, Settings, Path], Sequence[object]]:
    return lambda inputs, settings, python: [
        *(python, "-c", code, settings.sources[name], settings.out / "out.pt", *inputs.pt)
    ]


PEERS = (
    Peer("ema-avg", "EMA", _ours),
    Peer("naive loop", "EMA", _naive),
    Peer("torch `AveragedModel`", "EMA", _program(peer_programs.SWA_UTILS)),
    Peer("ema-pytorch", "EMA", _program(peer_programs.EMA_PYTORCH), module="ema_pytorch", package="ema-pytorch"),
    Peer(
        *("mergekit, linear", "EMA", _mergekit("mergekit-yaml"), "folders", "merged"),
        module="mergekit.config",
        package="mergekit",
    ),
    Peer(
        *("mergekit-pytorch", "EMA", _mergekit("mergekit-pytorch"), "safetensors", "merged"),
        module="mergekit.config",
        package="mergekit",
    ),
    Peer("sd-mecha", "EMA", _program(peer_programs.SD_MECHA), module="sd_mecha", package="sd-mecha"),
    Peer("timm", "mean", _timm, source="timm"),
    Peer("fairseq", "mean", _script("fairseq", peer_programs.FAIRSEQ), "pt", "out.pt", source="fairseq"),
    Peer("icefall", "mean", _script("icefall", peer_programs.ICEFALL), "pt", "out.pt", source="icefall"),
)
SOURCES = tuple(peer.source for peer in PEERS if peer.source)


def peers(settings: Settings) -> Rows:
    """Compare with the programs that users run instead: time, memory, error, and whether the output is on the disk."""
    field = Field(
        made_environment(settings.environment.absolute()) if settings.environment else Path(sys.executable), [], {}
    )
    field.peers.extend(_available(field.python, settings))
    yield (
        *("checkpoints, warm", "program", "average", "time", "processor time", "peak memory", "of it anonymous"),
        *("output", "largest error", "in ulp", "not nearest", "synced"),
    )
    pictured: dict[str, list[Result]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for count in settings.counts:
            model_bytes = settings.model_bytes // (8 if count >= _MANY else 2)
            with peer_inputs(count, model_bytes, dtype, settings) as inputs:
                label = f"{count} x {size(inputs.model_bytes)} {dtype_name(dtype)}"
                results = list(_measured(label, inputs, field, settings))
            yield from (_row(label, result) for result in results)
            if count == settings.counts[len(settings.counts) // 2]:
                pictured[label] = results
    if settings.records:
        (settings.records / "peers.svg").write_text(_picture(pictured), encoding="utf-8")


def _available(python: Path, settings: Settings) -> Iterator[Peer]:
    """Find the programs that can run here; report which cannot, and why."""
    for peer in PEERS:
        entry = {"contender": peer.name}
        try:
            if peer.source and peer.source not in settings.sources:
                raise Failed(f"its script is in no package: --source {peer.source}=FILE")
            if peer.module:
                entry["version"] = found_version(python, peer.module, peer.package)
            yield peer
        except Failed as error:
            entry["not_run"] = str(error)
        print(f"{peer.name}: {entry.get('not_run') or entry.get('version', 'runs')}", flush=True)
        settings.samples.append(entry)


def _measured(label: str, inputs: Inputs, field: Field, settings: Settings) -> Iterator[Result]:
    """Run every program in turn; the last output of each is compared with the average in float64."""
    exact = references(inputs.safetensors, DECAY)
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in field.peers}
    errors: dict[str, Exactness] = {}
    rounds = 1 if len(inputs.safetensors) >= _MANY else settings.rounds
    for number in range(rounds):
        for peer in list(field.peers):
            job = _job(peer, inputs, field, settings)
            try:
                if peer.name not in field.synced:
                    field.synced[peer.name] = _synced(peer, job, settings)
                sample = run(job, settings)
            except Failed as error:
                print(f"{peer.name} failed with {label}: {str(error).splitlines()[-1]}", flush=True)
                note(str(error))
                field.peers.remove(peer)
                continue
            record(label, peer.name, number, sample, settings)
            samples[peer.name].append(sample)
            if number == rounds - 1:
                errors[peer.name] = exactness(settings.out / peer.output, exact[peer.average])
    for peer in field.peers:
        result = Result(peer, medians(samples[peer.name]), errors[peer.name], field.synced[peer.name])
        found = {"row": label, "contender": peer.name, "synced": result.synced}
        settings.samples.append({**found, **result.error._asdict()})
        yield result


def _job(peer: Peer, inputs: Inputs, field: Field, settings: Settings) -> Job:
    read = getattr(inputs, peer.reads)
    files = [path / "model.safetensors" for path in read] if peer.reads == "folders" else read
    return Job(peer.command(inputs, settings, field.python), files)


def _synced(peer: Peer, job: Job, settings: Settings) -> str:
    """Return what a program syncs to the disk, as strace sees it; one more run, which is not timed."""
    if not shutil.which("strace"):
        return f"{_SYNCED.get(peer.name, 'no')}, by its source"
    log = settings.scratch / "strace"
    calls = "trace=fsync,fdatasync,sync,syncfs"
    traced = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", calls, "-o", log, *job.command]
    run(job._replace(command=traced), settings)
    paths = [Path(path) for path in re.findall(r"<(/[^>]*)>", log.read_text())]
    if settings.out in paths:
        return "file and folder"
    return "file" if any(settings.out in path.parents for path in paths) else "no"


def _row(label: str, result: Result) -> tuple[str, ...]:
    peer, sample, error, synced = result
    return (
        *(label, peer.name, peer.average, f"{sample.seconds:.2f} s", f"{sample.cpu_seconds:.2f} s", peak(sample)),
        *(f"{sample.anonymous_bytes / 1e6:,.0f} MB", error.dtype, f"{error.largest:.1e}"),
        *(f"{error.largest_ulp:.2f}", f"{error.not_nearest:.1%}", synced),
    )


def _picture(pictured: dict[str, list[Result]]) -> str:
    units: dict[str, tuple[str, Callable[[Sample], float]]] = {
        "time": ("s", lambda sample: sample.seconds),
        "processor time": ("s", lambda sample: sample.cpu_seconds),
        "peak memory": ("MB", lambda sample: sample.peak_bytes / 1e6),
    }
    return bars(
        "The same checkpoints, averaged by each program",
        {
            f"{title} ({unit})": [
                Bar(result.peer.name.replace("`", ""), label, value(result.sample))
                for label, results in pictured.items()
                for result in results
            ]
            for title, (unit, value) in units.items()
        },
    )
