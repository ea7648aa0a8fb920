"""Outputs that are folders of shards: their contents, and that all commands recognize them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ema_cli
from ema_cli.dtypes import BY_NAME
from ema_cli.errors import OutputError, UsageError
from ema_cli.options.average import make_options
from ema_cli.options.output_options import DEFAULT_SHARD_BYTES
from ema_cli.planning.shards import plan_files
from ema_cli.report.run_tables import output_rows
from ema_cli.storage.extents import TensorLayout
from ema_cli.verification.checks import verify
from tests.helpers.folders import CONFIG, model_folders
from tests.helpers.outputs import header_of, listing, sorted_metadata
from tests.helpers.program import Run
from tests.helpers.reports import check as check_schema
from tests.helpers.series import State, data_section, load, random_states, same_bits, write_series


def states(count: int = 3) -> list[State]:
    """Return states of tensors of several types and sizes, some of them empty."""
    made = random_states(count)
    for number, state in enumerate(made):
        torch.manual_seed(number)
        state |= {f"block.{k}.weight": torch.randn(50, 20) for k in range(12)}
        state |= {"half": torch.randn(9).half(), "large": torch.randn(200, 100), "steps": torch.tensor([number])}
    return made


def shards_of(folder: Path) -> list[Path]:
    """Return the files of weights of a folder, in order."""
    return sorted(folder.glob("*.safetensors"))


def load_folder(folder: Path) -> State:
    """Read all shards of a folder with the official library."""
    return {name: value for shard in shards_of(folder) for name, value in load_file(shard).items()}


def index_of(folder: Path, stem: str = "model") -> Any:
    """Return the index of a folder."""
    return json.loads((folder / f"{stem}.safetensors.index.json").read_text())


def change_byte(path: Path, position: int = -1) -> None:
    """Change one byte of a file."""
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def failures(out: Path) -> dict[str, str]:
    """Return the checks of a verification that fail."""
    return {one.name: one.message for one in verify(out).failures}


@pytest.mark.parametrize("size", [1, 100, 4_000, 10_000, 80_000, 100_000])
def test_the_shards_are_the_one_file_cut_up(size: int, tmp_path: Path) -> None:
    """In a row, their data sections are that of the single file; the index has the file of every tensor."""
    paths = write_series(tmp_path / "run", states())
    ema_cli.average(paths, decay=0.7, output=tmp_path / "one.safetensors")
    ema_cli.average(paths, decay=0.7, output=tmp_path / "many", max_shard_size=size)
    shards = shards_of(tmp_path / "many")
    count = len(shards)
    assert [path.name for path in shards] == [
        f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)
    ]
    assert b"".join(map(data_section, shards)) == data_section(tmp_path / "one.safetensors")
    whole = load(tmp_path / "one.safetensors")
    index = index_of(tmp_path / "many")
    assert index["metadata"] == {"total_size": len(data_section(tmp_path / "one.safetensors"))}
    assert list(index["weight_map"]) == sorted(whole)
    for name, value in whole.items():
        with safe_open(tmp_path / "many" / index["weight_map"][name], framework="pt") as opened:
            assert same_bits(opened.get_tensor(name), value)
    for path in shards:
        tensors = load_file(path)
        assert len(data_section(path)) <= size or len([t for t in tensors.values() if t.numel()]) == 1


@pytest.mark.parametrize("size", [1, 5_000, 1_000_000])
def test_each_header_is_that_of_the_library(size: int, tmp_path: Path) -> None:
    """For the tensors and metadata of a shard, ``save_file`` writes the same bytes; ``format: pt`` is among them."""
    paths = write_series(tmp_path / "run", states(2))
    ema_cli.average(paths, decay=0.7, output=tmp_path / "out", max_shard_size=size, metadata={"run": "ü"})
    for path in shards_of(tmp_path / "out"):
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        assert metadata["format"] == "pt"
        assert metadata["run"] == "ü"
        assert metadata["ema_avg.decay"] == "0.7"
        theirs = tmp_path / "theirs.safetensors"
        save_file(load_file(path), theirs, metadata)
        assert header_of(path) == sorted_metadata(header_of(theirs))
        assert data_section(path) == data_section(theirs)


def test_what_fits_into_one_file_needs_no_index(tmp_path: Path) -> None:
    """Then the file is ``model.safetensors``, and has the bytes of a file output."""
    paths = write_series(tmp_path / "run", states())
    ema_cli.average(paths, decay=0.7, output=tmp_path / "one.safetensors")
    found = ema_cli.average(paths, decay=0.7, output=f"{tmp_path}/out/").averages[0].output
    assert listing(tmp_path / "out") == {"model.safetensors"}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    assert found.sha256 == hashlib.sha256((tmp_path / "one.safetensors").read_bytes()).hexdigest()


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    most=st.integers(1, 100),
)
def test_files_are_filled_greedily(sizes: list[int], most: int) -> None:
    """Every tensor is in one file, in order; a file is closed only when the next tensor does not fit."""
    layouts = [
        TensorLayout(name=f"{n:03d}", dtype=BY_NAME["U8"], shape=(size,), strides=None) for n, size in enumerate(sizes)
    ]
    files, index_file = plan_files(layouts, {}, "m", most)
    names_in_shards = [list(json.loads(file.header[8:])) for file in files]
    assert [name for names in names_in_shards for name in names] == [layout.name for layout in layouts]
    assert [file.begin for file in files] == [sum(f.data_bytes for f in files[:k]) for k in range(len(files))]
    for names, following in pairwise(names_in_shards):
        used = sum(sizes[int(name)] for name in names)
        assert used + sizes[int(following[0])] > most
        assert used <= most or len(names) == 1
    assert bool(index_file) == (len(files) > 1)


def test_more_files_than_names_are_refused() -> None:
    """The names have five digits."""
    layout = TensorLayout(name="t", dtype=BY_NAME["U8"], shape=(1,), strides=None)
    with pytest.raises(UsageError, match="would make 100,000 files, more than 99,999"):
        plan_files([layout] * 100_000, {}, "model", 1)


def test_the_default_size_is_that_of_the_libraries() -> None:
    """A slash at the end means a folder; a given size replaces the default."""
    for output, asked, path, limit in (
        ("out/", None, "out", DEFAULT_SHARD_BYTES),
        ("out/", 7, "out", 7),
        ("out.safetensors", None, "out.safetensors", None),
    ):
        options = make_options("run", method="uniform", output=output, max_shard_size=asked)
        assert (options.output, options.max_shard_size) == (Path(path), limit)
    assert DEFAULT_SHARD_BYTES == 5 * 10**9


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["-o", "x"], '"x" must end in .safetensors', "-o x.safetensors; or -o x/ for a folder"),
        (["-o", "ema_0.9.npz"], '"ema_0.9.npz" must end', "-o ema_0.9.safetensors; or -o ema_0.9/ for a folder"),
        (["-o", "there"], '"there" is a folder', "-o there/"),
        (["-o", "./"], '"." is a folder', "-o averaged/"),
        (["-o", "there/../"], "is a folder", "-o there/../averaged/"),
        (["-o", "x.safetensors/"], "has the name of a file", "-o x/"),
        (["-o", "x.safetensors", "--max-shard-size", "5GB"], "has the name of a file", "leave out --max-shard-size"),
        (["-o", "x", "--max-shard-size", "many"], '--max-shard-size "many" is not a size', "--max-shard-size 5GB"),
        (["-o", "x", "--max-shard-size", "0"], "--max-shard-size 0 must be at least one byte", "5GB"),
        (["-o", "run/"], 'contains the input "run/ckpt_100.pt"', "-o run/averaged/"),
        (["--decay", "0.9", "-o", "x/"], "several averages need {decay}", "-o 'x_{decay}/'"),
    ],
    ids=str,
)
def test_names_that_cannot_be_are_refused(
    arguments: list[str], message: str, hint: str, run_folder: Path, ema_avg: Run
) -> None:
    """The error names the likely intention, and nothing is written."""
    (run_folder.parent / "there").mkdir()
    before = listing(run_folder.parent)
    done = ema_avg(run_folder.name, "--decay", "0.5", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert hint in done.stderr
    assert listing(run_folder.parent) == before


@pytest.mark.parametrize(("text", "size"), [("4kB", 4_000), ("4KiB", 4_096), ("4000", 4_000), ("0.004MB", 4_000)])
def test_sizes_are_decimal_as_in_the_libraries(text: str, size: int, tmp_path: Path) -> None:
    """``5GB`` is 5,000,000,000 bytes; from Python the size may be text or a number."""
    paths = write_series(tmp_path / "run", states(2))
    for name, said in (("a", text), ("b", size)):
        ema_cli.average(paths, decay=0.5, output=tmp_path / name, max_shard_size=said)
    assert index_of(tmp_path / "a") == index_of(tmp_path / "b")
    with pytest.raises(UsageError, match='"much" is not a size'):
        ema_cli.average(paths, decay=0.5, output=tmp_path / "c", max_shard_size="much")


def test_several_averages_fill_several_folders(run_folder: Path, ema_avg: Run) -> None:
    """Fields in the name of a folder distinguish the folders; each has its report."""
    done = ema_avg(run_folder, "--decay", "0.5", "--decay", "0.9", "-o", "e_{decay}/", "--max-shard-size", "100")
    assert done.returncode == 0, done.stderr
    for decay in (0.5, 0.9):
        one = run_folder.parent / f"one_{decay}.safetensors"
        ema_cli.average(run_folder, decay=decay, output=one)
        shards = shards_of(run_folder.parent / f"e_{decay}")
        assert b"".join(map(data_section, shards)) == data_section(one)
        assert (run_folder.parent / f"e_{decay}.report.json").exists()


def test_the_result_says_what_was_written(run_folder: Path, ema_avg: Run) -> None:
    """The folder, its size, its shards; a second run finds it up to date and touches nothing."""
    arguments = [run_folder, "--decay", "0.5", "-o", "out/", "--max-shard-size", "150"]
    done = ema_avg(*arguments)
    folder = run_folder.parent / "out"
    count = len(shards_of(folder))
    assert done.stdout.startswith("wrote out/  ")
    assert f" in {count} shards  5 checkpoints" in done.stdout
    assert f" in {count} shards)" in done.stderr
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = ema_avg(*arguments)
    assert again.stdout.startswith("up to date out/  ")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert listing(run_folder.parent) == {"run", "out", "out.report.json"}


def test_a_folder_can_be_configured(run_folder: Path, ema_avg: Run) -> None:
    """A slash at the end of the name means the same in a file and in the environment."""
    (run_folder.parent / "ema-avg.toml").write_text('output = "a/"\nmax-shard-size = "150B"\ndecay = 0.5\n')
    assert ema_avg(run_folder).stdout.startswith("wrote a/  ")
    assert ema_avg(run_folder, EMA_AVG_OUTPUT="b/", EMA_AVG_MAX_SHARD_SIZE="1GB").stdout.startswith("wrote b/  ")
    assert len(shards_of(run_folder.parent / "a")) > len(shards_of(run_folder.parent / "b")) == 1


def test_the_report_lists_every_file(run_folder: Path, ema_avg: Run) -> None:
    """Sizes and digests are those of ``sha256sum``, and the single digest is the digest of the lines that it prints."""
    done = ema_avg(run_folder, "--decay", "0.5", "-o", "out/", "--max-shard-size", "150", "--json")
    document = json.loads(done.stdout)
    check_schema(document)
    output = document["averages"][0]["output"]
    folder = run_folder.parent / "out"
    assert output["path"] == "out"
    assert {file["name"] for file in output["files"]} == listing(folder)
    for file in output["files"]:
        raw = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    printed = subprocess.run(
        ["sha256sum", *sorted(listing(folder))], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert output["sha256"] == hashlib.sha256(printed.encode()).hexdigest()
    assert output["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert document["summary"]["bytes_written"] == output["bytes"]


def touch_everything(folder: Path) -> None:
    """Change the modification time of every file."""
    for path in folder.iterdir():
        os.utime(path, ns=(1, 1))


FOREIGN_WEIGHTS: Callable[[Path], object] = lambda folder: shutil.copy(  # noqa: E731 - one of a table
    shards_of(folder)[0], folder / "model.safetensors"
)
NO_REPORT: Callable[[Path], object] = lambda folder: folder.with_name("out.report.json").unlink()  # noqa: E731


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (touch_everything, ""),
        (lambda folder: (folder / "README.md").write_text("mine"), ""),
        (lambda folder: change_byte(shards_of(folder)[1]), "changed after it was written"),
        (lambda folder: change_byte(folder / "model.safetensors.index.json"), "changed after"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "changed after"),
        (FOREIGN_WEIGHTS, "weights that its report does not list"),
        (lambda folder: shards_of(folder)[2].unlink(), "made with other options"),
        (NO_REPORT, "without a readable report beside it"),
    ],
    ids=range(8),
)
def test_what_is_up_to_date_and_what_is_not(change: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    """A folder is unchanged if all its files are; files that others added do not matter, except for weights.

    ``--force`` replaces what the report lists, and nothing without a report.
    """
    folders = model_folders(tmp_path / "run", states())
    out = tmp_path / "out"
    options: Any = {"decay": 0.5, "output": out, "max_shard_size": 20_000}
    ema_cli.average(folders, **options)
    change(out)
    before = {path: path.stat().st_ino for path in out.iterdir()}
    if not reason:
        ema_cli.average(folders, **options)
        assert {path: path.stat().st_ino for path in out.iterdir()} == before
        return
    with pytest.raises(OutputError, match=reason):
        ema_cli.average(folders, **options)
    foreign = change in (FOREIGN_WEIGHTS, NO_REPORT)
    with pytest.raises(OutputError, match=r"is not replaced|cannot be") if foreign else contextlib.nullcontext():
        ema_cli.average(folders, force=True, **options)
    assert {path: path.stat().st_ino for path in out.iterdir()} == before if foreign else verify(out).ok
    assert listing(tmp_path) == {"run", "out", "out.report.json"} - (
        {"out.report.json"} if change is NO_REPORT else set()
    )


def test_other_sizes_of_shards_are_another_output(tmp_path: Path) -> None:
    """Another size needs --force; an empty folder is free, and a foreign folder is refused, also with --force."""
    paths = write_series(tmp_path / "run", states())
    ema_cli.average(paths, decay=0.5, output=tmp_path / "out", max_shard_size=20_000)
    with pytest.raises(OutputError, match="made with other options"):
        ema_cli.average(paths, decay=0.5, output=tmp_path / "out", max_shard_size=30_000)
    (tmp_path / "mine").mkdir()
    ema_cli.average(paths, decay=0.5, output=f"{tmp_path}/mine/")  # an empty folder may be used
    (tmp_path / "yours").mkdir()
    (tmp_path / "yours" / "notes.txt").write_text("keep")
    for force in (False, True):
        with pytest.raises(OutputError, match=r'already exists, without a readable report .* contains "notes.txt"'):
            ema_cli.average(paths, decay=0.5, output=f"{tmp_path}/yours/", force=force)
    assert listing(tmp_path / "yours") == {"notes.txt"}


def test_a_folder_and_a_file_do_not_share_a_report(tmp_path: Path) -> None:
    """``ema/`` and ``ema.safetensors`` would both have ``ema.report.json``: the second is refused."""
    paths = write_series(tmp_path / "run", states(2))
    names = [f"{tmp_path}/a.safetensors", f"{tmp_path}/a/", f"{tmp_path}/b/", f"{tmp_path}/b.safetensors"]
    for first, second in (names[:2], names[2:]):
        ema_cli.average(paths, decay=0.5, output=first)
        with pytest.raises(OutputError, match=r"\.report\.json\" is the report of"):
            ema_cli.average(paths, decay=0.5, output=second)
        ema_cli.average(paths, decay=0.5, output=first)
        assert verify(Path(first)).ok


@pytest.mark.parametrize("kind", ["file", "link", "inner"])
def test_what_is_no_plain_folder_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """Not even with --force: a file, a link, a folder that has folders in it."""
    paths = write_series(tmp_path / "run", states(2))
    (tmp_path / "other" / "inner").mkdir(parents=True)
    place = tmp_path / ("other" if kind == "inner" else "out")
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        place.symlink_to(tmp_path / "other")
    reason = {"file": "it is a file", "link": "it is a link", "inner": 'it contains the folder "inner"'}[kind]
    with pytest.raises(OutputError, match=reason):
        ema_cli.average(paths, decay=0.5, output=f"{place}/", force=True)
    assert (tmp_path / "other" / "inner").exists()


@pytest.mark.parametrize("force", [False, True])
def test_inputs_are_never_written_over(force: bool, tmp_path: Path) -> None:
    """A folder that is an input, contains an input, or is inside one, is no output; links do not hide it."""
    folders = model_folders(tmp_path / "run", states())
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for output, message in (
        (folders[1], "is one of the inputs"),
        (tmp_path / "link" / folders[1].name, "is one of the inputs"),
        (tmp_path / "run", "contains the input"),
        (folders[1] / "averaged", "is inside the input"),
    ):
        with pytest.raises(UsageError, match=message):
            ema_cli.average(folders, decay=0.5, output=f"{output}/", force=force)
    assert all(len(listing(folder)) == 3 for folder in folders)


def test_side_files_are_copied(tmp_path: Path) -> None:
    """The model's side files are copied byte for byte from the last checkpoint, and listed in the report."""
    folders = model_folders(tmp_path / "run", states())
    (folders[-1] / "tokenizer.json").write_bytes(b"the last one \xff")
    found = ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/")
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json", "tokenizer.json"}
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folders[-1] / name).read_bytes()
    roles = {file.name: file.role for file in found.averages[0].output.files}
    assert roles == {"config.json": "companion", "model.safetensors": "weights", "tokenizer.json": "companion"}
    assert found.averages[0].output.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    row = output_rows(found)[0]
    assert row[0] == f"{tmp_path}/out/"
    assert row[1].endswith(" in 1 shard, with config.json, tokenizer.json")


