"""Outputs without metadata of ema-avg are recognized by their report and their bytes, and by nothing less."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
import ema_cli.formats.own_outputs
from ema_cli.discovery.checkpoints import close_all, discover
from ema_cli.errors import InputRefused, OutputError, UsageError
from ema_cli.events import Event, Progress
from ema_cli.options.average import make_options
from tests.helpers.folders import model_folders
from tests.helpers.makers import fifo
from tests.helpers.program import Run
from tests.helpers.series import write_one

Document = Any
Used = tuple[list[str], list[str], list[str]]
"""The checkpoints that are averaged, the reasons for skipped ones, and the codes of warnings."""


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    """Let every test read its files."""
    ema_cli.formats.own_outputs._digests.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints, and their average in the format of the last."""
    for number in (1, 2, 3):
        write_one(tmp_path / "run" / f"ckpt_{number}00.pt", number, optimizer={"m": torch.ones(3)}, step=100 * number)
    average(tmp_path / "run", tmp_path / "run" / "ema.pt")
    return tmp_path / "run"


def average(run: Path, output: Path, decay: float = 0.5, **options: Any) -> Any:
    """Average the run."""
    return ema_cli.average(run, decay=decay, output=output, **options)


def used(*paths: Path) -> Used:
    """Return what becomes of the files and folders."""
    found = discover(make_options([str(path) for path in paths]))
    close_all(found.checkpoints)
    warnings = [warning.code for warning in found.warnings]
    return [one.path.name for one in found.checkpoints], [one.reason for one in found.skipped], warnings


def members(run: Path) -> list[Path]:
    """Return the files of a run, with the average as any other file."""
    return sorted(run.glob("*.pt"))


def edit_report(output: Path, edit: Callable[[Document], object]) -> None:
    """Change the report beside an output."""
    path = output.with_name(f"{output.name}.report.json")
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def output_of(document: Document) -> Document:
    """Return the description of the output."""
    return document["averages"][0]["output"]


OURS: Used = (["ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt"], ["an output of ema-avg"], [])
NOT_OURS = ["ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt", "ema.pt"]


def test_the_report_has_what_recognizes_an_output(run: Path) -> None:
    """It has the format and the fingerprint of the options, which is the one in the metadata of a safetensors file."""
    average(run, run.parent / "ema.safetensors")
    found = ema_cli.load_report(run / "ema.pt.report.json")
    other = ema_cli.load_report(run.parent / "ema.report.json")
    (checkpoint,) = ema_cli.inspect([run.parent / "ema.safetensors"])
    assert (found.schema_version, found.averages[0].output.format) == ("1.6", "same")
    assert other.averages[0].output.format == "safetensors"
    fingerprint = checkpoint.metadata["ema_avg.options_fingerprint"]
    assert found.averages[0].output.options_fingerprint == other.averages[0].output.options_fingerprint == fingerprint


def test_an_output_is_left_out_of_the_next_run(run: Path) -> None:
    """In its folder, and by its name."""
    assert used(run) == used(*members(run)) == OURS


