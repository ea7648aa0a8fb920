"""What is fuzzed: each parser of the program with valid seeds, a mutation that knows its format, and one execution."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.catalogue import catalogue
from tests.hostile.file_parsers import file_parsers
from tests.hostile.folder_parsers import folder_parsers
from tests.hostile.own_parsers import own_parsers
from tests.hostile.parser import Parser


def parsers(folder: Path) -> dict[str, Parser]:
    """Return them all.

    Args:
        folder: empty; where files are put that a parser wants to open by name.

    """
    cases = catalogue()
    return {**file_parsers(cases, folder), **folder_parsers(cases, folder), **own_parsers(folder)}
