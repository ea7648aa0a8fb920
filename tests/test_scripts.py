"""The scripts of the repository do what their README says."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.program import Run

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent.parent / "scripts"


def run_script(name: str, *arguments: object, folder: Path) -> str:
    """Run a script and return what it printed."""
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run at the same time
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demonstration_saves_the_same_weights_nested_and_flat(tmp_path: Path, ema_avg: Run) -> None:
    """Progress is shown from the first step on, and both kinds of checkpoints give the same bytes."""
    shown = run_script("noisy_digits.py", "--steps", 130, "train", "run", folder=tmp_path)
    steps = [int(step) for step in re.findall(r"^step +(\d+)  loss \d", shown, re.MULTILINE)]
    assert steps == [1, *range(10, 131, 10)]
    for source, output in (("run", "nested.safetensors"), ("run/safetensors", "flat.safetensors")):
        assert ema_avg(source, "--decay", "0.8", "-o", output).returncode == 0
    assert (tmp_path / "nested.safetensors").read_bytes() == (tmp_path / "flat.safetensors").read_bytes()


def test_the_demonstration_measures_each_row_of_its_table(tmp_path: Path) -> None:
    """Each row has the accuracy of its average, here of one seed, and its difference from that of the last one."""
    shown = run_script("noisy_digits.py", "--steps", 130, "compare", "--seeds", 1, folder=tmp_path)
    line = re.compile(r"^(\S.{38}) *([\d.]+) % +([\d.]+) % +([\d.]+) %(?: +([-+][\d.]+) ± [\d.]+)?$", re.MULTILINE)
    rows = {name.strip(): [float(cell) for cell in cells if cell] for name, *cells in line.findall(shown)}
    last = rows.pop("last checkpoint")
    assert len(rows) == 7
    for mean, lowest, highest, over_last in rows.values():
        assert lowest == mean == highest
        assert over_last == pytest.approx(mean - last[0], abs=0.11)
    assert rows["best single checkpoint, with hindsight"][0] >= last[0]
    assert rows["--decay 0.999"][0] < rows["--decay 0.8"][0]
    assert "600 predictions per row" in shown


def test_the_sentence_of_the_demonstration_follows_from_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of at most three standard errors is none; others are better or worse by their mean."""
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("noisy_digits")
    scores = {
        script.LAST: [80.0, 82.0],
        script.BEST: [83.0, 85.0],
        script.TRAP: [80.0, 84.0],  # +0.0 and +2.0: 1.0 ± 1.0
        script.DECAY: [79.0, 81.0],  # -1.0 and -1.0
        script.COPIED: [81.0, 83.0],  # 2.0 better than averaged ones
        script.RECOMPUTED: [79.0, 81.0],
    }
    assert script.conclusion(scores) == (
        "What follows here: --decay 0.8 is 1.0 points worse than the last checkpoint and 4.0 points worse than the "
        "best single one; --decay 0.999, which returns the oldest, is not measurably different from the last "
        "(+1.0 ± 1.0); averaged BatchNorm statistics are not measurably different from recomputed ones (+0.0 ± 0.0), "
        "and copied ones (--buffers last) are 2.0 points better than averaged ones."
    )


def test_the_per_step_ema_is_rebuilt_from_a_real_run(tmp_path: Path) -> None:
    """Of all weightings, the one on lines comes closest to the live EMA, which is the fold of every step by hand."""
    arguments = ("--run", "digits", "--steps", 300, "--every", 20, "--decay", 0.98)
    shown = run_script("reconstruct.py", *arguments, folder=tmp_path)
    rows = re.findall(r"^\| ([^|]+?) \| [\d.]+ % \| ([\d.]+) \|", shown, re.MULTILINE)
    assert float(re.findall(r"by ([\d.e-]+) in float64", shown)[0]) < 1e-12
    assert len(rows) == 21
    for spacing in (dict(rows[:7]), dict(rows[7:14]), dict(rows[14:])):
        over_last = {name: float(ratio) for name, ratio in spacing.items()}
        assert min(over_last, key=lambda name: over_last[name]) == "ema --per step"
        assert over_last["ema --per step"] < 0.7 * over_last["ema-hold (d^gap)"] < 0.3
        assert over_last["fold per checkpoint, from the first"] > 2


