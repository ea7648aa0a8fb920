"""Become one rank of the program as torchrun started it, with what the case does to this rank.

``python -m tests.faults.as_rank FOLDER ARGUMENTS``: the folder has the orders, and gets the process id.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Continue as the program."""
    folder, arguments, rank = Path(sys.argv[1]), sys.argv[2:], os.environ["RANK"]
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    orders = json.loads((folder / "orders.json").read_text()).get(rank, {"variables": {}, "prefix": []})
    os.environ.update(orders["variables"])
    command = [*orders["prefix"], sys.executable, "-m", "ema_cli", *arguments]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
