"""What a process has folded, on its way to rank 0, as JSON, and put together there."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ema_cli.fold.state import FoldState
from ema_cli.records.fold_results import FoldPart, TensorOutcome
from ema_cli.records.record_types import build


def part_of_fold(state: FoldState, outcomes: Sequence[TensorOutcome]) -> FoldPart:
    """Return what a process has folded: ``outcomes`` of whole tensors, and the rest of its state."""
    checkpoints = state.plan.checkpoints
    files = {
        id(source): (i, number)
        for i in {i for tensor in state.plan.tensors for i in state.plan.readers(tensor)}
        for number, source in enumerate(checkpoints[i].index.sources)
    }
    return FoldPart(outcomes=tuple(outcomes), parts=tuple(state.parts()), records=tuple(state.integrity.parts(files)))


def encode_part(part: FoldPart) -> bytes:
    """Return a part as JSON; numbers keep all their digits."""
    document = asdict(part)
    for one in (*document["outcomes"], *document["parts"]):
        one["sample"] = base64.b64encode(one["sample"]).decode()
    return json.dumps(document).encode()


def decode_part(data: bytes) -> FoldPart:
    """Return the part that ``encode_part`` has made."""
    document: dict[str, Any] = json.loads(data)
    for one in (*document["outcomes"], *document["parts"]):
        one["sample"] = base64.b64decode(one["sample"])
    found: FoldPart = build(FoldPart, document)
    return found


def merge_part(state: FoldState, part: FoldPart) -> None:
    """Add to the state of rank 0 what another process has folded.

    Raises:
        InputRefused: a record that several processes have read is damaged.

    """
    for outcome in part.outcomes:
        state.restore(outcome)
    for of_tensor in part.parts:
        state.add_part(of_tensor)
    for record in part.records:
        index = state.plan.checkpoints[record.checkpoint].index
        table = index.checksums(record.file)
        if table is not None:
            state.integrity.merge(index.sources[record.file], table, record)
