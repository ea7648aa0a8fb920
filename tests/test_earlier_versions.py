"""What earlier versions wrote stays usable: outputs, reports, configuration, manifests, indexes, interrupted runs."""

from __future__ import annotations

import json
import shutil
import tarfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ema_cli
from ema_cli.errors import OutputError
from ema_cli.report.beside import load_report
from ema_cli.report.render import is_index, is_report, render_report
from ema_cli.report.serialize import from_json
from ema_cli.verification.checks import verify
from tests.earlier.make import COMMANDS, SINCE
from tests.helpers.building import UNPACKING
from tests.helpers.program import Run, forked
from tests.helpers.reports import check as check_schema
from tests.helpers.series import data_section, load

VERSIONS = ("0.4.0", "0.8.0")
SINGLE = ("single", "steps", "tagged", "continued", "interpolated")
"""Commands with one output, a file, that can be made again with the same result."""
OUTPUTS = {"steps": "out/steps.safetensors", "folder": "folder", "updated": "updated"}


class Earlier:
    """An unpacked archive."""

    def __init__(self, version: str, root: Path) -> None:
        self.version, self.root = version, root
        with tarfile.open(Path(__file__).parent / "earlier" / f"{version}.tar.xz") as archive:
            archive.extractall(root, **UNPACKING)

    def run(self, name: str, *more: str) -> Any:
        """Run a command of the archive again, with the program as it is now."""
        folder = self.root / name if (self.root / name).is_dir() and name in ("toml", "pyproject") else self.root
        return forked(folder)(*COMMANDS[name], *more)

    def output(self, name: str) -> Path:
        """Return the path of the one output of a command."""
        return self.root / OUTPUTS.get(name, f"{name}.safetensors")

    @cached_property
    def reports(self) -> list[Path]:
        """The reports beside all outputs."""
        return sorted(self.root.rglob("*.report.json"))

    def bytes_of_outputs(self) -> dict[Path, bytes]:
        """Return everything that the commands wrote."""
        written = {".safetensors", ".json", ".html", ".md"}
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.suffix in written}


def is_verified(output: Path, **options: Any) -> bool:
    """Whether an output is verified, and nothing had to be left out."""
    found = verify(output, **options)
    return found.ok and found.complete


@pytest.fixture(params=VERSIONS)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Earlier:
    """Everything that a version wrote."""
    return Earlier(request.param, tmp_path / "earlier")


UP_TO_DATE = ("single", "several", "steps", "tagged", "folder", "continued", "interpolated", "toml", "pyproject")


@pytest.mark.parametrize("name", UP_TO_DATE)
def test_outputs_are_up_to_date(earlier: Earlier, name: str) -> None:
    """The same command finds nothing to do, rewrites the further reports that it names, and changes nothing else."""
    before = earlier.bytes_of_outputs()
    done = earlier.run(name)
    assert done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if "safetensors" in line or "folder" in line]
    assert results
    assert all(line.startswith("up to date ") for line in results), done.stdout
    requested = {earlier.root / Path(word).name for word in COMMANDS[name] if word.endswith((".html", ".md", ".json"))}
    after = earlier.bytes_of_outputs()
    changed = {path for path in before if before[path] != after[path]}
    assert changed <= requested | {earlier.root / "toml" / "both.html"}
    assert set(after) == set(before)


def outputs(earlier: Earlier) -> list[Path]:
    """Return all outputs by their reports."""
    found = []
    for report in earlier.reports:
        stem = report.name.removesuffix(".report.json")
        file = report.with_name(f"{stem}.safetensors")
        found.append(file if file.exists() else report.with_name(stem))
    return found