def test_a_file_as_it_was_written_is_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size and its time are enough."""
    monkeypatch.setattr(ema_cli.formats.own_outputs, "sha256_of", lambda *_: pytest.fail("it was read"))
    assert used(run) == OURS


def test_a_copy_is_read_with_progress(run: Path) -> None:
    """A file with another time is compared by its digest, once."""
    os.utime(run / "ema.pt")
    events: list[Event] = []
    for _ in range(2):
        found = discover(make_options([str(run)]), events.append)
        close_all(found.checkpoints)
        assert len(found.checkpoints) == 3
    hashed = [event for event in events if isinstance(event, Progress)]
    size = (run / "ema.pt").stat().st_size
    assert [(event.activity, event.done_bytes, event.total_bytes) for event in hashed] == [("hashing", size, size)]


def test_an_output_may_be_renamed_with_its_report(run: Path) -> None:
    """Then its time is not enough: the report names another file."""
    (run / "ema.pt").rename(run / "mean.pt")
    (run / "ema.pt.report.json").rename(run / "mean.pt.report.json")
    assert used(*members(run)) == OURS
    edit_report(run / "mean.pt", lambda document: output_of(document).update(sha256="0" * 64))
    assert used(*members(run)) == (["ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt", "mean.pt"], [], [])


def test_a_link_to_an_output_is_an_output(run: Path) -> None:
    """The report is beside the file that the link leads to."""
    (run / "elsewhere").mkdir()
    for name in ("ema.pt", "ema.pt.report.json"):
        (run / name).rename(run / "elsewhere" / name)
    (run / "linked.pt").symlink_to("elsewhere/ema.pt")
    assert used(*members(run)) == OURS


def test_a_changed_output_is_a_checkpoint(run: Path) -> None:
    """Of the same size, of another, and with the time of the report but another size."""
    raw, status = (run / "ema.pt").read_bytes(), (run / "ema.pt").stat()
    torch.save({"model": {"w": torch.tensor([7.0, 8.0])}, "step": 900}, run / "ema.pt")
    assert used(*members(run)) == (NOT_OURS, [], ["output-changed"])
    os.utime(run / "ema.pt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert used(*members(run)) == (NOT_OURS, [], ["output-changed"])
    other = bytearray(raw)
    at = raw.index(b"optimizer")
    other[at : at + 9] = b"OPTIMIZER"
    write_one(run / "ema.pt", 1.5, OPTIMIZER={"m": torch.ones(3)}, step=300)
    assert used(*members(run))[2] == ["output-changed"]
    names, reasons, warnings = used(run)
    assert (len(names), warnings) == (3, [])
    assert "average" in reasons[0]


def test_a_file_of_the_same_size_and_time_is_taken_for_the_output(run: Path) -> None:
    """The limit of what is found without reading, which the help topic states."""
    path = run / "ema.pt"
    status, size = path.stat(), path.stat().st_size
    path.write_bytes((run / "ckpt_300.pt").read_bytes()[:size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == size
    assert used(run) == OURS


def test_a_report_of_another_file_makes_no_output(run: Path) -> None:
    """A report that was copied beside a checkpoint, or edited to name it, changes nothing."""
    shutil.copy2(run / "ema.pt.report.json", run / "ckpt_300.pt.report.json")
    assert used(run) == OURS
    edit_report(run / "ckpt_300.pt", lambda document: output_of(document).update(path="run/ckpt_300.pt"))
    assert used(run) == (*OURS[:2], ["output-changed"])
    with pytest.raises(UsageError, match="is one of the inputs"):
        average(run, run / "ckpt_300.pt", force=True)


WRONG: dict[str, Callable[[Document], object]] = {
    "no averages": lambda document: document.pop("averages"),
    "averages are a number": lambda document: document.update(averages=3),
    "two averages": lambda document: document["averages"].append(document["averages"][0]),
    "an average is a list": lambda document: document.update(averages=[[]]),
    "an output is text": lambda document: document["averages"][0].update(output="run/ema.pt"),
    "no path": lambda document: output_of(document).pop("path"),
    "the path is a number": lambda document: output_of(document).update(path=3),
    "the size is text": lambda document: output_of(document).update(bytes="many"),
    "the size is true": lambda document: output_of(document).update(bytes=True),
    "the time is a number with a point": lambda document: output_of(document).update(modified_ns=1.5),
    "the format is a list": lambda document: output_of(document).update(format=["same"]),
    "an unknown format": lambda document: output_of(document).update(format="pickle"),
    "a safetensors file": lambda document: output_of(document).update(format="safetensors"),
    "files are a number": lambda document: output_of(document).update(files=1),
    "it is a folder": lambda document: output_of(document).update(
        files=[{"name": "ema.pt", "role": "weights", "bytes": 1, "sha256": "", "modified_ns": 1}]
    ),
    "files outside": lambda document: output_of(document).update(
        files=[{"name": "../ckpt_100.pt", "role": "weights", "bytes": 1, "sha256": "", "modified_ns": 1}]
    ),
}


@pytest.mark.parametrize("edit", WRONG.values(), ids=WRONG)
def test_a_report_with_wrong_types_is_none(run: Path, edit: Callable[[Document], object]) -> None:
    """The file is a checkpoint like others."""
    edit_report(run / "ema.pt", edit)
    assert used(*members(run)) == (NOT_OURS, [], [])


def test_what_is_no_report_is_none(run: Path) -> None:
    """Other text, a pipe, a folder and a link to nothing."""
    report = run / "ema.pt.report.json"
    for make in (
        lambda: report.write_bytes(b"\xff" * 100),
        lambda: report.write_text("[" * 100_000),
        lambda: fifo(report),
        report.mkdir,
        lambda: report.symlink_to("nothing"),
    ):
        report.rmdir() if report.is_dir() else report.unlink()
        make()
        assert used(*members(run)) == (NOT_OURS, [], [])


def test_an_output_is_up_to_date_until_something_differs(run: Path) -> None:
    """The inputs, the weights, the options, the format, and the file itself."""
    before = (run / "ema.pt").stat()
    average(run, run / "ema.pt")
    assert (run / "ema.pt").stat() == before
    reasons: list[tuple[str, dict[str, Any]]] = [
        ("made with other inputs or settings", {"decay": 0.9}),
        ("made with other options", {"include": "w"}),
        ("made without sha256", {"sha256": True}),
    ]
    for reason, options in reasons:
        with pytest.raises(OutputError, match=reason):
            average(run, run / "ema.pt", **options)
    os.utime(run / "ckpt_100.pt")
    with pytest.raises(OutputError, match="was changed or touched"):
        average(run, run / "ema.pt")
    average(run, run / "ema.pt", force=True)
    assert used(run) == OURS


def test_a_changed_output_is_replaced_by_force_alone(run: Path) -> None:
    """Elsewhere it is in the way; in the folder of the run it may be a checkpoint, and is not replaced at all."""
    for output in (run.parent / "ema.pt", run / "ema.pt"):
        average(run, output)
        output.write_bytes(output.read_bytes()[:-1] + b"\x01")
    with pytest.raises(OutputError, match="changed after it was written"):
        average(run, run.parent / "ema.pt")
    average(run, run.parent / "ema.pt", force=True)
    average(run, run.parent / "ema.pt")
    with pytest.raises(UsageError, match="is one of the inputs"):
        average(run, run / "ema.pt", force=True)


def test_the_report_decides_which_options_an_output_has(run: Path) -> None:
    """A report without them, of another program or edited, is not up to date."""
    edit_report(run / "ema.pt", lambda document: output_of(document).update(options_fingerprint=None))
    with pytest.raises(OutputError, match="made with other options or by another version"):
        average(run, run / "ema.pt")
    edit_report(run / "ema.pt", lambda document: output_of(document).update(format="dcp"))
    with pytest.raises(OutputError, match='made with format="dcp"'):
        average(run, run / "ema.pt")


def test_two_outputs_have_no_common_report(run: Path) -> None:
    """``ema.pt`` and ``ema.pt.safetensors`` would have one, ``ema.safetensors`` has its own."""
    average(run, run / "ema.safetensors")
    with pytest.raises(OutputError, match=r'is the report of "[^"]*ema.pt"'):
        average(run, run / "ema.pt.safetensors")
    (run / "ema.pt").unlink()
    (run / "ema.pt.report.json").unlink()
    average(run, run / "ema.pt.safetensors")
    with pytest.raises(OutputError, match=r'is the report of "[^"]*ema.pt.safetensors"'):
        average(run, run / "ema.pt")


def test_an_output_without_metadata_cannot_be_continued(run: Path) -> None:
    """The refusal says what can; a file that is no output is refused as ever."""
    with pytest.raises(InputRefused, match='was written with format="same", which has no room for metadata') as refused:
        ema_cli.average(run, continue_from=run / "ema.pt", output=run / "next.safetensors")
    assert ".safetensors" in refused.value.hint
    with pytest.raises(InputRefused, match="is not an output of ema-avg"):
        ema_cli.average(run, continue_from=run / "ckpt_100.pt", output=run / "next.safetensors")


def test_inspect_says_who_made_a_file(run: Path, ema_avg: Run) -> None:
    """On the terminal, as JSON and in Python."""
    assert "made by  ema-avg, by the report beside it" in ema_avg("inspect", run / "ema.pt").stdout
    (document,) = json.loads(ema_avg("inspect", "--json", run / "ema.pt").stdout)["checkpoints"]
    assert document["made_by_ema_avg"] is True
    assert ema_cli.inspect(run / "ema.pt").made_by_us
    assert not ema_cli.inspect(run / "ckpt_100.pt").made_by_us


def test_the_terminal_says_what_is_written(run: Path, ema_avg: Run) -> None:
    """The plan, the result and the reports show the format."""
    planned = ema_avg("plan", run, "--decay", 0.5, "-o", run / "new.pt").stdout
    assert f'a copy of "{run}/ckpt_300.pt" with 1 averaged tensor' in " ".join(planned.split())
    written = ema_avg(run, "--decay", 0.5, "-o", run / "new.pt", "--report", run / "new.md").stdout
    assert "(a copy of the last checkpoint)" in written
    assert "a copy of the last checkpoint" in (run / "new.md").read_text()
    document = json.loads(ema_avg("plan", run, "--decay", 0.5, "-o", run / "next.pt", "--json").stdout)
    assert document["averages"][0]["format"] == "same"


def test_a_batch_makes_one_in_every_run(run: Path, ema_avg: Run) -> None:
    """The second time all are up to date."""
    shutil.copytree(run, run.parent / "other", ignore=shutil.ignore_patterns("ema*"))
    for expected in ("written", "up_to_date"):
        done = ema_avg("batch", run, run.parent / "other", "--decay", 0.5, "-o", "{run}/ema.pt", "--json")
        assert [job["status"] for job in json.loads(done.stdout)["jobs"]][1] == expected
    assert used(run.parent / "other") == OURS


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three checkpoint folders with files of the trainer, some in a folder, and their average in the same format."""
    states = [{"w": torch.full((5,), float(number)), "b": torch.ones(3)} for number in (1, 2, 3)]
    for folder in model_folders(tmp_path / "run", states, optimizer__pt=b"moments"):
        (folder / "inner").mkdir()
        (folder / "inner" / "notes.txt").write_text("of the trainer")
    average(tmp_path / "run", tmp_path / "run" / "checkpoint-999", format="same")
    return tmp_path / "run"


