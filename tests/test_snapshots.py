"""Snapshots of a live EMA as files: what is in them, how they are replaced, and what continues from them."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import ema_cli
from ema_cli import EMA
from ema_cli.errors import EmaAvgError, InputRefused, NothingMatched, OutputError, UsageError
from tests.helpers.outputs import listing
from tests.helpers.series import load, open_files, same_bits

ROOT = Path(__file__).parent.parent


class Odd(nn.Module):
    """A model with tensors of every kind: tied, transposed, scalar, empty, complex, half, bool, float8, no tensor."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3, generator=generator).t())
        self.tied = self.weight
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex64, generator=generator).conj())
        self.brief = nn.Parameter(torch.randn(7, generator=generator).to(torch.bfloat16))
        self.frozen = nn.Parameter(torch.randn(3, generator=generator), requires_grad=False)
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("code", torch.randn(6, generator=generator).to(torch.float8_e4m3fn))
        self.register_buffer("view", torch.arange(12).reshape(3, 4).t())
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def get_extra_state(self) -> dict[str, int]:
        """Return what is stored in a state_dict and is no tensor."""
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take what was stored."""


@torch.no_grad()
def move(model: nn.Module, seed: int) -> None:
    """Move the weights that are trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def followed(model: nn.Module, steps: int, *arguments: Any, **options: Any) -> EMA:
    """Return an EMA after some steps."""
    ema = EMA(model, *arguments, **options)
    for seed in range(steps):
        move(model, seed)
        ema.update()
    return ema


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a file, read by the library."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_snapshot_has_every_tensor(tmp_path: Path) -> None:
    """Averages are in their own type, also of tied names; all others are the model's; extra state is left out."""
    model = Odd()
    ema = followed(model, 5, 0.9)
    (path,) = ema.save(tmp_path / "ema_step5.safetensors")
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    expected = state | ema.shadow | {"tied": ema.shadow["weight"]}
    found = load(path)
    assert found.keys() == expected.keys() == state.keys()
    for name, tensor in found.items():
        assert same_bits(tensor, expected[name].detach().resolve_conj().contiguous()), name
    assert found["brief"].dtype is torch.float32
    assert listing(tmp_path) == {path.name}


