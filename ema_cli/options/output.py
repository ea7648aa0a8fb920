"""The name of the output, as it is given: what it says about the form, and whether it can be one."""

from __future__ import annotations

import os

from ema_cli.errors import UsageError
from ema_cli.storage.locations import STREAMED, Location, locate
from ema_cli.storage.url import Url
from ema_cli.text import quoted

DEFAULT_SHARD_BYTES = 5_000_000_000
"""What the libraries of Hugging Face put into one file at most."""
_LEAST_PARTS = {**dict.fromkeys(STREAMED, 3), "hf": 4}
"""Parts of the URL of a file or a folder: the scheme, the bucket or the repository, what is in it."""


def parse_output(text: str, max_shard_size: int | None) -> tuple[Location, int | None]:
    """Return the path of an output, and the bytes of one of its files: a name that ends with a slash is a folder's."""
    if max_shard_size is None and text.endswith(os.sep):
        max_shard_size = DEFAULT_SHARD_BYTES
    return locate(text), max_shard_size


def check_output_name(output: Location, max_shard_size: int | None) -> None:
    """Refuse a name that no file, or no folder, of weights can have.

    Raises:
        UsageError: with the name that was probably meant.

    """
    said = f"the output {quoted(str(output))}"
    if isinstance(output, Url) and output.is_web:
        raise UsageError(f"{said} is on a web server, which takes no files", hint=f"-o {output.name}")
    if isinstance(output, Url) and len(output.parts) < _LEAST_PARTS.get(output.scheme, 0):
        raise UsageError(f"{said} is a whole bucket or repository", hint=f"-o {output / 'averaged'}{os.sep}")
    if output.name in ("", ".."):
        other = f"{output / 'averaged'}{os.sep}" if max_shard_size is not None else output / "ema.safetensors"
        raise UsageError(f"{said} is a folder", hint=f"-o {other}")
    if max_shard_size is not None:
        _check_folder(output, said, max_shard_size)
    elif output.suffix != ".safetensors":
        if os.path.isdir(output):  # noqa: PTH112 - of an impossible name it says no, where pathlib raises
            raise UsageError(f"{said} is a folder", hint=f"-o {output}{os.sep}")
        one = output.with_suffix(".safetensors")
        hint = f"-o {one}; or -o {output}{os.sep} for a folder, or with --max-shard-size 5GB"
        raise UsageError(f"{said} is written as safetensors", hint=hint)


def _check_folder(output: Location, said: str, max_shard_size: int) -> None:
    if max_shard_size < 1:
        raise UsageError(f"--max-shard-size {max_shard_size:,} must be at least one byte", hint="--max-shard-size 5GB")
    if output.suffix == ".safetensors":
        hint = f"-o {output.with_suffix('')}{os.sep}; or leave out --max-shard-size for one file"
        raise UsageError(f"{said} has the name of a file, but is a folder of them", hint=hint)
