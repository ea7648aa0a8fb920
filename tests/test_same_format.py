"""``--format same``: a copy of the last checkpoint of torch or safetensors, with the averages in their places."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ema_cli.errors import InputChanged, InputRefused, UsageError
from ema_cli.events import Event, Progress
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from tests.helpers.series import same_bits
from tests.helpers.trees import (
    averaged,
    changed_records,
    different,
    differing_bytes,
    how_it_loads,
    leaves_of,
    load_all,
)

WEIGHTS = (0.25, 0.25, 0.5)
"""Of three checkpoints with decay 0.5."""


class Stopped(BaseException):
    """Used in place of a signal."""


Make = Callable[[int], dict[str, Any]]


def trained(step: int) -> dict[str, Any]:
    """Return a checkpoint of a small model after some steps, with its optimizer and what else trainers put there."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(17, 9), torch.nn.BatchNorm1d(9), torch.nn.Linear(9, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(step):
        optimizer.zero_grad()
        model(torch.randn(5, 17)).square().sum().backward()
        optimizer.step()
    return {
        "epoch": step // 2,
        "global_step": step,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "rng": torch.get_rng_state(),
        "hyper_parameters": {"lr": 0.1, "name": "ü"},
    }


def write(folder: Path, make: Make = trained, *, suffix: str = ".ckpt", **options: Any) -> list[Path]:
    """Write three checkpoints."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"step_{step}{suffix}" for step in (2, 4, 6)]
    for path, step in zip(paths, (2, 4, 6), strict=True):
        torch.save(make(step), path, **options)
    return paths


def average(paths: list[Path], output: Path, **options: Any) -> Path:
    """Average with decay 0.5."""
    run_average(make_options(paths, **{"decay": 0.5, "output": output, "probe": False, **options}))
    return output


def check(output: Path, paths: list[Path], key: str = "state_dict") -> None:
    """Check the averages, and that everything else equals the last checkpoint, as torch loads both."""
    found, states = load_all(output), [load_all(path) for path in paths]
    expected = averaged([state[key] for state in states], WEIGHTS)
    assert all(same_bits(found[key][name], tensor) for name, tensor in expected.items())
    changed = {f"{key}.{name}" for name, tensor in expected.items() if not same_bits(tensor, states[-1][key][name])}
    assert changed
    assert different(found, states[-1]) == changed


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_everything_but_the_averages_is_that_of_the_last(tmp_path: Path, suffix: str) -> None:
    """Torch loads the averages where the weights were, and all else unchanged; the archive is intact."""
    paths = write(tmp_path / "run", suffix=suffix)
    output = average(paths, tmp_path / f"ema{suffix}")
    check(output, paths)
    assert how_it_loads(output) == how_it_loads(paths[-1]) == ""
    names = changed_records(output, paths[-1])
    assert len(names) == 8  # floating-point tensors, each with a record of its own
    assert all("/data/" in name for name in names)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_only_data_and_checksums_change(tmp_path: Path) -> None:
    """Outside of the averaged records and the CRC-32s in descriptors and directory no byte differs."""
    paths = write(tmp_path / "run")
    output = average(paths, tmp_path / "ema.ckpt")
    raw, allowed = paths[-1].read_bytes(), list[range]()
    with zipfile.ZipFile(paths[-1]) as archive:
        position = archive.start_dir
        for info in archive.infolist():
            allowed.append(range(position + 16, position + 20))
            position += 46 + sum(
                int.from_bytes(raw[position + at : position + at + 2], "little") for at in (28, 30, 32)
            )
            lengths = (
                int.from_bytes(raw[info.header_offset + at : info.header_offset + at + 2], "little") for at in (26, 28)
            )
            begin = info.header_offset + 30 + sum(lengths)
            allowed.append(range(begin, begin + info.file_size + 8))
            if info.filename.rpartition("/")[2] in ("data.pkl", "version", "byteorder"):
                allowed.pop()
    assert not differing_bytes(output, paths[-1], allowed)


def rewritten(path: Path, *, stream: bool) -> None:
    """Write an archive again with Python: with the checksum in the local header, or in a descriptor after the data."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]

    class Pipe:
        """A file that cannot seek, so that checksums come after the data."""

        def __init__(self) -> None:
            self.file = path.open("wb")
            self.write, self.flush = self.file.write, self.file.flush

    pipe = Pipe()
    with zipfile.ZipFile(pipe if stream else path, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for name, data in records:
            archive.writestr(name, data)
    pipe.file.close()


@pytest.mark.parametrize("stream", [False, True], ids=["local header", "descriptor"])
def test_archives_that_were_zipped_again(tmp_path: Path, stream: bool) -> None:
    """The CRC-32 is set where the archive has it."""
    paths = write(tmp_path / "run")
    if stream:
        rewritten(paths[-1], stream=True)
    else:
        with zipfile.ZipFile(paths[-1]) as archive:
            records = [(info.filename, archive.read(info)) for info in archive.infolist()]
        with zipfile.ZipFile(paths[-1], "w") as archive:
            for name, data in records:
                archive.writestr(name, data)
    output = average(paths, tmp_path / "ema.ckpt")
    check(output, paths)
    assert len(changed_records(output, paths[-1])) == 8
    raw = output.read_bytes()
    with zipfile.ZipFile(output) as archive:
        for info in archive.infolist():
            local = int.from_bytes(raw[info.header_offset + 14 : info.header_offset + 18], "little")
            assert local == (0 if stream else info.CRC)


def without_signatures(path: Path) -> None:
    """Remove the signatures of the data descriptors, which are optional."""
    rewritten(path, stream=True)
    with zipfile.ZipFile(path) as archive:
        infos, begin = archive.infolist(), archive.start_dir
    raw, out, moved = path.read_bytes(), bytearray(), dict[int, int]()
    ends = [*(info.header_offset for info in infos[1:]), begin]
    for info, end in zip(infos, ends, strict=True):
        moved[info.header_offset] = len(out)
        record = raw[info.header_offset : end]
        assert record[-16:-12] == b"PK\x07\x08"
        out += record[:-16] + record[-12:]
    directory, position = bytearray(raw[begin:]), 0
    for info in infos:
        directory[position + 42 : position + 46] = moved[info.header_offset].to_bytes(4, "little")
        position += 46 + len(info.filename) + len(info.extra)
    directory[position + 16 : position + 20] = len(out).to_bytes(4, "little")
    path.write_bytes(bytes(out + directory))


def test_descriptors_without_a_signature(tmp_path: Path) -> None:
    """The CRC-32 is found in a descriptor that has no signature."""
    paths = write(tmp_path / "run")
    without_signatures(paths[-1])
    output = average(paths, tmp_path / "ema.ckpt")
    assert len(changed_records(output, paths[-1])) == 8


def test_checksums_that_are_off_stay_off(tmp_path: Path) -> None:
    """An archive that was written without checksums has none afterwards."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        paths = write(tmp_path / "run")
    finally:
        torch.serialization.set_crc32_options(before)
    output = average(paths, tmp_path / "ema.ckpt")
    check(output, paths)
    with zipfile.ZipFile(output) as archive, zipfile.ZipFile(paths[-1]) as last:
        assert [one.CRC for one in archive.infolist()] == [one.CRC for one in last.infolist()]
        assert all(not one.CRC for one in archive.infolist() if "/data/" in one.filename)


def test_files_of_old_torch(tmp_path: Path) -> None:
    """The format before torch 1.6 works, too: nothing but the elements changes."""
    paths = write(tmp_path / "run", suffix=".pt", _use_new_zipfile_serialization=False)
    output = average(paths, tmp_path / "ema.pt")
    check(output, paths)
    count = sum(tensor.nbytes for tensor in load_all(output)["state_dict"].values() if tensor.is_floating_point())
    assert 0 < len(differing_bytes(output, paths[-1])) <= count


class Custom:
    """A class that ``weights_only=True`` refuses."""


def test_what_weights_only_refuses_is_refused_as_before(tmp_path: Path) -> None:
    """The pickle is copied, with classes that are never imported."""
    paths = write(tmp_path / "run", lambda step: {"model": trained(step)["state_dict"], "args": Custom()}, suffix=".pt")
    output = average(paths, tmp_path / "ema.pt")
    assert how_it_loads(output) == how_it_loads(paths[-1]) != ""
    assert type(load_all(output)["args"]).__name__ == "Custom"


def sparse(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor of which only some rows are stored, in the memory of ``values``."""
    return torch.sparse_coo_tensor(torch.arange(len(values))[None], values, (9, 5), check_invariants=True)


def views(step: int) -> dict[str, Any]:
    """Return tensors of every kind that share storages without sharing bytes, or are not contiguous."""
    generator = torch.Generator().manual_seed(step)
    base, wide = torch.randn(12, 40, generator=generator), torch.randn(4000, 30, generator=generator)
    tied = torch.randn(6, 5, generator=generator)
    return {
        "model": {
            "left": base[:, :10],
            "right": base[:, 10:25],
            "even": base[:, 26:40:2],
            "odd": base[:, 27:40:2],
            "transposed": wide.t(),
            "channels": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
            "tied": tied,
            "also": tied,
            "scalar": torch.randn((), generator=generator),
            "empty": torch.zeros(0, 3),
            "half": torch.randn(70, generator=generator).bfloat16(),
            "count": torch.tensor(step),
        },
        "step": step,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_are_not_contiguous(tmp_path: Path, legacy: bool) -> None:
    """Views are scattered into their storages; what is between them, and ties, stay."""
    paths = write(tmp_path / "run", views, suffix=".pt", _use_new_zipfile_serialization=not legacy)
    output = average(paths, tmp_path / "ema.pt", max_memory=1 << 21, threads=2)
    check(output, paths, "model")
    found, last = load_all(output)["model"], load_all(paths[-1])["model"]
    assert found["tied"].data_ptr() == found["also"].data_ptr()
    whole, before = (np.asarray(one["left"].untyped_storage()) for one in (found, last))
    gap = slice(4 * 25, 4 * 26)  # no tensor has this column
    assert bytes(whole[gap]) == bytes(before[gap])
    if not legacy:
        assert zipfile.ZipFile(output).testzip() is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: {"w": s["a"], "ema": {"w": s["a"]}}, '"w" has the same bytes as "ema.w", which would change, too'),
        (lambda s: {"w": s["a"], "ema": {"w": s["a"][1:]}}, '"w" has some of its bytes in common with "ema.w"'),
        (lambda s: {"w": s["a"], "optimizer": {"exp_avg": s["a"].t()}}, 'bytes in common with "optimizer.exp_avg"'),
        (
            lambda s: {
                "w": s["a"],
                "ema": [torch.TypedStorage(wrap_storage=s["a"].untyped_storage(), dtype=torch.float32, _internal=True)],
            },
            "bytes in common",
        ),
        (
            lambda s: {"w": s["a"], "ema": {"s": sparse(s["a"])}},
            "an object of another kind refers to the same storage",
        ),
        (lambda s: {"w": s["b"].expand(3, 4)}, '"w" has elements that share bytes'),
        (lambda s: {"w": s["a"], "v": s["a"][:2]}, '"v" has some of its bytes in common with "model.w"'),
    ],
    ids=["best", "part", "transposed", "storage", "sparse", "expanded", "overlap"],
)
def test_bytes_that_something_else_has(tmp_path: Path, make: Callable[[Any], Any], message: str) -> None:
    """A tensor is not replaced if another part of the checkpoint would change with it; the message names both."""

    def state(step: int) -> dict[str, Any]:
        torch.manual_seed(step)
        made = make({"a": torch.randn(4, 5), "b": torch.randn(3, 1)})
        weights = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
        return {"model": weights, **{name: value for name, value in made.items() if name not in weights}}

    paths = write(tmp_path / "run", state, suffix=".pt")
    with pytest.raises(InputRefused, match=message) as refused:
        average(paths, tmp_path / "ema.pt", key="model")
    assert "-o ema.safetensors" in refused.value.hint
    assert not (tmp_path / "ema.pt").exists()
    average(paths, tmp_path / "ema.safetensors", key="model")


