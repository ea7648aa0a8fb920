"""The same weights give the same bytes, whatever else differs, and these are the bytes of a reference fold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.case import Case
from tests.faults.forms import FORMS, Form

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]
_AVERAGED = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64")
_COPIED = ("int64", "int32", "uint8", "bool")
_VARIANTS = 4
"""Further runs of each series."""
_FEATURES = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR AVX2 FMA3"
_SETTINGS: dict[str, tuple[str, ...]] = {
    "PYTHONHASHSEED": ("0", "1", "random"),
    "LC_ALL": ("C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8"),
    "TZ": ("UTC", "Asia/Kathmandu", "America/St_Johns"),
    "COLUMNS": ("1", "500"),
    "OPENBLAS_NUM_THREADS": ("1", "2"),
}
"""Environment variables that must change nothing."""
_PROCESSORS: tuple[dict[str, str], ...] = (
    *({"OPENBLAS_CORETYPE": name} for name in ("Prescott", "Nehalem")),
    {"NPY_DISABLE_CPU_FEATURES": _FEATURES, "PYTHONWARNINGS": "ignore"},
)
"""Variables that select other instructions: same averages; numbers in the report may be rounded differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The files that a run wrote."""

    file: bytes
    report: dict[str, Any]

    @property
    def header(self) -> dict[str, Any]:
        """The header of the file."""
        length = int.from_bytes(self.file[:8], "little")
        return dict(json.loads(self.file[8 : 8 + length]))

    @property
    def data(self) -> bytes:
        """The data section of the file."""
        return self.file[8 + int.from_bytes(self.file[:8], "little") :]

    def tensor(self, name: str) -> bytes:
        """Return the bytes of a tensor."""
        begin, end = self.header[name]["data_offsets"]
        return self.data[begin:end]


def determinism(root: Path, random: Random) -> Iterator[Case]:
    """Random series, weights and settings: the same bytes and numbers every time, equal to a reference fold."""
    while True:
        folder = root / "series"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        states, weights = random_series(random), _random_weights(random)
        states = states[: len(weights)]
        places = {name: _write(folder / name, FORMS[name], states) for name in random.sample([*FORMS], 2)}
        plain, other = places
        made = _run(places[plain], weights, folder / "plain.safetensors")
        yield Case(
            f"{plain}, {len(states)} checkpoints: reference fold", _compare_with_reference(made, states, weights)
        )
        for number in range(_VARIANTS):
            environment, options = _setting(random), _cutting(random)
            shuffled = random.sample(range(len(states)), len(states))
            processor = random.choice(_PROCESSORS) if number % 2 else {}
            again = _run(
                places[plain],
                weights,
                folder / f"{number}.safetensors",
                [*options, "--order", "step"],
                {**environment, **processor},
                order=shuffled,
                umask=random.choice((0o022, 0o077, 0o002)),
            )
            tried = f"{plain}, {' '.join(options)}, {environment | processor}, arguments {shuffled}"
            yield Case(tried, _compare(made, again, report=not processor))
        again = _run(places[other], weights, folder / "other.safetensors", _cutting(random))
        problems = [] if again.data == made.data else ["the data section depends on the format"]
        yield Case(f"{plain} against {other}", problems)


def random_series(random: Random) -> list[State]:
    """Return the states of one model, with tensors of every type, in C order or not, some of them tied."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(random.randrange(1 << 32))
    shapes = {f"{dtype}.{n}": _shape(random) for dtype in (*_AVERAGED, *_COPIED) for n in range(2)}
    turned = {name: random.random() < 0.5 for name in shapes}

    def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        dtype = getattr(torch, name.partition(".")[0])
        source = torch.complex64 if dtype.is_complex else torch.float64
        scale = 100 if name.partition(".")[0] in _COPIED else 1
        whole = torch.randn(shape, generator=generator, dtype=source) * scale
        plain = (whole > 0) if dtype is torch.bool else (whole.abs() if dtype is torch.uint8 else whole).to(dtype)
        return plain.t() if turned[name] and plain.dim() == 2 else plain

    return [{name: tensor(name, shape) for name, shape in shapes.items()} for _ in range(6)]


def _shape(random: Random) -> tuple[int, ...]:
    return random.choice([(), (0, 3), (7,), (random.randint(1, 9000),), (random.randint(1, 90), random.randint(1, 90))])


def _random_weights(random: Random) -> list[float]:
    """Return weights that are exact in float64 and sum to one."""
    cuts = sorted(random.randint(1, 1023) for _ in range(random.randint(1, 5)))
    return [(b - a) / 1024 for a, b in zip([0, *cuts], [*cuts, 1024], strict=True)]


