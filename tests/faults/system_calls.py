"""The system calls of the program, as ``strace`` sees them, compared with those that the preloaded library sees.

A call that the library does not see can never be made to fail, so it is a gap of the campaign.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.case import CannotBeTried
from tests.faults.shim import Shim

KINDS: dict[str, str] = {
    **dict.fromkeys(("open", "openat", "creat"), "open"),
    **dict.fromkeys(("read", "readv"), "read"),
    **dict.fromkeys(("pread64", "preadv", "preadv2"), "pread"),
    **dict.fromkeys(("write", "writev", "sendfile", "copy_file_range"), "write"),
    **dict.fromkeys(("pwrite64", "pwritev", "pwritev2"), "pwrite"),
    **dict.fromkeys(("stat", "lstat", "fstat", "newfstatat", "statx"), "stat"),
    **dict.fromkeys(("statfs", "fstatfs"), "statvfs"),
    **dict.fromkeys(("truncate", "ftruncate"), "ftruncate"),
    **dict.fromkeys(("rename", "renameat"), "rename"),
    "renameat2": "exchange",
    **dict.fromkeys(("unlink", "unlinkat"), "unlink"),
    **dict.fromkeys(("mkdir", "mkdirat"), "mkdir"),
    **dict.fromkeys(("link", "linkat"), "link"),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2"), "chmod"),
    **dict.fromkeys(("access", "faccessat", "faccessat2"), "access"),
    **{name: name for name in ("close", "fsync", "fdatasync", "flock", "fallocate", "rmdir", "mmap")},
    "fadvise64": "fadvise",
    "getdents64": "readdir",
}
"""System calls, with the names that the campaign has for them."""
_INSIDE = ("fcntl", "lseek", "ioctl")
"""Calls that the C library and Python make on their own, on descriptors that they have just opened."""
_ON_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_AT = re.compile(r'(?:AT_FDCWD(?:<[^>]*>)?|\d+<([^>]*)>(?:\(deleted\))?), "((?:[^"\\]|\\.)*)"')
_ON_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
_ENTRY = re.compile(r"\d+ +(\w+)\((.*)")


def compare(command: Sequence[str], folder: Path, shim: Shim, scratch: Path) -> list[str]:
    """Run a command; return the calls on files in a folder that the library sees less often than ``strace`` does.

    Raises:
        CannotBeTried: there is no ``strace``, or it may not be used.

    """
    log, trace = scratch / "strace", scratch / "trace"
    trace.write_text("")
    environment = {**os.environ, **shim.tracing(folder, trace, harmless=True)}
    preload = environment.pop("LD_PRELOAD")
    tracer = ["strace", "-f", "-y", "-qq", "-e", "trace=%file,%desc", "-E", f"LD_PRELOAD={preload}", "-o", str(log)]
    if shutil.which("strace") is None:
        raise CannotBeTried("no strace")
    done = subprocess.run([*tracer, *command], env=environment, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr or not log.exists():
        raise CannotBeTried("strace is not allowed")
    if done.returncode:
        raise RuntimeError(done.stderr)
    made = Counter(_made(log.read_text(errors="replace").splitlines(), folder))
    seen = Counter(_seen(trace.read_text().splitlines()))
    return sorted({f"{call} {path}" for (call, path), count in made.items() if count > seen[call, path]})


def _made(lines: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the calls in the output of ``strace`` that are on files in the folder, with the paths."""
    for line in lines:
        entry = _ENTRY.match(line)
        if entry is None:
            continue
        call, arguments = entry.groups()
        path = _path(arguments, relative=call.endswith(("at", "at2", "statx")))
        if path is not None and Path(path).is_relative_to(folder) and call not in _INSIDE:
            yield KINDS.get(call, call), path


def _path(arguments: str, *, relative: bool) -> str | None:
    """Return the path in the arguments of a call: a path, a ``relative`` one, or that of a descriptor."""
    if named := _ON_PATH.match(arguments):
        return named[1]
    if relative and (at := _AT.match(arguments)):
        return os.path.join(at[1] or "", at[2]).rstrip("/")  # noqa: PTH118 - strings of another program
    found = _ON_DESCRIPTOR.search(arguments)
    return None if found is None else found[1]


def _seen(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the calls in the trace of the library; ``opendir`` opens a folder and looks at it inside the C library."""
    parts = {"opendir": ("open", "stat"), "closedir": ("close",), "probe": ("pread",)}
    for line in lines:
        call, _, path = line.partition("\t")
        for one in parts.get(call, (call,)):
            yield one, path.removesuffix(" (deleted)")
