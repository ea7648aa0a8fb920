"""Three checkpoints with random weights, in any form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.faults.forms import FORMS


def write_series(folder: Path, elements: int, form: str = "safetensors", *, tensors: int = 1) -> None:
    """Write three checkpoints of a form; ``elements`` is the size of the largest ``tensors``."""
    for number in (1, 2, 3):
        random = np.random.default_rng(number)
        arrays = {
            "weight": random.standard_normal(elements, dtype=np.float32),
            "bias": random.standard_normal(1000, dtype=np.float32),
            "count": np.array(number),
        }
        for layer in range(1, tensors):
            arrays[f"layers.{layer}.weight"] = random.standard_normal(elements, dtype=np.float32)
        path = folder / FORMS[form].name.format(number)
        if form == "safetensors":
            save_file(arrays, path)
            continue
        import torch  # noqa: PLC0415 - takes seconds

        FORMS[form].save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        if form == "shards":
            (path / "config.json").write_text('{"model_type": "toy"}\n')
