"""A snapshot of a live EMA: what its metadata state. Its tensors are those of the model, so it is a checkpoint.

An output of this program has other metadata (``ema_avg.version``), and is skipped where checkpoints are searched for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from ema_cli._version import __version__
from ema_cli.errors import EmaAvgError, InputRefused
from ema_cli.options.output_options import OUR_METADATA
from ema_cli.options.stored_method import read_method, store_method
from ema_cli.record import record
from ema_cli.storage.locations import Location
from ema_cli.text import quoted
from ema_cli.weights.methods import Method

LAYOUT = "1"
"""The version of these metadata."""
SNAPSHOT_KEY = f"{OUR_METADATA}snapshot"
FROM_SNAPSHOT = f"{OUR_METADATA}from_snapshot"
"""In the metadata of an output: it continued a snapshot, and is no snapshot itself."""
_LARGEST_STEP = 1 << 62


@record
class AveragedTensors:
    """Tensors of a live EMA that were first seen at the same step."""

    first_step: int
    last_step: int
    """Training step of the last update."""
    updates: int
    """How many weights are in their averages, at least 1."""
    tensors: tuple[str, ...]
    """Their names, sorted."""


@record
class LiveSnapshot:
    """One average of a live EMA at one training step."""

    method: Method
    step: int
    """Training steps of the model at that time."""
    averaged: tuple[AveragedTensors, ...]
    """The tensors that are averages; all others are copies of the model's."""

    @property
    def last_step(self) -> int:
        """The training step of the last weights in the average."""
        return max(one.last_step for one in self.averaged)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        averaged = [
            {
                "first_step": one.first_step,
                "last_step": one.last_step,
                "updates": one.updates,
                "tensors": one.tensors,
            }
            for one in self.averaged
        ]
        ours = {
            "snapshot": LAYOUT,
            "written_by": f"ema-avg {__version__}",
            **store_method(self.method),
            "step": str(self.step),
            "updates": str(max(one.updates for one in self.averaged)),
            "averaged": json.dumps(averaged),
        }
        return {"format": "pt"} | {f"{OUR_METADATA}{key}": value for key, value in ours.items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """Return what metadata state, which are untrusted.

        Raises:
            ValueError: they are not those of a snapshot, or contradict themselves.

        """
        try:
            averaged = tuple(map(_averaged, json.loads(metadata[f"{OUR_METADATA}averaged"])))
            step = _step(int(metadata[f"{OUR_METADATA}step"]))
            method = method_of_snapshot(metadata)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError("metadata") from error
        names = [name for one in averaged for name in one.tensors]
        if method is None or not averaged or len(set(names)) != len(names):
            raise ValueError("metadata")
        for one in averaged:
            if not possible_steps(one.first_step, one.last_step, one.updates, step):
                raise ValueError("steps")
        return cls(method=method, step=step, averaged=averaged)


def possible_steps(first_step: int, last_step: int, updates: int, step: int) -> bool:
    """Return whether an average of ``step`` can have so many weights between these steps."""
    return first_step <= last_step <= step and 1 <= updates <= last_step - first_step + 1


def read_snapshot(path: Location, metadata: Mapping[str, str]) -> LiveSnapshot:
    """Return what the metadata of a file state.

    Raises:
        InputRefused: it is no snapshot, one of a later version of this program, or damaged.

    """
    name, layout = quoted(str(path)), metadata.get(SNAPSHOT_KEY)
    if layout is None:
        raise InputRefused(f"{name} is not a snapshot of a live EMA", hint="EMA.save(PATH) writes one")
    if layout != LAYOUT:
        raise InputRefused(
            f"{name} was written by another version of ema-avg: its metadata have version {quoted(layout)}, this "
            f"program reads {LAYOUT}",
            hint="install a newer ema-avg",
        )
    try:
        return LiveSnapshot.of(metadata)
    except ValueError as error:
        raise InputRefused(f"the metadata of {name} are damaged", hint="use another snapshot") from error


def method_of_snapshot(metadata: Mapping[str, str]) -> Method | None:
    """Return the method of the live EMA, by the metadata of a snapshot; ``None`` if they do not state it correctly."""
    ours = {key.removeprefix(OUR_METADATA): value for key, value in metadata.items() if key.startswith(OUR_METADATA)}
    try:
        return read_method(ours)
    except (KeyError, ValueError, EmaAvgError):
        return None


def _averaged(entry: Any) -> AveragedTensors:  # noqa: ANN401 - JSON of a file
    names = entry["tensors"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("tensors")
    return AveragedTensors(
        first_step=_step(entry["first_step"]),
        last_step=_step(entry["last_step"]),
        updates=_step(entry["updates"]),
        tensors=tuple(names),
    )


def _step(value: object) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST_STEP:
        raise ValueError(value)
    return value