MODULES = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling", "type": "Pooling"}]


@pytest.mark.parametrize(
    ("name", "content", "missing"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling_x.Model"}}, "modeling_x.py"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenizing.Slow", None]}}, "tokenizing.py"),
        ("modules.json", MODULES, "1_Pooling/"),
        ("config.json", {"auto_map": {"AutoModel": "code.modeling.Model"}}, "code/modeling.py"),
        ("config.json", {"auto_map": {"AutoModel": "modeling_mine.Model", "AutoConfig": "config_mine.C"}}, ""),
        ("config.json", {"auto_map": {"AutoModel": "someone/model--modeling_x.Model"}}, ""),
        ("config.json", {"auto_map": [1], "_name_or_path": "/elsewhere"}, ""),
        ("modules.json", MODULES[:1], ""),
        ("modules.json", {"path": "1_Pooling"}, ""),
    ],
)
def test_a_side_file_is_copied_only_with_what_it_names(
    name: str, content: object, missing: str, tmp_path: Path
) -> None:
    """Code of the model, and folders of further modules: without them, no library can load the folder."""
    code = {"modeling_mine__py": b"1", "config_mine__py": b"2"}
    folders = model_folders(tmp_path / "run", states(2), **code)
    (folders[-1] / "1_Pooling").mkdir()
    (folders[-1] / name).write_text(json.dumps(content))
    report = ema_cli.average(folders, method="uniform", output=f"{tmp_path}/out/")
    warnings = [one for one in report.warnings if one.code == "companion-left-out"]
    assert (name in listing(tmp_path / "out")) == (not missing)
    assert {"modeling_mine.py", "config_mine.py", "tokenizer.json"} < listing(tmp_path / "out")
    assert len(warnings) == bool(missing)
    assert all(name in one.message and missing in one.message for one in warnings)


