"""The options of an average, and the checks that need no file."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, Literal

from ema_cli.errors import WARNING_CODES, RunWarning, UsageError
from ema_cli.naming import did_you_mean, nearest
from ema_cli.options.config_used import ConfigUsed
from ema_cli.options.declaration import declared, option, read_values
from ema_cli.options.input_options import InputOptions
from ema_cli.options.output_options import DEFAULT_SHARD_BYTES, PATH, SIZE, SWEPT
from ema_cli.options.weighting import split_weights
from ema_cli.record import record
from ema_cli.storage.locations import Location
from ema_cli.storage.url import Url
from ema_cli.text import quoted
from ema_cli.weights.methods import Clock

BufferPolicy = Literal["average", "last", "first"]
GeometryMode = Literal["sample", "none"]
LoraMode = Literal["factors", "exact"]

DEFAULT_SAMPLES = 100
"""Tensor pieces that a verification recomputes by default."""
_MOST_THREADS = 256


@record
class Options(InputOptions):
    """What to average, how, and where to write it. Only ``paths`` has no default."""

    confirmed: tuple[str, ...] = ()
    """Options with ``default_warned`` whose default was given by hand."""
    config: ConfigUsed | None = None
    """The configuration file that set some of the options."""
    config_warnings: tuple[RunWarning, ...] = ()
    """About configuration files that were ignored."""
    in_memory: bool = False
    """Whether the average is not written: the names of outputs mean nothing."""

    clock: Clock | None = option(
        None,
        help="What the steps count: the unit in reports. With epochs, a decay per step is a decay per epoch.",
        panel="Weights",
    )
    continue_from: Location | None = option(
        None,
        help="Fold new checkpoints into this previous average, as if all had been averaged at once.",
        metavar="PATH",
        form=PATH,
        in_found_file="below",
        panel="Weights",
    )

    buffers: BufferPolicy = option(
        "average",
        help="BatchNorm running statistics: averaged, or copied from the last or first checkpoint. Integers and bools "
        "are always copied from the last.",
        panel="Compute",
        in_fingerprint=True,
        kept_on_continue=True,
        default_warned=True,
    )
    lora: LoraMode = option(
        "factors",
        help="LoRA adapters: the factors A and B are averaged one by one, or exact: the updates B A are, by factors of "
        "all checkpoints side by side, so the ranks add up.",
        panel="Compute",
        in_fingerprint="given",
        kept_on_continue=True,
        unstored=("factors",),
    )
    device: str = option(
        "cpu", help="cpu, cuda, cuda:1, ..., or auto: the GPU where it pays.", metavar="DEVICE", panel="Compute"
    )
    threads: int | None = option(
        None, help="Number of worker threads.", unset="one per core, at most 8", metavar="N", panel="Compute"
    )
    max_memory: int | None = option(
        None,
        help="Limit for the buffers of the fold.",
        unset="32MB",
        metavar="SIZE",
        form=replace(SIZE, example="64MB"),
        panel="Compute",
    )
    geometry: GeometryMode = option(
        "sample",
        help="Measure the distances between the checkpoints for the report, on a fixed sample of elements, or not.",
        panel="Compute",
    )
    probe: bool = option(
        True,
        help="Do not read a small sample of every checkpoint before the fold, to see whether they are one series and "
        "in the right order. Without it, lora-factors and integers-differ are not reported either.",
        panel="Compute",
    )
    allow_nonfinite: bool = option(
        False, help="Average NaN and infinity instead of refusing them.", panel="Compute", in_fingerprint=True
    )

    resume: bool = option(
        False, help="Continue an interrupted run; if this run is interrupted, keep what is complete.", panel="Run"
    )
    strict: bool = option(
        False,
        help="Fail on any warning (exit 8), and publish nothing.",
        brief="Fail on any warning, and write nothing.",
        panel="Run",
    )
    allow: tuple[str, ...] = option(
        (),
        help="Accept warnings of this code under --strict; they are shown, and marked in the report. Repeatable.",
        metavar="CODE",
        panel="Run",
    )

    @property
    def order_matters(self) -> bool:
        """Whether the order changes more than what is copied from the last: not if all have a weight of their own."""
        selects = self.last is not None or self.every > 1
        return selects or not set(self.method_names) <= {"uniform", "manual"}

    def is_given(self, name: str) -> bool:
        """Whether an option with ``default_warned`` was given by hand, be it with its default."""
        (default,) = (one.default for one in declared(Options) if one.name == name)
        return name in self.confirmed or getattr(self, name) != default

    def kept_on_continue(self) -> dict[str, str | None]:
        """Return the options that the metadata of an output store, and that a continued average must repeat.

        The value is ``None`` where the metadata leave it out.
        """
        kept = [one for one in declared(type(self)) if one.kept_on_continue]
        values = {one.name: one.plain(getattr(self, one.name)) for one in kept}
        texts = {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}
        return {one.name: None if texts[one.name] in one.unstored else texts[one.name] for one in kept}

    def __post_init__(self) -> None:
        """Raise if the options contradict each other.

        Raises:
            UsageError: naming the options, and what to do.

        """
        self.check_weights()
        self.check_inputs()
        if self.continue_from is not None:
            self._check_continuation()
        if re.fullmatch(r"cpu|auto|cuda(:\d{1,3})?", self.device) is None:
            raise UsageError(f"--device {quoted(self.device)} is none of cpu, auto, cuda, cuda:0, cuda:1, ...")
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise UsageError(f"--threads {self.threads} must be from 1 to {_MOST_THREADS}")
        if self.lora == "exact" and self.output_format == "same":
            raise UsageError(
                "--lora exact changes the shapes of the factors, which a copy of the last checkpoint cannot hold",
                hint="-o ema.safetensors",
            )
        if self.lora == "exact" and self.allow_nonfinite:
            raise UsageError("--lora exact does not take --allow-nonfinite")
        self.check_output()
        if self.resume and isinstance(self.output, Url):
            raise UsageError("--resume keeps a partial file, which a remote store cannot do", hint="-o ema.safetensors")
        if self.resume and (self.max_shard_size is not None or self.output_format == "dcp"):
            raise UsageError("--resume keeps one partial file, not a folder of shards", hint="-o ema.safetensors")
        for code in self.allow:
            _check_code(code)
        if self.continue_from is None:
            self.check_distinct_outputs()

    def _check_continuation(self) -> None:
        if len(self.method_names) > 1 or any(len(getattr(self, swept)) > 1 for swept in SWEPT):
            raise UsageError("--continue-from continues one average", hint="continue the averages one by one")
        if self.lora == "exact":
            raise UsageError(
                "--lora exact cannot be used with --continue-from: the rank would grow with every average",
                hint="average all checkpoints at once",
            )
        if "manual" in self.method_names:
            raise UsageError(
                "weights by hand belong to the checkpoints they were given for; --continue-from cannot extend them",
                hint="give the weights of all checkpoints at once",
            )
        for flag, value in (("--last", self.last), ("--every", self.every if self.every > 1 else None)):
            if value is not None:
                raise UsageError(
                    f"{flag} selects from all checkpoints, but --continue-from reads only the new ones",
                    hint=f"leave out {flag}, or average all checkpoints at once",
                )


def _check_code(code: str) -> None:
    if code not in WARNING_CODES:
        several = [nearest(part.strip(), WARNING_CODES, most=1) for part in code.split(",")]
        hint = "the codes are listed by: ema-avg help warnings"
        if all(several):
            options = " ".join(f"--allow {found[0]}" for found in several)
            hint = f"did you mean {options}?"
        raise UsageError(f"--allow {quoted(code)}: there is no warning with this code", hint=hint)


def make_options(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **given: Any) -> Options:  # noqa: ANN401
    """Return the options of an average.

    Args:
        paths: files, folders and glob patterns; with ``method="manual"`` and no ``weights``, ``PATH:WEIGHT``.
        **given: values of other fields, as ``Option.read`` takes them; ``None`` stands for the default.

    Raises:
        UsageError: a value has not the form of its option, or the options contradict each other.
        TypeError: there is no such option.

    """
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            meant = did_you_mean(name, known)
            raise TypeError(f"got an unexpected keyword argument {name!r}" + (f"; {meant}" if meant else ""))
    values = {**given, **read_values(Options, given)}
    if values["max_shard_size"] is None and os.fspath(given.get("output") or "").endswith(os.sep):
        values["max_shard_size"] = DEFAULT_SHARD_BYTES
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    names = tuple(os.fspath(path) for path in listed)
    if "manual" in values["method"] and values["weights"] is None:
        names, values["weights"] = split_weights(names)
    given_by_hand = (one for one in declared(Options) if one.default_warned and given.get(one.name) is not None)
    confirmed = tuple(one.name for one in given_by_hand if values[one.name] == one.default)
    return Options(paths=names, **{"confirmed": confirmed, **values})