def test_one_state_dict_under_two_keys(tmp_path: Path) -> None:
    """A state dict that the pickle has once and refers to twice is one object: both names would change."""

    def shared(step: int) -> dict[str, Any]:
        weights = trained(step)["state_dict"]
        return {"model": weights, "best": weights, "step": step}

    paths = write(tmp_path / "run", shared, suffix=".pt")
    with pytest.raises(InputRefused, match=r'has the same bytes as "best\.0\.weight"'):
        average(paths, tmp_path / "ema.pt", key="model")


def test_unrelated_views_of_other_parts_do_not_matter(tmp_path: Path) -> None:
    """Shared storages of the optimizer are copied as they are."""

    def state(step: int) -> dict[str, Any]:
        moments = torch.randn(8)
        return {**trained(step), "moments": [moments, moments, moments[2:], moments[:1].expand(5)]}

    paths = write(tmp_path / "run", state)
    check(average(paths, tmp_path / "ema.ckpt"), paths)


def test_ties_must_be_in_every_checkpoint(tmp_path: Path) -> None:
    """Names that share bytes in the last checkpoint alone have two averages and one place."""
    paths = write(tmp_path / "run", views, suffix=".pt")
    state = views(2)
    state["model"]["also"] = state["model"]["also"].clone()
    torch.save(state, paths[0])
    with pytest.raises(InputRefused, match=r'"tied", "also" have the same bytes there, but not in "step_2\.pt"'):
        average(paths, tmp_path / "ema.pt")
    average(paths[1:], tmp_path / "ema.pt")
    average(paths, tmp_path / "by_hand.pt", decay=None, weights=[0, 1, 1])  # the first has no share


