"""``ema-avg update-bn`` as a process: the user's code and its faults, standard output, exit codes, signals."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import swa_utils

import ema_cli
from tests.helpers.program import PROGRAM, Run, forked

CODE = """
import atexit, itertools, os, subprocess, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

print("imported")

def build():
    print("built")
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))

net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
batches = list(torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(1)))
number, text = 3, "text"

class Noisy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    def forward(self, x):
        print("forward")
        os.write(1, b"written\\n")
        subprocess.run(["echo", "child"])
        return super().forward(x)

class Leaving(Noisy):
    def __init__(self):
        super().__init__()
        atexit.register(print, "leaving")

class Untrainable(Noisy):
    def train(self, mode=True):
        raise RuntimeError("never")

class Interrupted(Noisy):
    def forward(self, x):
        raise KeyboardInterrupt

class Unsized(list):
    def __len__(self):
        raise RuntimeError("unknown")

unsized = Unsized(batches)

class Failing(nn.Sequential):
    def __init__(self, wanted):
        super().__init__()

class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(4, 2))

class NoNorm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))

class Data:
    loader = DataLoader(TensorDataset(torch.stack(batches).view(-1, 6)), batch_size=8)

class Single(Dataset):
    def __getitem__(self, index):
        return torch.ones(6)
    def __len__(self):
        return 10

class Broken(Single):
    def __getitem__(self, index):
        raise KeyError("no such sample")

def endless():
    return itertools.cycle(batches)

def moved():
    os.chdir("/")
    return batches

def failing_data():
    yield batches[0]
    raise ValueError("bad\\nsecond line")

def workers():
    return DataLoader(Broken(), batch_size=4, num_workers=1)

def slow():
    for batch in itertools.cycle(batches):
        open("started", "w").close()
        try:
            time.sleep(0.05)
        except:
            pass
        yield batch

def slow_workers():
    class Slow(Single):
        def __getitem__(self, index):
            open("started", "w").close()
            time.sleep(0.2)
            return torch.ones(6)
        def __len__(self):
            return 10**6
    return DataLoader(Slow(), batch_size=4, num_workers=2)

def leave():
    sys.exit("goodbye")

def nothing():
    return []

def not_a_model():
    return {}

named = [{"pixel_values": batches[0]}]
nan = [torch.full((4, 6), float("nan"))]
"""


@pytest.fixture
def update(tmp_path: Path) -> Run:
    """Run the command for an average and the user's code, in one folder."""
    prepare(tmp_path)
    run = forked(tmp_path, "torch", "torch.utils.data")

    def update_bn(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return run("update-bn", "ema.safetensors", *arguments, **environment)

    return update_bn


def prepare(folder: Path) -> None:
    """Write an average and the user's code into a folder."""
    for step in (1, 2):
        torch.manual_seed(step)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        model(torch.randn(9, 6))
        torch.save(model.state_dict(), folder / f"ckpt_{step}.pt")
    ema_cli.average([folder / "ckpt_1.pt", folder / "ckpt_2.pt"], decay=0.5, output=folder / "ema.safetensors")
    (folder / "user_net.py").write_text(CODE)


def named(model: str = "build", data: str = "batches", output: str = "new.safetensors") -> list[str]:
    """Return the arguments for names of the user's code."""
    return ["--model", f"user_net:{model}", "--data", f"user_net:{data}", "-o", output]


@pytest.mark.parametrize(
    ("model", "data"), [("build", "batches"), ("net", "Data.loader"), ("Noisy", "moved"), ("build", "endless")]
)
def test_models_and_data(model: str, data: str, update: Run, tmp_path: Path) -> None:
    """Objects and functions, with dotted names; what they print does not reach standard output."""
    done = update(*named(model, data), "--batches", 6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote new.safetensors")
    assert done.stdout.count("\n") == 1
    assert "imported" in done.stderr
    expected = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    expected.load_state_dict(load_file(tmp_path / "ema.safetensors"))
    swa_utils.update_bn(torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(1)), expected)
    found = load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())


