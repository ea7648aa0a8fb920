"""Averages in memory: the bytes that would be written, in bounded memory, whatever the consumer does."""

from __future__ import annotations

import gc
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

import ema_cli
from ema_cli.errors import InputChanged, InputRefused, NothingNew, StrictWarnings, UsageError
from ema_cli.events import Progress
from ema_cli.fold import worker
from ema_cli.fold.value_errors import refuse_nonfinite
from ema_cli.in_memory import arrays
from ema_cli.in_memory.arrays import memory_maker
from ema_cli.in_memory.handover import Abandoned, Handover
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned
from ema_cli.records.fold_results import TensorOutcome
from tests.helpers import dcp_makers
from tests.helpers.adapters import factors, write_adapters
from tests.helpers.folders import write_shards
from tests.helpers.makers import every_kind
from tests.helpers.series import (
    FORMATS,
    State,
    data_section,
    load,
    open_files,
    random_states,
    same_bits,
    write_series,
    write_sparse,
)

Made = tuple[Any, dict[str, Any]]
"""Paths and options."""


def _plain(form: str, folder: Path) -> Made:
    return write_series(folder, random_states(3), form=form), {"decay": 0.7}


def _every_dtype(folder: Path) -> Made:
    paths = write_series(folder, [every_kind() for _ in range(3)])
    return paths, {"decay": 0.7, "allow_nonfinite": True, "exclude": "e8m0"}


def _shards(folder: Path) -> Made:
    for number, state in enumerate(random_states(3), 1):
        write_shards(folder / f"checkpoint-{number}", state)
    return folder, {"decay": 0.7}


def _distributed(folder: Path) -> Made:
    for step in (1, 2, 3):
        dcp_makers.save(folder / f"step-{step}", {"model": dcp_makers.full_tensors(step), "step": step})
    return folder, {"method": "uniform"}


def _adapters(folder: Path) -> Made:
    write_adapters(folder, [factors(seed) for seed in range(3)])
    return folder, {"method": "uniform", "lora": "exact"}


def _continued(folder: Path) -> Made:
    paths = write_series(folder / "run", random_states(5))
    previous = folder / "previous.safetensors"
    ema_cli.average(paths[:3], decay=0.7, output=previous)
    return paths, {"continue_from": previous}


def _several_keys(folder: Path) -> Made:
    folder.mkdir()
    for step, state in enumerate(random_states(3)):
        torch.save({"model": state, "head": {"module.w": state["layer.bias"]}}, folder / f"ckpt_{step}.pt")
    return folder, {"decay": 0.5, "key": ["model", "head"]}


def _missing(folder: Path) -> Made:
    states = random_states(3)
    del states[0]["layer.bias"]
    return write_series(folder, states), {"decay": 0.5, "on_missing": "last", "exclude": "scale"}


def _batch_norm(folder: Path) -> Made:
    nets = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)) for _ in range(3)]
    for net in nets:
        net(torch.randn(5, 3))
    return write_series(folder, [net.state_dict() for net in nets]), {"decay": 0.5, "buffers": "first"}


def _narrowed(folder: Path) -> Made:
    return write_series(folder, random_states(3)), {"method": "manual", "weights": [1, 0, 2], "dtype": "bfloat16"}


def _tied(folder: Path, *, tied: str) -> Made:
    return write_series(folder, [_with_ties(state) for state in random_states(3)]), {"decay": 0.5, "tied": tied}


def _remote(folder: Path) -> Made:
    import fsspec  # noqa: PLC0415 - of this case alone

    for path in write_series(folder, random_states(3)):
        fsspec.filesystem("memory").pipe_file(f"/in-memory/{path.name}", path.read_bytes())
    return "memory://in-memory/", {"decay": 0.7}


SERIES: dict[str, Callable[[Path], Made]] = {
    **{form: partial(_plain, form) for form in FORMATS},
    "every dtype": _every_dtype,
    "shards": _shards,
    "distributed": _distributed,
    "exact LoRA": _adapters,
    "continued": _continued,
    "several keys": _several_keys,
    "missing": _missing,
    "BatchNorm": _batch_norm,
    "narrowed": _narrowed,
    "tied": partial(_tied, tied="keep"),
    "tied names dropped": partial(_tied, tied="drop"),
    "remote": _remote,
}


def _with_ties(state: State) -> State:
    return {**state, "head.weight": state["layer.weight"]}


