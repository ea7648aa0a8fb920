"""Verifying from any directory, and after a move; and what can no longer be compared is left out, and named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.errors import VerificationFailed
from ema_cli.report.beside import load_report
from ema_cli.verification.checks import Verification, verify
from tests.helpers.program import Run, forked
from tests.helpers.series import open_files, random_states, write_series

REPORT = "ema.report.json"


def check(output: Path, **options: Any) -> Verification:
    """Verify, and leave no file open."""
    before = open_files()
    try:
        return verify(output, **options)
    finally:
        assert open_files() == before


def is_verified(output: Path, **options: Any) -> bool:
    """Whether an output is verified, and nothing had to be left out."""
    found = check(output, **options)
    return found.ok and found.complete


def listed(output: Path) -> list[tuple[str, str | None]]:
    """Return both paths of every input in the report of an output."""
    report = load_report(output.with_name(f"{output.stem}.report.json"))
    return [(known.path, known.path_from_output) for known in report.inputs]


def error(found: Verification) -> list[str]:
    """Return the lines of the error of a verification, and its hint."""
    with pytest.raises(VerificationFailed) as failed:
        found.raise_if_failed()
    return [*failed.value.message.split("\n"), failed.value.hint]


def without_second_paths(output: Path) -> None:
    """Make the report one of an older version."""
    path = output.with_name(f"{output.stem}.report.json")
    document = json.loads(path.read_text())
    for known in document["inputs"]:
        del known["path_from_output"]
    path.write_text(json.dumps(document))


LAYOUTS = {
    "beside each other": (".", "run", "ema.safetensors", "run"),
    "out of a folder": (".", "run", "out/ema.safetensors", "../run"),
    "in the folder of the run": ("run", ".", "ema.safetensors", "."),
    "above": ("run", ".", "../ema.safetensors", "run"),
    "deep": ("a/b", "../../run", "../c/ema.safetensors", "../../run"),
    "a folder": (".", "run", "out/ema/", "../run"),
}
"""By name: the working directory, the run and the output from there, and the run from the folder of the output."""


@pytest.mark.parametrize("absolute", [(), ("run",), ("output",), ("run", "output")], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_output_is_verified_from_any_directory(
    layout: str, absolute: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the working directory of the run was, and however run and output were named; also after a move."""
    root, (folder, run, output, between) = tmp_path / "first", LAYOUTS[layout]
    here = root / folder
    (here / output).parent.mkdir(parents=True, exist_ok=True)
    here.mkdir(parents=True, exist_ok=True)
    write_series(here / run, random_states(3))
    monkeypatch.chdir(here)
    named = str(here / run) if "run" in absolute else run
    target = f"{here}/{output}" if "output" in absolute else output
    ema_cli.average(named, decay=0.7, output=target)
    written = Path(os.path.normpath(here / output))
    assert listed(written) == [
        (str(Path(named, f"ckpt_{n}.pt")), os.path.normpath(f"{between}/ckpt_{n}.pt")) for n in (100, 200, 300)
    ]
    for directory in (here, written.parent, Path("/")):
        monkeypatch.chdir(directory)
        found = check(Path(os.path.relpath(written)))
        assert (found.ok, found.complete) == (True, True), found.failures
    monkeypatch.chdir(tmp_path)
    root.rename("second")
    found = check(tmp_path / "second" / written.relative_to(root))
    assert (found.ok, found.complete) == (True, True), found.failures