def test_outputs_are_verified_from_any_directory(earlier: Earlier, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the directory of their run, and from elsewhere: reports of old have the paths of output and inputs."""
    continued_in_place = earlier.output("place")
    named = earlier.output("interpolated")  # the last checkpoint inside was found, and has an absolute path
    for folder in (earlier.root, Path("/")):
        monkeypatch.chdir(folder)
        for output in outputs(earlier):
            found = verify(
                output, inputs=([earlier.root / run for run in ("run", "new", "out")] if output == named else ())
            )
            assert found.ok, (output, found.failures)
            partly = output == continued_in_place or output.name == "updated"
            assert found.complete != partly, (output, found.unchecked)


def test_inputs_that_are_gone_are_named_again(earlier: Earlier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies without their times are recognized by their weights."""
    monkeypatch.chdir("/")
    shutil.copytree(earlier.root / "run", earlier.root / "copies", copy_function=shutil.copyfile)
    shutil.rmtree(earlier.root / "run")
    output = earlier.output("single")
    assert [one.missing for one in verify(output).failures] == [f"run/ckpt_{n}.pt" for n in (10, 20, 30, 40, 50)]
    assert is_verified(output, inputs=[earlier.root / "copies"])


@pytest.mark.parametrize("name", [*SINGLE, "folder"])
def test_force_replaces_them_with_the_same_numbers(earlier: Earlier, name: str) -> None:
    """The data of the new output are those of the old one, bit for bit; the report is a new one."""
    output = earlier.output(name)
    files = sorted(output.glob("*.safetensors")) if output.is_dir() else [output]
    before = [data_section(path) for path in files]
    done = earlier.run(name, "--force")
    assert (done.returncode, "wrote " in done.stdout) == (0, True), done.stderr
    assert [data_section(path) for path in files] == before
    report = load_report(output.with_name(f"{output.name.removesuffix('.safetensors')}.report.json"))
    assert report.tool.version == ema_cli.__version__
    assert is_verified(output)


WEIGHTING: dict[str, dict[str, Any]] = {
    "single": {"decay": 0.8},
    "steps": {"half_life": 20, "per": "step"},
    "tagged": {"method": "uniform"},
}


@pytest.mark.parametrize("name", WEIGHTING)
def test_they_are_continued(earlier: Earlier, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With new checkpoints, as if all had been averaged at once."""
    monkeypatch.chdir(earlier.root)
    ema_cli.average("new", continue_from=earlier.output(name), output="longer.safetensors")
    ema_cli.average(["run", "new"], output="whole.safetensors", **WEIGHTING[name])
    longer, whole = load(Path("longer.safetensors")), load(Path("whole.safetensors"))
    assert longer.keys() == whole.keys()
    for tensor, value in whole.items():
        np.testing.assert_allclose(longer[tensor].double(), value.double(), rtol=2e-6, atol=1e-6)
    assert is_verified(Path("longer.safetensors"))


def test_reports_are_read_and_shown(earlier: Earlier) -> None:
    """Those beside outputs, and those of several averages: by the present schema, as pages and as text."""
    paths = [*earlier.reports, earlier.root / "all.json"]
    assert len(paths) > 10
    for path in paths:
        check_schema(json.loads(path.read_text()))
        report = from_json(path.read_text())
        assert report.tool.version == earlier.version
        for suffix in (".html", ".md", ".json"):
            assert render_report(report, suffix)
    for name in ("single.html", "single.md", "several.html", "toml/both.html", "all.json"):
        assert is_report(earlier.root / name)
    assert is_index(earlier.root / "index.html")
    assert is_index(earlier.root / "index.json")


def test_they_are_not_averaged(earlier: Earlier) -> None:
    """In the folder of a run, an output of an earlier version is skipped as one of ours, and so is a folder."""
    run = earlier.root / "run"
    shutil.copy(earlier.output("single"), run / "ckpt_60.safetensors")
    shutil.copytree(earlier.output("folder"), run / "checkpoint-60")
    found = ema_cli.plan(run, decay=0.8)
    assert [checkpoint.path.name for checkpoint in found.checkpoints] == [f"ckpt_{n}.pt" for n in (10, 20, 30, 40, 50)]
    skipped = {(entry.path.name, entry.made_by_us) for entry in found.series.skipped}
    assert ("ckpt_60.safetensors", True) in skipped


@pytest.mark.parametrize("name", ["batch", "manifest"])
def test_a_batch_is_up_to_date(earlier: Earlier, name: str) -> None:
    """With its manifest; its index is replaced without force."""
    index = earlier.root / ("index.html" if name == "batch" else "index.json")
    old = index.read_bytes()
    done = earlier.run(name)
    assert (done.returncode, "2 runs: 2 up to date" in done.stdout) == (0, True), done.stderr
    assert index.read_bytes() != old


@pytest.mark.parametrize("name", ["toml", "pyproject"])
def test_configuration_means_the_same(earlier: Earlier, name: str) -> None:
    """Every key is accepted, and the weights are those of the report."""
    done = earlier.run(name, "--json", "--force")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    for average in document["averages"]:
        path = earlier.root / name / average["output"]["path"]
        old = Earlier(earlier.version, earlier.root / "again").root / name / path.name
        assert data_section(path) == data_section(old)
        known = json.loads(old.with_name(f"{old.stem}.report.json").read_text())
        assert average["weights"] == known["averages"][0]["weights"]
    assert Path(document["command"]["config"]["path"]).parent == earlier.root / name


@pytest.mark.parametrize("version", ["0.10.0-rc.1", "1.0.0"])
def test_outputs_are_up_to_date_for_later_versions_too(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header with a longer version has another length; other metadata, tensors or data are not forgiven."""
    monkeypatch.chdir(Earlier("0.8.0", tmp_path).root)
    monkeypatch.setattr("ema_cli.planning.outputs.__version__", version)
    before = {name: (tmp_path / name).read_bytes() for name in ("tagged.safetensors", "tagged.report.json")}
    again: dict[str, Any] = {"method": "uniform", "output": "tagged.safetensors"}
    ema_cli.average("run", metadata={"note": "kept"}, **again)
    ema_cli.average("hf", decay=0.8, output="folder/", max_shard_size=120)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    changes: tuple[dict[str, Any], ...] = ({"metadata": {"note": "lost"}}, {"exclude": "bias"}, {"dtype": "float64"})
    for change in changes:
        with pytest.raises(OutputError, match="already exists, made with other options"):
            ema_cli.average("run", **{"metadata": {"note": "kept"}, **again, **change})
    raw = bytearray(before["tagged.safetensors"])
    raw[-1] ^= 1
    (tmp_path / "tagged.safetensors").write_bytes(raw)
    with pytest.raises(OutputError, match="changed after it was written"):
        ema_cli.average("run", metadata={"note": "kept"}, **again)


def test_an_interrupted_run_is_started_over(earlier: Earlier) -> None:
    """The journal of another version is not used, as its output would be another one; nothing of it is left."""
    done = earlier.run("resumed")
    assert (done.returncode, "starting over" in done.stderr) == (0, True), done.stderr
    assert not list(earlier.root.glob(".resumed*"))
    output = earlier.output("resumed")
    ema_cli.average(earlier.root / "run", decay=0.7, output=earlier.root / "fresh.safetensors")
    assert data_section(output) == data_section(earlier.root / "fresh.safetensors")
    assert is_verified(output)


def test_they_are_inspected_and_compared(earlier: Earlier, ema_avg: Run) -> None:
    """An output is a checkpoint like any other to the commands that look at it."""
    for output in outputs(earlier):
        assert ema_avg("inspect", output, "-q").returncode == 0
        assert ema_avg("diff", output, output, "-q").returncode == 0


def test_the_update_of_batch_norm_is_repeated(tmp_path: Path) -> None:
    """An average of an earlier version is an input of ``update-bn``."""
    earlier = Earlier(SINCE["updated"], tmp_path)
    before = [load_file(path) for path in sorted(earlier.output("updated").glob("*.safetensors"))]
    done = forked(tmp_path, "torch")(*COMMANDS["updated"], "--force", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    after = [load_file(path) for path in sorted(earlier.output("updated").glob("*.safetensors"))]
    torch.testing.assert_close(after, before)  # torch's sums differ in the last digit between processors