def test_the_configuration_has_the_new_type(tmp_path: Path) -> None:
    """``--dtype`` changes that value and nothing else; if the type stays, nothing is changed at all."""
    folders = model_folders(tmp_path / "run", states())
    for dtype in ("float32", "bfloat16"):
        ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/{dtype}/", dtype=dtype)
    before = (folders[-1] / "config.json").read_text()
    assert (tmp_path / "float32" / "config.json").read_text() == before
    after = (tmp_path / "bfloat16" / "config.json").read_text()
    assert after == before.replace('"torch_dtype": "float32"', '"torch_dtype": "bfloat16"', 1)
    assert json.loads(after)["text_config"] == CONFIG["text_config"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"x": {"dtype": "float32"}, "dtype" :\n"float32"}', '{"x": {"dtype": "float32"}, "dtype" :\n"bfloat16"}'),
        ('{"torch_dtype": "a\\u0062"}', '{\n  "torch_dtype": "bfloat16"\n}\n'),
        ('{"model_type": "old"}', '{"model_type": "old"}'),
        ('{"dtype": null}', '{"dtype": null}'),
        ('{"dtype": ', None),
        ("[1]", None),
        ("[" * 100_000, None),
        ("\xff", None),
    ],
    ids=range(8),
)
def test_configurations_of_any_kind(config: str, expected: str | None, tmp_path: Path) -> None:
    """A configuration without a type is unchanged; so is an unreadable one, with a warning."""
    folders = model_folders(tmp_path / "run", states(1), config__json=config.encode("latin-1"))
    report = ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/", dtype="bfloat16")
    written = (tmp_path / "out" / "config.json").read_bytes()
    assert written == (config if expected is None else expected).encode("latin-1")
    assert ["config-not-updated" in [one.code for one in report.warnings]] == [expected is None]