def test_averages_of_a_language_model_are_compared_with_decay(tmp_path: Path) -> None:
    """Each row has its loss and its differences from two other rows; the plot has a line for each training."""
    shown = run_script("swa_text.py", "--quick", "--seeds", 1, "--out", tmp_path, folder=tmp_path)
    rows = {
        cells[0]: [float(cell.split(" ± ")[0]) if cell else None for cell in cells[1:]]
        for cells in re.findall(r"^\| (\w+: [^|]+?) \| ([^|]*?) *\| ([^|]*?) *\| ([^|]*?) *\|$", shown, re.MULTILINE)
    }
    assert len(rows) == 15
    losses = {name: loss for name, (loss, _, _) in rows.items() if loss is not None}
    for name, (_, over_last, over_decayed) in rows.items():
        last = losses[f"{name.partition(':')[0]}: last checkpoint"]
        assert over_last is None or over_last == pytest.approx(losses[name] - last, abs=2e-4)
        decayed = losses[name] - losses["decayed: last checkpoint"]
        assert over_decayed is None or over_decayed == pytest.approx(decayed, abs=2e-4)
    drawn = ET.parse(tmp_path / "swa_text.svg").iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(drawn)) == 5


def test_averages_of_a_batchnorm_network_are_compared_with_three_kinds_of_statistics(tmp_path: Path) -> None:
    """Averages are compared with the last checkpoint and the decayed run; the plot has a line for each training."""
    shown = run_script("swa_digits.py", "--quick", "--out", tmp_path, folder=tmp_path)
    lines = [line.strip("| ").split(" | ") for line in shown.splitlines() if "±" in line]
    rows = {name: [float(cell.split(" ± ")[0]) if cell.strip() else None for cell in cells] for name, *cells in lines}
    assert len(rows) == 5
    errors = {name: cells[0] for name, cells in rows.items() if cells[0] is not None}
    assert all(0 < error < 50 for error in errors.values())
    for name, (_, _, over_last, over_decayed, averaged, _) in rows.items():
        last = errors[f"{name.partition(':')[0]}: last checkpoint"]
        assert over_last is None or over_last == pytest.approx(errors[name] - last, abs=0.02)
        decayed = errors[name] - errors["decayed: last checkpoint"]
        assert over_decayed is None or over_decayed == pytest.approx(decayed, abs=0.02)
        assert (averaged is None) == (over_last is None) == name.endswith("last checkpoint")
    drawn = ET.parse(tmp_path / "swa_digits.svg").iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(drawn)) == 5


