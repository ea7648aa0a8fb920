"""Output for CI services: annotations, a step summary and step outputs on GitHub, collapsed sections on GitLab.

It changes how a run is presented, never its result. Untrusted text cannot become a workflow command: the runner ignores
commands (``::stop-commands::``) except for our own annotations, and these are escaped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ema_cli.errors import OutputError

if TYPE_CHECKING:
    from ema_cli.report.model import Report

CiMode = Literal["auto", "github", "gitlab", "none"]
Service = Literal["github", "gitlab", "none"]
_SECTION = "ema_avg_plan"


def detect(mode: CiMode, environment: Mapping[str, str]) -> Service:
    """Return the service, detected by its documented environment variables."""
    if mode != "auto":
        return mode
    if environment.get("GITHUB_ACTIONS") == "true":
        return "github"
    return "gitlab" if environment.get("GITLAB_CI") else "none"


def annotation(kind: Literal["warning", "error"], title: str, message: str, hint: str = "") -> str:
    """Return a workflow command, escaped like GitHub's toolkit does; GitHub shows ten warnings per step."""
    return f"::{kind} title={_escaped(title, ':,')}::{_escaped(message + (hint and f'{chr(10)}try: {hint}'))}"


def _escaped(text: str, also: str = "") -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    for character in also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


@cache
def _token() -> str:
    return os.urandom(16).hex()


def silence() -> str:
    """Return the line after which a GitHub runner ignores workflow commands."""
    return f"::stop-commands::{_token()}"


def resume() -> str:
    """Return the line after which a GitHub runner obeys workflow commands again, such as those of later programs."""
    return f"::{_token()}::"


def command(line: str) -> str:
    """Return a workflow command that is obeyed despite ``silence``."""
    return f"{resume()}\n{line}\n{silence()}"


def section(title: str, *, begins: bool) -> str:
    """Return the line that opens or closes a collapsed section of a GitLab log."""
    now = int(time.time())
    if begins:
        return f"\x1b[0Ksection_start:{now}:{_SECTION}[collapsed=true]\r\x1b[0K{title}"
    return f"\x1b[0Ksection_end:{now}:{_SECTION}\r\x1b[0K"


def publish(report: Report, environment: Mapping[str, str]) -> None:
    """Append the step summary and the step outputs to the files that GitHub names in the environment.

    Raises:
        OutputError: such a file cannot be written; the average and its report have been written.

    """
    from ema_cli.report.markdown import to_markdown  # noqa: PLC0415 - only where there is a summary

    for variable, text in (("GITHUB_STEP_SUMMARY", to_markdown(report)), ("GITHUB_OUTPUT", _outputs(report))):
        if environment.get(variable):
            _append(Path(environment[variable]), text, variable)


def _append(path: Path, text: str, variable: str) -> None:
    try:
        with path.open("ab+") as file:
            unfinished = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * unfinished + text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OutputError(
            f"the average was written, but not the file in {variable}: {error.strerror}", hint="--ci none"
        ) from error


def _outputs(report: Report) -> str:
    """Return the step outputs: path, sha256 and report, a line per average, and the number of averages."""
    from ema_cli.report.beside import report_path  # noqa: PLC0415 - this module is part of every start
    from ema_cli.storage.locations import locate  # noqa: PLC0415

    paths = [average.output.path for average in report.averages]
    values = {
        "path": paths,
        "sha256": [average.output.sha256 for average in report.averages],
        "report": [str(report_path(locate(path))) for path in paths],
        "count": [str(len(paths))],
    }
    delimiter = f"ema_avg_{os.urandom(16).hex()}"
    return "".join(f"{name}<<{delimiter}\n{chr(10).join(lines)}\n{delimiter}\n" for name, lines in values.items())
