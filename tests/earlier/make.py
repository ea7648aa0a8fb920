"""Make the archive of everything that an earlier version writes, with the code of that version.

    git worktree add --detach /tmp/old COMMIT    # 0.4.0: cf7f044, 0.8.0: 50178db
    python tests/earlier/make.py /tmp/old tests/earlier

The inputs are in the archive too. Their times are whole seconds, which a tar file keeps: a fingerprint has the time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

_EPOCH = 1_700_000_000
_INTERRUPTED = f"""
import os, runpy, time
written, pwrite = [], os.pwrite
def stop(*arguments):
    written.append(1)
    if len(written) == 4:
        os.kill(os.getpid(), {int(signal.SIGTERM)})
        time.sleep(2)
    return pwrite(*arguments)
os.pwrite = stop
runpy.run_module("ema_cli", run_name="__main__")
"""
"""The program, stopped by a signal while it writes."""
COMMANDS: dict[str, list[str]] = {
    "single": [
        *("run", "--decay", "0.8", "-o", "single.safetensors"),
        *("--report", "single.html", "--report", "single.md", "--report", "all.json"),
    ],
    "several": [
        "run",
        "--decay",
        "0.5",
        "--decay",
        "0.9",
        "-o",
        "several_{decay}.safetensors",
        "--report",
        "several.html",
    ],
    "steps": ["run", "--per", "step", "--half-life", "20", "-o", "out/steps.safetensors", "--sha256"],
    "tagged": ["run", "--method", "uniform", "--metadata", "note=kept", "-o", "tagged.safetensors"],
    "folder": ["hf", "--decay", "0.8", "-o", "folder/", "--max-shard-size", "120"],
    "continued": ["new", "--continue-from", "single.safetensors", "-o", "continued.safetensors"],
    "interpolated": ["new", "--continue-from", "out/steps.safetensors", "-o", "interpolated.safetensors"],
    "place": ["run", "--decay", "0.8", "-o", "place.safetensors"],
    "in place": ["new", "--continue-from", "place.safetensors", "-o", "place.safetensors", "--force"],
    "toml": ["../run"],
    "pyproject": ["../run"],
    "batch": ["batch", "runs", "--half-life", "1", "--index", "index.html"],
    "manifest": ["batch", "--manifest", "jobs.toml", "--index", "index.json"],
    "updated": [
        *("update-bn", "folder/", "-o", "updated/", "--model", "network:build", "--data", "network:batches"),
    ],
    "resumed": ["run", "--decay", "0.7", "-o", "resumed.safetensors", "--resume", "--threads", "1"],
}
"""The command lines by name; those of a name that is a folder run in it."""
SINCE = {"updated": "0.8.0"}
"""The version that can do it first."""
FILES = {
    "toml/ema-avg.toml": """\
decay = [0.6, 0.7]
per = "checkpoint"
init = "first"
output = "ema_{decay}.safetensors"
report = ["both.html"]
metadata = ["origin=toml"]
order = "step"
last = 4
buffers = "last"
dtype = "float32"
threads = 2
max-memory = "16MB"
exclude = ["unused"]
sha256 = true
on-missing = "error"
tied = "keep"
device = "cpu"
geometry = GEOMETRY
""",
    "pyproject/pyproject.toml": """\
[project]
name = "training"

[tool.ema-avg]
half-life = 20
per = "step"
output = "ema.safetensors"
jobs = 2
""",
    "jobs.toml": """\
[defaults]
half-life = 2

[[job]]
run = "runs/a"
output = "jobs/a.safetensors"

[[job]]
paths = ["runs/b/ckpt_*.pt"]
method = "uniform"
output = "jobs/b.safetensors"
""",
    "network.py": """\
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False)

    def forward(self, x):
        return self.norm(self.layer(x))

build = Network

def batches():
    torch.manual_seed(0)
    return [torch.randn(8, 6) for _ in range(3)]
""",
    "hf/checkpoint-30/config.json": '{"model_type": "tiny"}\n',
    "hf/checkpoint-30/tokenizer.json": "{}\n",
}


def state(number: int) -> dict[str, torch.Tensor]:
    """Return the small state of a checkpoint, with BatchNorm statistics and an integer."""
    torch.manual_seed(number)
    return {
        "layer.weight": torch.randn(4, 6),
        "layer.bias": torch.randn(4),
        "norm.running_mean": torch.randn(4),
        "norm.running_var": torch.rand(4) + 1,
        "norm.num_batches_tracked": torch.tensor(number),
    }


def make_inputs(root: Path, version: str) -> None:
    """Make the runs and the configuration, with times of whole seconds."""
    for folder, numbers in {"run": range(1, 6), "new": range(6, 8), "runs/a": (1, 2), "runs/b": (3, 4, 5)}.items():
        (root / folder).mkdir(parents=True)
        for number in numbers:
            torch.save({"model": state(number), "step": 10 * number}, root / folder / f"ckpt_{10 * number}.pt")
    for number in (1, 2, 3):
        checkpoint = root / "hf" / f"checkpoint-{10 * number}"
        checkpoint.mkdir(parents=True)
        save_file(state(number), checkpoint / "model.safetensors", {"format": "pt"})
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 10 * number}))
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text.replace("GEOMETRY", '"full"' if version == "0.4.0" else '"sample"'))
    for folder in ("out", "jobs"):
        (root / folder).mkdir()
    for number, path in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        os.utime(path, (_EPOCH + number, _EPOCH + number))


def run_all(root: Path, source: Path, version: str) -> None:
    """Run all commands with the code in ``source``; the last one is stopped while it writes."""
    environment = environment_of(source) | {"PYTHONPATH": f"{source}:{root}"}
    for name, arguments in COMMANDS.items():
        if SINCE.get(name, "") > version:
            continue
        folder = root / name if (root / name).is_dir() else root
        stopped = name == "resumed"
        program = ["-c", _INTERRUPTED] if stopped else ["-m", "ema_cli"]
        done = subprocess.run([sys.executable, *program, *arguments], cwd=folder, env=environment, check=False)
        if done.returncode != (128 + signal.SIGTERM if stopped else 0):
            raise SystemExit(f"{name}: exit code {done.returncode}")
        for path in root.rglob("*.safetensors"):  # outputs can be inputs of the next command
            os.utime(path, (int(path.stat().st_mtime), int(path.stat().st_mtime)))


def environment_of(source: Path) -> dict[str, str]:
    """Return the environment in which the code in ``source`` runs."""
    return {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}


def pack(root: Path, archive: Path) -> None:
    """Write the archive: nothing in it depends on who makes it."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)  # that of a report does not matter
        return member

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, path.name, filter=anonymous)


def main() -> None:
    """Make one archive."""
    source, folder = (Path(name).resolve() for name in sys.argv[1:])
    code = "import ema_cli; print(ema_cli.__version__)"
    version = subprocess.check_output([sys.executable, "-c", code], cwd=source, text=True).strip()
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name), version)
        run_all(Path(name), source, version)
        pack(Path(name), folder / f"{version}.tar.xz")


if __name__ == "__main__":
    main()