def test_selected_tensors(tmp_path: Path) -> None:
    """Tensors that are not selected keep the bytes of the last; a tied name that is not selected is refused."""
    paths = write(tmp_path / "run")
    output = average(paths, tmp_path / "ema.ckpt", include=r"^0\.weight$")
    assert different(load_all(output), load_all(paths[-1])) == {"state_dict.0.weight"}
    tied = write(tmp_path / "tied", views, suffix=".pt")
    with pytest.raises(InputRefused, match='"also", which has the same bytes, is not selected'):
        average(tied, tmp_path / "x.pt", exclude="also")


def test_statistics_of_the_first(tmp_path: Path) -> None:
    """``--buffers first`` puts the statistics of the first checkpoint into the copy of the last."""
    paths = write(tmp_path / "run")
    found = load_all(average(paths, tmp_path / "ema.ckpt", buffers="first"))["state_dict"]
    first = load_all(paths[0])["state_dict"]
    assert same_bits(found["1.running_mean"], first["1.running_mean"])
    assert found["1.num_batches_tracked"] == 6
    kept = load_all(average(paths, tmp_path / "last.ckpt", buffers="last"))["state_dict"]
    assert same_bits(kept["1.running_mean"], load_all(paths[-1])["state_dict"]["1.running_mean"])


