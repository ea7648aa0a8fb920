"""Values of numpy and torch as plain Python. Neither is imported."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:  # noqa: ANN401 - of any option
    """Return numbers and arrays as numbers and lists, types and devices as their names; anything else unchanged.

    ``numpy.float64(0.9)`` -> ``0.9``; ``torch.bfloat16``, ``ml_dtypes.bfloat16`` -> ``"bfloat16"``;
    ``torch.device("cuda", 0)`` -> ``"cuda:0"``.
    """
    if isinstance(value, type):
        return value.__name__
    library = type(value).__module__.partition(".")[0]
    if library not in ("numpy", "torch"):
        return value
    return value.tolist() if hasattr(value, "tolist") else str(value).removeprefix("torch.")
