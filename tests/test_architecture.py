"""The arrows of the package point downward, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.program import run_python

PACKAGE = Path(__file__).parent.parent / "ema_cli"

# Each layer may import itself and the layers above its line, never those below.
LAYERS = (
    {"", "errors", "dtypes", "text", "naming", "timeline", "findings"},
    {"methods", "storage"},
    {"files", "records", "weight_options"},
    {"events", "options", "output_name"},
    {"formats", "weights"},
    {"contents", "discover", "matching", "opening", "patterns", "quantization", "search"},
    {"order", "caveats", "copies", "refusals", "runs", "strict", "ties", "unchanged"},
    {"companions", "outputs", "planned_tensors", "sharding", "weighing"},
    {"planning"},
    {"fold", "write", "report"},
    {"produced", "uptodate", "compare"},
    {"earlier", "evidence", "jobs", "places", "resume"},
    {"report_files"},
    {"execution"},
    {"continuation", "sampling"},
    {"pipeline", "verify"},
    {"api", "batch"},
    {"cli"},
    {"__main__"},
)
HEAVY = ("torch", "sklearn", "numpy", "ml_dtypes", "rich", "typer")
ALLOWED_HEAVY = {
    "fold/cuda.py": {"torch"},
    "fold/devices.py": {"torch"},
    "storage/gather.py": {"numpy"},
    "write/folder.py": {"numpy"},
    "write/output.py": {"numpy"},
    "write/remote.py": {"numpy"},
    "write/remote_folder.py": {"numpy"},
    "write/shard.py": {"numpy"},
    "write/spooled.py": {"numpy"},
}


def modules() -> list[Path]:
    """Return every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(part: str) -> int:
    """Return the number of the layer that a top-level part of the package is in."""
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def part_of(path: Path) -> str:
    """Return the top-level part that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    """A module imports only from its own layer and those below it in the data flow."""
    own = layer_of(part_of(path))
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return  # the lazy public API names the functions it offers
    for name in imports(path):
        if name.startswith("ema_cli."):
            assert layer_of(name.split(".")[1].replace("__version__", "")) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_place(path: Path) -> None:
    """The GPU lane alone has torch; numpy is where numbers are, rich and typer are in the command line."""
    relative = str(path.relative_to(PACKAGE))
    allowed = set(ALLOWED_HEAVY.get(relative, set()))
    if relative.startswith("fold/"):
        allowed |= {"numpy", "ml_dtypes"}
    if relative.startswith("cli/"):
        allowed |= {"rich", "typer"}
    used = {name.partition(".")[0] for name in imports(path)} & set(HEAVY)
    assert used <= allowed


def test_the_fold_knows_no_format() -> None:
    """The fold reads extents; which file format they came from is none of its business."""
    for path in (PACKAGE / "fold").glob("*.py"):
        assert not any(name.startswith("ema_cli.formats") for name in imports(path))


def test_only_the_console_prints() -> None:
    """No module calls print, and only the console writes to the standard streams."""
    for path in modules():
        source = path.read_text(encoding="utf-8")
        calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        assert not any(isinstance(called, ast.Name) and called.id == "print" for called in calls), path
        if path.name not in {"console.py", "main.py"}:
            assert "sys.stdout" not in source, path


def test_importing_the_package_imports_nothing_heavy() -> None:
    """``import ema_cli`` and the command line's module are cheap."""
    code = f"import sys, ema_cli, ema_cli.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_planning_needs_no_numpy(run_folder: Path) -> None:
    """The plan is made from structures alone: neither numpy nor torch is imported for it."""
    code = (
        "import sys, ema_cli; ema_cli.plan(sys.argv[1:], decay=0.5);"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert run_python(code, str(run_folder)) == "[]"


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


def test_tests_import_no_tests() -> None:
    """What several test modules need is in a module that holds no tests."""
    for path in Path(__file__).parent.rglob("*.py"):
        found = [name for name in imports(path) if name.startswith("tests.")]
        assert not any(part.startswith(("test_", "conftest")) for name in found for part in name.split(".")), path