def test_several_averages_of_one_read(tmp_path: Path) -> None:
    """Every average has a copy of its own."""
    paths = write(tmp_path / "run")
    average(paths, tmp_path / "ema_{decay}.ckpt", decay=[0.5, 0.9])
    check(tmp_path / "ema_0.5.ckpt", paths)
    one = average(paths, tmp_path / "one.ckpt", decay=0.9)
    assert one.read_bytes() == (tmp_path / "ema_0.9.ckpt").read_bytes()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bytes_do_not_depend_on_threads_and_blocks(tmp_path: Path, threads: int) -> None:
    """Any number of threads, and any size of blocks, write the same file."""
    paths = write(tmp_path / "run", views, suffix=".pt")
    expected = average(paths, tmp_path / "ema.pt").read_bytes()
    other = average(paths, tmp_path / "other.pt", threads=threads, max_memory=threads << 19, read_back="all")
    assert other.read_bytes() == expected


def test_safetensors_keep_their_metadata(tmp_path: Path) -> None:
    """A single safetensors file is copied with its header; the library opens it."""
    paths = [tmp_path / f"step_{step}.safetensors" for step in (2, 4, 6)]
    for path, step in zip(paths, (2, 4, 6), strict=True):
        save_file({name: t.contiguous() for name, t in trained(step)["state_dict"].items()}, path, {"a": "b"})
    output = average(paths, tmp_path / "ema.safetensors", format="same")
    with safe_open(output, "pt") as opened:
        assert opened.metadata() == {"a": "b"}
    expected = averaged([load_file(path) for path in paths], WEIGHTS)
    assert all(same_bits(tensor, expected[name]) for name, tensor in load_file(output).items())
    with pytest.raises(UsageError, match="would be a safetensors file") as refused:
        average(paths, tmp_path / "ema.pt")
    assert refused.value.hint == f"-o {output}"