def test_a_snapshot_is_a_state_dict_of_the_model(tmp_path: Path) -> None:
    """The model that is loaded from a snapshot equals the copy that the EMA makes."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model(torch.randn(8, 3))
    ema = followed(model, 3, 0.5)
    ema.save(tmp_path / "ema.safetensors")
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fresh.load_state_dict(load(tmp_path / "ema.safetensors"))
    for name, tensor in ema.average_model().state_dict().items():
        assert same_bits(fresh.state_dict()[name], tensor), name


def test_metadata_state_the_method_and_the_step(tmp_path: Path) -> None:
    """The metadata have a key of their own kind, not that of an output; equal states give equal bytes."""
    ema = followed(nn.Linear(3, 2), 4, half_life=10)
    (one,), (two,) = ema.save(tmp_path / "a.safetensors"), ema.save(tmp_path / "b.safetensors")
    found = metadata_of(one)
    assert "ema_avg.version" not in found
    assert found["format"] == "pt"
    expected = {"snapshot": "1", "method": "ema", "half_life": "10.0", "step": "4", "updates": "4"}
    assert {key: found[f"ema_avg.{key}"] for key in expected} == expected
    assert json.loads(found["ema_avg.averaged"])[0]["tensors"] == ["bias", "weight"]
    assert one.read_bytes() == two.read_bytes()


def test_names_of_wrappers_are_left_out(tmp_path: Path) -> None:
    """A compiled model is saved under the names of the model inside."""
    compiled: Any = torch.compile(nn.Linear(3, 2), backend="eager")
    followed(compiled, 2, 0.9).save(tmp_path / "ema.safetensors")
    assert load(tmp_path / "ema.safetensors").keys() == {"weight", "bias"}


def test_what_an_applied_average_hides(tmp_path: Path) -> None:
    """Inside ``applied`` the same file is written."""
    ema = followed(nn.Linear(3, 2), 4, 0.9)
    (outside,) = ema.save(tmp_path / "a.safetensors")
    with ema.applied():
        (inside,) = ema.save(tmp_path / "b.safetensors")
    assert outside.read_bytes() == inside.read_bytes()


def test_folders_are_made_and_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder; missing folders are made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    ema = followed(nn.Linear(3, 2), 1, 0.9)
    (path,) = ema.save("~/runs/7/ema.safetensors")
    assert path == tmp_path / "runs" / "7" / "ema.safetensors"
    assert path.exists()
    ema.load("~/runs/7/ema.safetensors")


def test_each_average_has_its_file(tmp_path: Path) -> None:
    """Fields in the name are those of each average; one average needs none, and may have some."""
    ema = followed(nn.Linear(3, 2), 4, [0.9, 0.99])
    paths = ema.save(tmp_path / "ema_{decay}.safetensors")
    assert [path.name for path in paths] == ["ema_0.9.safetensors", "ema_0.99.safetensors"]
    (one,) = ema.save(tmp_path / "one.safetensors", average=1)
    assert one.read_bytes() == paths[1].read_bytes()
    (filled,) = ema.save(tmp_path / "{label}.safetensors", average=0)
    assert filled.name == "ema_0.9.safetensors"
    for number, path in enumerate(paths):
        assert same_bits(load(path)["weight"], ema.average_of(number)["weight"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ema.safetensors", "several averages would be saved"),
        ("ema_{decay}.pt", "must end in .safetensors"),
        ("ema_{sigma_rel}.safetensors", r"there is no \{sigma_rel\}"),
        ("ema_{epoch}_{decay}.safetensors", r"there is no \{epoch\}"),
        ("s3://bucket/ema_{decay}.safetensors", "not a local file"),
    ],
)
def test_names_that_do_not_fit_are_refused(name: str, words: str, tmp_path: Path) -> None:
    """A name must be one of a local file for each average; nothing is written."""
    ema = followed(nn.Linear(3, 2), 1, [0.9, 0.99])
    with pytest.raises(UsageError, match=words):
        ema.save(name if "://" in name else tmp_path / name)
    assert not listing(tmp_path)


def test_a_renamed_parameter_is_not_saved_as_the_average(tmp_path: Path) -> None:
    """A model whose ``state_dict`` renames a parameter has its weights there, not their average: it is refused."""

    def rename(_: nn.Module, state: dict[str, Any], *__: object) -> None:
        state["kernel"] = state.pop("weight")

    model = nn.Linear(3, 2)
    model.register_state_dict_post_hook(rename)
    ema = followed(model, 3, 0.9)
    with pytest.raises(UsageError, match='state_dict has no "weight"'):
        ema.save(tmp_path / "ema.safetensors")
    assert listing(tmp_path) == set()


def test_there_must_be_an_average(tmp_path: Path) -> None:
    """Before the first update there is nothing to save; a number that no average has is refused."""
    ema = EMA(nn.Linear(3, 2), 0.9)
    with pytest.raises(UsageError, match="no average yet"):
        ema.save(tmp_path / "ema.safetensors")
    ema.register()
    with pytest.raises(UsageError, match="average=1 is not below 1"):
        ema.save(tmp_path / "ema.safetensors", average=1)


def test_only_snapshots_are_replaced(tmp_path: Path) -> None:
    """A snapshot is replaced and keeps its mode; an average, a file of the user and a folder are not."""
    ema = followed(nn.Linear(3, 2), 2, 0.9)
    (path,) = ema.save(tmp_path / "ema_latest.safetensors")
    path.chmod(0o600)
    ema.update()
    ema.save(path)
    assert metadata_of(path)["ema_avg.step"] == "3"
    assert path.stat().st_mode & 0o777 == 0o600
    ema_cli.average(path, output=tmp_path / "average.safetensors", method="uniform")
    save_file({"w": torch.ones(2)}, tmp_path / "mine.safetensors")
    (tmp_path / "notes.safetensors").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}
    for name in ("average", "mine", "notes"):
        with pytest.raises(OutputError, match="is not a snapshot of a live EMA") as refused:
            ema.save(tmp_path / f"{name}.safetensors")
        assert "force=True" in refused.value.hint
    with pytest.raises(OutputError, match="it is a folder"):
        ema.save(tmp_path / "folder.safetensors", force=True)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()} == before
    ema.save(tmp_path / "notes.safetensors", force=True)
    assert same_bits(load(tmp_path / "notes.safetensors")["weight"], ema.shadow["weight"])


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128, which safetensors cannot hold"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta device"),
    ],
)
def test_tensors_that_cannot_be_written(tensor: torch.Tensor, words: str, tmp_path: Path) -> None:
    """The message names the tensor; nothing is written."""
    model = nn.Linear(3, 2)
    ema = followed(model, 1, 0.9)
    model.register_buffer("odd", tensor)
    with pytest.raises(OutputError, match=f'tensor "odd" .*{words}'):
        ema.save(tmp_path / "ema.safetensors")
    assert not listing(tmp_path)


@contextmanager
def signal_after(seconds: float, number: int) -> Iterator[None]:
    """Send this process a signal after some time, outside of the collector: what its callbacks raise is lost."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    gc.disable()
    timer.start()
    try:
        yield
    finally:
        timer.join()
        gc.enable()


