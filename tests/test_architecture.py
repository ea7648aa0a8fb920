"""The rooms of the package: arrows point downward, every noun is used once, heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ema_cli

PACKAGE = Path(__file__).parent.parent / "ema_cli"
SENTENCE = ("discovery", "planning", "fold", "evidence", "write", "report", "verification", "batch", "cli")
"""The rooms that are steps of the program: a later step may import an earlier one, never the reverse."""
SHARED_NOUNS = {"__init__", "file", "folder", "remote"}
MOST_MODULES_IN_THE_HALL = 14
HEAVY = (
    *("torch", "sklearn", "numpy", "ml_dtypes", "rich", "typer"),
    *("transformers", "lightning", "pytorch_lightning"),
)
ALLOWED_HEAVY = {
    "api/averaging_in_memory.py": {"numpy", "torch"},  # for its types
    "api/recomputing.py": {"torch"},
    "cli": {"rich", "typer"},
    "distributed/devices_of_ranks.py": {"torch"},
    "distributed/rank_store.py": {"torch"},
    "evidence": {"numpy"},
    "fold": {"numpy", "ml_dtypes"},
    "fold/cuda.py": {"torch"},
    "fold/lanes.py": {"torch"},
    "in_memory": {"numpy"},
    "in_memory/arrays.py": {"ml_dtypes", "torch"},
    "storage/strided_read.py": {"numpy"},
    "training": {"torch"},
    "training/callbacks/calling_trainer.py": {"transformers"},
    "training/callbacks/lightning_callbacks.py": {"lightning", "pytorch_lightning"},
    "training/callbacks/trainer_callbacks.py": {"transformers"},
    "verification/recompute.py": {"numpy"},
    "write": {"numpy"},
}


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported_names(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it, and the names that it imports from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for name in imported_names(path):
        module = name if name in MODULES else name.rpartition(".")[0]
        if module in MODULES:
            found.add(module)
    return found


def room_of(module: str) -> str:
    """Return the folder, or the module in the hall, that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def arrows() -> Mapping[str, set[str]]:
    """Return the rooms that each room imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        if module != "ema_cli":  # the lazy public API names the functions that it offers
            found[room_of(module)] |= {room_of(other) for other in imports_of(path)} - {room_of(module)}
    return found


def test_rooms_form_layers() -> None:
    """The folders and the modules in the hall can be put in an order in which every import points downward."""
    order = list(TopologicalSorter(arrows()).static_order())
    assert set(SENTENCE) < set(order)


def test_steps_import_only_earlier_steps() -> None:
    """The rooms that are steps are in the order of the sentence: no step imports a later one, directly or not."""
    graph = arrows()

    def reachable(room: str, seen: set[str]) -> set[str]:
        for other in graph[room] - seen:
            seen |= {other} | reachable(other, seen | {other})
        return seen

    for position, room in enumerate(SENTENCE):
        assert not reachable(room, set()) & set(SENTENCE[position + 1 :]), room


def test_no_import_circle() -> None:
    """No module imports itself through others, neither at its top nor inside a function."""
    list(TopologicalSorter({m: imports_of(p) - {m} for m, p in MODULES.items() if m != "ema_cli"}).static_order())


def test_the_hall_is_small() -> None:
    """Only modules that everything uses, and the modules of the sentence itself, are directly in the package."""
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_MODULES_IN_THE_HALL


def test_no_room_has_the_name_of_a_public_function() -> None:
    """Importing a room would put it in place of the function of that name."""
    assert not set(ema_cli.__all__) & {room_of(module) for module in MODULES}


def test_every_noun_is_used_once() -> None:
    """A file name and a public class name occur once in the package."""
    files = Counter(path.stem for path in MODULES.values())
    assert {name for name, count in files.items() if count > 1} <= SHARED_NOUNS
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values())
    classes = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert not [name for name, count in classes.items() if count > 1]


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_place(path: Path) -> None:
    """The GPU lane alone has torch; numpy is where numbers are, rich and typer are in the command line."""
    relative = str(path.relative_to(PACKAGE))
    allowed = ALLOWED_HEAVY.get(relative, set()) | ALLOWED_HEAVY.get(relative.partition("/")[0], set())
    used = {name.partition(".")[0] for name in imported_names(path)} & set(HEAVY)
    assert used <= allowed


def test_the_fold_knows_no_format_and_no_option() -> None:
    """The fold reads extents; it does not know the file formats or the options."""
    assert not arrows()["fold"] & {"formats", "options"}


def test_only_the_console_prints() -> None:
    """No module calls print, and only the console writes to the standard streams."""
    for path in MODULES.values():
        source = path.read_text(encoding="utf-8")
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        assert not any(isinstance(called, ast.Name) and called.id == "print" for called in calls), path
        if path.name not in {"console.py", "main.py"}:
            assert "sys.stdout" not in source, path


def run_python(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    """``import ema_cli`` and the command line's module are cheap."""
    code = f"import sys, ema_cli, ema_cli.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code) == "[]"


