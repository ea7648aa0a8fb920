"""The options of the output: where it is written, in which form, and what its name may be."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ema_cli.errors import UsageError
from ema_cli.naming import (
    OUTPUT_FIELDS,
    RUN_FIELDS,
    did_you_mean,
    fields_in,
    fill_output_name,
    safetensors_name,
)
from ema_cli.options.declaration import TextForm, option
from ema_cli.options.weighting import WeightOptions
from ema_cli.record import record
from ema_cli.storage.locations import STREAMED, Location, locate
from ema_cli.storage.url import Url
from ema_cli.text import is_writable_text, parse_bytes, quoted, without_secrets

OutputDtype = Literal["same", "float32", "bfloat16", "float16", "float64"]
TiedPolicy = Literal["keep", "drop"]
ReadBack = Literal["sample", "all"]
OutputFormat = Literal["safetensors", "same", "dcp"]

DEFAULT_SHARD_BYTES = 5_000_000_000
"""The usual size of a weight file in Hugging Face libraries."""
OUR_METADATA = "ema_avg."
"""Prefix of the metadata keys that this program writes."""
UPDATED_BATCHES = f"{OUR_METADATA}update_bn_batches"
"""The metadata key of an output whose BatchNorm statistics were recomputed: the number of batches."""
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
"""Suffixes of an output that mean the format of the last checkpoint."""
REPORT_SUFFIXES = (".json", ".md", ".html")
SWEPT = ("decay", "one_minus_decay", "half_life", "sigma_rel")
"""Options that make one average for each of their values; an output's name can hold the value."""
_LEAST_PARTS = {**dict.fromkeys(STREAMED, 3), "hf": 4}
"""The least number of parts of a file's or folder's URL: scheme, bucket or repository, and its name in there."""


def _parse_pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(text)
    return key, value


def _parse_path(text: str) -> Location:
    if not text or "\0" in text:
        raise ValueError(text)
    return locate(text)


PATH = TextForm(parse=_parse_path, noun="a path", example="ema.safetensors", others=(Url,))
SIZE = TextForm(parse=parse_bytes, noun="a size", example="5GB", others=(int,))
_PAIR = TextForm(parse=_parse_pair, noun="KEY=VALUE", example="run=baseline", others=(tuple,))


