"""Inputs that are elsewhere now are named again (``verify OUT --input CKPT...``), and each is recognized."""

from __future__ import annotations

import json
import os
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import InputRefused, NothingMatched, UsageError
from ema_cli.verification.checks import Verification, verify
from tests.helpers.program import Run
from tests.helpers.series import FORMATS, open_files, random_states, write_series


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An average of three checkpoints, which are in ``run``."""
    paths = write_series(tmp_path / "run", random_states(3))
    ema_cli.average(paths, decay=0.7, output=tmp_path / "ema.safetensors")
    return tmp_path / "ema.safetensors"


def moved(output: Path, names: tuple[str, ...] = ("x.pt", "y.pt", "z.pt"), *, keep_times: bool = False) -> list[Path]:
    """Move the inputs to another folder under other names; return their paths, in the order of the run."""
    folder = output.parent / "elsewhere"
    folder.mkdir()
    paths = [folder / name for name in names]
    for old, new in zip(sorted((output.parent / "run").iterdir()), paths, strict=True):
        (shutil.copy2 if keep_times else shutil.copy)(old, new)
    shutil.rmtree(output.parent / "run")
    return paths


def check(output: Path, inputs: Any, **options: Any) -> Verification:
    """Verify with named inputs, and leave no file open."""
    before = open_files()
    try:
        return verify(output, inputs=inputs, **options)
    finally:
        assert open_files() == before


def shown(found: Verification) -> dict[str, str]:
    """Return the messages of the checks of the inputs."""
    return {one.name: one.message for one in found.checks if one.name.startswith("input")}


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sha256", [False, True])
def test_moved_inputs_are_recognized_in_any_order(form: str, keep_times: bool, sha256: bool, tmp_path: Path) -> None:
    """By their fingerprint or else their digest, whatever their names, although sizes and structures are equal."""
    output = tmp_path / "ema.safetensors"
    write_series(tmp_path / "run", random_states(3), form=form)
    ema_cli.average(tmp_path / "run", decay=0.7, output=output, sha256=sha256)
    paths = moved(output, ("b", "a", "c"), keep_times=keep_times)
    for order in permutations(paths):
        found = check(output, order)
        assert found.ok, found.failures
        assert found.samples == 3
        for message, path in zip(shown(found).values(), paths, strict=True):
            assert message.startswith(f'"{path}" ')
            assert keep_times == message.endswith("is unchanged")


def test_a_wrong_order_is_no_other_average(output: Path) -> None:
    """The order of the names is not the order of the fold: a report with swapped inputs does not pass."""
    paths = moved(output)
    report = output.with_name("ema.report.json")
    document = json.loads(report.read_text())
    document["inputs"] = [document["inputs"][at] for at in (1, 0, 2)]
    report.write_text(json.dumps(document))
    assert "samples" in [one.name for one in check(output, paths).failures]


@pytest.mark.parametrize(
    "name", ["elsewhere", "elsewhere/", "elsewhere/*.pt", "{folder}/elsewhere", "file://{folder}/elsewhere"]
)
def test_folders_and_patterns_are_named_too(name: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an average. Files of a folder that are no checkpoints are skipped, as is the output itself."""
    moved(output)
    (output.parent / "elsewhere" / "broken.pt").write_bytes(b"PK\x03\x04")
    (output.parent / "elsewhere" / "notes.txt").write_text("hello")
    monkeypatch.chdir(output.parent)
    if "*" in name:
        (output.parent / "elsewhere" / "broken.pt").unlink()
    assert check(output, name.format(folder=output.parent)).ok
    together = output.parent / "elsewhere" / output.name
    output.rename(together)
    output.with_name("ema.report.json").rename(together.with_name("ema.report.json"))
    assert check(together, [name.format(folder=output.parent)]).ok