def test_side_files_that_are_no_files_are_not_copied(tmp_path: Path) -> None:
    """A FIFO does not hang the run, and a file of more than 1 GB is not copied: the warning names them."""
    folders = model_folders(tmp_path / "run", states(2))
    os.mkfifo(folders[-1] / "vocab.txt")
    with (folders[-1] / "merges.txt").open("wb") as sparse:
        sparse.truncate(10**9 + 1)
    report = ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/")
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json", "tokenizer.json"}
    messages = " ".join(one.message for one in report.warnings if one.code == "companion-left-out")
    assert "merges.txt" in messages


@pytest.mark.parametrize("stem", ["adapter_model", "diffusion_pytorch_model"])
def test_the_weights_are_called_as_in_the_checkpoint(stem: str, tmp_path: Path) -> None:
    """An averaged adapter is an adapter again."""
    folders = model_folders(tmp_path / "run", states(2))
    for folder in folders:
        (folder / "model.safetensors").rename(folder / f"{stem}.safetensors")
    ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/")
    ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/cut/", max_shard_size=9_000)
    assert f"{stem}.safetensors" in listing(tmp_path / "out")
    assert f"{stem}-00001-of-{len(shards_of(tmp_path / 'cut')):05d}.safetensors" in listing(tmp_path / "cut")
    assert set(index_of(tmp_path / "cut", stem)["weight_map"]) == set(load_folder(tmp_path / "out"))


