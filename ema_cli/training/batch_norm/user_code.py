"""The user's own model and data, named as ``pkg.mod:name``, and the place of a fault in them."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import ema_cli
from ema_cli.errors import UsageError
from ema_cli.naming import did_you_mean
from ema_cli.text import quoted, regex, safe_text

_NOT_TO_BLAME = (Path(ema_cli.__file__).parent, Path(torch.__file__).parent)
_LIBRARIES = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LONGEST_REASON = 400
_IN_A_WORKER = regex(r'^  File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)


def make_model(spec: str) -> nn.Module:
    """Return the module called ``spec``, or what the function of that name returns.

    Raises:
        UsageError: there is no such name, or it is something else.
        Exception: whatever the user's code raises.

    """
    found = _find(spec, "--model")
    if isinstance(found, nn.Module):
        return found
    made = _called(found, f"--model {quoted(spec)}", "a torch.nn.Module, nor a function that returns one")
    if not isinstance(made, nn.Module):
        raise UsageError(f"--model {quoted(spec)} returns a {_kind(made)}, not a torch.nn.Module")
    return made


def make_data(spec: str) -> Any:  # noqa: ANN401 - an iterable of whatever the model takes
    """Return the iterable of batches called ``spec``, or what the function of that name returns; raise as the above."""
    found = _find(spec, "--data")
    if not _is_data(found):
        found = _called(found, f"--data {quoted(spec)}", "an iterable of batches, nor a function that returns one")
        if not _is_data(found):
            raise UsageError(f"--data {quoted(spec)} returns a {_kind(found)}, not an iterable of batches")
    if not hasattr(found, "__iter__"):
        raise UsageError(
            f"--data {quoted(spec)} gives a {_kind(found)}: a torch Dataset has single samples, not batches",
            hint="wrap it in a torch.utils.data.DataLoader",
        )
    return found


def place_of(fault: BaseException) -> str:
    """Return where the user's code failed: ``model.py, line 12``; empty if it failed outside of any.

    That is the last line executed in a file that belongs to no library; in a worker of a DataLoader, by its traceback.
    """
    if isinstance(fault, SyntaxError) and fault.filename:
        return _place(fault.filename, fault.lineno)
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(fault.__traceback__)]
    frames += [(found["file"], int(found["line"])) for found in _IN_A_WORKER.finditer(str(fault))]
    foreign = [frame for frame in frames if not frame[0].startswith("<") and not _is_in(frame[0], _NOT_TO_BLAME)]
    own = [frame for frame in foreign if not _is_in(frame[0], _LIBRARIES)]
    return _place(*(own or foreign)[-1]) if foreign else ""


def reason_of(fault: BaseException) -> str:
    """Return the exception in one line: ``ValueError: bad data``."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    if lines and "in DataLoader worker" in lines[0] and len(lines) > 1:  # the exception itself is the last line
        return safe_text(lines[-1], limit=_LONGEST_REASON)
    text = fault.msg if isinstance(fault, SyntaxError) else lines[0] if lines else ""
    return safe_text(f"{_kind(fault)}: {text}" if text else _kind(fault), limit=_LONGEST_REASON)


def _find(spec: str, option: str) -> Any:  # noqa: ANN401
    """Import a module, from the current folder as ``python -m`` does, and return what it has under a dotted name."""
    name, _, path = spec.partition(":")
    parts = path.split(".")
    if name.endswith(".py") or not all(part.isidentifier() for part in (*name.split("."), *parts)):
        raise UsageError(f"{option} {quoted(spec)} is not of the form MODULE:NAME", hint=_as_module(option, name, path))
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
            raise  # the user's module imports it
        raise UsageError(
            f"{option} {quoted(spec)}: there is no module {quoted(missing.name)}",
            hint="modules are searched in the current folder, in PYTHONPATH and in this Python's packages",
        ) from missing
    for number, part in enumerate(parts):
        if not hasattr(found, part):
            owner = quoted(str(getattr(found, "__file__", None) or getattr(found, "__name__", _kind(found))))
            above = "".join(f"{one}." for one in parts[:number])
            hint = did_you_mean(part, dir(found), shown=f"{option} {name}:{above}".__add__)
            raise UsageError(f"{option} {quoted(spec)}: {owner} has no {quoted(part)}", hint=hint)
        found = getattr(found, part)
    return found


def _as_module(option: str, name: str, path: str) -> str:
    """Return an example, with what is right; of a file that was named instead of a module, its module."""
    module = re.sub(r"[\\/]+", ".", name.removesuffix(".py").removeprefix("./"))
    named, shown = (all(part.isidentifier() for part in text.split(".")) for text in (module, path))
    module, path = module if named else "pkg.mod", path if shown else "build" if option == "--model" else "loader"
    return f"{option} {module}:{path}, for {path} in {module.replace('.', '/')}.py"


def _called(found: Any, named: str, wanted: str) -> Any:  # noqa: ANN401
    if not callable(found):
        raise UsageError(f"{named} is a {_kind(found)}, which is neither {wanted}")
    return found()


def _is_data(found: object) -> bool:
    """Whether something can be iterated over and may yield batches."""
    single = isinstance(found, str | bytes | Mapping | torch.Tensor | type)
    return not single and (hasattr(found, "__iter__") or isinstance(found, Dataset))


def _is_in(file: str, folders: Sequence[Path]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _place(file: str, line: int | None) -> str:
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{safe_text(str(shown))}, line {line}"


def _kind(value: object) -> str:
    return safe_text(type(value).__name__)