OUR_FOLDER: Used = (["checkpoint-100", "checkpoint-200", "checkpoint-300"], ["an output of ema-avg"], [])
NOT_OUR_FOLDER: Used = (
    ["checkpoint-100", "checkpoint-200", "checkpoint-300", "checkpoint-999"],
    [],
    ["output-changed"],
)


def test_a_folder_is_left_out_of_the_next_run(folders: Path) -> None:
    """By the folder, its name, and the name of its weights; its side files do not matter, nor do more of them."""
    output = folders / "checkpoint-999"
    for edit in (
        lambda: None,
        (output / "config.json").unlink,
        lambda: (output / "tokenizer.json").write_text("changed"),
        lambda: (output / "README.md").write_text("new"),
        (output / "model.safetensors").touch,
    ):
        edit()
        assert used(folders) == used(*sorted(folders.glob("*-*00")), output) == OUR_FOLDER
    assert used(folders / "checkpoint-100", output / "model.safetensors")[1] == ["an output of ema-avg"]
    shutil.copy(folders / "checkpoint-200" / "model.safetensors", output / "other.safetensors")
    assert used(folders / "checkpoint-100", output / "other.safetensors")[0] == ["checkpoint-100", "other.safetensors"]


def test_a_folder_with_other_weights_is_a_checkpoint(folders: Path) -> None:
    """They were changed; or others came that are read instead."""
    output = folders / "checkpoint-999"
    shutil.copy(folders / "checkpoint-300" / "model.safetensors", output)
    assert used(folders) == NOT_OUR_FOLDER
    with pytest.raises(UsageError, match="is one of the inputs"):
        average(folders, output, format="same", force=True)
    (output / "model.safetensors").rename(output / "pytorch_model.bin")
    torch.save({"w": torch.zeros(5), "b": torch.zeros(3)}, output / "pytorch_model.bin")
    assert used(folders) == NOT_OUR_FOLDER