def _write(folder: Path, form: Form, states: Sequence[State]) -> list[Path]:
    """Write a series with the steps in the names."""
    folder.mkdir()
    paths = [folder / form.name.format(10 * number) for number in range(1, len(states) + 1)]
    for path, state in zip(paths, states, strict=True):
        form.save({name: tensor.contiguous() for name, tensor in state.items()} if form.plain else state, path)
    return paths


def _setting(random: Random) -> dict[str, str]:
    return {name: random.choice(values) for name, values in _SETTINGS.items()}


def _cutting(random: Random) -> list[str]:
    memory = random.choice(([], ["--max-memory", "150KB"], ["--max-memory", "1MB"], ["--max-memory", "300MB"]))
    return ["--threads", random.choice("12347"), *memory]


def _run(
    paths: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    order: Sequence[int] | None = None,
    umask: int = -1,
) -> Made:
    """Average; with ``order``, name the checkpoints in that order and from another folder."""
    here = output.parent if order is None else output.parent / "elsewhere"
    here.mkdir(exist_ok=True)
    named = [(os.path.relpath(paths[i], here), weights[i]) for i in (range(len(paths)) if order is None else order)]
    shares = ",".join(str(weight) for _, weight in named)
    command = [
        *(path for path, _ in named),
        "--method",
        "manual",
        "--weights",
        shares,
        "-q",
        "-o",
        str(output),
        *options,
    ]
    subprocess.run(
        [sys.executable, "-m", "ema_cli", *command],
        env={**os.environ, **(environment or {})},
        cwd=here,
        check=True,
        umask=umask,
    )
    report = json.loads(output.with_suffix("").with_suffix(".report.json").read_text())
    return Made(file=output.read_bytes(), report=report)


def _compare(made: Made, again: Made, *, report: bool) -> list[str]:
    checks = {
        "other bytes": made.file != again.file,
        "another report": report and findings(made.report) != findings(again.report),
    }
    return [words for words, wrong in checks.items() if wrong]


def findings(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a report that does not depend on when, where and how it was made."""
    plain = json.loads(json.dumps({key: report[key] for key in ("inputs", "averages", "geometry", "warnings")}))
    for known in plain["inputs"]:
        known.pop("path")
    for average in plain["averages"]:
        for key in ("path", "modified_ns"):
            average["output"].pop(key, None)
    return dict(plain)


def _compare_with_reference(made: Made, states: Sequence[State], weights: Sequence[float]) -> list[str]:
    names = states[0].keys()
    extra = made.header.keys() - names - {"__metadata__"}
    wrong = [name for name in names if made.tensor(name) != reference_fold([state[name] for state in states], weights)]
    return [f"{name} is not the reference fold" for name in wrong] + [f"{name} is in no checkpoint" for name in extra]


def reference_fold(series: Sequence[torch.Tensor], weights: Sequence[float]) -> bytes:
    """Multiply and add in float64, in order, and round once; copy tensors that are not averaged."""
    import torch  # noqa: PLC0415

    last = series[-1].contiguous()
    if str(last.dtype).removeprefix("torch.") in _COPIED:
        return _bytes(last)
    total: NDArray[np.float64] | None = None
    for tensor, weight in zip(series, weights, strict=True):
        if weight:
            real = torch.view_as_real(tensor.contiguous()) if tensor.is_complex() else tensor.contiguous()
            term = weight * np.atleast_1d(real.to(torch.float64).numpy())
            total = term if total is None else total + term
    assert total is not None
    if last.dtype in (torch.float64, torch.float32, torch.complex64, torch.float16):
        direct = {torch.float64: np.float64, torch.float16: np.float16}.get(last.dtype, np.float32)
        return total.astype(direct).tobytes()
    return nearest_codes(total.ravel(), last.dtype).tobytes()


def nearest_codes(values: NDArray[np.float64], dtype: torch.dtype) -> NDArray[Any]:
    """Return the codes of the nearest numbers of a narrow type, ties to even, by a search among all its numbers."""
    import torch  # noqa: PLC0415

    words = np.uint8 if dtype.itemsize == 1 else np.uint16
    half = 1 << (8 * dtype.itemsize - 1)  # codes below it are the positive numbers in ascending order
    codes = torch.from_numpy(np.arange(half).astype(words)).view(dtype)
    table = codes.to(torch.float64).numpy()
    table = table[np.isfinite(table)]
    sizes = np.abs(values)
    above = np.clip(np.searchsorted(table, sizes), 1, len(table) - 1)
    middle = (table[above - 1] + table[above]) / 2  # exact: both have few bits
    up = (sizes > middle) | ((sizes == middle) & (above % 2 == 0))
    return np.asarray(np.where(up, above, above - 1) + half * np.signbit(values)).astype(words)


def _bytes(tensor: torch.Tensor) -> bytes:
    import torch  # noqa: PLC0415

    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