def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    """At whatever time Ctrl-C comes, the old snapshot or the new one is there, whole, and nothing else."""
    ema = followed(nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))), 1, 0.9)
    (path,) = ema.save(tmp_path / "ema.safetensors")
    interrupted = 0
    for tenth in range(1, 40):
        old, before = path.read_bytes(), ema.step
        ema.update()
        with contextlib.suppress(KeyboardInterrupt), signal_after(tenth * 5e-4, signal.SIGINT):
            ema.save(path)
            interrupted -= 1
        interrupted += 1
        assert listing(tmp_path) == {path.name}
        assert path.read_bytes() == old or metadata_of(path)["ema_avg.step"] == str(before + 1)
        assert len(load(path)) == 16
    assert interrupted
    ema.save(path)
    assert metadata_of(path)["ema_avg.step"] == "40"


def test_a_handler_of_the_program_runs(tmp_path: Path) -> None:
    """A handler that only notes a signal, as that of a scheduler does, does not stop the save."""
    ema = followed(nn.Linear(1000, 1000), 1, 0.9)
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with signal_after(0.005, signal.SIGTERM):
            (path,) = ema.save(tmp_path / "ema.safetensors")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == [signal.SIGTERM]
    assert same_bits(load(path)["weight"], ema.shadow["weight"])


@pytest.mark.slow
def test_a_program_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM without a handler ends the program, and what was written is removed first."""
    code = (
        "import sys, torch; from ema_cli import EMA\n"
        "ema = EMA(torch.nn.ParameterList([torch.zeros(1 << 20) for _ in range(8)]), 0.9); ema.update()\n"
        "print(flush=True)\n"
        "while True: ema.save(sys.argv[1])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "ema.safetensors")], stdout=subprocess.PIPE, cwd=ROOT
    ) as saving:
        assert saving.stdout is not None
        saving.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            saving.wait(0.3)
        saving.terminate()
    assert saving.returncode == -signal.SIGTERM
    assert listing(tmp_path) <= {"ema.safetensors"}


def test_a_full_disk_leaves_the_old_snapshot(tmp_path: Path) -> None:
    """A save that fails changes nothing, and says why."""
    ema = followed(nn.Linear(100, 100), 1, 0.9)
    (path,) = ema.save(tmp_path / "ema.safetensors")
    ema.update()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9999, limit[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            ema.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert metadata_of(path)["ema_avg.step"] == "1"
    assert listing(tmp_path) == {path.name}


@pytest.mark.slow
def test_no_copy_of_the_model_is_made(tmp_path: Path) -> None:
    """Saving 134 MB of tensors needs less than a third of that."""
    code = (
        "import resource, sys, torch; from ema_cli import EMA\n"
        "model = torch.nn.ParameterList([torch.zeros(1 << 22) for _ in range(8)]); ema = EMA(model, 0.9)\n"
        "ema.update(); ema.update(); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); ema.save(sys.argv[1]); print(peak() - before)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "ema.safetensors")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 40


METHODS: dict[str, dict[str, Any]] = {
    "decay": {"decay": 0.9},
    "several": {"decay": [0.9, 0.99]},
    "debiased": {"half_life": 5, "init": "debias"},
    "warm-up": {"method": "ema-warmup", "decay": 0.99, "power": 0.75},
    "uniform": {"method": "uniform"},
    "power": {"sigma_rel": 0.15},
    "every": {"decay": 0.9, "every": 3},
    "float64": {"decay": 0.9, "dtype": torch.float64},
    "averaged buffers": {"decay": 0.9, "buffers": "average"},
}


class Grown(nn.Module):
    """A model that gets a second layer during the training, and loses one."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(layers))
        self.norm = nn.BatchNorm1d(3)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.scale = nn.Parameter(torch.tensor(0.5))