def run_benchmark(*arguments: object, folder: Path) -> str:
    """Run ``scripts/bench`` without its set-up and return what it printed; its files go to ``folder/records``."""
    folders = ("--folder", folder, "--records", folder / "records")
    command = [sys.executable, "-m", "scripts.benchmarks", *map(str, (*arguments, *folders))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table_of(document: dict[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table in a record of the benchmark, by the names of their columns."""
    return [dict(zip(document["head"], row, strict=True)) for row in document["rows"]]


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """A small run of the benchmark prints its tables, and writes each of them to a file."""
    parts = (
        "speed",
        "tensors",
        "structure",
        "memory",
        "in-memory",
        "geometry",
        "probe",
        "planning",
        "units",
        "startup",
        "remote",
    )
    shown = run_benchmark(*parts, "--small", "--rounds", 1, folder=tmp_path)
    for words in ("naive", "cat + copy + sync", "read back whole", "peak", "--help"):
        assert words in shown
    for part in parts:
        document = json.loads((tmp_path / "records" / f"{part}.json").read_text())
        assert document["rows"]
        assert all(sample["seconds"] > 0 and sample["peak_bytes"] > 0 for sample in document["measurements"])
    assert {path.name for path in tmp_path.iterdir()} == {"records"}


def test_programs_are_compared_side_by_side(tmp_path: Path) -> None:
    """Each program that is installed has a row per type; ours is exact and durable; others are explained."""
    shown = run_benchmark("peers", "--small", "--rounds", 1, folder=tmp_path)
    table = table_of(json.loads((tmp_path / "records" / "peers.json").read_text()))
    rows = [row for row in table if row["program"] == "ema-avg"]
    assert [row["output"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        assert (row["in ulp"], row["not nearest"]) == ("0.50", "0.0%")
        assert row["synced"].startswith("file and folder")
    naive = [row for row in table if row["program"] == "naive loop"]
    assert all(float(row["in ulp"]) > 0.5 for row in naive)
    assert "timm: its script is in no package: --source timm=FILE" in shown
    assert {row["program"] for row in table} >= {"ema-avg", "naive loop", "torch `AveragedModel`"}
    drawn = ET.parse(tmp_path / "records" / "peers.svg").iter("{http://www.w3.org/2000/svg}rect")
    assert len(list(drawn)) == 3 * len(table) + 2


def test_the_error_of_an_output_is_measured_in_units_of_its_precision(tmp_path: Path) -> None:
    """A neighbor of the nearest number is at least half a unit and at most one and a half from the average."""
    exactness = importlib.import_module("scripts.benchmarks.exactness")
    values = [torch.tensor([1.0, -3.0, 0.1]), torch.tensor([2.0, 5.0, 0.7])]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, value in zip(paths, values, strict=True):
        save_file({"w": value}, path)
    found = exactness.references(paths, 0.75)
    for average, weights in (("EMA", (Fraction(3, 4), Fraction(1, 4))), ("mean", (Fraction(1, 2), Fraction(1, 2)))):
        columns = zip(*(value.tolist() for value in values), strict=True)
        exact = [float(sum(w * Fraction(x) for w, x in zip(weights, column, strict=True))) for column in columns]
        assert found[average]["w"].tolist() == exact
        nearest = torch.tensor(exact, dtype=torch.float32)
        for off, least, most in ((nearest, 0.0, 0.5), (torch.nextafter(nearest, torch.tensor(torch.inf)), 0.5, 1.5)):
            save_file({"w": off}, tmp_path / "out.safetensors")
            error = exactness.exactness(tmp_path / "out.safetensors", found[average])
            assert least <= error.largest_ulp <= most
            assert (error.not_nearest > 0) == (off is not nearest)
            assert error.largest == float((off.double() - torch.tensor(exact, dtype=torch.float64)).abs().max())


def test_below_a_power_of_two_units_are_half_as_large(tmp_path: Path) -> None:
    """An error counts in units of the side that the average is on, and more than half of one is not the nearest."""
    exactness = importlib.import_module("scripts.benchmarks.exactness")
    for dtype, bits in ((torch.float32, 24), (torch.bfloat16, 8)):
        save_file({"w": torch.ones(1, dtype=dtype)}, tmp_path / "out.safetensors")
        for average, units, share in ((1 - 0.55 * 2**-bits, 0.55, 1.0), (1 + 0.55 * 2**-bits, 0.275, 0.0)):
            reference = {"w": torch.tensor([average], dtype=torch.float64)}
            error = exactness.exactness(tmp_path / "out.safetensors", reference)
            assert (round(error.largest_ulp, 5), error.not_nearest) == (units, share)


def test_the_scale_curves_have_a_chart_of_memory(tmp_path: Path) -> None:
    """Each point has its contenders; more decays read no more; a later run keeps the other curves of the record."""
    run_benchmark("scale", "--small", "--rounds", 1, "--curve", "size", folder=tmp_path)
    run_benchmark("scale", "--small", "--rounds", 1, "--curve", "decays", folder=tmp_path)
    records = json.loads((tmp_path / "records" / "scale.json").read_text())
    assert list(records) == ["size", "decays"]
    size, decays = map(table_of, records.values())
    assert len(size) == len(decays) == 2
    for row in size:
        ours, naive = (int(row[f"{name}: peak memory"].split()[0].replace(",", "")) for name in ("ema-avg", "naive"))
        assert ours < naive
    assert [row["decays"] for row in decays] == ["1", "2"]
    assert decays[0]["ema-avg / one decay"] == decays[0]["copies / one copy"] == "1.00"
    measured = [sample for sample in records["decays"]["measurements"] if sample["contender"] == "ema-avg"]
    assert [sample["decays"] for sample in measured] == [1, 2]
    assert len({sample["fold_bytes"] for sample in measured}) == 1
    drawn = ET.parse(tmp_path / "records" / "scale.svg").iter("{http://www.w3.org/2000/svg}polyline")
    assert len(list(drawn)) == 3


@pytest.mark.parametrize(
    ("free", "words"), [(9e9, ""), (5e9, ", output in bfloat16"), (3e9, ": the output does not fit")]
)
def test_an_output_of_the_scale_curves_fits_on_the_disk(
    free: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has half of its bytes where there is no room for all; with less room the point is left out."""
    scale = importlib.import_module("scripts.benchmarks.scale")
    measure = importlib.import_module("scripts.benchmarks.measure")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    commands: list[list[str]] = []

    def pretended(_: str, jobs: dict[str, Any], __: object, **___: object) -> dict[str, Any]:
        commands.extend([str(part) for part in job.command] for job in jobs.values())
        return dict.fromkeys(jobs, measure.Sample(1, 1, 1, 1, 1))

    monkeypatch.setattr(scale, "in_turn", pretended)
    settings = SimpleNamespace(scratch=tmp_path, out=tmp_path, samples=[])
    series = scale.Series(2, 40, 25_000_000, sparse=True)
    row = scale._row(scale.Point(4, "2 x 4 GB", series, compare=False), [tmp_path / "x"], settings)
    assert row[0].startswith(f"2 x 4 GB{words}")
    assert len(row) == 9
    assert len(commands) == ("not fit" not in words)
    assert all((command[-2:] == ["--dtype", "bf16"]) == ("bfloat16" in words) for command in commands)


def test_sparse_checkpoints_are_no_constants(tmp_path: Path) -> None:
    """They take little room, and no block is the same in two of them."""
    series = importlib.import_module("scripts.benchmarks.series")
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, path in enumerate(paths):
        series._write_sparse(path, ["a", "b"], 4_000_000, 1 + 0.001 * i)
    first, second = map(load_file, paths)
    for name in ("a", "b"):
        blocks = (first[name] != second[name]).split(65_536)
        assert len(blocks) == 16
        assert all(block.any() for block in blocks[:15])
    assert all(path.stat().st_blocks * 512 < path.stat().st_size / 10 for path in paths)


def test_the_cost_of_a_live_ema(tmp_path: Path) -> None:
    """A small run has a row for each contender and model; a step that is not averaged costs nearly nothing."""
    shown = run_script("live_cost.py", "--quick", "--rounds", 1, folder=tmp_path)
    rows = re.findall(r"\| ([^|]+) \| ([\d.]+) ms \| ([\d.]+) \|$", shown, re.MULTILINE)
    ratios = [float(ratio) for name, _, ratio in rows if name == "`ema_cli.EMA`"]
    assert len(ratios) == 4
    assert max(float(ratio) for name, _, ratio in rows if name == "`every=10`") < 1


def test_the_walk_counts_functions_and_files(tmp_path: Path) -> None:
    """Functions in both parts of a run, each in fewer files than there are functions."""
    found = re.findall(r"(\d+) +(\d+)$", run_script("walk.py", folder=tmp_path), re.MULTILINE)
    counts = [(int(functions), int(files)) for functions, files in found]
    assert len(counts) == 2
    assert all(functions > files > 10 for functions, files in counts)


def test_the_campaign_of_faults_counts_passed_cases() -> None:
    """The command tries cases of the parts that are named, and prints a line for each part."""
    command = [sys.executable, "-m", "tests.faults", "--only", "random-kills", "--cases", "2"]
    done = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\| random-kills \|.*?\| (\d+) \| (\d+) \| (\d+) \|", done.stdout, re.MULTILINE) == [
        ("2", "2", "0")
    ]
