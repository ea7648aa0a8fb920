"""Files and folders of other programs: named by what they are, whatever their suffix, with a step that works."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.package.package_exporter import PackageExporter

import ema_cli
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, StrictWarnings
from ema_cli.formats.file import read_file
from ema_cli.formats.file_names import NAME_A_CHECKPOINT
from ema_cli.storage.extents import LayoutPool
from tests.helpers.program import Run
from tests.helpers.series import load, write_one, write_series
from tests.hostile.in_memory import MemorySource

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4265380512\n"


def torch_bytes(value: float = 1.0) -> bytes:
    """Return the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save({"w": torch.full((2,), float(value))}, buffer)
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], mode: Any = "w") -> bytes:
    """Return a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def numpy_bytes(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    """Return what a function of numpy saves."""
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def flax_bytes() -> bytes:
    """Return a tree of arrays as ``flax.serialization.to_bytes`` packs it: arrays are extensions of type 1."""
    array = msgpack.packb(((2,), "float32", bytes(8)))
    tree = {"params": {"Dense_0": {"kernel": msgpack.ExtType(1, array)}}}
    return bytes(msgpack.packb(tree))


def packaged() -> bytes:
    """Return an archive of ``torch.package``."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PackageExporter(buffer) as exporter:
            exporter.extern("torch.**")
            exporter.save_pickle("model", "model.pkl", nn.Linear(2, 1))
    return buffer.getvalue()


KERAS = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b"\x89HDF\r\n\x1a\n"}
POLICY = {"data": b"{}", "policy.optimizer.pth": b"", "policy.pth": torch_bytes(), "pytorch_variables.pth": b""}
NEMO = {"./model_config.yaml": b"x: 1\n" * 200, "./model_weights.ckpt": torch_bytes()}
FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    ".safetensors": (lambda: POINTER, "a git-lfs pointer", "git lfs pull"),
    ".html": (lambda: b"<!DOCTYPE html><html><head><title>Virus scan", "a web page", "download the file again"),
    ".xhtml": (lambda: b"\n<?xml version='1.0'?>\n<html xmlns=''>", "a web page", "download the file again"),
    ".xml": (lambda: b"<Error><Code>NoSuchKey</Code>", 'the error message "NoSuchKey" of a store', "download"),
    ".json": (lambda: b'{"error":"Access to the model is restricted"}', "the error message of a server", "logged in"),
    ".index.json": (lambda: b'{"metadata": {}, "weight_map": {', "the index of a sharded model", "name the folder"),
    ".txt": (lambda: b"Entry not found", 'not a checkpoint: it begins with the text "Entry not found"', "download"),
    ".pt": (lambda: bytes(4096), "a file that begins with zeros", "copy it again"),
    ".gguf": (lambda: b"GGUF\x03\0\0\0" + bytes(64), "a GGUF file", "then convert the average"),
    ".h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file", "h5py"),
    ".keras": (lambda: zipped(KERAS), "a Keras model", "keras.models.load_model"),
    ".npz": (lambda: numpy_bytes(np.savez, w=np.ones(3)), "a numpy archive", "save_file(dict(numpy.load(path))"),
    ".z.npz": (lambda: numpy_bytes(np.savez_compressed, w=np.ones(3)), "a numpy archive", "numpy.load"),
    ".npy": (lambda: numpy_bytes(np.save, np.ones(3)), "a numpy array", "numpy.load(path)"),
    ".onnx": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x05" + bytes(600), "an ONNX model", "then export the average"),
    ".2.onnx": (lambda: b"\x08\x0e:7\n\x10\n\x01x" + bytes(600), "an ONNX model", "then export the average"),
    ".tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(600), "a LiteRT model", "then convert the average"),
    ".pte": (lambda: b"\x30\0\0\0ET12" + bytes(600), "an ExecuTorch program", "then export the average"),
    ".ckpt": (lambda: b"\n)\n\x0bconv.weight\x12\x1a" + bytes(600), "a MindSpore checkpoint", "mindspore."),
    ".msgpack": (flax_bytes, "a msgpack file (Flax)", "msgpack_restore"),
    ".meta": (lambda: b"\n\xf2\x82\x03\x12\x04" + bytes(600), "a part of a TensorFlow checkpoint", "tf.train"),
    ".gz": (lambda: gzip.compress(torch_bytes()), "a gzip file", "gunzip"),
    ".xz": (lambda: lzma.compress(torch_bytes()), "an xz file", "unxz"),
    ".bz2": (lambda: bz2.compress(torch_bytes()), "a bzip2 file", "bunzip2"),
    ".zst": (lambda: b"\x28\xb5\x2f\xfd" + bytes(64), "a Zstandard file", "unzstd"),
    ".nemo": (lambda: tarred(NEMO), 'a tar archive that contains "model_weights.ckpt"', "tar -xf"),
    ".posix": (lambda: tarred({"n" * 150 + "/a.pt": b"x"}), "a tar archive", "tar -xf"),
    ".zip": (
        lambda: zipped(POLICY),
        'a zip archive that contains "policy.pth", "pytorch_variables.pth"',
        'name "policy.pth" in',
    ),
    ".docx": (
        lambda: zipped({"word/document.xml": b""}),
        "a zip archive, but was not written by torch.save",
        NAME_A_CHECKPOINT,
    ),
    ".package": (packaged, "a torch.package archive", "torch.package.PackageImporter"),
    ".pkl": (lambda: pickle.dumps({"w": np.ones(3)}), "a bare pickle", "torch.save"),
}
"""Suffix -> bytes, the name of the format, and a part of the next step."""


