"""Small tensors are folded in runs, with the results of tensors that are folded one by one."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ema_cli import average, execution
from ema_cli.errors import InputRefused
from ema_cli.fold import schedule, tensor_runs
from ema_cli.fold.content_digests import digest_of
from ema_cli.fold.engine import fold
from ema_cli.fold.state import FoldState
from ema_cli.records.fold_results import FoldOutcome
from ema_cli.records.garbage import without_collections
from ema_cli.records.plan import Plan
from ema_cli.report.serialize import from_json, to_json, to_json_pieces
from ema_cli.storage.source import FileSource
from tests.helpers.makers import open_file

_CHECKPOINTS = 3
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)


def _save(folder: Path, made: list[dict[str, torch.Tensor]], suffix: str) -> list[Path]:
    paths = [folder / f"step_{step}.{suffix}" for step in range(len(made))]
    for path, tensors in zip(paths, made, strict=True):
        if suffix == "safetensors":
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
        else:
            torch.save(tensors, path)
    return paths


def _views(sizes: list[tuple[int, int]], step: int, *, shared: bool) -> dict[str, torch.Tensor]:
    """Return tensors of some sizes and types: views of one storage per type, or each with a storage of its own."""
    source = torch.Generator().manual_seed(step)
    made = {}
    storages = {dtype: torch.randn(20_000, generator=source).to(dtype) for dtype in _TYPES}
    begins = Counter[torch.dtype]()
    for number, (size, kind) in enumerate(sizes):
        dtype = _TYPES[kind]
        view = storages[dtype][begins[dtype] : begins[dtype] + size]
        begins[dtype] += size
        made[f"layer.{number * 7 % len(sizes)}.{number}"] = view if shared else view.clone()
    made["constant"] = torch.full((5,), 0.1)
    return made


def _results(paths: list[Path], folder: Path, **options: Any) -> tuple[bytes, list[Any], list[Any]]:
    """Return the bytes of an average, what its report says of the tensors, and the digests of the inputs."""
    output = folder / "out.safetensors"
    report = average(paths, decay=0.7, output=output, force=True, **options)
    document = json.loads(report.to_json())
    return output.read_bytes(), document["averages"][0]["tensors"], [one["content"] for one in document["inputs"]]


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=2, max_size=40),
    suffix=st.sampled_from(["pt", "safetensors"]),
    shared=st.booleans(),
)
def test_a_run_is_its_tensors_one_by_one(
    sizes: list[tuple[int, int]], suffix: str, shared: bool, tmp_path: Path
) -> None:
    """The bytes, the statistics and the digests do not depend on whether tensors are folded together."""
    made = [_views(sizes, step, shared=shared) for step in range(_CHECKPOINTS)]
    paths = _save(tmp_path, made, suffix)
    together = _results(paths, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "find_runs", lambda *_: [])
        assert _results(paths, tmp_path) == together


def test_runs_of_checkpoints_with_other_types_and_orders(tmp_path: Path) -> None:
    """The digest of a checkpoint has the types that it stores, also where those of the others differ."""
    made = [_views([(40, 0), (9, 0)] * 20, step, shared=False) for step in range(_CHECKPOINTS)]
    made[1] = {name: tensor.to(torch.bfloat16) for name, tensor in made[1].items()}
    made[2] = dict(reversed(made[2].items()))
    paths = _save(tmp_path, made, "pt")
    together = _results(paths, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "find_runs", lambda *_: [])
        assert _results(paths, tmp_path) == together
    indexes = [open_file(path).index for path in paths]
    assert together[2] == [digest_of(index, {layout.name for layout in index.layouts}) for index in indexes]


def test_the_state_of_a_fold_is_freed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refers to nothing that refers to it, so its memory need not wait for the garbage collector."""
    states: list[weakref.ref[FoldState]] = []
    outcome = FoldState.outcome

    def noted(state: FoldState) -> FoldOutcome:
        states.append(weakref.ref(state))
        return outcome(state)

    def alive(*arguments: Any, **options: Any) -> FoldOutcome:
        with without_collections():
            found = fold(*arguments, **options)
            assert [state() for state in states] == [None]
            return found

    monkeypatch.setattr(FoldState, "outcome", noted)
    monkeypatch.setattr(execution, "fold", alive)
    made = [_views([(40, 0)] * 30, step, shared=False) for step in range(2)]
    _results(_save(tmp_path, made, "safetensors"), tmp_path)


