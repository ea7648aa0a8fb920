"""``--format dcp``: a folder that ``dcp.load`` reads, written without torch and without a process group."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import ema_cli
from ema_cli.errors import UsageError
from ema_cli.formats.dcp import chunk_sizes
from ema_cli.formats.open import open_checkpoint
from ema_cli.planning.dcp_format import place_in_dcp
from ema_cli.storage.extents import LayoutPool
from tests.helpers import dcp_makers
from tests.helpers.dcp_by_hand import planned, write_by_hand
from tests.helpers.makers import DTYPES, random_tensor, read_all, tensor_bytes
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import State, load, random_states, same_bits, write_series

DECAY = ("--decay", "0.75")


def states(count: int = 3) -> list[State]:
    """Return states with tensors of several types; some are copied."""
    made = random_states(count)
    for number, state in enumerate(made):
        torch.manual_seed(number)
        state |= {"half": torch.randn(9).half(), "brain": torch.randn(3, 5).bfloat16(), "c": torch.randn(4) + 1j}
        state |= {"steps": torch.tensor([number]), "mask": torch.tensor([True, False]), "ünï.0": torch.randn(2)}
    return made


def write_dcp(folder: Path, made: list[State], *above: str, **beside: object) -> list[Path]:
    """Save states as ``step_1``, ``step_2``, ... with the weights under a path, and ``beside`` at the top level."""
    paths = []
    for number, state in enumerate(made, 1):
        nested: Any = dict(state)
        for name in reversed(above):
            nested = {name: nested}
        paths.append(dcp_makers.save(folder / f"step_{number}", {**nested, **beside}))
    return paths


def average(ema_avg: Run, *arguments: object) -> str:
    """Average; return what was printed."""
    done = ema_avg(*arguments, *DECAY)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def check(folder: Path, expected: Mapping[str, torch.Tensor], *above: str) -> None:
    """Load a folder with torch, and compare it with the tensors of another output; test every archive."""
    found = dcp_makers.load(folder, expected, *above)
    assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    assert len(metadata.state_dict_metadata) == len(expected)
    ends = {}
    for key, at in metadata.storage_data.items():
        chunk = metadata.state_dict_metadata[key.fqn].chunks[key.index]
        assert chunk.offsets == key.offset
        content = (folder / at.relative_path).read_bytes()[at.offset : at.offset + at.length]
        with zipfile.ZipFile(BytesIO(content)) as archive:
            assert archive.testzip() is None
        ends[at.relative_path] = at.offset + at.length
    assert {path.name: path.stat().st_size for path in folder.glob("*.distcp")} == ends


def test_an_average_is_loaded_by_torch(ema_avg: Run, tmp_path: Path) -> None:
    """Files become a folder under the names of the model, which has the tensors of the average in safetensors."""
    write_series(tmp_path / "run", states())
    average(ema_avg, "run", "-o", "ema.safetensors")
    average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    assert {path.name for path in (tmp_path / "averaged").iterdir()} == {".metadata", "__0_0.distcp"}
    check(tmp_path / "averaged", load(tmp_path / "ema.safetensors"))


@pytest.mark.parametrize("above", [(), ("model",), ("app", "model")], ids=".".join)
def test_weights_stay_where_they_were_in_a_state_dict(above: tuple[str, ...], ema_avg: Run, tmp_path: Path) -> None:
    """The call of ``dcp.load`` that loads the weights of a checkpoint loads those of the average."""
    write_dcp(tmp_path / "run", states(), *above, step=7)
    average(ema_avg, "run", "-o", "ema.safetensors")
    average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    expected = load(tmp_path / "ema.safetensors")
    check(tmp_path / "averaged", expected, *above)
    whole: Any = tmp_path / "whole.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(tmp_path / "averaged", whole)
    whole = torch.load(whole)
    for name in above:
        assert list(whole) == [name]
        whole = whole[name]
    assert all(same_bits(whole[name], tensor) for name, tensor in expected.items())


def test_names_keep_the_prefixes_of_wrappers(ema_avg: Run, tmp_path: Path) -> None:
    """A trainer that saved names of ``torch.compile`` asks for them again, also within a name."""
    wrapped = [
        {"_orig_mod.a._checkpoint_wrapped_module.weight": torch.randn(3), "_orig_mod.b": torch.randn(2)} for _ in "ab"
    ]
    write_dcp(tmp_path / "run", wrapped, "model")
    average(ema_avg, "run", "-o", "ema.safetensors")
    average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    expected = load(tmp_path / "ema.safetensors")
    assert set(expected) == {"a.weight", "b"}
    names = dict(zip(["a.weight", "b"], wrapped[0], strict=True))
    check(tmp_path / "averaged", {names[name]: tensor for name, tensor in expected.items()}, "model")


@pytest.mark.parametrize("above", [(), ("model",)], ids=".".join)
def test_a_prefix_that_the_user_strips_is_gone(above: tuple[str, ...], ema_avg: Run, tmp_path: Path) -> None:
    """``--strip-prefix`` asks for other names than the trainer's."""
    made = [{"net.a.weight": torch.randn(3), "net.b": torch.randn(2)} for _ in "ab"]
    write_dcp(tmp_path / "run", made, *above)
    average(ema_avg, "run", "--strip-prefix", "net.", "-o", "ema.safetensors")
    average(ema_avg, "run", "--strip-prefix", "net.", "--format", "dcp", "-o", "averaged/")
    expected = load(tmp_path / "ema.safetensors")
    assert set(expected) == {"a.weight", "b"}
    check(tmp_path / "averaged", expected, *above)


