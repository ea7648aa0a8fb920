"""All cases."""

from __future__ import annotations

from tests.hostile.cases import Case
from tests.hostile.file_cases import file_cases
from tests.hostile.folder_cases import folder_cases
from tests.hostile.foreign_cases import foreign_cases
from tests.hostile.legacy_cases import legacy_cases
from tests.hostile.pickle_cases import pickle_cases
from tests.hostile.rank_cases import rank_cases
from tests.hostile.safetensors_cases import safetensors_cases
from tests.hostile.storage_cases import storage_cases
from tests.hostile.zip_cases import zip_cases


def catalogue() -> list[Case]:
    """Return every case, each under a name of its own."""
    files = (file_cases, foreign_cases, zip_cases, pickle_cases, storage_cases, legacy_cases, safetensors_cases)
    found = [case for part in (*files, folder_cases, rank_cases) for case in part()]
    if len({case.name for case in found}) != len(found):
        raise ValueError("two cases have one name")
    return found
