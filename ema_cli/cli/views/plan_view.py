"""The plan as people see it: the checkpoints with their shares, what each average is, what will be read and written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile

from rich.table import Table
from rich.text import Text

from ema_cli.cli.console import Console
from ema_cli.fold.devices import resolve_device
from ema_cli.options.average import Options
from ema_cli.records.files import FileRole
from ema_cli.records.plan import Action, Plan, PlannedOutput
from ema_cli.records.series import Checkpoint, OrderedCheckpoint, Role, Skipped
from ema_cli.report import words
from ema_cli.report.build import diagnose_output, parameters
from ema_cli.report.model import MethodUsed
from ema_cli.storage.locations import Location, absolute
from ema_cli.text import human_bytes, percent, plural, quoted, safe_text, shortlist

_MOST_ROWS = 24
_MOST_SHARES = 6
"""Averages whose shares stand side by side; of more, the comparison alone is shown."""
_BAR_WIDTH = 16
_UNKNOWN = "-"
_MOST_IGNORED = 100
_FEW = 3
"""Files left out for one reason that are named one by one."""


def plan(made: Plan, options: Options, console: Console) -> None:
    """Show the order, the shares, and what will be read and written."""
    checkpoints = made.checkpoints
    folder = _common_folder([checkpoint.path for checkpoint in checkpoints])
    console.talk(_headline(made, folder))
    for line in _where_the_weights_are(checkpoints):
        console.talk(line)
    if console.style.verbose:
        for line in _what_was_ignored(checkpoints):
            console.talk(line)
    if len(made.outputs) <= _MOST_SHARES or console.style.verbose:
        console.talk(_shares_table(made, folder, all_rows=console.style.verbose))
    else:
        console.talk(f"shares of {len(made.outputs)} averages: -v shows them")
    left_out(made.series.skipped, console)
    if len(made.outputs) == 1:
        for line in _sentences(made, made.outputs[0]):
            console.talk(line)
    else:
        console.talk(_comparison(made))
    for line in _work(made, options):
        console.talk(line)


def left_out(entries: Sequence[Skipped], console: Console) -> None:
    """Name the inputs that were found and not used; many of one reason are counted."""
    by_reason: dict[str, list[Location]] = {}
    for entry in entries:
        by_reason.setdefault(entry.reason, []).append(entry.path)
    for reason, paths in by_reason.items():
        if len(paths) <= _FEW or console.style.verbose:
            for path in paths:
                console.talk(f"left out {quoted(str(path))}: {reason}")
        else:
            names = shortlist((quoted(path.name) for path in paths), most=2)
            console.talk(f"left out {plural(len(paths), 'file')} ({names}): {reason}")


def _headline(made: Plan, folder: str) -> str:
    formats = shortlist(
        sorted(
            {c.format for c, m in zip(made.checkpoints, made.series.members, strict=True) if m.role is not Role.AVERAGE}
        )
    )
    fresh = sum(member.role is Role.CHECKPOINT for member in made.series.members)
    continuation = made.series.continuation
    counted = plural(fresh, "checkpoint" if continuation is None else "new checkpoint")
    line = f"{counted} in {safe_text(_shortest(folder))}, {formats}, {made.series.reason}"
    if continuation is None:
        return line
    return f"{line}; going on from {plural(len(continuation.folded), 'checkpoint')} in {quoted(str(continuation.path))}"


def _work(made: Plan, options: Options) -> Iterator[str]:
    averaged = sum(tensor.action is Action.AVERAGED for tensor in made.tensors)
    copied = Counter(tensor.why_copied for tensor in made.tensors if tensor.action is Action.COPIED)
    counts = plural(averaged, "tensor") + " averaged"
    if copied:
        reasons = "; ".join(f"{count:,} {why}" if len(copied) > 1 else why for why, count in copied.items())
        counts += f", {copied.total():,} copied ({reasons})"
    yield f"{counts}; {plural(parameters(made), 'parameter')}"
    dropped = [f"{quoted(name)} ({quoted(tensor.name)})" for tensor in made.tensors for name in tensor.stands_for]
    if dropped:
        yield f"not written, as tied to another: {shortlist(dropped)}"
    yield (
        f"reads {human_bytes(made.read_bytes)}, writes {human_bytes(made.write_bytes)}{_in_shards(made)}; "
        f"{resolve_device(options.device)}, {plural(made.buffers.threads, 'thread')}, "
        f"{human_bytes(made.buffers.total_bytes)} of buffers"
    )


def _in_shards(made: Plan) -> str:
    """Say how many files of weights a folder gets, and what is carried over into it."""
    output = made.outputs[0]
    if not output.folder:
        return ""
    carried = [quoted(side.name) for side in output.beside if side.role is FileRole.SIDE_FILE]
    beside = f" with {shortlist(carried)}" if carried else ""
    return f" in {plural(len(output.files), 'shard')}{beside}"


def _common_folder(paths: Sequence[Location]) -> str:
    """Return the folder, here or in a store, that all paths share; empty where they share none."""
    parents = zip(*(absolute(path).split("/")[:-1] for path in paths), strict=False)
    return "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, parents))


def _shortest(folder: str) -> str:
    """Return a folder as seen from here, where that is shorter."""
    if not folder:
        return "several places"
    if "://" in folder:
        return folder
    try:
        return min(folder, os.path.relpath(folder), key=len)
    except OSError:  # the working directory was deleted
        return folder


def _where_the_weights_are(checkpoints: Sequence[Checkpoint]) -> list[str]:
    lines = []
    keys = Counter(checkpoint.key for checkpoint in checkpoints if checkpoint.key)
    if keys:
        lines.append(f"weights under {shortlist(quoted(key) for key in keys)}")
    prefixes = Counter(prefix for checkpoint in checkpoints for prefix in checkpoint.stripped)
    if prefixes:
        lines.append(f"prefixes taken off the names: {', '.join(prefixes)}")
    return lines


def _what_was_ignored(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """Say what else the checkpoints hold, once for all that hold the same."""
    of: dict[tuple[str, ...], list[str]] = {}
    for checkpoint in checkpoints:
        if checkpoint.ignored:
            of.setdefault(checkpoint.ignored, []).append(quoted(checkpoint.path.name))
    for ignored, names in of.items():
        some = shortlist(map(quoted, ignored), most=_MOST_IGNORED)
        yield f"ignored in {shortlist(names, most=2)}, as no tensors of the model: {some}"


def _shares_table(made: Plan, folder: str, *, all_rows: bool) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("checkpoint", overflow="fold")
    table.add_column(made.series.unit if any(m.step for m in made.series.members) else "step", justify="right")
    if len(made.outputs) == 1:
        table.add_column("from")
        table.add_column("share", justify="right", no_wrap=True)
        table.add_column("" if made.series.continuation else "lr x", justify="right", no_wrap=True)
        table.add_column("")
    for output in made.outputs if len(made.outputs) > 1 else ():
        table.add_column(output.weighting.method.label, justify="right", overflow="fold")
    rows = list(range(len(made.series.members)))
    cut = not all_rows and len(rows) > _MOST_ROWS
    implied_lr = diagnose_output(made.series, made.outputs[0]).implied_lr
    for row in [*rows[: _MOST_ROWS // 2], *rows[-_MOST_ROWS // 2 :]] if cut else rows:
        if cut and row == len(rows) - _MOST_ROWS // 2:
            table.add_row("…", f"{len(rows) - _MOST_ROWS:,} more (-v shows them)")
        table.add_row(*_share_row(made, folder, row, implied_lr))
    return table


def _share_row(made: Plan, folder: str, row: int, implied_lr: Sequence[float]) -> list[str | Text]:
    member = made.series.members[row]
    path = member.checkpoint.path
    name = absolute(path).removeprefix(folder).lstrip("/") if folder else str(path)
    shares = [output.weighting.weights[row] for output in made.outputs]
    cells: list[str | Text] = [
        str(row + 1),
        Text(safe_text(str(name))),
        f"{member.step.value:,}" if member.step else "",
    ]
    if len(shares) > 1:
        return [*cells, *map(percent, shares)]
    largest = max(made.outputs[0].weighting.weights)
    scale = "" if made.series.continuation else f"{implied_lr[row]:.2f}"
    bar = Text("█" * round(_BAR_WIDTH * shares[0] / largest), style="cyan")
    return [*cells, Text(_source(made, member)), percent(shares[0]), scale, bar]


def _source(made: Plan, member: OrderedCheckpoint) -> str:
    """Say where the step was read or, of what is no new checkpoint, what it is."""
    if member.role is Role.AVERAGE and made.series.continuation is not None:
        return plural(len(made.series.continuation.folded), "checkpoint")
    if member.role is Role.PREVIOUS_LAST:
        return "its last, again"
    return member.step.source if member.step else ""


def _sentences(made: Plan, output: PlannedOutput) -> Iterator[str]:
    """Say what the average is: its definition, its shares, how well it can be rebuilt."""
    found = diagnose_output(made.series, output)
    method = MethodUsed(**output.weighting.method.plain())
    yield words.definition(method, found.mean_age_unit)
    yield (
        f"counts as {found.effective_checkpoints:.1f} of {plural(len(found.implied_lr), 'checkpoint')}; "
        f"mean age {words.age(found)}; first {percent(found.first)}, last {percent(found.last)}"
    )
    rebuilt = words.reconstruction(method, found)
    if rebuilt:
        yield rebuilt


def _comparison(made: Plan) -> Table:
    """Put the averages side by side: what to look at before choosing one. Columns that say nothing are left out."""
    unit = made.series.timeline.unit
    titles = ("average", "first", "last", "largest", "counts\nas", f"age,\n{unit}s", "unseen", "u", "error")
    rows = [_comparison_row(made, output) for output in made.outputs]
    said = [column for column in range(len(titles)) if any(row[column] != _UNKNOWN for row in rows)]
    table = Table(box=None, pad_edge=True, header_style="dim")
    for column in said:
        table.add_column(titles[column], justify="right" if column else "left", no_wrap=column > 0)
    for row in rows:
        table.add_row(*(row[column] for column in said))
    return table


def _comparison_row(made: Plan, output: PlannedOutput) -> list[str]:
    found = diagnose_output(made.series, output)
    method = MethodUsed(**output.weighting.method.plain())
    return [
        output.weighting.method.label,
        percent(found.first),
        percent(found.last),
        percent(found.largest),
        f"{found.effective_checkpoints:.1f}",
        f"{found.mean_age:,.4g}",
        _UNKNOWN if found.unobserved_mass is None else percent(found.unobserved_mass),
        _UNKNOWN if found.window_ratio_u is None else f"{found.window_ratio_u:.3g}",
        words.expected_error(method, found) or _UNKNOWN,
    ]
