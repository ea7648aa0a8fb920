"""The average of what a training has saved, for the callbacks of trainers: an error in it never ends the training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ema_cli.errors import EmaAvgError, UsageError
from ema_cli.options.average import make_options
from ema_cli.options.keyword_messages import in_keywords, keywords_in_errors
from ema_cli.options.keywords import StrPath
from ema_cli.pipeline import run_average
from ema_cli.report.readable_report import ReadableReport
from ema_cli.text import plural, quoted

logger = logging.getLogger(__name__)


class RunAverage:
    """Averages the checkpoints of a training with the same options again and again, in one process of several.

    Args:
        output: as in ``ema_cli.average``; ``{run}`` is the folder of the checkpoints.
        every_n_saves: average after every k-th checkpoint too, not only at the end.
        **options: further keywords of ``ema_cli.average``.

    Raises:
        ema_cli.errors.UsageError: the options contradict each other.

    """

    def __init__(self, *, output: StrPath, every_n_saves: int | None, **options: Any) -> None:  # noqa: ANN401
        if every_n_saves is not None and every_n_saves < 1:
            raise UsageError(f"every_n_saves={every_n_saves} must be at least 1")
        self._options = {"force": True, **options, "output": output}
        with keywords_in_errors():
            checked = make_options(paths=["checkpoint"], **self._options)
            if checked.lacks_decay and checked.continue_from is None:
                raise UsageError("neither --decay nor --half-life was given", hint="--decay 0.9 or --half-life 4")
        self._every = every_n_saves
        self.begin({})

    def begin(self, saved: Mapping[str, int]) -> None:
        """Begin a training; forget an earlier one.

        Args:
            saved: checkpoints that belong to it already, with their steps.

        """
        self.saved = dict(saved)
        """The step of every checkpoint that the training saved, by its path."""
        self.report: ReadableReport | None = None
        """The report of the last average; process 0 has it."""
        self._averaged: list[str] = []
        """The checkpoints in it."""

    def add(self, path: str, step: int) -> None:
        """Note a checkpoint that is complete; average if it is the k-th since."""
        if path in self.saved:
            return
        self.saved[path] = step
        if self._every and len(self.saved) % self._every == 0:
            self.write(last=False)

    def write(self, *, last: bool = True) -> None:
        """Average what is still there; process 0 does it, and the others wait. Errors are logged.

        Args:
            last: the training ends: log the warnings of the average too.

        """
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several:
            dist.barrier()  # every process has written its part of the checkpoint
        if not several or dist.get_rank() == 0:
            self._write()
            if last and self.report is not None:
                _log_warnings(self.report)
        if several:
            dist.barrier()

    def _write(self) -> None:
        paths = self._present()
        if self.report is not None and paths == self._averaged:
            return
        self.report, self._averaged = None, paths
        with logged("the checkpoints were not averaged"):
            if not paths:
                raise UsageError(
                    "the training saved none that is still there", hint="save more checkpoints, or keep more of them"
                )
            with keywords_in_errors():
                options = make_options(paths, run=str(Path(paths[-1]).parent), **self._options)
                self.report = ReadableReport.of(run_average(options).report)  # warnings are logged, not issued
            written = [quoted(one.output.path) for one in self.report.averages]
            logger.info("%s averaged: %s", plural(len(paths), "checkpoint"), ", ".join(written))

    def _present(self) -> list[str]:
        """Return the checkpoints that were not deleted since, one of each step."""
        by_step = {step: path for path, step in self.saved.items() if "://" in path or Path(path).exists()}
        return [by_step[step] for step in sorted(by_step)]


def _log_warnings(report: ReadableReport) -> None:
    for warning in report.warnings:
        hint = f"; {in_keywords(warning.hint)}" if warning.hint else ""
        message = in_keywords(warning.message)
        logger.warning("average of the checkpoints: %s (%s)%s", message, warning.code, hint)


@contextmanager
def logged(failure: str) -> Iterator[None]:
    """Log an error inside the ``with`` block instead of raising it: the training is worth more."""
    try:
        yield
    except EmaAvgError as error:
        logger.warning("%s: %s%s", failure, error, f"; {error.hint}" if error.hint else "")
    except Exception:
        logger.exception("%s", failure)


def stand_in(missing: ImportError, install: str) -> type:
    """Return a class to derive a callback from if its framework is missing: making one raises what to install."""

    def refuse(self: object) -> None:
        raise UsageError(f"{type(self).__name__} cannot be used: {missing}", hint=install)

    return type("Missing", (), {"__init__": refuse})