def test_a_plan_lists_the_files(tmp_path: Path, ema_avg: Run) -> None:
    """The plan lists shards and side files without writing them, as JSON and as text."""
    model_folders(tmp_path / "run", states())
    arguments = ["plan", "run", "--decay", "0.5", "-o", "out/", "--max-shard-size", "20kB"]
    files = json.loads(ema_avg(*arguments, "--json").stdout)["averages"][0]["files"]
    assert [file["role"] for file in files[-3:]] == ["index", "companion", "companion"]
    assert '" with "config.json", "tokenizer.json"' in ema_avg(*arguments).stdout.replace("shards", '"')
    ema_avg(*arguments[1:])
    written = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert {file["name"]: file["bytes"] for file in files} == written
    assert "up to date" in ema_avg(*arguments).stderr


def test_an_output_folder_is_skipped_in_the_next_run(tmp_path: Path, ema_avg: Run) -> None:
    """In the folder of the run, a previous average is no checkpoint; alone it can be averaged, with a warning."""
    model_folders(tmp_path / "run", states())
    for number in range(2):
        done = ema_avg("run", "--decay", "0.5", "-o", "run/out_5/", "--max-shard-size", "20kB")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("wrote" if number == 0 else "up to date")
    assert json.loads((tmp_path / "run" / "out_5.report.json").read_text())["summary"]["tensors"] == len(states()[0])
    assert "averages-averaged" in ema_avg("plan", "run/out_5", "--decay", "0.5", "--json").stdout