def test_a_folder_is_up_to_date_with_all_its_files(folders: Path) -> None:
    """One that is missing or changed is noticed, in inner folders too; ``--force`` keeps foreign files."""
    output = folders / "checkpoint-999"
    average(folders, output, format="same")
    for edit in (
        (output / "inner" / "notes.txt").unlink,
        lambda: (output / "optimizer.pt").write_bytes(b"MOMENTS"),
        lambda: (output / "second.safetensors").write_bytes((output / "model.safetensors").read_bytes()),
    ):
        edit()
        with pytest.raises(OutputError):
            average(folders, output, format="same")
        (output / "second.safetensors").unlink(missing_ok=True)
        (output / "inner" / "mine.txt").write_text("mine")
        average(folders, output, format="same", force=True)
        average(folders, output, format="same")
    assert (output / "inner" / "mine.txt").read_text() == "mine"
    assert (output / "inner" / "notes.txt").read_text() == "of the trainer"


def test_a_file_of_the_last_checkpoint_that_changed_is_copied_again(folders: Path) -> None:
    """Of the same size, too; and with another size."""
    for content in (b"MOMENTS", b"more moments"):
        (folders / "checkpoint-300" / "optimizer.pt").write_bytes(content)
        with pytest.raises(OutputError, match=r"already exists, (made before|changed after)"):
            average(folders, folders / "checkpoint-999", format="same")
        average(folders, folders / "checkpoint-999", format="same", force=True)
        assert (folders / "checkpoint-999" / "optimizer.pt").read_bytes() == content


