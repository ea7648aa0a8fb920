"""Files of other programs, named by their first bytes, whatever their suffix, each with one step that helps.

Sources of the signatures: the specifications of git-lfs, GGUF (``ggml/docs/gguf.md``), HDF5 (superblock), numpy
(``numpy.lib.format``), ONNX (``onnx.proto``: ``ir_version``, then ``producer_name`` or ``graph``), MindSpore
(``checkpoint.proto``), FlatBuffers (identifiers at byte 4: TFL3 of LiteRT, ET12 of ExecuTorch), msgpack, and
``magic(5)`` for compressed files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath

from ema_cli.errors import InputRefused
from ema_cli.formats.file_names import NAME_A_CHECKPOINT
from ema_cli.record import record
from ema_cli.text import quoted, regex

_FETCH = "download the file again, logged in where the server asks for it"
_ARRAYS = "from safetensors.numpy import save_file"
_HOW = "as shown by: ema-avg help formats"
_ONNX_FIRST = regex(rb"\x08[\x01-\x1f]\x12([\x01-\x7f])")
_ONNX_GRAPH = regex(rb"\x08[\x01-\x1f]:[\x80-\xff]{0,8}[\x00-\x7f][\n\x12\x2a]")
_MINDSPORE_FIRST = regex(rb"\n[\x04-\xff][\x80-\xff]{0,8}[\x00-\x7f]?\n([\x01-\x7f])")
_MSGPACK_FIRST = regex(rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:([\xa1-\xbf])|\xd9([\x01-\xff]))", re.DOTALL)
_PAGE = regex(rb"(?:<\?xml[^>]*>\s*)?(?:<!--.{0,200}?-->\s*)?<(?:!doctype html|html|head|body)\b", re.DOTALL)
_STORE_ERROR = regex(r"<Code>(\w{1,60})</Code>")
_JSON_ERROR = regex(r'\{\s*"(?:error|errors|message|detail)"')
_CONTROLS = regex(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_TENSORFLOW_NAME = regex(r".\.(?:data-\d{5}-of-\d{5}|index|meta)$")
_LONGEST_LINE = 60


class ForeignFile(InputRefused):
    """A file or folder is of a known format that is not read; or, if not ``complete``, not even the file itself."""

    def __init__(self, kind: str, next_step: str, *, complete: bool = True) -> None:
        hint = f"{next_step}; or {NAME_A_CHECKPOINT}" if complete else next_step
        super().__init__(f"is {kind}, not a torch or safetensors checkpoint", hint=hint)
        self.kind = kind
        """With its article: ``a GGUF file``."""


@record
class ForeignFormat:
    """A format that is not read."""

    kind: str
    """With its article."""
    next_step: str
    begins: tuple[bytes, ...] = ()
    """The bytes that a file begins with."""
    looks_like: Callable[[bytes], bool] = lambda _: False
    """Whether a file without such bytes is of this format, by its first bytes."""

    def matches(self, head: bytes) -> bool:
        """Whether a file with these first bytes is of this format."""
        return head.startswith(self.begins) or self.looks_like(head)


def foreign_file(head: bytes, name: str) -> InputRefused:
    """Return the refusal of a file that no reader knows.

    Args:
        head: its first bytes, at most a few hundred.
        name: of the file; only formats without a signature are named by it.

    """
    known = next((known for known in (*_INCOMPLETE, *_FORMATS) if known.matches(head)), None)
    if known is not None:
        return ForeignFile(known.kind, known.next_step, complete=known not in _INCOMPLETE)
    text = _text(head)
    if text is not None:
        return _text_file(text)
    if _TENSORFLOW_NAME.search(PurePath(name).name):
        return ForeignFile("a part of a TensorFlow checkpoint", TENSORFLOW_STEP)
    return InputRefused(f"is not a checkpoint: it begins with {head[:8]!r}", hint=NAME_A_CHECKPOINT)


def refuse_pointer(head: bytes, name: str) -> None:
    """Raise if a file that belongs to a checkpoint only points to a file elsewhere, as version control keeps it.

    Raises:
        InputRefused: naming the file, with the command that fetches it.

    """
    known = next((known for known in _POINTERS if known.matches(head)), None)
    if known is not None:
        raise InputRefused(f"{quoted(name)} is {known.kind}, not the file itself", hint=known.next_step)


def _text(head: bytes) -> str | None:
    """Return the text that a file begins with; ``None`` if it is not UTF-8 text. The last character may be cut."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()
    return text.strip() if text and not _CONTROLS.search(text) else None


def _text_file(text: str) -> InputRefused:
    """Return the refusal of a text: an error message of a server, the index of a sharded model, or any other."""
    code = _STORE_ERROR.search(text)
    if code is not None:
        return ForeignFile(f"the error message {quoted(code[1])} of a store", _FETCH, complete=False)
    if _JSON_ERROR.match(text):
        return ForeignFile("the error message of a server", _FETCH, complete=False)
    if text.startswith("{") and '"weight_map"' in text:
        step = "name the folder that contains it and the shards"
        return ForeignFile("the index of a sharded model", step, complete=False)
    begin = f"it begins with the text {quoted(text.splitlines()[0][:_LONGEST_LINE])}" if text else "it is blank"
    return InputRefused(f"is not a checkpoint: {begin}", hint=f"if it should be one: {_FETCH}; or {NAME_A_CHECKPOINT}")


def _is_page(head: bytes) -> bool:
    return _PAGE.match(head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()) is not None


