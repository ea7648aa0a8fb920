"""The error of an output against a fold in float64, in absolute numbers and in units of its own precision."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

Tensors = Mapping[str, torch.Tensor]


class Exactness(NamedTuple):
    """How far an output is from the average that was meant."""

    largest: float
    """Largest absolute error of an element."""
    largest_ulp: float
    """The same in units in the last place of the output; 0.5 where every element is correctly rounded."""
    not_nearest: float
    """Share of the elements that are not the nearest number of their type."""
    dtype: str


def references(paths: Sequence[Path], decay: float) -> dict[str, dict[str, torch.Tensor]]:
    """Return the average of each kind in float64: ``EMA``, starting from the first, and ``mean``."""
    ema: dict[str, torch.Tensor] = {}
    mean: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        for name in files[0].keys():  # noqa: SIM118 - no mapping
            first = files[0].get_tensor(name).double()
            folded, total = first.clone(), first
            for file in files[1:]:
                value = file.get_tensor(name).double()
                folded.mul_(decay).add_(value * (1 - decay))
                total += value
            ema[name], mean[name] = folded, total / len(files)
    return {"EMA": ema, "mean": mean}


def exactness(output: Path, reference: Tensors) -> Exactness:
    """Compare an output, a file or a folder with files, with an average in float64."""
    largest = largest_ulp = worse = count = 0.0
    found = dict(_tensors(output))
    if found.keys() != reference.keys():
        raise ValueError(f"{output} has other tensors than the checkpoints: {found.keys() ^ reference.keys()}")
    for name, value in found.items():
        exact, value64 = reference[name], value.double()
        error = (value64 - exact).abs()
        toward = torch.where(exact > value64, torch.inf, -torch.inf).to(value.dtype)
        ulps = error / (torch.nextafter(value, toward).double() - value64).abs()
        largest, largest_ulp = max(largest, float(error.max())), max(largest_ulp, float(ulps.max()))
        worse, count = worse + float((ulps > 0.5).sum()), count + value.numel()
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in found.values()})
    return Exactness(largest, largest_ulp, worse / count, ", ".join(dtypes))


def _tensors(output: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(output.glob("*.safetensors")) if output.is_dir() else [output]:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - no mapping
        else:
            loaded = torch.load(path, weights_only=True)
            yield from loaded.get("model", loaded).items()