def test_parts_by_key_stay_apart(ema_avg: Run, tmp_path: Path) -> None:
    """Several ``--key`` give the names of all parts; a tensor that is left out is not declared."""
    parts = [{"gen": {"w": torch.randn(3), "v": torch.randn(1)}, "dis": {"w": torch.randn(2)}} for _ in "abc"]
    for number, state in enumerate(parts):
        dcp_makers.save(tmp_path / "run" / f"step_{number}", state)
    chosen = ["--key", "gen", "--key", "dis", "--exclude", "gen.v"]
    average(ema_avg, "run", *chosen, "--format", "dcp", "-o", "averaged/")
    average(ema_avg, "run", *chosen, "-o", "ema.safetensors")
    check(tmp_path / "averaged", load(tmp_path / "ema.safetensors"))
    paths = pickle.loads((tmp_path / "averaged/.metadata").read_bytes()).planner_data
    assert paths == {"gen.w": ("gen", "w"), "dis.w": ("dis", "w")}


def test_tensors_beside_those_that_cannot_be_read(ema_avg: Run, tmp_path: Path) -> None:
    """The names of the others stay right."""
    made = [{"a": torch.randn(2), "b": torch.randn(2) + 0j, "c": torch.randn(3), "d": torch.randn(1)} for _ in "ab"]
    for state in made:
        state["b"] = state["b"].to(torch.complex128)
    write_dcp(tmp_path / "run", made, "model")
    average(ema_avg, "run", "--exclude", "b", "-o", "ema.safetensors")
    average(ema_avg, "run", "--exclude", "b", "--format", "dcp", "-o", "averaged/")
    check(tmp_path / "averaged", load(tmp_path / "ema.safetensors"), "model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_another_type(dtype: str, ema_avg: Run, tmp_path: Path) -> None:
    """``--dtype`` is the type of the averaged tensors in the folder."""
    write_series(tmp_path / "run", states())
    average(ema_avg, "run", "--dtype", dtype, "-o", "ema.safetensors")
    average(ema_avg, "run", "--dtype", dtype, "--format", "dcp", "-o", "averaged/")
    check(tmp_path / "averaged", load(tmp_path / "ema.safetensors"))


def test_every_type_in_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element type, scalars and empty tensors; large tensors in chunks, in several files."""
    monkeypatch.setattr(chunk_sizes, "MOST_BYTES", 64)
    monkeypatch.setattr("ema_cli.planning.dcp_format.DEFAULT_SHARD_BYTES", 100_000)
    shapes = [(), (5,), (0, 4), (2, 3, 4), (7, 33), (1, 1, 3, 5, 2)]
    kinds = [dtype for dtype in DTYPES if dtype is not torch.float8_e8m0fnu]  # scales are refused
    made = {f"{dtype}.{k}": random_tensor(dtype, *shape) for dtype in kinds for k, shape in enumerate(shapes)}
    write_dcp(tmp_path / "run", [made, made])  # tensors that are the same in all checkpoints keep their bytes
    ema_cli.average(tmp_path / "run", decay=0.5, format="dcp", output=tmp_path / "averaged")
    check(tmp_path / "averaged", made)
    assert len(list((tmp_path / "averaged").glob("*.distcp"))) > 3


def test_the_output_is_a_checkpoint(ema_avg: Run, tmp_path: Path) -> None:
    """Our own reader reads it as it reads torch's; averages of such folders are averages of the same tensors."""
    write_dcp(tmp_path / "run", states(), "model")
    for number, decay in enumerate(("0.5", "0.75", "0.9")):
        done = ema_avg("run", "--decay", decay, "--format", "dcp", "-o", f"again/step_{number}/")
        assert done.returncode == 0, done.stderr
        done = ema_avg("run", "--decay", decay, "-o", f"files/step_{number}.safetensors")
        assert done.returncode == 0, done.stderr
    assert "DCP" in ema_avg("inspect", "again/step_1").stdout
    assert ema_avg("diff", "again/step_1", "files/step_1.safetensors").returncode == 0
    names = [f"step_{number}" for number in range(3)]
    average(ema_avg, *(f"again/{name}" for name in names), "--format", "dcp", "-o", "folder/")
    average(ema_avg, *(f"files/{name}.safetensors" for name in names), "-o", "twice.safetensors")
    check(tmp_path / "folder", load(tmp_path / "twice.safetensors"), "model")


def test_equal_runs_write_equal_bytes(ema_avg: Run, tmp_path: Path) -> None:
    """Whatever the threads and the blocks, and wherever the folder is."""
    write_dcp(tmp_path / "run", states(), "model")
    average(ema_avg, "run", "--format", "dcp", "-o", "one/")
    average(ema_avg, "run", "--format", "dcp", "-o", "in/two/", "--threads", "1", "--max-memory", "1MB")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "in/two")]
    assert files[0] == files[1]