def test_names_that_mislead(tmp_path: Path) -> None:
    """A name must be that of what is written; the hint has one."""
    paths = write(tmp_path / "run", suffix=".pth")
    for name, options, message, hint in (
        ("ema.safetensors", {"format": "same"}, "would be a torch zip file", "-o ema.pth"),
        ("ema", {"format": "same", "max_shard_size": 5_000_000_000}, "is a folder, but the last", "-o ema.pth"),
        ("run", {"format": "same"}, "is a folder, but the last checkpoint", "-o run.pth"),
    ):
        with pytest.raises(UsageError, match=message) as refused:
            average(paths, tmp_path / name, **options)
        assert refused.value.hint.replace(f"{tmp_path}/", "") == hint


@pytest.mark.parametrize("folded", [True, False])
def test_an_interrupted_run_is_continued(tmp_path: Path, folded: bool) -> None:
    """``--resume`` does not fold again what is complete and in its place, and writes the same bytes."""
    paths = write(tmp_path / "run", views, suffix=".pt")
    expected = average(paths, tmp_path / "whole.pt").read_bytes()

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "folding" and event.done_bytes == event.total_bytes:
            raise Stopped

    options: Mapping[str, Any] = {"decay": 0.5, "output": tmp_path / "ema.pt", "resume": True, "probe": False}
    with pytest.raises(Stopped):
        run_average(make_options(paths, **options), stop)
    partial = tmp_path / ".ema.pt.resume.partial"
    assert partial.stat().st_size == len(expected)
    if not folded:
        partial.write_bytes(bytes(len(expected)))
    report = run_average(make_options(paths, **options)).report
    assert (tmp_path / "ema.pt").read_bytes() == expected
    # The ties, and those that are unchanged, have no place of their own; views are folded again.
    assert 2 <= report.summary.resumed_tensors < 11
    assert not list(tmp_path.glob(".*"))


def test_a_change_of_the_last_checkpoint_is_noticed(tmp_path: Path) -> None:
    """If the checkpoint is written to while it is copied, nothing is published."""
    paths = write(tmp_path / "run")

    def change(event: Event) -> None:
        if isinstance(event, Progress) and event.activity == "copying":
            with paths[-1].open("r+b") as file:
                file.seek(100)
                file.write(b"x")

    with pytest.raises(InputChanged, match="was changed"):
        run_average(make_options(paths, decay=0.5, output=tmp_path / "ema.ckpt", probe=False), change)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_leaves_are_compared_whole() -> None:
    """The oracle of these tests finds a difference in any part."""
    one, other = trained(2), trained(2)
    assert not different(one, other)
    other["optimizer_states"][0]["state"][0]["exp_avg"][0, 0] += 1
    assert different(one, other) == {"optimizer_states.0.state.0.exp_avg"}
    assert len(list(leaves_of(one))) > 20


def test_the_last_checkpoint_may_be_remote(tmp_path: Path) -> None:
    """A checkpoint in a store is read, and copied to the disk."""
    store = fsspec.filesystem("memory")
    paths = write(tmp_path / "run", views, suffix=".pt")
    for path in paths:
        store.put_file(str(path), f"/same/{path.name}")
    urls = [f"memory://same/{path.name}" for path in paths]
    run_average(make_options(urls, decay=0.5, output=tmp_path / "remote.pt", probe=False))
    assert (tmp_path / "remote.pt").read_bytes() == average(paths, tmp_path / "local.pt").read_bytes()