def test_one_document(update: Run) -> None:
    """With ``--json`` standard output is the report, or the error."""
    done = update(*named("Noisy"), "--json")
    report = json.loads(done.stdout)
    assert (report["batch_norm"]["model"], report["batch_norm"]["data"]) == ("user_net:Noisy", "user_net:batches")
    assert done.stderr.count("child") == 6
    leaving = update(*named("Leaving", output="leaving.safetensors"), "--json")
    assert json.loads(leaving.stdout)["batch_norm"]["batches"] == 6
    assert leaving.stderr.endswith("leaving\n")
    failed = update(*named("Noisy"), "--json")
    assert json.loads(failed.stdout)["error"]["exit_code"] == failed.returncode == 5
    assert update(*named("Noisy", output="quiet.safetensors"), "-q").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (named("bild"), 2, 'has no "bild"\n  did you mean --model user_net:build?'),
        (["--model", "nowhere.net:build", *named()[2:]], 2, 'there is no module "nowhere"'),
        (
            ["--model", "user_net.py:build", *named()[2:]],
            2,
            "is not of the form MODULE:NAME\n  try: --model user_net:build, for build in user_net.py",
        ),
        (["--model", "user_net", *named()[2:]], 2, "is not of the form MODULE:NAME"),
        (named("number"), 2, "is a int, which is neither a torch.nn.Module, nor a function that returns one"),
        (named("not_a_model"), 2, "returns a dict, not a torch.nn.Module"),
        (named("Failing"), 2, "failed: TypeError: Failing.__init__() missing 1 required positional argument"),
        (named("Untrainable"), 2, "failed at user_net.py, line {never}: RuntimeError: never"),
        (named("Interrupted"), 2, "failed at user_net.py, line {interrupt}: KeyboardInterrupt"),
        (named(data="unsized"), 2, "failed at user_net.py, line {size}: RuntimeError: unknown"),
        (["--model", "user_net:build()", *named()[2:]], 2, "MODULE:NAME\n  try: --model user_net:build"),
        (["--model", "json:build", *named()[2:]], 2, 'json/__init__.py" has no "build"'),
        (named("leave"), 2, "failed at user_net.py, line {exit}: SystemExit: goodbye"),
        (named(data="text"), 2, "is a str, which is neither an iterable of batches"),
        (named(data="Single"), 2, "a torch Dataset has single samples, not batches"),
        (named(data="failing_data"), 2, "failed at user_net.py, line {raise}: ValueError: bad"),
        (named(data="workers"), 2, "failed at user_net.py, line {key}: KeyError: 'no such sample'"),
        (named(data="named"), 2, "--model user_net:build failed: TypeError: Sequential.forward() got an unexpected"),
        (named(data="nothing"), 2, 'the data "user_net:nothing" has no batches'),
        ([*named(), "--batches", "0"], 2, "--batches 0 must be at least 1"),
        ([*named(), "--device", "cuda:7"], 2, "--device cuda:7: torch"),
        ([*named(), "--device", "tpu"], 2, "is none of cpu, auto, cuda"),
        (named()[:-2], 2, "no output was named"),
        (named(output="new.pt"), 2, "must end in .safetensors\n  try: -o new.safetensors"),
        (named("Wide"), 3, '1 tensor of another shape: "2.weight" (2, 5) instead of (2, 4)'),
        (named(data="nan"), 3, 'running_mean of layer "1" has NaN or infinity in 5 of 5 channels'),
        (named(output="user_net.py/new.safetensors"), 5, '"user_net.py" is a file, not a folder'),
        (named("Failing", output="no/such/new.safetensors"), 2, "failed: TypeError"),
        (named("NoNorm"), 3, '5 tensors not in the model: "1.num_batches_tracked"'),
        ([*named(), "--batches", "9", "--strict"], 8, "1 warning under --strict"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_faults(arguments: list[str], code: int, words: str, update: Run, tmp_path: Path) -> None:
    """Each has its exit code and one clear message with the place in the user's code; nothing is written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    done = update(*arguments)
    assert done.returncode == code, done.stderr
    lines = {"{exit}": "sys.exit(", "{raise}": "raise ValueError", "{key}": "raise KeyError"}
    lines |= {"{never}": '("never")', "{interrupt}": "raise KeyboardInterrupt", "{size}": '("unknown")'}
    for mark, text in lines.items():
        number = next(number for number, line in enumerate(CODE.splitlines(), 1) if text in line)
        words = words.replace(mark, str(number))
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted({path.name for path in tmp_path.iterdir()} - {"__pycache__"}) == before


def test_missing_folders_are_made(update: Run, tmp_path: Path) -> None:
    """For the output and its report."""
    assert update(*named(output="a/b/new.safetensors")).returncode == 0
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"new.safetensors", "new.report.json"}


def test_which_weights_were_taken(update: Run, tmp_path: Path) -> None:
    """Of a file with several, the choice is shown, each sentence once."""
    state = torch.load(tmp_path / "ckpt_1.pt")
    swa = swa_utils.AveragedModel(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)))
    torch.save({"model": state, "ema": state}, tmp_path / "ema.safetensors")
    done = update(*named())
    assert 'weights under "model"' in done.stderr
    assert 'also there, and not used: "ema"' in done.stderr
    torch.save(swa.state_dict(), tmp_path / "ema.safetensors")
    done = update(*named(output="swa.safetensors"))
    assert done.returncode == 0
    assert done.stderr.count("the weights are those of torch's AveragedModel") == 1


def test_a_model_without_batch_norm(update: Run, tmp_path: Path) -> None:
    """The answer says what it has instead, and that its average can be used, with an exit code of its own."""
    save_file(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)).state_dict(), tmp_path / "ema.safetensors")
    done = update(*named("NoNorm"))
    assert done.returncode == 7
    assert '(it has GroupNorm 1): there is nothing to recompute, and "ema.safetensors" can be used' in done.stderr
    assert not (tmp_path / "new.safetensors").exists()


def test_a_module_that_cannot_be_imported(update: Run, tmp_path: Path) -> None:
    """A syntax error, and an import of something missing, are faults of the user's; debugging shows a traceback."""
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "incomplete.py").write_text("\nimport nowhere\n")
    for name, words in (("broken", "broken.py, line 1: SyntaxError"), ("incomplete", "incomplete.py, line 2: ")):
        done = update("--model", f"{name}:x", *named()[2:])
        assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (2, True, False)
        assert "Traceback" in update("--model", f"{name}:x", *named()[2:], EMA_AVG_DEBUG="1").stderr