def _has_string(head: bytes, found: re.Match[bytes] | None, length: int) -> bool:
    """Whether the match is followed by a printable string of ``length`` bytes, as far as ``head`` reaches."""
    if found is None or length < 1:
        return False
    text = head[found.end() : found.end() + length]
    return bool(text) and text.isascii() and text.decode().isprintable()


def _is_onnx(head: bytes) -> bool:
    """Whether a file begins with the version, then the name of the producer in printable text, or the graph."""
    found = _ONNX_FIRST.match(head)
    return _has_string(head, found, found[1][0] if found else 0) or _ONNX_GRAPH.match(head) is not None


def _is_mindspore(head: bytes) -> bool:
    """Whether a file begins with a ``Checkpoint.Value``: a tag in printable text, then the field of a tensor."""
    found = _MINDSPORE_FIRST.match(head)
    length = found[1][0] if found else 0
    behind = head[found.end() + length : found.end() + length + 1] if found else b""
    return _has_string(head, found, length) and behind in (b"\x12", b"\x1a")


def _is_msgpack(head: bytes) -> bool:
    """Whether a file begins with a mapping with a printable key: the trees of Flax are such mappings."""
    found = _MSGPACK_FIRST.match(head)
    length = (found[1][0] & 0x1F if found[1] else found[2][0]) if found else 0
    return _has_string(head, found, length)


CONVERT_LATER = "average the checkpoints that it was converted from, then convert the average"
_EXPORT_LATER = "average the checkpoints that it was exported from, then export the average"
TENSORFLOW_STEP = f"export its variables to safetensors with tf.train.load_checkpoint, {_HOW}"
_POINTERS = (
    ForeignFormat(
        kind="a git-lfs pointer",
        next_step="fetch the file itself: git lfs pull",
        begins=(b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"),
    ),
    ForeignFormat(
        kind="a git-annex pointer", next_step="fetch the file itself: git annex get FILE", begins=(b"/annex/objects/",)
    ),
    ForeignFormat(kind="a DVC pointer", next_step="fetch the file itself: dvc pull", begins=(b"outs:\n- md5:",)),
)
"""Small texts in place of files that are stored elsewhere."""
_INCOMPLETE = (
    *_POINTERS,
    ForeignFormat(kind="a web page", next_step=_FETCH, looks_like=_is_page),
    ForeignFormat(
        kind="a file that begins with zeros",
        next_step="its data may never have been written: copy it again, or name only the other checkpoints",
        looks_like=lambda head: len(head) > 1 and not head.strip(b"\0"),
    ),
)
"""What is there instead of a file that was not copied or fetched completely."""
_FORMATS = (
    ForeignFormat(
        kind="a GGUF file (llama.cpp)",
        next_step=CONVERT_LATER,
        begins=(b"GGUF", b"lmgg", b"tjgg", b"fmgg", b"algg"),
    ),
    ForeignFormat(
        kind="an HDF5 file (Keras or another program)",
        next_step=f"write its arrays to safetensors with h5py, {_HOW}",
        begins=(b"\x89HDF\r\n\x1a\n",),
    ),
    ForeignFormat(
        kind="a numpy array (.npy)",
        next_step=f'write it to safetensors: {_ARRAYS}; save_file({{"w": numpy.load(path)}}, "model.safetensors")',
        begins=(b"\x93NUMPY",),
    ),
    ForeignFormat(
        kind="an ONNX model",
        next_step=_EXPORT_LATER,
        looks_like=_is_onnx,
    ),
    ForeignFormat(
        kind="a LiteRT model (.tflite)",
        next_step=CONVERT_LATER,
        looks_like=lambda head: head[4:8] == b"TFL3",
    ),
    ForeignFormat(
        kind="an ExecuTorch program (.pte)",
        next_step=_EXPORT_LATER,
        looks_like=lambda head: re.fullmatch(rb"ET\d\d", head[4:8]) is not None,
    ),
    ForeignFormat(
        kind="a MindSpore checkpoint",
        next_step=f"write its parameters to safetensors with mindspore.load_checkpoint, {_HOW}",
        looks_like=_is_mindspore,
    ),
    ForeignFormat(
        kind="a msgpack file (Flax)",
        next_step=f"write its arrays to safetensors with flax.serialization.msgpack_restore, {_HOW}",
        looks_like=_is_msgpack,
    ),
    ForeignFormat(kind="a gzip file", next_step="unpack it: gunzip FILE", begins=(b"\x1f\x8b",)),
    ForeignFormat(kind="an xz file", next_step="unpack it: unxz FILE", begins=(b"\xfd7zXZ\0",)),
    ForeignFormat(kind="a Zstandard file", next_step="unpack it: unzstd FILE", begins=(b"\x28\xb5\x2f\xfd",)),
    ForeignFormat(kind="an LZ4 file", next_step="unpack it: unlz4 FILE", begins=(b"\x04\x22\x4d\x18",)),
    ForeignFormat(
        kind="a bzip2 file",
        next_step="unpack it: bunzip2 FILE",
        looks_like=lambda head: re.match(rb"BZh[1-9]1AY&SY", head) is not None,
    ),
    ForeignFormat(kind="a 7-Zip archive", next_step="unpack it: 7z x FILE", begins=(b"7z\xbc\xaf\x27\x1c",)),
    ForeignFormat(kind="a RAR archive", next_step="unpack it: unrar x FILE", begins=(b"Rar!\x1a\x07",)),
)
"""In this order; the first that matches names the file."""
