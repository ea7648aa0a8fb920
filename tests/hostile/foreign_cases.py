"""Files and folders of other programs: signatures that are whole, cut, or followed by lies."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

from tests.hostile.cases import MISSING, Case, Maker, of_bytes
from tests.hostile.zips import checkpoint


def _tar(*names: str, size: int = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            made.addfile(member, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def _tar_with(field: slice, value: bytes) -> bytes:
    """Return a tar archive with bytes of its first header replaced."""
    made = bytearray(_tar("a.ckpt", "b.ckpt", size=700))
    made[field] = value
    return bytes(made)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
_FILES: dict[str, tuple[bytes, str]] = {
    "zeros": (bytes(4096), "begins with zeros"),
    "text": (b"Not Found", 'begins with the text "Not Found"'),
    "text of commands": (b"::error file=x::gotcha\n", "begins with the text"),
    "text right to left": ("\u202eevil".encode(), "begins with the text"),
    "text cut in a character": ("Zugriff verweigert: gesperrt \u2014".encode()[:-1], "begins with the text"),
    "blank text": (b" \n\n\r\n ", "it is blank"),
    "git lfs pointer": (POINTER, "git lfs pull"),
    "git lfs pointer cut": (POINTER[:40], "git lfs pull"),
    "git annex pointer": (b"/annex/objects/SHA256E-s1--0.pt\n", "git annex get"),
    "DVC pointer": (b"outs:\n- md5: 0\n  path: a.pt\n", "dvc pull"),
    "page": (b"<!doctype html><title>404</title>", "a web page"),
    "page behind a mark": (b"\xef\xbb\xbf\r\n<!-- x -->\n<HTML><head>", "a web page"),
    "page of comments": (b"<!--" * 120, "begins with the text"),
    "store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', '"AccessDenied" of a store'),
    "XML": (b'<?xml version="1.0"?><net/>', "begins with the text"),
    "JSON": (b'{"weight_map": {}}', "index of a sharded model"),
    "JSON error": (b'{"error":"Invalid username or password."}', "the error message of a server"),
    "JSON list": (b"[" * 600, "begins with the text"),
    "gzip": (gzip.compress(checkpoint(), mtime=0), "gunzip"),
    "xz": (b"\xfd7zXZ\0" + bytes(9), "unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "unzstd"),
    "bzip2": (b"BZh91AY&SY" + bytes(9), "bunzip2"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(9), "unlz4"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "7z x"),
    "rar": (b"Rar!\x1a\x07\0", "unrar"),
    "tar": (_tar("sys_info", "pickle", "storages", "tensors"), "torch before 0.2"),
    "tar of nothing": (_tar("storages"), "tar archive"),
    "tar of a checkpoint": (
        _tar("./model_config.yaml", "./model_weights.ckpt", size=3),
        'contains "model_weights.ckpt"',
    ),
    "tar of names": (_tar("\x1b[31m.ckpt", "../../etc/x.pt", "n" * 90 + ".pt"), "tar archive that contains"),
    "tar with a giant member": (_tar_with(slice(124, 136), b"77777777777\0"), "tar archive"),
    "tar with a negative size": (_tar_with(slice(124, 136), b"-0000000001\0"), "tar archive"),
    "tar with a binary size": (_tar_with(slice(124, 136), b"\x80" + b"\xff" * 11), "tar archive"),
    "tar without a name": (_tar_with(slice(0, 100), bytes(100)), "tar archive"),
    "tar with bytes as a name": (_tar_with(slice(0, 100), b"\xff" * 100), "tar archive"),
    "tar cut": (_tar("a.ckpt", size=700)[:600], 'contains "a.ckpt"'),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "a GGUF file"),
    "GGUF magic": (b"GGUF", "a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "numpy": (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "a numpy array"),
    "ONNX": (b"\x08\x07\x12\x07pytorch" + bytes(64), "an ONNX model"),
    "ONNX without a producer": (b"\x08\x07\x12\0\0", "not a checkpoint"),
    "ONNX with a binary producer": (b"\x08\x07\x12\x02\x0a\0", "not a checkpoint"),
    "ONNX cut": (b"\x08\x07\x12\x7f", "not a checkpoint"),
    "LiteRT": (b"\x1c\0\0\0TFL3" + bytes(64), "LiteRT"),
    "ExecuTorch": (b"\x1c\0\0\0ET12" + bytes(64), "ExecuTorch"),
    "MindSpore": (b"\n\x29\n\x0bconv.weight\x12\x1a" + bytes(64), "MindSpore"),
    "MindSpore with a long value": (b"\n\xff\xff\xff\x01\n\x01w\x12\x1a" + bytes(64), "MindSpore"),
    "MindSpore cut": (b"\n\x29\n\x0bconv", "not a checkpoint"),
    "msgpack": (b"\x81\xa6params\x81" + bytes(64), "a msgpack file"),
    "long msgpack": (b"\xde\0\x20\xd9\x28" + b"k" * 40, "a msgpack file"),
    "msgpack of numbers": (b"\x82\x01\x02\x03\x04", "not a checkpoint"),
    "msgpack cut": (b"\xdf\0", "not a checkpoint"),
}

_FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "TensorFlow": (("m-1.index", "m-1.data-00000-of-00001", "m-1.meta"), "a TensorFlow checkpoint"),
    "SavedModel": (("saved_model.pb", "variables/variables.index"), "a TensorFlow SavedModel"),
    "Orbax": (("default/manifest.ocdbt", "default/d/abc", "_CHECKPOINT_METADATA"), "an Orbax checkpoint"),
    "zarr": (("common.pt", "metadata.json", "model.weight/.zarray", "model.weight/0.0"), "of zarr arrays"),
    "Core ML": (("Manifest.json", "Data/com.apple.CoreML/model.mlmodel"), "a Core ML package"),
}
"""Names of files; each holds a few bytes."""


def foreign_cases() -> list[Case]:
    """Return files and folders of other programs."""
    folders = [
        Case(name=f"other_{name.replace(' ', '_')}", make=_folder(names), word=word)
        for name, (names, word) in _FOLDERS.items()
    ]
    unread = Case(name="other_suffix", make=_folder(("\x1b[31m.gguf",)), word="is a GGUF file", code=MISSING)
    return [*of_bytes("foreign", ".pt", _FILES), *folders, unread]


def _folder(names: tuple[str, ...]) -> Maker:
    def make(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"GGUF")

    return make
