"""One average in several ranks: the bytes and the report of one process, whatever their number."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import InputRefused
from tests.helpers import dcp_makers
from tests.helpers.adapters import factors, write_adapters
from tests.helpers.folders import write_shards
from tests.helpers.ranks import average_in_ranks

SMALL_BLOCKS = 200_000
"""Bytes of the buffers: tensors have many blocks."""


def state(step: int) -> dict[str, torch.Tensor]:
    """Return a model with a large tensor, small ones, a constant, integers and tied tensors."""
    generator = torch.Generator().manual_seed(step)
    made = {f"layers.{i}.weight": torch.randn(40, 77, generator=generator) for i in range(3)}
    made |= {f"norms.{i}": torch.randn(16, generator=generator) for i in range(30)}
    made["large"] = torch.randn(300, 500, generator=generator).bfloat16()
    made["constant"] = torch.full((90, 500), 1 / 3) + torch.arange(500) * 0.1
    made["complex"] = torch.randn(50, 60, generator=generator, dtype=torch.complex64)
    made["empty"] = torch.zeros(0, 4)
    made["count"] = torch.tensor(step)
    made["mask"] = torch.arange(50_000) % 3
    return made


@pytest.fixture(scope="module", params=["pt", "safetensors"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four checkpoints."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    folder.mkdir()
    for step in (1, 2, 3, 4):
        made = state(step)
        if request.param == "pt":
            torch.save({**made, "tied": made["layers.0.weight"], "view": made["large"][:100]}, folder / f"s_{step}.pt")
        else:
            save_file(made, folder / f"s_{step}.safetensors")
    return folder


def found(report: Any) -> dict[str, Any]:
    """Return a report without its command, environment, times, and the names of the outputs."""
    document = dataclasses.asdict(report)
    for own in ("command", "environment"):
        del document[own]
    for own in ("seconds", "fold_seconds", "peak_memory_bytes", "throughput_bytes_per_second"):
        del document["summary"][own]
    for average in document["averages"]:
        for file in (average["output"], *average["output"]["files"]):
            file["modified_ns"] = None
        average["output"]["path"] = None
    return document


@pytest.mark.parametrize("count", [2, 3, 4])
def test_bytes_and_findings_are_those_of_one_process(run: Path, tmp_path: Path, count: int) -> None:
    """One file with two averages, whose tensors are cut between the ranks."""
    options: dict[str, Any] = {"decay": [0.9, 0.5], "max_memory": SMALL_BLOCKS, "threads": 2, "sha256": True}
    alone = ema_cli.average(run, output=tmp_path / "a_{decay}.safetensors", **options)
    together, _ = average_in_ranks(count, [run], output=tmp_path / "b_{decay}.safetensors", **options)
    for decay in ("0.9", "0.5"):
        name = f"{decay}.safetensors"
        assert (tmp_path / f"b_{name}").read_bytes() == (tmp_path / f"a_{name}").read_bytes()
    assert found(together) == found(alone)
    assert all(known.sha256 for known in together.inputs)
    assert len(together.environment.ranks) == count
    assert min(share.read_bytes for share in together.environment.ranks) > 0


@pytest.mark.parametrize("size", ["300KB", "1MB"])
def test_a_folder_has_the_same_files(run: Path, tmp_path: Path, size: str) -> None:
    """Files that one rank writes, and files that several write; the index and the digests are the same."""
    options: dict[str, Any] = {"decay": 0.9, "max_memory": SMALL_BLOCKS, "max_shard_size": size, "threads": 1}
    alone = ema_cli.average(run, output=tmp_path / "a", **options)
    together, _ = average_in_ranks(3, [run], output=tmp_path / "b", **options)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert found(together) == found(alone)


def test_damage_is_found_in_a_record_that_several_ranks_read(tmp_path: Path) -> None:
    """No rank reads a whole record; their CRC-32s are combined, whichever has the damaged bytes."""
    for step in (1, 2):
        torch.save({"a": torch.randn(100_000), "b": torch.randn(200_000)}, tmp_path / f"s_{step}.pt")
    series = sorted(tmp_path.glob("s_*"))
    options: dict[str, Any] = {"decay": 0.5, "max_memory": SMALL_BLOCKS, "output": tmp_path / "ema.safetensors"}
    average_in_ranks(3, series, **options)
    whole = series[0].read_bytes()
    for place in (2_000, 500_000, 1_190_000):  # the second tensor is read by ranks 1 and 2
        series[0].write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputRefused, match="is damaged"):
            average_in_ranks(3, series, **options, force=True)
    series[0].write_bytes(whole)


def test_constants_that_are_cut_between_ranks(tmp_path: Path) -> None:
    """Infinity in one block of a constant: it is written as it is stored, and the whole tensor is marked."""
    constant = torch.full((100_000,), 0.1)
    constant[70_000:] = float("inf")
    for step in (1, 2, 3):
        save_file({"c": constant, "w": torch.randn(10_000)}, tmp_path / f"s_{step}.safetensors")
    series = sorted(tmp_path.glob("s_*"))
    options: dict[str, Any] = {"decay": 0.9, "max_memory": SMALL_BLOCKS, "threads": 1}
    alone = ema_cli.average(series, output=tmp_path / "a.safetensors", **options)
    together, _ = average_in_ranks(3, series, output=tmp_path / "b.safetensors", **options)
    assert alone.averages[0].tensors[0].kept
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert found(together) == found(alone)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """A tensor with NaN in the blocks of one rank is named by rank 0 (``--allow-nonfinite``)."""
    for step in (1, 2):
        values = torch.randn(100_000)
        values[90_000] = float("nan")
        save_file({"w": values}, tmp_path / f"s_{step}.safetensors")
    series = sorted(tmp_path.glob("s_*"))
    options: dict[str, Any] = {"decay": 0.9, "max_memory": SMALL_BLOCKS, "allow_nonfinite": True}
    alone = ema_cli.average(series, output=tmp_path / "a.safetensors", **options)
    together, _ = average_in_ranks(2, series, output=tmp_path / "b.safetensors", **options)
    assert "nonfinite-written" in [warning.code for warning in together.warnings]
    assert found(together) == found(alone)


def test_a_folder_is_replaced(run: Path, tmp_path: Path) -> None:
    """``--force``: files that are not ours are kept, and files keep their permissions."""
    options: dict[str, Any] = {"output": tmp_path / "out", "max_shard_size": "300KB", "threads": 1}
    average_in_ranks(2, [run], decay=0.9, **options)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for file in (tmp_path / "out").glob("*.safetensors"):
        file.chmod(0o600)
    average_in_ranks(3, [run], decay=0.8, force=True, **options)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").glob("*.safetensors")} == {0o600}
    ema_cli.average(run, decay=0.8, **{**options, "output": tmp_path / "alone"})
    for file in (tmp_path / "alone").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_exact_updates_of_adapters(tmp_path: Path) -> None:
    """``--lora exact``: factors that are put side by side, cut between ranks."""
    states = [factors(step, rank=8, inside=5_000, outside=4_000) for step in (1, 2, 3)]
    folders = write_adapters(tmp_path / "run", states, [{"r": 8}] * 3)
    options: dict[str, Any] = {"decay": 0.9, "lora": "exact", "max_memory": SMALL_BLOCKS, "max_shard_size": "1MB"}
    alone = ema_cli.average(folders, output=tmp_path / "a", **options)
    together, _ = average_in_ranks(3, folders, output=tmp_path / "b", **options)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert found(together) == found(alone)


def test_folders_of_dcp(tmp_path: Path) -> None:
    """Tensors in several chunks and files."""
    for step in (1, 2, 3):
        dcp_makers.save(tmp_path / "run" / f"step_{step}", {"model": state(step), "step": step})
    series = sorted((tmp_path / "run").iterdir())
    options: dict[str, Any] = {"decay": 0.9, "max_memory": SMALL_BLOCKS}
    alone = ema_cli.average(series, output=tmp_path / "a.safetensors", **options)
    together, _ = average_in_ranks(3, series, output=tmp_path / "b.safetensors", **options)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert found(together) == found(alone)


def test_more_ranks_than_tensors(tmp_path: Path) -> None:
    """Some ranks have nothing to do."""
    for step in (1, 2):
        save_file({"w": torch.full((3,), float(step)), "n": torch.tensor(step)}, tmp_path / f"s_{step}.safetensors")
    series = sorted(tmp_path.glob("s_*"))
    ema_cli.average(series, decay=0.5, output=tmp_path / "a.safetensors")
    average_in_ranks(4, series, decay=0.5, output=tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_up_to_date(run: Path, tmp_path: Path) -> None:
    """The second run writes nothing, and every rank ends."""
    options: dict[str, Any] = {"decay": 0.9, "output": tmp_path / "ema.safetensors"}
    average_in_ranks(2, [run], **options)
    before = (tmp_path / "ema.safetensors").stat()
    _, raised = average_in_ranks(2, [run], **options)
    after = (tmp_path / "ema.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert raised == [None, None]


def test_a_copy_of_the_last_checkpoint(tmp_path: Path) -> None:
    """``--format same``: everything but the averages is copied once, and the checksums are right."""
    for step in (1, 2, 3):
        made = state(step)
        torch.save({"model": made, "optimizer": {"m": torch.randn(500)}, "step": step}, tmp_path / f"s_{step}.pt")
    series = sorted(tmp_path.glob("s_*"))
    options: dict[str, Any] = {"decay": 0.9, "max_memory": SMALL_BLOCKS}
    alone = ema_cli.average(series, output=tmp_path / "a.pt", **options)
    together, _ = average_in_ranks(3, series, output=tmp_path / "b.pt", **options)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        assert archive.testzip() is None
    assert found(together) == found(alone)


@pytest.mark.parametrize("form", ["dcp", "same"])
def test_a_folder_of_another_format(run: Path, tmp_path: Path, form: str) -> None:
    """Tensors have their places in the files of a folder."""
    options: dict[str, Any] = {"decay": 0.9, "max_memory": SMALL_BLOCKS, "format": form}
    series = [run]
    if form == "same":
        series = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
        for step, folder in enumerate(series, 1):
            write_shards(folder, state(step))
            (folder / "config.json").write_text("{}")
    alone = ema_cli.average(series, output=tmp_path / "a", **options)
    together, _ = average_in_ranks(3, series, output=tmp_path / "b", **options)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert found(together) == found(alone)