@pytest.mark.parametrize("given", METHODS.values(), ids=METHODS)
def test_a_loaded_snapshot_continues_exactly(given: dict[str, Any], tmp_path: Path) -> None:
    """An EMA that was saved and loaded ends bit for bit like one that was not, with tensors that joined later."""
    model = Grown()
    ema = EMA(model, **given)
    for seed in range(10):
        move(model, seed)
        ema.update()
        if seed == 3:
            model.layers.append(nn.Linear(3, 3))
    ema.save(tmp_path / "ema_{label}.safetensors")
    again = Grown(2)
    again.load_state_dict(model.state_dict())
    continued = EMA(again, **given)
    continued.load(tmp_path / "ema_{label}.safetensors")
    for one in (ema, continued):
        for seed in range(10, 20):
            move(one.model, seed)
            one.update()
    assert continued.step == 20
    for number in range(len(ema.methods)):
        found, expected = continued.average_of(number), ema.average_of(number)
        assert found.keys() == expected.keys()
        assert all(same_bits(found[name], expected[name]) for name in expected)
    for one in (ema, continued):
        one.save(tmp_path / f"{id(one)}_{{label}}.safetensors")
    ends = [sorted(tmp_path.glob(f"{id(one)}_*")) for one in (ema, continued)]
    assert [one.read_bytes() for one in ends[0]] == [one.read_bytes() for one in ends[1]]


def test_a_frozen_layer_stays_averaged(tmp_path: Path) -> None:
    """The averages in the file are continued, whatever requires a gradient now."""
    model = Grown(2)
    ema = followed(model, 3, 0.9)
    ema.save(tmp_path / "ema.safetensors")
    again = Grown(2)
    again.layers[0].requires_grad_(False)
    continued = EMA(again, 0.9)
    continued.load(tmp_path / "ema.safetensors")
    continued.update()
    assert continued.shadow.keys() == ema.shadow.keys()


def foreign(folder: Path) -> Path:
    """Write a file of another program."""
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def average(folder: Path) -> Path:
    """Write an average by the command line."""
    followed(nn.Linear(3, 2), 2, 0.9).save(folder / "ema_1.safetensors")
    ema_cli.average(folder / "ema_1.safetensors", output=folder / "x.safetensors", method="uniform")
    return folder / "x.safetensors"


def of_another(model: nn.Module, **given: Any) -> Callable[[Path], Path]:
    """Return a maker of a snapshot of another model or method."""

    def make(folder: Path) -> Path:
        (path,) = followed(model, 2, **(given or {"decay": 0.9})).save(folder / "x.safetensors")
        return path

    return make


def changed(**metadata: str) -> Callable[[Path], Path]:
    """Return a maker of a snapshot whose metadata were changed."""

    def make(folder: Path) -> Path:
        (path,) = followed(nn.Linear(3, 2), 2, 0.9).save(folder / "x.safetensors")
        ours = {f"ema_avg.{key}": value for key, value in metadata.items()}
        save_file(load(path), folder / "x.safetensors", metadata_of(path) | ours)
        return path

    return make


def truncated(folder: Path) -> Path:
    """Write a snapshot that lacks its last bytes."""
    (path,) = followed(nn.Linear(3, 2), 2, 0.9).save(folder / "x.safetensors")
    os.truncate(path, path.stat().st_size - 1)
    return path