def test_collections_begin_again_after_an_error() -> None:
    """The garbage collector is stopped for a while only, and stays stopped if it was."""
    with pytest.raises(ZeroDivisionError), without_collections():
        _ = 1 / int(gc.isenabled())
    assert gc.isenabled()
    with without_collections():
        with without_collections():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_tensor_of_a_run_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """Its neighbors are written, and the error names the tensor and the file as for any other tensor."""
    made = [_views([(40, 0)] * 30, step, shared=False) for step in range(_CHECKPOINTS)]
    made[1]["layer.3.9"][4] = torch.nan
    assert "layer.3.9" in made[0]
    with pytest.raises(InputRefused, match=r'"layer.3.9" of ".*step_1.pt" holds nan at index'):
        _results(_save(tmp_path, made, "pt"), tmp_path)


def test_a_damaged_record_of_a_run_is_refused(tmp_path: Path) -> None:
    """The checksum of every record is compared with its bytes, also where many are read together."""
    made = [{f"t{n}": torch.full((32,), float(n + step)) for n in range(50)} for step in range(2)]
    paths = _save(tmp_path, made, "pt")
    raw = bytearray(paths[0].read_bytes())
    at = raw.index(np.full(32, 7, dtype="<f4").tobytes())
    raw[at] ^= 1
    paths[0].write_bytes(raw)
    with pytest.raises(InputRefused, match="damaged"):
        _results(paths, tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_thousands_of_tensors_take_few_reads(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reads grow with the bytes, not with the number of tensors: fewer than one per 10 tensors and file."""
    made = [{f"t{n:04d}": torch.full((16,), float(n + step)) for n in range(2000)} for step in range(2)]
    paths = _save(tmp_path, made, suffix)
    reads: list[int] = []
    read_into: Callable[..., None] = FileSource.read_into

    def counted(source: FileSource, offset: int, buffer: bytearray | memoryview) -> None:
        reads.append(offset)
        read_into(source, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", counted)
    _results(paths, tmp_path)
    assert len(reads) < 2 * 2000 // 10


def test_runs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run has more tensors or elements than its buffers are for."""
    found: list[tensor_runs.TensorRun] = []

    def noted(plan: Plan, done: frozenset[int]) -> list[tensor_runs.TensorRun]:
        runs = tensor_runs.find_runs(plan, done)
        found.extend(runs)
        return runs

    monkeypatch.setattr(schedule, "find_runs", noted)
    made = [{f"t{n:04d}": torch.full((16 + n % 7,), 1.0 + step) for n in range(3000)} for step in range(2)]
    _results(_save(tmp_path, made, "safetensors"), tmp_path)
    assert sum(run.stop - run.first for run in found) == 3000
    assert max(run.stop - run.first for run in found) <= 1024


def test_the_report_is_written_as_json_dumps_would(tmp_path: Path) -> None:
    """The text equals that of the standard library with an indentation of one space."""
    made = [_views([(40, 0), (3, 3)], step, shared=False) for step in range(2)]
    report = average(_save(tmp_path, made, "pt"), decay=0.5, output=tmp_path / "x.safetensors")
    text = to_json(from_json(report.to_json()))
    assert text == json.dumps(json.loads(text), indent=1) + "\n"


def test_a_large_report_is_never_in_one_piece(tmp_path: Path) -> None:
    """A piece has some hundred tensors at most, and all pieces together are the file."""
    made = [{f"t{n:04d}": torch.full((2,), float(n + step)) for n in range(3000)} for step in range(2)]
    output = tmp_path / "x.safetensors"
    report = average(_save(tmp_path, made, "safetensors"), decay=0.5, output=output)
    pieces = to_json_pieces(report)
    assert b"".join(pieces) == (tmp_path / "x.report.json").read_bytes()
    assert max(map(len, pieces)) < len(b"".join(pieces)) // 8
