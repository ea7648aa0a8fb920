"""All cases."""

from __future__ import annotations

from hostile.cases import Case
from hostile.file_cases import file_cases
from hostile.folder_cases import folder_cases
from hostile.legacy_cases import legacy_cases
from hostile.pickle_cases import pickle_cases
from hostile.safetensors_cases import safetensors_cases
from hostile.zip_cases import zip_cases


def catalogue() -> list[Case]:
    """Return every case, each under a name of its own."""
    parts = (file_cases, zip_cases, pickle_cases, legacy_cases, safetensors_cases, folder_cases)
    found = [case for part in parts for case in part()]
    if len({case.name for case in found}) != len(found):
        raise ValueError("two cases have one name")
    return found