def _bytes_of(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def _header(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    header: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("make", SERIES.values(), ids=SERIES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bytes_are_those_of_the_file(make: Callable[[Path], Made], threads: int, tmp_path: Path) -> None:
    """Names, order, shapes and bytes are those that ``average`` writes, for every input and any number of threads."""
    paths, options = make(tmp_path / "run")
    output = tmp_path / "out" / "ema.safetensors"
    output.parent.mkdir()
    ema_cli.average(paths, output=output, **options)
    cut = {**options, "threads": threads, "max_memory": 500_000}
    found = list(ema_cli.average_tensors(paths, **cut))
    expected = _header(output)
    assert [(name, list(array.shape)) for name, array in found] == [(n, e["shape"]) for n, e in expected.items()]
    assert b"".join(_bytes_of(array) for _, array in found) == data_section(output)
    loaded, state = load(output), ema_cli.load_average(paths, **cut)
    assert list(state) == list(expected)
    assert all(same_bits(state[name], tensor) for name, tensor in loaded.items())
    assert loaded.keys() == state.keys()


def _larger_than_the_budget(folder: Path) -> list[Path]:
    """Write 40 tensors of 1 MB."""
    sizes = {f"t{number}": 250_000 for number in range(40)}
    return [write_sparse(folder / f"ckpt_{step}.safetensors", **sizes) for step in (1, 2)]


def test_every_type_has_its_own_name(tmp_path: Path) -> None:
    """Arrays have the types of ml_dtypes for bfloat16 and 8 bits, tensors those of torch; all can be changed."""
    paths, options = _every_dtype(tmp_path / "run")
    found = dict(ema_cli.average_tensors(paths, **options))
    assert found["kind.torch.bfloat16"].dtype == ml_dtypes.bfloat16
    assert found["kind.torch.float8_e4m3fn"].dtype == ml_dtypes.float8_e4m3fn
    assert found["kind.torch.complex64"].dtype == np.complex64
    assert found["kind.torch.bool"].dtype == np.bool_
    for name, array in found.items():
        assert name.removeprefix("kind.torch.") in (str(array.dtype), name)
        assert array.flags.owndata
        assert array.flags.writeable
    for name, tensor in ema_cli.average_tensors(paths, framework="pt", **options):
        assert name.removeprefix("kind.") in (str(tensor.dtype), name)
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        tensor.zero_()


def test_a_model_is_evaluated_with_many_averages(run_folder: Path, tmp_path: Path) -> None:
    """The state dict fits into the model that was trained."""
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    for decay in (0.2, 0.8):
        net.load_state_dict(ema_cli.load_average(run_folder, decay=decay))
        ema_cli.average(run_folder, decay=decay, output=tmp_path / f"{decay}.safetensors")
        loaded = load(tmp_path / f"{decay}.safetensors")
        assert all(same_bits(tensor, loaded[name]) for name, tensor in net.state_dict().items())


def test_tied_tensors_share_their_memory_if_they_are_equal(tmp_path: Path) -> None:
    """As in the checkpoint; tensors that are tied only in the last checkpoint have different averages."""
    states = [_with_ties(state) for state in random_states(3)]
    state = ema_cli.load_average(write_series(tmp_path / "tied", states), decay=0.5)
    assert state["head.weight"] is state["layer.weight"]
    states[0]["head.weight"] = states[0]["layer.weight"] + 1
    paths = write_series(tmp_path / "apart", states)
    state = ema_cli.load_average(paths, decay=0.5)
    assert not torch.equal(state["head.weight"], state["layer.weight"])
    each = dict(ema_cli.average_tensors(write_series(tmp_path / "each", [states[1]] * 2), decay=0.5, framework="pt"))
    assert torch.equal(each["head.weight"], each["layer.weight"])
    assert each["head.weight"].data_ptr() != each["layer.weight"].data_ptr()


def test_tensors_are_on_the_host_whatever_the_default_of_torch(tmp_path: Path) -> None:
    """The default device of the caller does not matter."""
    paths = write_series(tmp_path, random_states(2))
    with torch.device("meta"):
        state = ema_cli.load_average(paths, decay=0.5)
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    with torch.inference_mode():
        inside = ema_cli.load_average(paths, decay=0.5)
    assert all(same_bits(inside[name], tensor) for name, tensor in state.items())


def test_arrays_need_no_torch_and_a_program_may_end_half_way(tmp_path: Path) -> None:
    """Only tensors of torch import it; the threads of a generator that was left open do not stop a program's end."""
    paths = _larger_than_the_budget(tmp_path)
    code = (
        "import sys, time, ema_cli\n"
        "tensors = ema_cli.average_tensors(sys.argv[1:], decay=0.5, max_memory=1_000_000)\n"
        "print(type(next(tensors)[1]).__name__, 'torch' in sys.modules)\n"
        "time.sleep(0.2)  # until the threads wait"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ndarray False\n", "")


# What the consumer does.

Many = tuple[list[Path], list[tuple[str, int]]]
STATES = random_states(3, seed=3)
SMALL = {f"t{number}": torch.full((300,), float(number)) for number in range(9)}


def _folding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fold")]


def _close(tensors: Iterator[Any]) -> None:
    tensors.close()  # type: ignore[attr-defined]


def _throw(kind: type[BaseException], tensors: Iterator[Any]) -> None:
    with pytest.raises(kind):
        tensors.throw(kind)  # type: ignore[attr-defined]


ENDS: dict[str, Callable[[Iterator[Any]], object]] = {
    "exhausted": list,
    "closed": _close,
    "exception": partial(_throw, ValueError),
    "KeyboardInterrupt": partial(_throw, KeyboardInterrupt),
    "forgotten": lambda _: None,
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Many:
    """A series with tensors of many blocks, small and empty ones; and the names and CRC-32 of its average."""
    states = [{**state, **SMALL, "large": torch.randn(40_000)} for state in STATES]
    paths = write_series(tmp_path_factory.mktemp("many"), states, form="safetensors")
    return paths, [(name, crc32(_bytes_of(array))) for name, array in ema_cli.average_tensors(paths, decay=0.9)]


@settings(deadline=None, max_examples=40)
@given(
    taken=st.integers(0, 14),
    threads=st.integers(1, 6),
    max_memory=st.sampled_from([600_000, 1_000_000, 32_000_000]),
    pauses=st.lists(st.booleans(), min_size=14, max_size=14),
    end=st.sampled_from(sorted(ENDS)),
)
def test_whatever_the_consumer_does_the_tensors_are_right_and_nothing_is_left(
    many: Many,
    *,
    taken: int,
    threads: int,
    max_memory: int,
    pauses: list[bool],
    end: str,
) -> None:
    """A slow consumer, one that ends early, by ``close``, an exception or without a word: no thread, no open file."""
    paths, expected = many
    before = open_files()
    tensors = ema_cli.average_tensors(paths, decay=0.9, threads=threads, max_memory=max_memory)
    for (name, array), wanted, pause in zip(islice(tensors, taken), expected, pauses, strict=False):
        assert (name, crc32(_bytes_of(array))) == wanted
        time.sleep(0.002 * pause)
    ENDS[end](tensors)
    del tensors
    assert not _folding()
    assert open_files() == before


def _join(tensors: Iterator[tuple[str, Any]]) -> str:
    text = ""
    for _, array in tensors:
        text += array  # fails
    return text


def test_a_loop_that_is_left_closes_everything(many: Many) -> None:
    """``break`` and an exception in the body of a ``for`` loop end the threads at once, without the collector."""
    before = open_files()
    gc.disable()
    try:
        for name, _ in ema_cli.average_tensors(many[0], decay=0.9):
            assert name
            break
        assert not _folding()
        with pytest.raises(TypeError):
            _join(ema_cli.average_tensors(many[0], decay=0.9))
        assert not _folding()
    finally:
        gc.enable()
    assert open_files() == before


def test_ctrl_c_while_a_tensor_is_computed(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal ends the wait for the next tensor, and the threads with it."""
    main = threading.main_thread().ident
    assert main is not None

    def complete(_: Handover, outcome: TensorOutcome) -> None:  # never reported: the consumer waits
        if outcome.number == 0:
            signal.pthread_kill(main, signal.SIGINT)

    monkeypatch.setattr(Handover, "complete", complete)
    before = open_files()
    with pytest.raises(KeyboardInterrupt):
        ema_cli.load_average(many[0], decay=0.9, threads=1)
    assert not _folding()
    assert open_files() == before


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of 40 tensors of 1 MB, a slow consumer never has more than a few in memory, its own included."""
    paths = _larger_than_the_budget(tmp_path)
    tracemalloc.start()
    try:
        with closing(ema_cli.average_tensors(paths, decay=0.5, max_memory=1_000_000, probe=False)) as tensors:
            for number, _ in enumerate(tensors):
                if number == 0:
                    tracemalloc.reset_peak()
                time.sleep(0.3 * (number == 0))  # enough to compute all of them
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


# Errors.


@pytest.mark.parametrize("threads", [1, 4])
def test_a_refused_tensor_is_not_yielded(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes when the consumer asks for it, also if other threads wait for a consumer that is slow."""
    states = [{f"t{n}": torch.full((80_000,), float(n)) for n in range(8)} for _ in range(2)]
    states[1]["t3"][-1] = torch.nan

    def refuse_late(*found: Any) -> None:
        time.sleep(0.1)  # by now the other threads wait for memory
        refuse_nonfinite(*found)

    monkeypatch.setattr(worker, "refuse_nonfinite", refuse_late)
    paths = write_series(tmp_path, states, form="safetensors")
    found = []

    def slowly() -> None:
        for name, _ in ema_cli.average_tensors(paths, decay=0.5, threads=threads, max_memory=400_000):
            found.append(name)
            time.sleep(0.02)

    with pytest.raises(InputRefused, match="t3"):
        slowly()
    assert "t3" not in found
    assert not _folding()


def test_damaged_bytes_are_refused(tmp_path: Path) -> None:
    """The checksum of a record is compared before its tensor is yielded."""
    paths = write_series(tmp_path, random_states(2))
    raw = bytearray(paths[0].read_bytes())
    at = raw.index(random_states(2)[0]["layer.weight"].numpy().tobytes())
    raw[at + 5] ^= 1
    paths[0].write_bytes(raw)
    found: list[str] = []
    with pytest.raises(InputRefused, match="is damaged"):
        found.extend(name for name, _ in ema_cli.average_tensors(paths, decay=0.5, probe=False))
    assert "layer.weight" not in found
    with pytest.raises(InputRefused, match="is damaged"):
        ema_cli.load_average(paths, decay=0.5, probe=False)


def test_an_input_that_is_changed_is_an_error_at_the_end(tmp_path: Path) -> None:
    """The tensors were yielded, but the generator does not end without the error."""
    paths = write_series(tmp_path, random_states(2))
    tensors = ema_cli.average_tensors(paths, decay=0.5)
    found = list(islice(tensors, 4))
    with paths[0].open("r+b") as file:
        file.write(file.read(1))
    os.utime(paths[0], ns=(1, 1))
    assert len(found) == 4
    with pytest.raises(InputChanged):
        next(tensors)


def test_warnings_of_the_plan_and_of_the_fold_are_issued(tmp_path: Path) -> None:
    """They are those of ``average``; ``strict`` refuses them before a tensor is read, ``allow`` accepts them."""
    paths = write_series(tmp_path, [random_states(1)[0]] * 2)
    with pytest.warns(ema_cli.EmaAvgWarning) as issued:
        ema_cli.load_average(paths, decay=0.9)
    assert [Path(one.filename).name for one in issued] == [Path(__file__).name] * 2  # the line of the caller
    assert [str(one.message).partition(":")[0] for one in issued] == ["first-dominates", "same-weights"]
    with pytest.raises(StrictWarnings, match="first-dominates"):
        next(ema_cli.average_tensors(paths, decay=0.9, strict=True))
    with pytest.raises(StrictWarnings, match="same-weights"):
        ema_cli.load_average(paths, decay=0.9, strict=True, allow="first-dominates")
    assert ema_cli.load_average(paths, decay=0.9, strict=True, allow=["same-weights", "first-dominates"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"decay": [0.5, 0.9]}, UsageError, "2 averages"),
        ({}, UsageError, "decay"),
        ({"decay": 0.5, "framework": "tf"}, UsageError, "framework"),
        ({"decay": 0.5, "device": "cuda:99"}, UsageError, "cuda:99"),
        ({"decay": 0.5, "output": "x.safetensors"}, TypeError, "writes no file.*output"),
        ({"decay": 0.5, "outptu": "x.safetensors"}, TypeError, "outptu"),
        ({"decay": 1.5}, UsageError, "decay"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    """Several averages, options of files, unknown words: with the keyword in the message."""
    paths = write_series(tmp_path, random_states(2))
    for function in (ema_cli.load_average, lambda *a, **o: next(ema_cli.average_tensors(*a, **o))):
        with pytest.raises(error, match=words):
            function(paths, **options)
    assert not _folding()


def test_without_torch_there_are_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of torch are refused with what to do."""
    monkeypatch.setattr(arrays, "find_spec", lambda _: None)
    paths = write_series(tmp_path, random_states(2))
    with pytest.raises(UsageError, match="torch, which is not installed") as refused:
        ema_cli.load_average(paths, decay=0.5)
    assert refused.value.hint == 'pip install torch; or framework="np"'
    assert ema_cli.load_average(paths, decay=0.5, framework="np")


def test_the_keywords_are_those_of_average_without_its_files() -> None:
    """The signatures list them with their defaults."""
    of_files = {
        "output",
        "format",
        "max_shard_size",
        "report",
        "metadata",
        "sha256",
        "force",
        "resume",
        "run",
        "geometry",
        "read_back",
    }
    wanted = {n: p for n, p in inspect.signature(ema_cli.average).parameters.items() if n not in of_files}
    for function in (ema_cli.average_tensors, ema_cli.load_average):
        found = dict(inspect.signature(function).parameters)
        assert found.pop("framework").kind is inspect.Parameter.KEYWORD_ONLY
        assert found == wanted


def test_progress_is_reported_in_bytes_read(tmp_path: Path) -> None:
    """To a function, tensor by tensor, from the thread that asks."""
    paths, events = write_series(tmp_path, random_states(2)), list[Any]()
    ema_cli.load_average(paths, decay=0.5, progress=events.append)
    done = [event.done_bytes for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == events[-1].total_bytes == sum(2 * 4 * t.numel() for t in random_states(1)[0].values())


def test_nothing_new_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A previous average that has all checkpoints already is refused, also if it has the default name of outputs."""
    paths = write_series(tmp_path / "run", random_states(3))
    monkeypatch.chdir(tmp_path)
    ema_cli.average(paths, decay=0.5)
    with pytest.raises(NothingNew):
        ema_cli.load_average(paths, continue_from="ema.safetensors")


def test_files_of_the_default_name_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output of other options is in the working directory, which cannot be written to; nothing appears there."""
    paths = write_series(tmp_path / "run", random_states(3))
    monkeypatch.chdir(tmp_path)
    ema_cli.average(paths, decay=0.5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    tmp_path.chmod(0o500)
    try:
        assert ema_cli.load_average(paths, decay=0.9)
        assert ema_cli.load_average(paths, decay=0.5)
    finally:
        tmp_path.chmod(0o700)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


# The handover alone.


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    block=st.integers(1, 3),
    threads=st.integers(1, 4),
    budget=st.integers(0, 30),
)
def test_a_handover_gives_each_tensor_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], block: int, threads: int, budget: int
) -> None:
    """For any sizes, blocks, threads and budget, also none: all bytes arrive, and the waiting tensors fit into it."""
    folder = tmp_path_factory.mktemp("sizes")
    state = {f"t{number}": torch.arange(size, dtype=torch.uint8) + number for number, size in enumerate(sizes)}
    save_file({**state, "z": torch.ones(1, dtype=torch.uint8)}, folder / "c_1.safetensors")
    with planned(make_options(folder, method="uniform")) as plan:
        tensors = plan.tensors
    begun = []

    def make(tensor: Any) -> Any:
        begun.append(tensor.nbytes)
        return memory_maker("np")(tensor)

    handover = Handover(tensors, make, budget)
    blocks = iter([(n, start) for n, t in enumerate(tensors) for start in range(0, max(t.elements, 1), block)])
    left = {number: max(1, -(-tensor.elements // block)) for number, tensor in enumerate(tensors)}
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, start = next(blocks, (-1, 0))
            if number < 0:
                return
            tensor = tensors[number]
            data = bytes((number + i) % 256 for i in range(start, min(start + block, tensor.elements)))
            handover.write(tensor.offset + start, memoryview(data))
            with lock:
                left[number] -= 1
                done = left[number] == 0
            if done:
                outcome = TensorOutcome(number=number, written_crc32=(), read_crc32=(), statistics=(), sample=b"")
                handover.complete(outcome)

    crew = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for number, tensor in enumerate(tensors):
        filled = handover.take(number)
        assert filled is not None
        assert filled.raw.tolist() == [(number + i) % 256 for i in range(tensor.elements)]
        waiting = sum(begun[number + 1 :])
        assert waiting + tensor.nbytes <= budget or waiting == 0
    for thread in crew:
        thread.join()
    handover.close()
    assert handover.take(len(tensors)) is None
    with pytest.raises(Abandoned):
        handover.write(0, memoryview(b"x"))


# The pages.


@pytest.mark.parametrize("page", ["ema_cli/help/in-memory.md", "README.md"])
def test_the_code_of_the_pages_runs(page: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the names, the model and its evaluation are left to the reader."""
    monkeypatch.chdir(run_folder.parent)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    names: dict[str, Any] = {"model": net, "evaluate": lambda model: model[0].weight.sum().item()}
    text = (Path(__file__).parent.parent / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in filter(re.compile("load_average|average_tensors").search, blocks):
        exec(compile(block, page, "exec"), names)
    assert same_bits(net.state_dict()["0.weight"], ema_cli.load_average("run/", decay=0.9)["0.weight"])
