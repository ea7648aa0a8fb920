"""The rows of the tables about a run, as text: its files, what it took, its options, its programs.

Text from files goes through ``safe_text``; the renderers escape it for HTML or Markdown.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ema_cli.options.config_used import ConfigUsed
from ema_cli.report import words
from ema_cli.report.model import Report
from ema_cli.report.tables import UNDEFINED
from ema_cli.text import human_bytes, number, numbered, quoted, safe_text

_UNSET: tuple[object, ...] = (None, False, "", [], {}, ())
_LONGEST_VALUE = 400
_LONGEST_COMMAND = 4000

INPUT_TITLES = ("input", "step", "from", "format", "size", "fingerprint")


def input_rows(report: Report) -> list[list[str]]:
    """Return the cells of every input."""
    paths = numbered([safe_text(known.path) for known in report.inputs])
    return [
        [
            path,
            UNDEFINED if known.step is None else f"{known.step:,}",
            safe_text(known.step_source or UNDEFINED),
            known.format,
            human_bytes(known.bytes),
            f"sha256 {known.sha256}" if known.sha256 else known.fingerprint,
        ]
        for path, known in zip(paths, report.inputs, strict=True)
    ]


def output_rows(report: Report) -> list[list[str]]:
    """Return path, size and digest of every output; for a folder also its side files."""
    rows = []
    for output in (average.output for average in report.averages):
        side_files = words.side_files(output)
        size = words.output_size(output) + (f", with {side_files}" if side_files else "")
        rows.append([safe_text(words.output_path(output)), size, output.sha256])
    return rows


def timing_rows(report: Report) -> list[tuple[str, str]]:
    """Return bytes, seconds and memory of the run: name and value."""
    summary = report.summary
    rows = [
        ("read", human_bytes(summary.bytes_read)),
        ("written", human_bytes(summary.bytes_written)),
        ("whole run", f"{number(summary.seconds)} s"),
    ]
    if summary.fold_seconds:
        rows.append(("fold", f"{number(summary.fold_seconds)} s"))
        rows.append(("fold throughput", f"{human_bytes(summary.throughput_bytes_per_second)}/s"))
    if summary.peak_memory_bytes is not None:
        rows.append(("peak memory", human_bytes(summary.peak_memory_bytes)))
    return rows


def option_rows(report: Report) -> list[tuple[str, str]]:
    """Return the options that have a value: name and value."""
    options = report.command.options.items()
    return [(safe_text(name.replace("_", " ")), _plain(value)) for name, value in options if value not in _UNSET]


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return safe_text(", ".join(f"{key}={one}" for key, one in value.items()), limit=_LONGEST_VALUE)
    if isinstance(value, list | tuple):
        return safe_text(", ".join(map(str, value)), limit=_LONGEST_VALUE)
    return "yes" if value is True else safe_text(str(value), limit=_LONGEST_VALUE)


def environment_line(report: Report) -> str:
    """Return versions, platform, device and lane in one line."""
    versions = report.environment
    torch = f", torch {versions.torch}" if versions.torch else ""
    return (
        f"ema-avg {report.tool.version}, Python {versions.python}, numpy {versions.numpy}{torch}, "
        f"safetensors {versions.safetensors}, {versions.platform}, "
        f"{words.device(versions.device, versions.device_reason, versions.lane)}"
    )


def command_line(argv: Sequence[str]) -> str:
    """Return the command line, quoted for a shell; empty for a call from Python."""
    return safe_text(shlex.join(["ema-avg", *argv[1:]]), limit=_LONGEST_COMMAND, whole=False) if argv else ""


def command_parts(argv: Sequence[str]) -> list[str]:
    """Return the command line in parts that belong on one line: its name, an option with its value, an argument."""
    line = command_line(argv)
    parts: list[str] = []
    for word in ["ema-avg", *map(shlex.quote, argv[1:])] if argv else []:
        follows = parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-")
        parts[-1:] = [f"{parts[-1]} {word}"] if follows else [*parts[-1:], word]
    shown = [safe_text(part, limit=_LONGEST_COMMAND, whole=False) for part in parts]
    return shown if " ".join(shown) == line else [line] * bool(line)


def config_line(config: ConfigUsed | None) -> str:
    """Return which options the configuration file set; empty if none."""
    if config is None or not config.options:
        return ""
    return f"Options from {quoted(config.path)}: {', '.join(map(safe_text, config.options))}."