def test_more_files_than_inputs_are_fine(output: Path) -> None:
    """A folder may have other checkpoints of the run, if each input is recognized."""
    paths = moved(output)
    torch.save(random_states(1, seed=5)[0], paths[0].with_name("a_other.pt"))
    assert check(output, [paths[0].parent]).ok
    shutil.copy(paths[0], paths[0].with_name("copy.pt"))
    assert check(output, [paths[0].parent]).ok
    paths[1].unlink()
    found = check(output, [paths[0].parent])
    assert [one.name for one in found.failures] == ["input 2"]
    assert "none of the 4 named checkpoints is" in shown(found)["input 2"]


def test_fewer_files_than_inputs_are_a_usage_error(output: Path) -> None:
    """All inputs are named, or none."""
    paths = moved(output)
    with pytest.raises(UsageError, match="--input names 2 checkpoints, but the report lists 3 inputs"):
        check(output, paths[:2])
    with pytest.raises(UsageError, match="--output-only"):
        check(output, paths, output_only=True)


def test_what_is_named_must_be_there(output: Path) -> None:
    """A missing file, an empty folder, a pattern without matches, a file of another kind: with the reason."""
    paths = moved(output)
    for missing in (output.parent / "none.pt", output.parent / "none*.pt"):
        with pytest.raises(NothingMatched):
            check(output, [*paths, missing])
    other = output.parent / "text.pt"
    other.write_text("hello")
    with pytest.raises(InputRefused, match="begins with the text"):
        check(output, [*paths[:2], other])


@pytest.mark.parametrize("quick", [False, True])
def test_a_changed_input_is_found(quick: bool, output: Path) -> None:
    """By its weights; with ``--quick`` by the recomputed pieces. Times of copies are not compared."""
    paths = moved(output, ("ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt"))
    for path in paths:
        os.utime(path, (1, 1))
    assert check(output, paths, quick=quick).ok
    state = random_states(3)[1]
    state["scale"] += 1
    torch.save(state, paths[1])
    found = check(output, paths, quick=quick)
    assert [one.name for one in found.failures] == ([] if quick else ["input 2"]) + ["samples"]
    assert '"scale" at ()' in found.failures[-1].message
    torch.save({"scale": state["scale"]}, paths[1])
    found = check(output, paths, quick=quick)
    assert "has a different structure" in shown(found)["input 2"]


def test_without_digests_names_decide_and_then_the_order(output: Path) -> None:
    """With ``--quick`` checkpoints of equal size are told apart by the end of their paths; else the order counts."""
    paths = moved(output, ("ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt"))
    assert check(output, paths[::-1], quick=True).ok
    renamed = [path.rename(path.with_name(f"{number}.pt")) for number, path in enumerate(paths)]
    assert check(output, renamed, quick=True).ok
    wrong = check(output, renamed[::-1], quick=True)
    assert [one.name for one in wrong.failures] == ["samples"]
    assert check(output, renamed[::-1]).ok


def test_folders_of_checkpoints_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """All files have one name; the folders above them differ."""
    states = random_states(3)
    for root, order in (("run", (0, 1, 2)), ("other", (2, 1, 0))):
        for number in order:
            folder = tmp_path / root / f"checkpoint-{100 * number + 100}"
            folder.mkdir(parents=True)
            save_file(states[number], folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text("{}")
    output = tmp_path / "ema.safetensors"
    ema_cli.average(tmp_path / "run", decay=0.7, output=output)
    shutil.rmtree(tmp_path / "run")
    assert check(output, [tmp_path / "other"]).ok
    assert check(output, sorted((tmp_path / "other").iterdir())[::-1], quick=True).ok


def test_equal_inputs_take_equal_files(tmp_path: Path) -> None:
    """Two checkpoints with the same weights are two inputs, and need two files."""
    state = random_states(1)[0]
    write_series(tmp_path / "run", [state, state, random_states(1, seed=2)[0]])
    output = tmp_path / "ema.safetensors"
    ema_cli.average(tmp_path / "run", decay=0.7, output=output)
    paths = moved(output)
    assert check(output, paths[::-1]).ok
    with pytest.raises(UsageError):
        check(output, [paths[0], paths[0], paths[2]])


def test_an_input_without_weight_is_recognized_by_its_place(tmp_path: Path) -> None:
    """The report has no digest of it, as no average needed it."""
    paths = write_series(tmp_path / "run", random_states(3))
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, weights=(1.0, 0.0, 2.0), output=output)
    assert check(output, moved(output)[::-1]).ok