def refusal(*paths: Path, **options: Any) -> EmaAvgError:
    """Return the error of a plan."""
    with pytest.raises(EmaAvgError) as raised:
        ema_cli.plan([*map(str, paths)], decay=0.5, **options)
    return raised.value


@pytest.mark.parametrize("suffix", sorted(FILES))
def test_a_file_is_named_by_its_bytes(tmp_path: Path, suffix: str) -> None:
    """The format and one next step, with its own suffix and, where the bytes say it, with that of a checkpoint."""
    make, kind, step = FILES[suffix]
    for name in (f"model_1{suffix}", "model_1.bin")[: 1 if suffix == ".meta" else 2]:
        (tmp_path / name).write_bytes(make())
        error = refusal(tmp_path / name)
        assert isinstance(error, InputRefused)
        assert f'{name}" is {kind}' in error.message
        assert step in error.hint
        assert error.hint


@pytest.mark.parametrize("suffix", sorted({*FILES} - {".safetensors", ".pt", ".ckpt", ".docx"}))
def test_a_folder_of_such_files_names_them(tmp_path: Path, suffix: str) -> None:
    """A folder without checkpoints says what is in it, unless that is ordinary text, such as a log."""
    make, kind, step = FILES[suffix]
    for number in (1, 2, 3):
        (tmp_path / f"model_{number}{suffix}").write_bytes(make())
    error = refusal(tmp_path)
    assert isinstance(error, NothingMatched)
    if suffix == ".txt":
        assert "other formats" not in error.message
        return
    assert re.search(r'model_1\S*" \(and 2 more \*\.\w+\) is ' + re.escape(kind), error.message)
    assert step in error.hint


def test_formats_of_a_folder_are_listed_once_each(tmp_path: Path) -> None:
    """Many files are few lines, and those in the first folders inside are found, too."""
    for number in range(20):
        (tmp_path / f"m_{number}.gguf").write_bytes(FILES[".gguf"][0]())
        (tmp_path / f"m_{number}.npz").write_bytes(FILES[".npz"][0]())
        (tmp_path / f"events.{number}.txt").write_text("loss 1.0\n", encoding="utf-8")
    inner = tmp_path / "checkpoint-1"
    inner.mkdir()
    (inner / "flax_model.msgpack").write_bytes(flax_bytes())
    (inner / "config.json").write_text("{}", encoding="utf-8")
    for number in range(2, 9):
        shutil.copytree(inner, tmp_path / f"checkpoint-{number}")
    lines = refusal(tmp_path).message.splitlines()
    assert len(lines) == 6
    assert '"' + str(inner / "flax_model.msgpack") + '" is a msgpack file (Flax)' in lines[3]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("run/net_{}.pyth", "run/*.pyth"),
        ("run[1]/net_{}.pyth", "run[[]1]/*.pyth"),
        ("run/net_{}", "run/net_*"),
    ],
)
def test_checkpoints_with_an_unusual_suffix_are_offered(tmp_path: Path, ema_avg: Run, name: str, pattern: str) -> None:
    """Files that can be read but have a suffix that is not searched for: the hint is a command that averages them."""
    run = name.partition("/")[0]
    for number in (1, 2):
        write_one(tmp_path / name.format(number), number)
    (tmp_path / run / "README").write_text("no checkpoint", encoding="utf-8")
    (tmp_path / run / "log.txt").write_text("loss", encoding="utf-8")
    done = ema_avg(run, "--decay", "0.5", "-o", "out.safetensors")
    assert done.returncode == 7
    command = re.search(r"these files are checkpoints, whatever their suffix: ema-avg (.+)", done.stderr)
    assert command is not None
    assert pattern in command[1]
    assert ema_avg(pattern, "--decay", "0.5", "-o", "out.safetensors").returncode == 0
    assert load(tmp_path / "out.safetensors")["w"].tolist() == [1.5, 1.5]