@record
class OutputOptions(WeightOptions):
    """Which averages to make, and where to write them."""

    output: Location | None = option(
        None,
        short="-o",
        help="The .safetensors file to write, or NAME/ for a folder that Hugging Face libraries can read; several "
        "averages need {decay}, {method} or the like in the name.",
        brief="The output, or NAME/. [default: ema.safetensors]",
        unset="ema.safetensors, or ema_0.9.safetensors and the like for several averages",
        metavar="PATH",
        form=PATH,
        in_found_file="below",
        panel="Output",
    )
    format: OutputFormat | None = option(
        None,
        help="Format of the output: safetensors; same: a copy of the last checkpoint, with the averages in the places "
        "of its weights and everything else unchanged, so that its trainer loads it; dcp: a folder of "
        "torch.distributed.checkpoint.",
        unset="same for a name in .pt, .pth, .ckpt or .bin, else safetensors",
        panel="Output",
    )
    max_shard_size: int | None = option(
        None,
        help="Write a folder, in files of at most this size.",
        unset="5GB for NAME/",
        metavar="SIZE",
        form=SIZE,
        panel="Output",
    )
    dtype: OutputDtype = option(
        "same",
        help="Type of averaged tensors in the output. same: as in the last checkpoint.",
        aliases={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"},
        panel="Compute",
        in_fingerprint=True,
        default_warned=True,
    )
    report: tuple[Location, ...] = option(
        (),
        help="Write another report: .html, .md or .json; OUT.report.json is always written. Repeatable.",
        brief="Write also a page .html, .md or .json.",
        metavar="PATH",
        form=PATH,
        in_found_file="below",
        panel="Output",
    )
    tied: TiedPolicy = option(
        "keep",
        help="Write tied tensors under every name, or under one name only, as safetensors' save_model does.",
        panel="Output",
        in_fingerprint=True,
        kept_on_continue=True,
        unstored=("keep",),
    )
    metadata: Mapping[str, str] = option(
        dict, help="Add metadata to the output. Repeatable.", metavar="KEY=VALUE", form=_PAIR, panel="Output"
    )
    sha256: bool = option(False, help="Add the SHA-256 of every input to the report.", panel="Output")
    read_back: ReadBack = option(
        "sample",
        help="After writing, compare this much of the output with what the disk returns: a sixteenth, or all.",
        panel="Output",
    )
    force: bool = option(
        False,
        help="Overwrite an existing output, unless it is up to date.",
        brief="Replace an output.",
        panel="Output",
        in_found_file="never",
    )

    def check_output(self) -> None:
        """Raise if there can be no such output or report.

        Raises:
            UsageError: naming the option, and what to do.

        """
        for report in self.report:
            check_report_name(report)
        for key, value in self.metadata.items():
            if key == "format" or key.startswith(OUR_METADATA):
                raise UsageError(f"--metadata {quoted(key)} is written by ema-avg itself", hint="choose another key")
            if not (is_writable_text(key) and is_writable_text(value)):
                raise UsageError(f"--metadata {quoted(str(key))} is not text that can be written")
        if self.output_format == "safetensors":
            if self.output is not None:
                _check_name(self.output, self.max_shard_size)
        else:
            self._check_other_format()
        if self.output is not None:
            for field in re.findall(r"\{(\w*)\}", str(self.output)):
                if field not in (*OUTPUT_FIELDS, *RUN_FIELDS):
                    known = [f"{{{one}}}" for one in OUTPUT_FIELDS]
                    message = f"the output {quoted(str(self.output))}: there is no {{{field}}}"
                    raise UsageError(message, hint=did_you_mean(f"{{{field}}}", known) or f"use {', '.join(known)}")

    @property
    def output_format(self) -> OutputFormat:
        """The format of the output: as given, or implied by its suffix."""
        if self.format is not None:
            return self.format
        has_torch_suffix = self.output is not None and self.output.suffix in TORCH_SUFFIXES
        return "same" if has_torch_suffix and self.max_shard_size is None else "safetensors"

    def _check_other_format(self) -> None:
        """Raise if the output cannot be written in a format other than safetensors.

        Raises:
            UsageError: another option needs a safetensors file, or the name does not fit.

        """
        name = "" if self.output is None else f" (the output {quoted(str(self.output))})"
        flag = f"--format {self.output_format}{name}"
        if self.max_shard_size not in (None, DEFAULT_SHARD_BYTES):
            raise UsageError(f"{flag} does not take --max-shard-size", hint="leave it out, or --format safetensors")
        if self.metadata:
            raise UsageError(f"{flag} has no room for --metadata", hint="leave it out, or -o ema.safetensors")
        if isinstance(self.output, Url):
            raise UsageError(f"{flag} is written to a disk, not to a store", hint=f"-o {self.output.name}")
        if self.output is not None and self.output.name in ("", ".."):
            hint = f"-o {self.output / 'averaged'}{os.sep}"
            raise UsageError(f"the output {quoted(str(self.output))} is a folder", hint=hint)
        if self.output_format == "same":
            self._check_same(flag)
        elif self.output is not None and self.output.suffix in (*TORCH_SUFFIXES, ".safetensors"):
            raise UsageError(f"{flag} is a folder", hint=f"-o {self.output.with_suffix('')}{os.sep}")

    def _check_same(self, flag: str) -> None:
        if self.output is None:
            raise UsageError(f"{flag} needs the name of the output", hint="-o ema.pt, or -o averaged/ for a folder")
        if self.dtype != "same":
            raise UsageError(
                f"{flag} keeps the types of the last checkpoint, so --dtype {self.dtype} cannot be used",
                hint="leave out --dtype, or -o ema.safetensors",
            )
        if self.tied == "drop":
            raise UsageError(f"{flag} keeps all names, so --tied drop cannot be used", hint="-o ema.safetensors")

    @property
    def destination(self) -> Location:
        """Where the averages are written: the output; if none was named, a name in the working directory."""
        if self.output is not None:
            return self.output
        labels = [method.label for method in self.expand()]
        name = "ema"
        if len(labels) > 1:  # ema_0.9 and ema_uniform, not ema_ema_0.9
            name = "{label}" if all(label.startswith("ema") for label in labels) else "ema_{label}"
        is_folder = self.max_shard_size is not None or self.output_format == "dcp"
        return Path(name if is_folder else f"{name}.safetensors")

    @property
    def public_metadata(self) -> dict[str, str]:
        """The metadata without secrets, as they are written."""
        return {without_secrets(k, whole=True): without_secrets(v, whole=True) for k, v in self.metadata.items()}

    def check_distinct_outputs(self) -> None:
        """Raise if the name of the output has a field without a value, or would be the same for several averages.

        Raises:
            UsageError: with a name that could be used.

        """
        name, methods = str(self.destination), self.expand()
        if self.lacks_decay or (len(methods) == 1 and "{" not in name):
            return
        fields = [method.name_fields() for method in methods]
        for method, values in zip(methods, fields, strict=True):
            missing = next((field for field in fields_in(name) if values[field] is None), None)
            if missing is not None:
                hint = "leave it out of the name, or use {label}"
                raise UsageError(f"the output {quoted(name)}: {method.label} has no {{{missing}}}", hint=hint)
        if len({fill_output_name(name, values) for values in fields}) == len(methods):
            return
        for field in (*(swept for swept in SWEPT if len(getattr(self, swept)) > 1), "method", "label"):
            different = {str(values[field]) for values in fields if values[field] is not None}
            if len(different) == len(methods):
                end = self.destination.suffix if self.max_shard_size is None else "/"
                hint = f"-o '{self.destination.with_suffix('') if end != '/' else name}_{{{field}}}{end}'"
                raise UsageError(f"several averages need {{{field}}} in the name of the output", hint=hint)


def check_report_name(report: Location) -> None:
    """Raise if no report can have this name.

    Raises:
        UsageError: its suffix is of no format of reports, or it is on a web server.

    """
    if report.suffix not in REPORT_SUFFIXES:
        raise UsageError(
            f"--report {quoted(str(report))}: there is no report format {quoted(report.suffix)}",
            hint="use a name that ends in .html, .md or .json",
        )
    if isinstance(report, Url) and report.is_web:
        problem = "is on a web server, which cannot be written to"
        raise UsageError(f"--report {quoted(str(report))} {problem}", hint=f"--report {report.name}")


def _check_name(output: Location, max_shard_size: int | None) -> None:
    """Raise if no file, or no folder, of weights can have this name; the hint has a name that can be used."""
    if isinstance(output, Url) and output.is_web:
        problem, hint = "is on a web server, which cannot be written to", output.name
    elif isinstance(output, Url) and len(output.parts) < _LEAST_PARTS.get(output.scheme, 0):
        problem, hint = "is a whole bucket or repository", f"{output / 'averaged'}{os.sep}"
    elif output.name in ("", ".."):
        problem = "is a folder"
        hint = f"{output / 'ema.safetensors'}" if max_shard_size is None else f"{output / 'averaged'}{os.sep}"
    elif max_shard_size is not None and max_shard_size < 1:
        message = f"--max-shard-size {max_shard_size:,} must be at least one byte"
        raise UsageError(message, hint="--max-shard-size 5GB")
    elif max_shard_size is not None and output.suffix == ".safetensors":
        problem = "has the name of a file, but --max-shard-size makes it a folder"
        hint = f"{output.with_suffix('')}{os.sep}; or leave out --max-shard-size for one file"
    elif max_shard_size is not None or output.suffix == ".safetensors":
        return
    elif os.path.isdir(output):  # noqa: PTH112 - returns False for an impossible name, where pathlib raises
        problem, hint = "is a folder", f"{output}{os.sep}"
    else:
        problem = "must end in .safetensors"
        other = output.with_name(safetensors_name(output.name))
        hint = f"{other}; or -o {other.with_suffix('')}{os.sep} for a folder, or with --max-shard-size 5GB"
    raise UsageError(f"the output {quoted(str(output))} {problem}", hint=f"-o {hint}")