def group(**values: object) -> str:
    """Return the state of the averaged tensors as metadata, with some values changed."""
    return json.dumps([{"first_step": 1, "last_step": 2, "updates": 2, "tensors": ["bias", "weight"]} | values])


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "foreign": (foreign, "is not a snapshot of a live EMA"),
    "average": (average, "is not a snapshot of a live EMA"),
    "truncated": (truncated, "truncated"),
    "fewer tensors": (of_another(nn.Linear(3, 2, bias=False)), 'another model: it has no "bias"'),
    "more tensors": (of_another(Odd()), "another model: it"),
    "shape": (of_another(nn.Linear(4, 2)), r"shape \[2, 4\], and \[2, 3\] in the model"),
    "complex": (of_another(nn.Linear(3, 2, dtype=torch.complex64)), "complex64, and float32 in the model"),
    "decay": (of_another(nn.Linear(3, 2), decay=0.99), "was made with ema decay=0.99 .*, and this EMA has ema decay="),
    "method": (of_another(nn.Linear(3, 2), method="uniform"), "was made with .*uniform"),
    "later version": (changed(snapshot="2"), "another version of ema-avg"),
    "no JSON": (changed(averaged="{"), "metadata of .* are damaged"),
    "deep JSON": (changed(averaged="[" * 100_000), "metadata of .* are damaged"),
    "no list": (changed(averaged="7"), "metadata of .* are damaged"),
    "empty list": (changed(averaged="[]"), "metadata of .* are damaged"),
    "no number": (changed(averaged=group(updates=True)), "metadata of .* are damaged"),
    "no updates": (changed(averaged=group(updates=0)), "metadata of .* are damaged"),
    "too many updates": (changed(averaged=group(updates=3)), "metadata of .* are damaged"),
    "nothing averaged": (changed(averaged=group(tensors=[])), "metadata of .* are damaged"),
    "negative": (changed(averaged=group(first_step=-1)), "metadata of .* are damaged"),
    "huge": (changed(averaged=group(last_step=10**30)), "metadata of .* are damaged"),
    "backwards": (changed(averaged=group(first_step=3)), "metadata of .* are damaged"),
    "twice": (changed(averaged=group(tensors=["bias", "bias"])), "metadata of .* are damaged"),
    "unknown": (changed(averaged=group(tensors=["bias", "evil\x1b[2J"])), "which the model does not have"),
    "no names": (changed(averaged=group(tensors=[1, 2])), "metadata of .* are damaged"),
    "step": (changed(step="1"), "metadata of .* are damaged"),
    "no step": (changed(step="x" * 10), "metadata of .* are damaged"),
    "other decay": (changed(decay="0.5"), "metadata of .* are damaged"),
    "no method": (changed(method="magic"), "metadata of .* are damaged"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_not_loaded(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    """The message names the file and what is wrong; the EMA stays as it was, and no file stays open."""
    path = make(tmp_path)
    ema = followed(nn.Linear(3, 2), 5, 0.9)
    before, opened = ema.shadow["weight"].clone(), open_files()
    with pytest.raises(InputRefused, match=words) as refused:
        ema.load(path)
    assert str(path) in refused.value.message
    assert refused.value.message.isprintable()
    assert (ema.step, open_files()) == (5, opened)
    assert same_bits(ema.shadow["weight"], before)


def test_loading_refuses_what_cannot_be(tmp_path: Path) -> None:
    """A missing file, an average that is applied, and snapshots of several steps are refused."""
    ema = followed(nn.Linear(3, 2), 2, [0.9, 0.99])
    with pytest.raises(NothingMatched, match="there is no"):
        ema.load(tmp_path / "{decay}.safetensors")
    first, _ = ema.save(tmp_path / "{decay}.safetensors")
    kept = first.read_bytes()
    ema.update()
    ema.save(tmp_path / "{decay}.safetensors")
    first.write_bytes(kept)
    with pytest.raises(InputRefused, match="is of step 3, not of step 2 like the first"):
        ema.load(tmp_path / "{decay}.safetensors")
    with ema.applied(), pytest.raises(EmaAvgError, match="while an average is applied"):
        ema.load(tmp_path / "{decay}.safetensors")


@pytest.mark.slow
@pytest.mark.xdist_group("snapshot_ranks")
def test_sharded_models(tmp_path: Path) -> None:
    """Two processes write the bytes that one writes, go on from shards, and both raise the error of the first."""
    command = [sys.executable, "-m", "tests.helpers.snapshot_ranks", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    from tests.helpers.live_nets import STEPS, UnevenNet, set_weights  # noqa: PLC0415 - beside their only use

    alone = UnevenNet()
    ema = EMA(alone, 0.5)
    for step in STEPS:
        set_weights(alone, step)
        ema.update()
    (judge,) = ema.save(tmp_path / "judge" / "ema.safetensors")
    for name in ("new/ema_step3", "hybrid", "copies", "alone", "after"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == judge.read_bytes(), name
    assert not list(tmp_path.rglob(".*"))
    assert (tmp_path / "foreign.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / "full.safetensors").exists()
    set_weights(alone, 4)
    ema.update()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found["saves"]["there"]
        assert found["saves"]["step"] == 4
        for name, tensor in ema.shadow.items():
            assert same_bits(found["saves"]["loaded"][name], tensor), name
        failures = found["failures"]
        assert "is not a snapshot" in failures["foreign"]
        assert "File too large" in failures["full"]
        assert ("the first process" in failures["full"]) is (rank == 1)
        assert failures["after"]
        assert "has no snapshots" in found["copies"]["flat"]


def test_the_help_topic_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of ``ema-avg help live-ema`` about snapshots work as written."""
    monkeypatch.chdir(tmp_path)
    topic = (ROOT / "ema_cli" / "help" / "live-ema.md").read_text(encoding="utf-8")
    code = topic.split("## Snapshots of a live EMA")[1].split("```python\n")[1].split("```")[0]
    exec(compile(code, "live-ema.md", "exec"), {"ema": followed(nn.Linear(3, 2), 1, 0.9)})
    assert listing(tmp_path / "snaps") == {"ema_step1.safetensors"}