def test_diff_compares_folders_with_files(tmp_path: Path, ema_avg: Run) -> None:
    """A folder and a file of one average are equal; another average is not."""
    write_series(tmp_path / "run", states())
    for output in ("one.safetensors", "cut/"):
        ema_avg("run", "--decay", "0.5", "-o", output, *(["--max-shard-size", "9kB"] if output == "cut/" else []))
    ema_avg("run", "--decay", "0.6", "-o", "other/")
    assert ema_avg("diff", "cut/", "one.safetensors").returncode == 0
    assert ema_avg("diff", "cut/", "other").returncode == 1


def test_a_folder_can_be_continued(tmp_path: Path, ema_avg: Run) -> None:
    """Folding two checkpoints, then one more, gives the same as folding all three at once; in place, too."""
    folders = model_folders(tmp_path / "run", states())
    ema_avg(*folders[:2], "--decay", "0.5", "-o", "a/", "--max-shard-size", "9kB", "--dtype", "float64")
    ema_avg(*folders, "--decay", "0.5", "-o", "all/", "--dtype", "float64")
    done = ema_avg("run", "--continue-from", "a/", "-o", "b/", "--dtype", "float64")
    assert done.returncode == 0, done.stderr
    for name, value in load_folder(tmp_path / "all").items():
        torch.testing.assert_close(load_folder(tmp_path / "b")[name], value, rtol=1e-12, atol=1e-12)
    again = ["run", "--continue-from", "a/", "-o", "a/", "--max-shard-size", "9kB", "--dtype", "float64"]
    assert ema_avg(*again, "--force").stdout.startswith("wrote a/")
    assert ema_avg(*again).stdout.startswith("up to date a/")
    checked = ema_cli.verify(tmp_path / "a")
    assert (checked.ok, checked.complete) == (True, False)
    assert "overwritten by this output" in " ".join(checked.unchecked)
    assert b"".join(map(data_section, shards_of(tmp_path / "a"))) == data_section(tmp_path / "b" / "model.safetensors")


