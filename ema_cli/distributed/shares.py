"""The share of each process: a stretch of the output, of about equal bytes to read; see ``ema_cli.fold.stretch``."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.distributed.file_systems import is_coherent
from ema_cli.fold.schedule import Stretch
from ema_cli.fold.stretch import cut_plan, read_bytes_of
from ema_cli.records.plan import Plan, PlannedOutput

_MOST_UNEVEN = 1.15
"""A share may be so many times the mean where processes then write whole files."""


def share_out(plan: Plan, hosts: Sequence[str], done: frozenset[int] = frozenset()) -> list[Stretch]:
    """Return the stretch of each process; the tensors ``done`` are not read.

    Those of a folder end between files where that is about even: each file is written and hashed by one process. They
    end there in any case if the file system does not let several hosts write one file.
    """
    count = len(hosts)
    begins = _begins(plan.outputs[0])
    if len(begins) > 1:
        whole_files = cut_plan(plan, count, begins, done)
        sizes = [read_bytes_of(plan, stretch, done) for stretch in whole_files]
        is_even = max(sizes) * count <= _MOST_UNEVEN * sum(sizes)
        if is_even or (len(set(hosts)) > 1 and not all(is_coherent(output.local) for output in plan.outputs)):
            return whole_files
    return cut_plan(plan, count, done=done)


def _begins(output: PlannedOutput) -> list[int]:
    """Return where the tensors of each file begin in the data section."""
    if output.placement is None:
        return [file.begin for file in output.files]
    first: dict[int, int] = {}
    for tensor in output.placement.tensors:
        for place in tensor.places:
            first[place.file] = min(tensor.begin, first.get(place.file, tensor.begin))
    return sorted(set(first.values()))