def test_a_pointer_among_checkpoints_is_a_warning_with_its_step(tmp_path: Path) -> None:
    """One file of a series that was not fetched leaves no silent hole; ``--strict`` fails."""
    for number in (1, 3):
        write_one(tmp_path / f"step_{number}00.pt", number)
    (tmp_path / "step_200.pt").write_bytes(POINTER)
    (warning,) = ema_cli.plan(tmp_path, method="uniform").warnings
    assert warning.code == "unusable-left-out"
    assert 'step_200.pt", which is a git-lfs pointer' in warning.message
    assert warning.hint == "fetch the file itself: git lfs pull"
    with pytest.raises(StrictWarnings):
        ema_cli.average(tmp_path, method="uniform", output=tmp_path / "out.safetensors", strict=True)


def test_a_pointer_inside_a_model_folder(tmp_path: Path) -> None:
    """Weights, an index or the state of the trainer that were not fetched are named with the file."""
    for name in ("model.safetensors", "model.safetensors.index.json", "trainer_state.json"):
        folder = tmp_path / name / "checkpoint-1"
        folder.mkdir(parents=True)
        save_file({"w": np.ones(2)}, folder / "model.safetensors")
        (folder / name).write_bytes(POINTER)
        if name.endswith("index.json"):
            (folder / "model.safetensors").unlink()
        error = refusal(folder)
        assert f'"{name}" is a git-lfs pointer' in error.message
        assert "git lfs pull" in error.hint


def test_other_formats_beside_a_series_are_silent(tmp_path: Path) -> None:
    """Exports, archives and logs beside real checkpoints are neither averaged nor warned about."""
    run = tmp_path / "run"
    write_series(run, [{"w": torch.full((2,), float(number))} for number in (1, 2, 3)])
    for suffix in (".onnx", ".gguf", ".nemo", ".npz", ".h5", ".txt", ".keras"):
        (run / f"export_3{suffix}").write_bytes(FILES[suffix][0]())
    (run / "saved_model").mkdir()
    (run / "saved_model" / "saved_model.pb").write_bytes(b"")
    for name in ("x.index", "x.data-00000-of-00001"):
        (run / name).write_bytes(b"")
    plan = ema_cli.plan(run, method="uniform")
    assert len(plan.series.members) == 3
    assert not plan.warnings