def test_a_folder_that_only_its_report_calls_ours_is_not_replaced(folders: Path) -> None:
    """The names and sizes of files are equal in all checkpoints of a run; their bytes are not."""
    mine = folders.parent / "mine"
    shutil.copytree(folders / "checkpoint-300", mine)
    shutil.copy2(folders / "checkpoint-999.report.json", folders.parent / "mine.report.json")
    before = (mine / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r'but "mine.report.json" describes other files, and is not replaced'):
        average(folders, mine, format="same", force=True)
    assert (mine / "model.safetensors").read_bytes() == before


def test_verify_checks_a_folder(folders: Path) -> None:
    """Its weights, its side files, and that they are those of the last checkpoint."""
    output = folders / "checkpoint-999"
    assert ema_cli.verify(output).ok
    (output / "inner" / "notes.txt").write_text("of another run")
    assert [one.name for one in ema_cli.verify(output).failures] == ["companions", "copied"]
    shutil.copy(folders / "checkpoint-100" / "model.safetensors", output)
    assert [one.name for one in ema_cli.verify(output).failures] == ["sha256", "companions", "samples", "copied"]


def test_a_copy_has_no_metadata_of_another_average(run: Path) -> None:
    """An average of averages, and of snapshots of a live EMA, is written as safetensors."""
    for decay in (0.5, 0.9):
        average(run, run.parent / "averages" / f"ema_{decay}.safetensors", decay)
    with pytest.raises(UsageError, match="is an output of ema-avg, and the copy would have its metadata"):
        average(run.parent / "averages", run.parent / "same.safetensors", format="same")
    ema = ema_cli.EMA(torch.nn.Linear(2, 2), decay=0.5)
    for step in (1, 2):
        ema.update()
        ema.save(run.parent / "live" / f"ema_{step}.safetensors")
    with pytest.raises(UsageError, match="is a snapshot of a live EMA"):
        average(run.parent / "live", run.parent / "same.safetensors", format="same")