@pytest.mark.parametrize("layout", ["beside each other", "out of a folder", "in the folder of the run"])
def test_reports_of_older_versions_are_verified_from_any_directory(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their two paths are relative to one directory, which gives the path from the one to the other."""
    folder, run, output, _ = LAYOUTS[layout]
    here = tmp_path / folder
    (here / output).parent.mkdir(parents=True, exist_ok=True)
    write_series(here / run, random_states(3))
    monkeypatch.chdir(here)
    ema_cli.average(run, decay=0.7, output=output)
    without_second_paths(here / output)
    monkeypatch.chdir("/")
    assert is_verified(here / output)


def test_paths_that_do_not_begin_at_one_place_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older report of an output with an absolute path has no way to its inputs: the hint says where to go."""
    write_series(tmp_path / "here" / "run", random_states(3))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    output = tmp_path / "out" / "ema.safetensors"
    ema_cli.average("run", decay=0.7, output=output)
    without_second_paths(output)
    assert is_verified(output)
    monkeypatch.chdir("/")
    *_, line, hint = error(check(output))
    assert line == '  3 of 3 inputs are missing: "run/ckpt_100.pt", "run/ckpt_200.pt", "run/ckpt_300.pt"'
    assert hint.startswith("the paths are relative to the directory of the run: verify there, or name the inputs: ")
    assert is_verified(output, inputs=[tmp_path / "here" / "run"])


def test_links_on_the_way_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``..`` behind a link leads elsewhere, the path in the report avoids it."""
    write_series(tmp_path / "home" / "run", random_states(3))
    (tmp_path / "disk" / "deep" / "out").mkdir(parents=True)
    (tmp_path / "home" / "out").symlink_to(tmp_path / "disk" / "deep" / "out")
    monkeypatch.chdir(tmp_path / "home")
    ema_cli.average("run", decay=0.7, output="out/ema.safetensors")
    assert listed(Path("out/ema.safetensors"))[0] == ("run/ckpt_100.pt", "../../../home/run/ckpt_100.pt")
    monkeypatch.chdir("/")
    assert is_verified(tmp_path / "home" / "out" / "ema.safetensors")
    assert is_verified(tmp_path / "disk" / "deep" / "out" / "ema.safetensors")


def test_two_runs_from_different_directories_write_the_same_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path from the output depends on the layout alone."""
    write_series(tmp_path / "run", random_states(3))
    found = []
    for directory in (tmp_path, tmp_path / "run", Path("/")):
        monkeypatch.chdir(directory)
        run, output = os.path.relpath(tmp_path / "run"), os.path.relpath(tmp_path / "ema.safetensors")
        ema_cli.average(run, decay=0.7, output=output, force=True)
        found.append([path for _, path in listed(tmp_path / "ema.safetensors")])
    assert found[0] == found[1] == found[2] == [f"run/ckpt_{n}.pt" for n in (100, 200, 300)]


def test_each_average_of_a_run_has_its_own_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs of one run can be in different folders."""
    write_series(tmp_path / "run", random_states(3))
    for name in ("0.5", "0.9"):
        (tmp_path / "out" / name / "x").mkdir(parents=True)
    (tmp_path / "out" / "flat").mkdir()
    monkeypatch.chdir(tmp_path)
    report = ema_cli.average("run", decay=[0.5, 0.9], output="out/{decay}/x/ema.safetensors")
    assert {known.path_from_output for known in report.inputs} == {f"../../../run/ckpt_{n}.pt" for n in (100, 200, 300)}
    (tmp_path / "run").rename(tmp_path / "out" / "0.5" / "run")
    ema_cli.average("out/0.5/run", decay=[0.5, 0.9], output="out/{decay}/x/ema.safetensors", force=True)
    found = [listed(tmp_path / "out" / name / "x" / "ema.safetensors")[0][1] for name in ("0.5", "0.9")]
    assert found == ["../run/ckpt_100.pt", "../../0.5/run/ckpt_100.pt"]
    (tmp_path / "out" / "0.9" / "x").rename(tmp_path / "out" / "0.9" / "y")
    monkeypatch.chdir("/")
    for folder in ("0.5/x", "0.9/y"):
        assert is_verified(tmp_path / "out" / folder / "ema.safetensors")


def test_of_two_files_the_averaged_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run with the same names in the working directory does not disturb, whichever is found first."""
    for folder in ("mine", "theirs"):
        write_series(tmp_path / folder / "run", random_states(3, seed=len(folder)))
        monkeypatch.chdir(tmp_path / folder)
        ema_cli.average("run", decay=0.7, output="ema.safetensors")
    assert is_verified(tmp_path / "mine" / "ema.safetensors")
    assert is_verified(tmp_path / "theirs" / "ema.safetensors")


def test_a_candidate_of_one_input_may_be_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is taken by the input that it is, not by the first one that could have been there."""
    paths = write_series(tmp_path / "run", random_states(2))
    paths[0].rename(tmp_path / "ckpt_200.pt")
    monkeypatch.chdir(tmp_path)
    ema_cli.average(["ckpt_200.pt", "run/ckpt_200.pt"], decay=0.7, output="run/ema.safetensors", order="given")
    monkeypatch.chdir("/")
    assert is_verified(tmp_path / "run" / "ema.safetensors")
    without_second_paths(tmp_path / "run" / "ema.safetensors")
    assert is_verified(tmp_path / "run" / "ema.safetensors")


def test_all_missing_inputs_are_one_line(tmp_path: Path, ema_avg: Run) -> None:
    """With the first names and one hint; other faults keep their lines, and the document has them one by one."""
    paths = write_series(tmp_path / "run", random_states(13))
    assert ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors").returncode == 0
    for path in paths[:4]:
        path.unlink()
    done = ema_avg("verify", "ema.safetensors", "-q")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr.splitlines() == [
        'error: verification of "ema.safetensors" failed:',
        '  4 of 13 inputs are missing: "run/ckpt_100.pt", "run/ckpt_200.pt", "run/ckpt_300.pt" and 1 more',
        "  try: name the inputs: ema-avg verify OUT --input CKPT...; --output-only checks only the file and its report",
    ]
    document = json.loads(ema_avg("verify", "ema.safetensors", "--json").stdout)
    assert (document["ok"], document["complete"]) == (False, False)
    assert [one["missing"] for one in document["checks"] if not one["ok"]] == [
        f"run/ckpt_{n}.pt" for n in (100, 200, 300, 400)
    ]
    paths[4].write_text("junk")
    done = ema_avg("verify", "ema.safetensors", "-q")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        *("error", "  4 of 13 inputs are missing", "  input 5", "  try")
    ]


@pytest.fixture
def continued(tmp_path: Path) -> Path:
    """An average of four checkpoints that was continued in place. One of their four tensors is copied."""
    states = [{**state, "steps": torch.tensor(number)} for number, state in enumerate(random_states(4))]
    paths = write_series(tmp_path / "run", states)
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=output)
    ema_cli.average(paths[2:], continue_from=output, output=output, force=True)
    return output


def test_an_average_that_was_continued_in_place_is_verified_as_far_as_it_can_be(continued: Path) -> None:
    """Exit 0; the line names what was left out; the output, the new checkpoints and copied tensors are checked."""
    run = forked(continued.parent)
    done = run("verify", "ema.safetensors")
    left_out = f'the previous average "{continued}" (overwritten by this output), 3 of 4 pieces (they need input 1)'
    assert done.returncode == 0
    assert f'--  input 1: the previous average "{continued}" cannot be compared' in done.stdout
    assert done.stdout.endswith(f"\nverified ema.safetensors except {left_out}  2 inputs  1 piece recomputed\n")
    quiet = run("verify", "ema.safetensors", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    document = json.loads(run("verify", "ema.safetensors", "--json").stdout)
    assert (document["ok"], document["complete"]) == (True, False)
    assert document["unchecked"] == [
        f'the previous average "{continued}" (overwritten by this output)',
        "3 of 4 pieces (they need input 1)",
    ]


def test_what_can_be_checked_still_fails(continued: Path) -> None:
    """A new checkpoint that is missing or changed, a flipped bit, a copied tensor that differs: exit 10."""
    output, newest = continued, continued.parent / "run" / "ckpt_400.pt"
    raw = output.read_bytes()
    output.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "sha256" in {one.name for one in check(output).failures}
    output.write_bytes(raw)
    assert check(output).ok
    state = torch.load(newest, weights_only=True)
    state["scale"] += 1
    torch.save(state, newest)
    assert [one.name for one in check(output).failures] == ["input 3"]
    newest.unlink()
    assert [one.missing for one in check(output).failures] == [str(newest)]


@pytest.mark.parametrize("fate", ["missing", "replaced", "touched"])
def test_a_previous_average_is_compared_while_it_is_what_it_was(fate: str, tmp_path: Path) -> None:
    """Deleted, or replaced by a later one: left out. Copied or touched: compared by its weights."""
    paths = write_series(tmp_path / "run", random_states(4))
    part, both = tmp_path / "part.safetensors", tmp_path / "ema.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=part)
    ema_cli.average(paths[2:], continue_from=part, output=both)
    if fate == "missing":
        part.unlink()
    elif fate == "touched":
        os.utime(part, (1, 1))
    else:
        ema_cli.average(paths, decay=0.5, output=part, force=True)
    found = check(both)
    assert found.ok, found.failures
    reason = {"missing": "missing", "replaced": "replaced since then"}.get(fate)
    first = [f'the previous average "{part}" ({reason})'] if reason else []
    assert list(found.unchecked[:1]) == first
    assert found.complete == (fate == "touched")
    assert check(both, quick=True).unchecked[0] == "the weights of the inputs (--quick)"


def test_a_continued_average_is_verified_where_it_was_moved_to(
    continued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints that were added are named; the previous average cannot be, and need not."""
    there = continued.parent / "there"
    there.mkdir()
    for name in ("ema.safetensors", REPORT):
        shutil.move(continued.with_name(name), there)
    shutil.move(continued.parent / "run", there / "checkpoints")
    monkeypatch.chdir("/")
    assert not check(there / "ema.safetensors").ok
    found = check(there / "ema.safetensors", inputs=[there / "checkpoints"])
    assert (found.ok, len(found.unchecked)) == (True, 2)
    assert "(not among the named inputs)" in found.unchecked[0]


def test_an_ordinary_input_that_is_the_output_is_a_failure(tmp_path: Path) -> None:
    """Only an average is replaced by its successor: a checkpoint is not."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output)
    paths[0].unlink()
    paths[0].symlink_to(output)
    (wrong,) = check(output).failures
    assert "was overwritten by this output" in wrong.message


def test_what_the_options_leave_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0 in all cases; complete only if everything was checked that can be."""
    monkeypatch.chdir(tmp_path)
    write_series(tmp_path / "run", random_states(2))
    ema_cli.average("run", decay=0.5, output="ema.safetensors")
    run = forked(tmp_path)
    for options, words in {
        (): "  2 inputs  3 pieces recomputed",
        ("--output-only",): " except the inputs (--output-only)",
        ("--quick",): " except the weights of the inputs (--quick)  2 inputs  3 pieces recomputed",
        ("--samples", "0"): " except recomputed pieces (--samples 0)  2 inputs  0 pieces recomputed",
    }.items():
        done = run("verify", "ema.safetensors", *options)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"verified ema.safetensors{words}")
        document = json.loads(run("verify", "ema.safetensors", "--json", *options).stdout)
        assert (document["ok"], document["complete"]) == (True, not options)


def test_an_up_to_date_report_has_the_paths_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run from another directory shows names that lead to the files from there."""
    write_series(tmp_path / "run", random_states(2))
    monkeypatch.chdir(tmp_path)
    ema_cli.average("run", decay=0.5, output="ema.safetensors")
    monkeypatch.chdir(tmp_path / "run")
    report = ema_cli.average(".", decay=0.5, output="../ema.safetensors")
    assert [known.path for known in report.inputs] == ["ckpt_100.pt", "ckpt_200.pt"]
    assert report.averages[0].output.path == "../ema.safetensors"
    assert listed(tmp_path / "ema.safetensors")[0] == ("run/ckpt_100.pt", "run/ckpt_100.pt")
