"""The parts of the campaign. Each yields its cases one by one: the fault, and the problems found after it."""

from __future__ import annotations

from tests.faults.calls import errors, kills, reads
from tests.faults.case import Case, Part
from tests.faults.changes import changes, random_changes
from tests.faults.determinism import determinism
from tests.faults.disk import full_disk
from tests.faults.foreign_files import foreign_files
from tests.faults.interruptions import random_kills, resume, signals, writers
from tests.faults.kept_files import kept_files
from tests.faults.limits import descriptors, file_limits, memory_limits
from tests.faults.permissions import permissions
from tests.faults.rank_parts import rank_errors, rank_inputs, rank_kills, rank_signals, rank_stops
from tests.faults.terminals import terminals

__all__ = ["PARTS", "Case", "Part"]

PARTS: dict[str, Part] = {
    "errors": errors,
    "kills": kills,
    "reads": reads,
    "random-kills": random_kills,
    "resume": resume,
    "signals": signals,
    "writers": writers,
    "full-disk": full_disk,
    "file-limits": file_limits,
    "memory-limits": memory_limits,
    "descriptors": descriptors,
    "permissions": permissions,
    "terminals": terminals,
    "changes": changes,
    "random-changes": random_changes,
    "foreign-files": foreign_files,
    "kept-files": kept_files,
    "determinism": determinism,
    "rank-kills": rank_kills,
    "rank-signals": rank_signals,
    "rank-stops": rank_stops,
    "rank-errors": rank_errors,
    "rank-inputs": rank_inputs,
}
