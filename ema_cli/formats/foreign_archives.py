"""Archives that are not checkpoints: zip and tar files, named by the names of the files in them.

Sources: ``numpy.lib.npyio`` (.npz), ``keras/src/saving/saving_lib.py`` (.keras), ``stable_baselines3/common/
save_util.py``, ``torch/export/pt2_archive/constants.py`` (.pt2), ``torch/package``, ``torch/serialization.py``
(``legacy_load``: tar archives before torch 0.2), NeMo's ``SaveRestoreConnector`` (.nemo).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import NAME_A_CHECKPOINT, is_weights
from ema_cli.formats.foreign_formats import ForeignFile
from ema_cli.storage.source import ByteSource
from ema_cli.text import quoted, regex, shortlist

_TAR_MAGIC = slice(257, 262)
_TAR_NAME, _TAR_SIZE, _TAR_KIND = slice(0, 100), slice(124, 136), slice(156, 157)
_TAR_BLOCK = 512
_MOST_MEMBERS = 16
"""Members of a tar archive that are looked at; in a store each is a request."""
_OLD_TORCH = {"sys_info", "pickle"}
_KERAS = {"model.weights.h5", "metadata.json"}
_EXPORTED = regex(r"[^/]+/archive_format")
_PACKAGE = regex(r"[^/]+/\.data/extern_modules")


def foreign_zip(names: Collection[str]) -> InputRefused:
    """Return the refusal of a zip archive that ``torch.save`` did not write, by the names of its records."""
    if names and all(name.endswith(".npy") for name in names):
        step = "write it to safetensors: from safetensors.numpy import save_file; "
        return ForeignFile("a numpy archive (.npz)", f'{step}save_file(dict(numpy.load(path)), "model.safetensors")')
    if set(names) >= _KERAS:
        step = "write its arrays to safetensors with keras.models.load_model, as shown by: ema-avg help formats"
        return ForeignFile("a Keras model (.keras)", step)
    if any(map(_EXPORTED.fullmatch, names)):
        return ForeignFile(
            "an archive of torch.export (.pt2)",
            "save its weights: torch.save(dict(torch.export.load(path).state_dict), NAME)",
        )
    if any(map(_PACKAGE.fullmatch, names)):
        step = "load it with torch.package.PackageImporter and save the state_dict() of its model with torch.save"
        return ForeignFile("a torch.package archive", step)
    return _with_files("a zip archive", names, "unzip FILE -d FOLDER") or InputRefused(
        f"is a zip archive, but was not written by torch.save{_contents(names)}", hint=NAME_A_CHECKPOINT
    )


def is_tar(head: bytes) -> bool:
    """Whether a file begins like a tar archive."""
    return head[_TAR_MAGIC] == b"ustar"


def foreign_tar(source: ByteSource) -> InputRefused:
    """Return the refusal of a tar archive, by the names of its first members."""
    names = list(_tar_names(source))
    if set(names) >= _OLD_TORCH:
        return InputRefused(
            "is a tar archive, the format of torch before 0.2", hint="load it and save it again with a newer torch"
        )
    found = _with_files("a tar archive", names, "tar -xf FILE -C FOLDER")
    return found or ForeignFile(f"a tar archive{_contents(names)}", "unpack it: tar -xf FILE")


def _with_files(kind: str, names: Collection[str], command: str) -> ForeignFile | None:
    """Return the refusal of an archive with checkpoints in it: every archive needs a folder of its own."""
    inside = [name for name in names if is_weights(PurePosixPath(name).name)]
    if not inside:
        return None
    listed = [quoted(name) for name in sorted(inside, key=_is_beside_a_policy)]
    return ForeignFile(
        f"{kind} that contains {shortlist(listed, most=2)}",
        f"unpack each archive into a folder of its own, {command}, and name {listed[0]} in each folder",
    )


def _is_beside_a_policy(name: str) -> bool:
    """Whether a file of an archive of stable-baselines3 is not the policy, but its optimizer or other variables."""
    return PurePosixPath(name).name != "policy.pth"


def _contents(names: Collection[str]) -> str:
    return f": it contains {shortlist(map(quoted, sorted(names)), most=3)}" if names else ""


def _tar_names(source: ByteSource) -> Iterator[str]:
    """Yield the names of the first members, without a leading ``./``. Damaged headers end the list."""
    position = 0
    for _ in range(_MOST_MEMBERS):
        if position + _TAR_BLOCK > source.size():
            return
        header = source.read(position, _TAR_BLOCK)
        digits = header[_TAR_SIZE].strip(b"\0 ")
        if not is_tar(header) or not re.fullmatch(rb"[0-7]+", digits):
            return
        if header[_TAR_KIND] in b"\x000":  # files, not folders, links or extended headers
            name = header[_TAR_NAME].partition(b"\0")[0].decode(errors="replace")
            yield name.removeprefix("./")
        position += _TAR_BLOCK * (1 + -(-int(digits, 8) // _TAR_BLOCK))