def test_a_batch_of_folders(tmp_path: Path, ema_avg: Run) -> None:
    """Every run has its folder; a second batch finds all of them up to date."""
    for name in "ab":
        write_series(tmp_path / "runs" / name, states())
    arguments = ["batch", "runs", "--decay", "0.5", "-o", "{run}/averaged/", "--index", "index.json", "--json"]
    first, second = (json.loads(ema_avg(*arguments).stdout) for _ in range(2))
    assert [job["status"] for job in first["jobs"]] == ["written", "written"]
    assert [job["status"] for job in second["jobs"]] == ["up_to_date", "up_to_date"]
    assert first["jobs"][0]["outputs"] == ["runs/a/averaged"]
    assert listing(tmp_path / "runs" / "a" / "averaged") == {"model.safetensors"}


def test_a_folder_is_verified(tmp_path: Path, ema_avg: Run) -> None:
    """All checks of a fresh folder pass, and every planted fault is found and named."""
    folders = model_folders(tmp_path / "run", states())
    out = tmp_path / "out"
    ema_cli.average(folders, decay=0.5, output=out, max_shard_size=20_000, sha256=True)
    assert ema_avg("verify", "out/").returncode == 0
    assert [one.name for one in verify(out).checks][:5] == ["report", "size", "sha256", "companions", "tensors"]
    shutil.copytree(out, tmp_path / "kept")

    def planted(change: Callable[[], object]) -> dict[str, str]:
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "kept", out)
        change()
        return failures(out)

    shard = shards_of(out)[0]
    found = planted(lambda: change_byte(shard))
    assert f'files that differ: "{shard.name}"' in found["sha256"]
    assert set(found) == {"sha256", "samples"}
    assert set(planted(lambda: change_byte(out / "tokenizer.json"))) == {"companions"}
    assert set(planted((out / "config.json").unlink)) == {"companions"}
    assert set(planted(shard.unlink)) >= {"size", "sha256", "tensors"}
    assert set(planted(lambda: shutil.copy(shard, out / "model.safetensors"))) >= {"size", "sha256"}
    assert set(planted(lambda: (out / "notes.txt").write_text("mine"))) == set()
    assert ema_avg("verify", "run").returncode in (3, 10)


@pytest.mark.slow
def test_few_descriptors_are_enough_for_many_shards(tmp_path: Path) -> None:
    """500 shards are written, read again and verified with 64 descriptors."""
    generator = torch.Generator().manual_seed(0)
    made = [{f"t.{k:03d}": torch.randn(300, generator=generator) for k in range(500)} for _ in range(2)]
    paths = write_series(tmp_path / "run", made)
    average = "run --decay 0.5 -o out/ --max-shard-size 1kB --threads 4"
    command = " && ".join(
        ["ulimit -n 64", *(f"{sys.executable} -m ema_cli {one}" for one in (average, "verify out/", "diff out/ out/"))]
    )
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(shards_of(tmp_path / "out")) == 500
    ema_cli.average(paths, decay=0.5, output=tmp_path / "one.safetensors")
    assert b"".join(map(data_section, shards_of(tmp_path / "out"))) == data_section(tmp_path / "one.safetensors")