def test_a_continued_average_is_verified_with_all_its_inputs(tmp_path: Path) -> None:
    """The previous average is one of them, if it is still what it was, and another output of the folder is not."""
    paths = write_series(tmp_path / "run", random_states(4))
    part, both = tmp_path / "part.safetensors", tmp_path / "ema.safetensors"
    ema_cli.average(paths[:2], per="step", half_life=100, output=part)
    ema_cli.average(paths[2:], continue_from=part, output=both)
    other = tmp_path / "elsewhere"
    other.mkdir()
    for path in [part, *paths[1:]]:
        shutil.copy(path, other)
        path.unlink()
    found = check(both, [other / part.name, other])
    assert found.ok, found.failures
    assert found.complete
    found = check(both, [*sorted(other.glob("*.pt")), other / part.name])
    assert (found.ok, found.complete) == (True, True)
    ema_cli.average(sorted(other.glob("*.pt")), decay=0.1, output=other / part.name, force=True)
    found = check(both, [*sorted(other.glob("*.pt")), other / part.name])
    assert (found.ok, found.complete) == (True, False)
    assert found.unchecked[0] == f'the previous average "{part}" (replaced since then)'
    (other / part.name).unlink()
    found = check(both, sorted(other.glob("*.pt")))
    assert (found.ok, found.unchecked[0]) == (True, f'the previous average "{part}" (not among the named inputs)')


def test_key_and_prefix_of_the_run_are_used(tmp_path: Path) -> None:
    """Nested weights are found in the moved files where the run found them."""
    states = [{f"net.{name}": value for name, value in state.items()} for state in random_states(2)]
    (tmp_path / "run").mkdir()
    for number, state in enumerate(states):
        torch.save({"a": {n: v + 1 for n, v in state.items()}, "b": state}, tmp_path / "run" / f"c_{number}.pt")
    output = tmp_path / "ema.safetensors"
    ema_cli.average(tmp_path / "run", output=output, decay=0.5, key="b", strip_prefix="net.")
    assert check(output, moved(output, ("x.pt", "y.pt"))[::-1]).ok


def test_the_command_line(output: Path, ema_avg: Run) -> None:
    """One name or several after one option, or the option repeated; the error without it proposes it."""
    paths = moved(output)
    without = ema_avg("verify", "ema.safetensors")
    assert without.returncode == 10
    assert "try: name the inputs: ema-avg verify OUT --input CKPT..." in without.stderr
    one_by_one = [word for path in paths for word in ("--input", path)]
    for arguments in (("--input", *paths), (*one_by_one,), ("--input", "elsewhere"), ("--input", "elsewhere/*.pt")):
        done = ema_avg("verify", "ema.safetensors", *arguments)
        assert (done.returncode, done.stdout.splitlines()[-1][:8]) == (0, "verified"), done.stderr
    document = json.loads(ema_avg("verify", "ema.safetensors", "--json", "--input", *paths).stdout)
    assert document["ok"]
    assert 'has the same weights as "' in document["checks"][5]["message"]
    failed = json.loads(ema_avg("verify", "ema.safetensors", "--json").stdout)
    assert "--input CKPT..." in failed["checks"][5]["hint"]
    for wrong in ((*paths,), ("--input", paths[0], paths[1], "--input", paths[2]), ("--input", paths[0])):
        assert ema_avg("verify", "ema.safetensors", *wrong).returncode == 2
    missing = ema_avg("verify", "ema.safetensors", "--input", *paths, "none.pt")
    assert (missing.returncode, "none.pt" in missing.stderr) == (7, True)
