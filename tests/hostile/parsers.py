"""All parsers of the program with valid seeds, a mutation that knows the format, and one execution."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.catalogue import catalogue
from tests.hostile.file_parsers import file_parsers
from tests.hostile.folder_parsers import folder_parsers
from tests.hostile.own_parsers import own_parsers
from tests.hostile.parser import Parser
from tests.hostile.report_parsers import report_parsers


def parsers(folder: Path) -> dict[str, Parser]:
    """Return all parsers.

    Args:
        folder: empty; for files of parsers that open them by name.

    """
    cases = catalogue()
    return {
        **file_parsers(cases, folder),
        **folder_parsers(cases, folder),
        **own_parsers(folder),
        **report_parsers(folder),
    }