def test_tied_tensors_are_written_under_every_name(ema_avg: Run, tmp_path: Path) -> None:
    """As ``dcp.save`` does: a model with tied weights loads both; ``--tied drop`` writes the first alone."""
    made = []
    for number in range(3):
        torch.manual_seed(number)
        tied = torch.randn(4, 3)
        made.append({"embed": tied, "head": tied, "norm": torch.randn(3)})
    write_series(tmp_path / "run", made)
    average(ema_avg, "run", "--format", "dcp", "-o", "all/")
    average(ema_avg, "run", "-o", "both.safetensors")
    check(tmp_path / "all", load(tmp_path / "both.safetensors"))
    average(ema_avg, "run", "--tied", "drop", "--format", "dcp", "-o", "one/")
    average(ema_avg, "run", "--tied", "drop", "-o", "first.safetensors")
    check(tmp_path / "one", load(tmp_path / "first.safetensors"))


def test_several_averages(ema_avg: Run, tmp_path: Path) -> None:
    """Each has its folder; they differ in the bytes of the tensors alone."""
    write_series(tmp_path / "run", states())
    done = ema_avg("run", "--decay", "0.5", "--decay", "0.9", "--format", "dcp", "-o", "avg_{decay}/")
    assert done.returncode == 0, done.stderr
    for decay in ("0.5", "0.9"):
        done = ema_avg("run", "--decay", decay, "-o", f"{decay}.safetensors")
        check(tmp_path / f"avg_{decay}", load(tmp_path / f"{decay}.safetensors"))
    metadata = {(tmp_path / f"avg_{decay}/.metadata").read_bytes() for decay in ("0.5", "0.9")}
    assert len(metadata) == 1


def test_nothing_is_left_of_a_run_that_failed(ema_avg: Run, tmp_path: Path) -> None:
    """A checkpoint that is damaged fails the run; there is no folder, complete or not."""
    paths = write_dcp(tmp_path / "run", states())
    data = paths[1] / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    at = pickle.loads((paths[1] / ".metadata").read_bytes()).storage_data
    place = next(place for key, place in at.items() if key.fqn == "layer.weight")
    content[place.offset + 1500] ^= 1
    data.write_bytes(content)
    done = ema_avg("run", "--format", "dcp", "-o", "averaged/", *DECAY)
    assert done.returncode != 0
    assert listing(tmp_path) == {"run"}


def test_an_output_is_replaced_by_force_alone(ema_avg: Run, tmp_path: Path) -> None:
    """The same average is up to date; another one needs ``--force``; a folder that is not ours stays."""
    write_series(tmp_path / "run", states())
    average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    assert "up to date" in average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    other = ("run", "--decay", "0.5", "--format", "dcp", "-o", "averaged/")
    assert ema_avg(*other).returncode != 0
    done = ema_avg(*other, "--force")
    assert done.returncode == 0, done.stderr
    ema_avg("run", "--decay", "0.5", "-o", "half.safetensors")
    check(tmp_path / "averaged", load(tmp_path / "half.safetensors"))
    foreign = write_dcp(tmp_path / "trained", states(1))[0]
    before = listing(foreign)
    refused = ema_avg("run", *DECAY, "--format", "dcp", "-o", f"{foreign}/", "--force")
    assert refused.returncode != 0
    assert listing(foreign) == before


