"""Make the catalogue of bad inputs: files and folders, and in ``catalogue.json`` the verdict that each must meet.

``python -m tests.hostile.bad_inputs FOLDER`` makes all of them; ``ema-avg plan`` then has to end with the exit
code in that list, a message that contains the word, no file called ``canary``, within 512 MB and 10 seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.hostile.cases import OK
from tests.hostile.catalogue import catalogue


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made if it is not there")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cases = catalogue()
    for case in cases:
        case.make(folder / case.name)
    listed = [{"name": case.name, "code": case.code, "word": case.word} for case in cases]
    (folder / "catalogue.json").write_text(json.dumps(listed, indent=1) + "\n")
    good = sum(case.code == OK for case in cases)
    print(f"{len(cases)} inputs, {len(cases) - good} bad and {good} strange but good, in {folder}")


if __name__ == "__main__":
    main()