FOLDERS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "TensorFlow": (("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"), "a TensorFlow checkpoint", "tf.train"),
    "SavedModel": (("saved_model.pb", "variables/variables.index"), "a TensorFlow SavedModel", "tf.train"),
    "Orbax": (("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "d/0"), "an Orbax checkpoint (JAX)", "orbax"),
    "old Orbax": (("default/manifest.ocdbt", "default/d/0"), "an Orbax checkpoint (JAX)", "orbax"),
    "Megatron": (("common.pt", "metadata.json", "a.weight/.zarray", "a.weight/0.0"), "of zarr arrays", "torch_dist"),
    "T5X": (("checkpoint", "target.a/.zarray", "target.a/0"), "of zarr arrays", "torch_dist"),
    "Core ML": (("Manifest.json", "Data/com.apple.CoreML/model.mlmodel"), "a Core ML package", "convert the average"),
}
"""The files of a folder, the name of its format, and a part of the next step."""


@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_a_folder_is_named_by_its_layout(tmp_path: Path, kind: str) -> None:
    """Named itself, or as one of a series in a folder."""
    files, name, step = FOLDERS[kind]
    for number in (100, 200):
        for file in files:
            path = tmp_path / f"step_{number}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    for paths in ((tmp_path / "step_100",), (tmp_path,)):
        error = refusal(*paths)
        assert f'step_100" is {name}' in error.message.replace("a checkpoint of", "of")
        assert step in error.hint


def test_a_folder_of_checkpoints_is_not_taken_for_another_format(tmp_path: Path) -> None:
    """Names that other programs use, too, do not hide checkpoints of torch beside them."""
    for number in (1, 2):
        write_one(tmp_path / f"model.ckpt-{number}.pt", number)
        (tmp_path / f"model.ckpt-{number}.index").write_bytes(b"")
        (tmp_path / f"model.ckpt-{number}.data-00000-of-00001").write_bytes(b"")
    (tmp_path / "metadata.json").write_text("{}", encoding="utf-8")
    assert len(ema_cli.plan(tmp_path, decay=0.5).series.members) == 2


def test_old_tar_checkpoints_of_torch(tmp_path: Path) -> None:
    """Only an archive with the members of torch's own old format is called that."""
    files = dict.fromkeys(("sys_info", "pickle", "tensors", "storages"), b"x")
    (tmp_path / "old.pt").write_bytes(tarred(files))
    assert "the format of torch before 0.2" in refusal(tmp_path / "old.pt").message


class CountedSource(MemorySource):
    """Counts the bytes that are read."""

    read_bytes = 0

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the buffer."""
        self.read_bytes += len(buffer)
        super().read_into(offset, buffer)


def test_little_is_read(tmp_path: Path) -> None:
    """The first half kilobyte, and of a tar archive a few headers, however large or long it is."""
    members = {f"{number}.yaml": bytes(5000) for number in range(200)}
    for data, most in ((tarred({"a.ckpt": bytes(4_000_000), **members}), 10_000), (POINTER + bytes(1 << 20), 1024)):
        source = CountedSource(data)
        with pytest.raises(InputRefused):
            read_file(source, (), LayoutPool())
        assert source.read_bytes < most
    assert not list(tmp_path.iterdir())


def test_in_a_store_they_are_named_as_well() -> None:
    """Files and folders of a store go through the same reader, and an archive costs few requests."""
    store = fsspec.filesystem("memory")
    for number in (1, 2):
        store.pipe(f"/foreign/run/a_{number}.nemo", tarred(NEMO))
        store.pipe(f"/foreign/lfs/step_{number}.pt", POINTER)
        store.pipe(f"/foreign/orbax/{number}/default/manifest.ocdbt", b"")
    for name, message in (("run", '"model_weights.ckpt"'), ("lfs", "git-lfs"), ("orbax", "an Orbax checkpoint")):
        with pytest.raises(EmaAvgError) as raised:
            ema_cli.plan(f"memory://foreign/{name}", decay=0.5)
        assert message in raised.value.message
    store.rm("/foreign", recursive=True)


def test_unpacking_works(tmp_path: Path, ema_avg: Run) -> None:
    """The commands of the hints, and then the files that they name, give the average."""
    for number in (1, 2):
        (tmp_path / f"c_{number}.pt.gz").write_bytes(gzip.compress(torch_bytes(number)))
        (tmp_path / f"c_{number}.nemo").write_bytes(tarred({**NEMO, "./model_weights.ckpt": torch_bytes(number)}))
        (tmp_path / f"c_{number}.zip").write_bytes(zipped({**POLICY, "policy.pth": torch_bytes(number)}))
    for number in (1, 2):
        folders = [tmp_path / f"nemo_{number}", tmp_path / f"zip_{number}"]
        for folder in folders:
            folder.mkdir()
        subprocess.run(["gunzip", f"c_{number}.pt.gz"], cwd=tmp_path, check=True)
        subprocess.run(["tar", "-xf", f"c_{number}.nemo", "-C", folders[0]], cwd=tmp_path, check=True)
        shutil.unpack_archive(tmp_path / f"c_{number}.zip", folders[1])
    for pattern in ("c_*.pt", "nemo_*/model_weights.ckpt", "zip_*/policy.pth"):
        done = ema_avg(pattern, "--decay", "0.5", "-o", "out.safetensors", "--force")
        assert done.returncode == 0, done.stderr
        assert load(tmp_path / "out.safetensors")["w"].tolist() == [1.5, 1.5]


def test_arrays_of_numpy_become_safetensors(tmp_path: Path) -> None:
    """The line in the hint for an ``.npz`` file, executed, makes files that can be averaged."""
    for number in (1, 2):
        np.savez(tmp_path / f"m_{number}.npz", w=np.full(2, float(number)))
        hint = refusal(tmp_path / f"m_{number}.npz").hint.removesuffix(f"; or {NAME_A_CHECKPOINT}")
        code = hint.partition(": ")[2].replace("model.safetensors", str(tmp_path / f"m_{number}.safetensors"))
        exec(f"import numpy\n{code.replace('; ', chr(10))}", {"path": tmp_path / f"m_{number}.npz"})
    ema_cli.average(tmp_path / "m_*.safetensors", decay=0.5, output=tmp_path / "out.safetensors")
    assert load(tmp_path / "out.safetensors")["w"].tolist() == [1.5, 1.5]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_can_be_saved_as_a_checkpoint(tmp_path: Path) -> None:
    """The line in the hint for an archive of ``torch.export``, executed, gives its weights."""
    model = nn.Linear(3, 2)
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(model, (torch.ones(1, 3),)), path)
    error = refusal(path)
    assert "is an archive of torch.export (.pt2)" in error.message
    code = error.hint.partition(": ")[2].removesuffix(f"; or {NAME_A_CHECKPOINT}")
    exec(code, {"torch": torch, "path": path, "NAME": tmp_path / "m_1.pt"})
    assert {tensor.name for tensor in ema_cli.plan(tmp_path / "m_1.pt", decay=0.5).tensors} == {"weight", "bias"}


def test_the_listing_is_json_as_well(tmp_path: Path, ema_avg: Run) -> None:
    """``--json`` has the same message and step."""
    (tmp_path / "m.gguf").write_bytes(FILES[".gguf"][0]())
    done = ema_avg("plan", tmp_path, "--decay", "0.5", "--json")
    assert done.returncode == 7
    assert "is a GGUF file" in json.loads(done.stdout or done.stderr)["error"]["message"]