def test_files_of_the_replaced_output_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output of several files is replaced by one of a single file; a file that is not ours stays."""
    write_series(tmp_path / "run", states())
    output = tmp_path / "averaged"
    with monkeypatch.context() as patch:
        patch.setattr("ema_cli.planning.dcp_format.DEFAULT_SHARD_BYTES", 6_000)
        ema_cli.average(tmp_path / "run", decay=0.75, format="dcp", output=output)
    assert "__0_2.distcp" in listing(output)
    (output / "notes.txt").write_text("mine")
    ema_cli.average(tmp_path / "run", decay=0.5, format="dcp", output=output, force=True)
    assert listing(output) == {".metadata", "__0_0.distcp", "notes.txt"}


def test_the_output_is_verified(ema_avg: Run, tmp_path: Path) -> None:
    """``verify`` accepts the folder, and notices a changed byte."""
    write_series(tmp_path / "run", states())
    average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    assert ema_avg("verify", "averaged/").returncode == 0
    data = tmp_path / "averaged/__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    assert ema_avg("verify", "averaged/").returncode != 0


def test_the_report_describes_the_folder(ema_avg: Run, tmp_path: Path) -> None:
    """It lists the files with their digests; ``.metadata`` is part of the weights."""
    write_series(tmp_path / "run", states())
    average(ema_avg, "run", "--format", "dcp", "-o", "averaged/")
    report = json.loads((tmp_path / "averaged.report.json").read_text())
    files = {file["name"]: file["role"] for file in report["averages"][0]["output"]["files"]}
    assert files == {".metadata": "index", "__0_0.distcp": "weights"}


@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
        st.lists(st.integers(0, 40), max_size=3),
        max_size=5,
    ),
    dtype=st.sampled_from(DTYPES),
    most=st.sampled_from([8, 256, 1 << 25]),
    file_bytes=st.sampled_from([2_000, 5_000_000_000]),
)
@settings(max_examples=60)
def test_any_tensors_are_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, list[int]],
    dtype: torch.dtype,
    most: int,
    file_bytes: int,
) -> None:
    """Names and shapes of any kind, in chunks of any size; torch and our reader see the same tensors."""
    tensors = {name: random_tensor(dtype, *shape) for name, shape in shapes.items() if torch.Size(shape).numel() < 999}
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_sizes, "MOST_BYTES", most)
        patch.setattr("ema_cli.planning.dcp_format.DEFAULT_SHARD_BYTES", file_bytes)
        placement = place_in_dcp(planned(tensors), {})
    written = write_by_hand(folder / "written", placement, list(tensors.values()))
    found = dcp_makers.load(written, tensors)
    assert all(tensor_bytes(found[name]) == tensor_bytes(tensor) for name, tensor in tensors.items())
    if tensors:
        checkpoint = open_checkpoint(written, pool=LayoutPool(), strip_prefix="", keys=(".",))
        assert {name: data for name, (_, _, data) in read_all(checkpoint).items()} == {
            name: tensor_bytes(tensor) for name, tensor in tensors.items()
        }
        checkpoint.index.close()
    shutil.rmtree(folder)


def test_two_tensors_of_one_name_are_refused() -> None:
    """Paths in a nested state dict may be joined to the same name."""
    tensors = {name: torch.ones(1) for name in ("a", "b", "c")}
    with pytest.raises(UsageError, match=r'two tensors would have the name "model\.x"'):
        place_in_dcp(planned(tensors), {"a": ("model", "x"), "b": ("model.x",)})


def test_large_tensors_make_several_files() -> None:
    """A model of 40 GB has files of at most 5 GB, and no record of more than 32 MiB, by arithmetic alone."""
    large = {f"layers.{k}.weight": torch.empty((28_672, 8_192), dtype=torch.bfloat16, device="meta") for k in range(85)}
    placement = place_in_dcp(planned(large), {})
    sizes = [file.nbytes for file in placement.files]
    assert len(sizes) == 8
    assert max(sizes) <= 5_000_000_000
    assert max(one.nbytes for file in placement.files for one in file.checksums) <= chunk_sizes.MOST_BYTES
    assert sum(one.nbytes for file in placement.files for one in file.checksums) == 85 * 28_672 * 8_192 * 2
    for file in placement.files:
        ends = [offset + len(data) for offset, data in file.given]
        assert ends[-1] == file.nbytes