def test_fewer_batches_than_wanted_is_a_warning(update: Run) -> None:
    """All that there are were used."""
    done = update(*named(), "--batches", "9")
    assert done.returncode == 0
    assert 'the data "user_net:batches" ended after 6 of 9 batches (data-ended)' in done.stderr


def test_the_average_proposes_the_command(update: Run, tmp_path: Path) -> None:
    """The command is complete but for MODEL and DATA, and runs."""
    run = forked(tmp_path, "torch", "torch.utils.data")
    inputs = ["ckpt_1.pt", "ckpt_2.pt", "--order", "name", "--no-probe"]
    done = run(*inputs, "--decay", "0.5", "--decay", "0.7", "--buffers", "last", "-o", "my {decay}.safetensors")
    lines = [line for line in done.stderr.splitlines() if "ema-avg update-bn" in line]
    assert len(lines) == 2
    command = lines[0].partition("ema-avg ")[2]
    assert command == "update-bn 'my 0.5.safetensors' --model MODEL --data DATA -o 'my 0.5-bn.safetensors'"
    filled = command.replace("MODEL", "user_net:build").replace("DATA", "user_net:batches")
    assert run(*shlex.split(filled)).returncode == 0
    assert (tmp_path / "my 0.5-bn.report.json").exists()
    assert "update-bn" in run(*inputs, "--decay", "0.6", "-o", "folder/").stderr.splitlines()[-1]
    for style in ("-q", "--json"):
        shown = run(*inputs, "--decay", "0.5", "-o", f"{style}.safetensors", style).stderr
        assert "recompute its BatchNorm statistics" not in shown
    plain = run(*inputs, "--decay", "0.5", "--exclude", "running", "-o", "plain.safetensors")
    assert "update-bn" not in plain.stderr
    assert update is not run


@pytest.mark.slow
def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """Batches are counted on standard error, with their total; standard output has the result line."""
    prepare(tmp_path)
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "update-bn", "ema.safetensors", *named(data="slow"), "--batches", "30"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stdout.startswith(b"wrote new.safetensors")
    assert b"batches" in shown
    assert b"/30" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "data"),
    [
        (signal.SIGINT, "slow"),
        (signal.SIGINT, "slow_workers"),
        (signal.SIGTERM, "slow_workers"),
        (signal.SIGHUP, "slow"),
    ],
)
def test_signals(number: signal.Signals, data: str, tmp_path: Path) -> None:
    """The pass ends with 128 + n, also if the user's code swallows it; no file and no worker stays."""
    prepare(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    process = subprocess.Popen(
        [*PROGRAM, "update-bn", "ema.safetensors", *named(data=data)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1] == f"error: interrupted by {number.name}; no output was changed"
    assert "Traceback" not in stderr
    assert sorted({path.name for path in tmp_path.iterdir()} - {"__pycache__", "started"}) == before
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