@pytest.mark.parametrize(("arguments", "imported"), [("probe=False", "[]"), ("", "['numpy']")])
def test_planning_needs_numpy_for_the_probe_alone(run_folder: Path, arguments: str, imported: str) -> None:
    """The plan is made from structures: torch is never imported for it, and numpy only to sample the checkpoints."""
    code = (
        f"import sys, ema_cli; ema_cli.plan(sys.argv[1:], decay=0.5, {arguments});"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert run_python(code, str(run_folder)) == imported


@pytest.mark.slow
def test_no_cpu_command_imports_torch(run_folder: Path) -> None:
    """Help, plan, inspect, the average itself on the CPU, and what checks it run without torch."""
    paths = [str(path) for path in run_folder.iterdir()]
    output = str(run_folder.parent / "ema.safetensors")
    for arguments in (
        ["--help"],
        ["--version"],
        ["plan", *paths, "--decay", "0.9"],
        ["inspect", *paths],
        [*paths, "--decay", "0.9", "-o", output],
        ["verify", output],
        ["diff", output, output],
    ):
        code = (
            "import sys, atexit\n"
            "from ema_cli.cli.main import run\n"
            "try:\n    run(sys.argv[1:])\n"
            "except SystemExit as done:\n    assert done.code == 0, done.code\n"
            "assert 'torch' not in sys.modules\n"
        )
        run_python(code, *arguments)


OF_NO_START = (
    *("torch", "jinja2", "fsspec", "asyncio", "importlib.metadata", "secrets", "statistics", "logging", "tempfile"),
    *("email", "zoneinfo", "ssl", "tomllib"),
    *("ema_cli.storage.remote.", "ema_cli.training", "ema_cli.batch", "ema_cli.report.html", "ema_cli.report.markdown"),
    *("ema_cli.cli.batch_command", "ema_cli.cli.checking", "ema_cli.cli.update_bn_command", "ema_cli.cli.config.show"),
)
"""What help, a plan and an average of local files do without; a name that ends in a dot stands for what is in it."""
OF_FEW_RUNS = (
    *(
        "decimal",
        "numpy.ma",
        "rich.text",
        "rich.console",
        "ema_cli.formats.dcp.folder",
        "ema_cli.cli.views.inspect_view",
    ),
    *("ema_cli.planning.lora_exact", "ema_cli.planning.lora_config", "ema_cli.evidence.lora_difference"),
    *("ema_cli.write.folder", "ema_cli.write.resumption", "ema_cli.write.journal", "ema_cli.write.uploads"),
    *("ema_cli.report.validation", "ema_cli.cli.topics"),
)
"""What a run of plain files into a pipe does without."""
OF_NO_PLAN = (
    *OF_NO_START,
    *OF_FEW_RUNS,
    "ema_cli.execution",
    "ema_cli.fold.engine",
)
OF_NO_RUN = (*OF_NO_START, *OF_FEW_RUNS)
OF_NO_HELP = (
    *OF_NO_START,
    "numpy",
    "hashlib",
    "ema_cli.records",
    "ema_cli.report",
    "ema_cli.formats",
    "ema_cli.discovery",
)
OF_TORCH_FILES = (
    *("zipfile", "ema_cli.formats.torch.zip_format", "ema_cli.formats.torch.objects", "ema_cli.formats.inert_pickle"),
    *("ema_cli.formats.state_dict.tree", "ema_cli.formats.state_dict.steps"),
)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["--help"], OF_NO_HELP),
        (["plan", "run", "--decay", "0.9"], (*OF_NO_PLAN, *OF_TORCH_FILES)),
        (["run", "--decay", "0.9", "-o", "ema.safetensors"], (*OF_NO_RUN, *OF_TORCH_FILES)),
        (["pickled", "--decay", "0.9", "-o", "ema.safetensors"], OF_NO_RUN),
    ],
    ids=["help", "plan", "run", "run of .pt"],
)
def test_a_start_imports_what_it_needs(tmp_path: Path, arguments: list[str], missing: tuple[str, ...]) -> None:
    """A command into a pipe imports no module of other commands, formats, outputs and stores: that is start-up time."""
    for folder, save, suffix in (("run", save_file, "safetensors"), ("pickled", torch.save, "pt")):
        (tmp_path / folder).mkdir()
        for step in (1, 2):
            save({"w": torch.full((8,), float(step))}, tmp_path / folder / f"step_{step}.{suffix}")
    code = (
        "import os, sys\nfrom ema_cli.cli.main import run\nos.chdir(sys.argv[1])\n"
        "try:\n    run(sys.argv[2:])\nexcept SystemExit as done:\n    assert done.code == 0, done.code\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    *_, imported = run_python(code, str(tmp_path), *arguments, environment=environment).splitlines()
    assert not [
        name for name in imported.split() for one in missing if name == one or name.startswith(f"{one.rstrip('.')}.")
    ]


def test_expressions_are_compiled_when_they_are_used() -> None:
    """A start has the modules of all formats, and compiles none of their expressions. Stores are no part of it."""
    for path in MODULES.values():
        if path.parent.name != "remote":
            statements = ast.parse(path.read_text(encoding="utf-8")).body
            kept = [one for one in statements if not isinstance(one, ast.FunctionDef | ast.ClassDef)]
            assert "re.compile(" not in "".join(map(ast.unparse, kept)), path


def test_tests_import_no_tests() -> None:
    """Shared helpers of test modules are in modules without tests."""
    for path in Path(__file__).parent.rglob("*.py"):
        found = [name for name in imported_names(path) if name.startswith("tests.")]
        assert not any(part.startswith(("test_", "conftest")) for name in found for part in name.split(".")), path
