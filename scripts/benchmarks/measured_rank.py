"""Run a command as one rank, and write what it took to FOLDER/RANK.json: ``measured_rank.py FOLDER COMMAND...``."""

import json
import os
import sys
import time


def _main() -> None:
    folder, *command = sys.argv[1:]
    started = time.time()
    pid = os.posix_spawnp(command[0], command, os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ended = time.time()
    with open(f"/proc/{pid}/io", encoding="ascii") as file:  # noqa: PTH123 - pathlib takes longer than the rest
        moved = {name: int(count) for name, count in (line.split(": ") for line in file)}
    _, status, used = os.wait4(pid, 0)
    taken = {
        "seconds": ended - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "read_bytes": moved["rchar"],
        "written_bytes": moved["wchar"],
    }
    with open(f"{folder}/{os.environ.get('RANK', '0')}.json", "w", encoding="ascii") as file:  # noqa: PTH123
        json.dump(taken, file)
    sys.exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    _main()
