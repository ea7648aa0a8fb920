"""Folders of torch.distributed.checkpoint: what four ranks saved is read as torch reads it, without torch."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint import metadata as torch_metadata

from ema_cli.errors import EmaAvgError, InputRefused, UsageError
from ema_cli.formats.dcp.folder import items_digest
from ema_cli.formats.dcp.tiling import check_tiling
from ema_cli.formats.open import open_checkpoint
from ema_cli.storage.extents import Extent, LayoutPool, Mosaic
from tests.helpers import dcp_makers, makers
from tests.helpers.dcp_makers import STEPS, full_tensors
from tests.helpers.program import Run, run_python

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dcp")]  # four processes save once for all of these tests
DECAY = 0.75
HINT = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR out.pt"


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that four processes saved."""
    base = tmp_path_factory.getbasetemp()
    return dcp_makers.four_ranks(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder that one process saved: two tensors, an optimizer and the step."""
    state = {
        "model": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)},
        "optimizer": {"state": {"exp_avg": torch.zeros(3)}},
        "step": 1234,
    }
    return dcp_makers.save(tmp_path / "ckpt", state)


def in_two(folder: Path, axis: int, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Save a tensor "w" in two halves along ``axis``; return it."""
    torch.manual_seed(seed)
    whole = torch.randn(shape)
    halves = whole.chunk(2, axis)
    dcp_makers.save(folder, {f"half{number}": half.contiguous() for number, half in enumerate(halves)})

    def join(metadata: Any) -> None:
        first = metadata.state_dict_metadata["half0"]
        offsets = [torch.Size([0, 0]), torch.Size([halves[0].shape[axis] * (axis == d) for d in (0, 1)])]
        chunks = [
            torch_metadata.ChunkStorageMetadata(offsets=offset, sizes=half.shape)
            for offset, half in zip(offsets, halves, strict=True)
        ]
        whole_metadata = torch_metadata.TensorStorageMetadata(first.properties, torch.Size(shape), chunks)
        places = [metadata.storage_data[key] for key in sorted(metadata.storage_data, key=lambda key: key.fqn)]
        metadata.state_dict_metadata = {"w": whole_metadata}
        metadata.planner_data = {"w": ("w",)}
        metadata.storage_data = {
            torch_metadata.MetadataIndex("w", offset): place for offset, place in zip(offsets, places, strict=True)
        }

    dcp_makers.edit_metadata(folder, join)
    return whole


def fold(series: list[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Fold in float64, as the definition says; integers are those of the last."""
    weights = [DECAY ** (len(series) - 1), *((1 - DECAY) * DECAY**age for age in range(len(series) - 2, -1, -1))]
    folded = {}
    for name, last in series[-1].items():
        terms = [weight * one[name].double() for weight, one in zip(weights, series, strict=True)]
        folded[name] = torch.stack(terms).sum(0).to(last.dtype) if last.is_floating_point() else last
    return folded


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layout", ["run/ckpt-{}", "titan/step-{}", "pieces/step-{}"])
def test_sharded_tensors_are_read_whole(ranks: Path, layout: str, step: int) -> None:
    """Rows, columns, grids, uneven and empty shards, replicas: bit for bit the tensors distributed over the ranks."""
    found = makers.read_file(ranks / layout.format(step))
    assert found == makers.expected(full_tensors(step))


def test_torch_reads_the_same(ranks: Path) -> None:
    """The oracle of the format agrees with the tensors that the makers kept."""
    for step in STEPS:
        loaded = dcp_makers.load(ranks / f"run/ckpt-{step}", full_tensors(step), "model")
        assert makers.read_file(ranks / f"run/ckpt-{step}") == makers.expected(loaded)


@pytest.mark.parametrize("step", STEPS)
def test_fsdp_models_are_read(ranks: Path, step: int) -> None:
    """A model under FSDP2, saved with its optimizer: its weights are those of the full state dict."""
    checkpoint = makers.open_file(ranks / f"fsdp/{step}")
    assert (checkpoint.format, checkpoint.key, checkpoint.ignored) == ("DCP", "app.model", ("optim",))
    assert makers.read_all(checkpoint) == makers.expected(torch.load(ranks / f"fsdp_{step}.pt"))


def test_what_four_ranks_sharded_is_put_together(ranks: Path) -> None:
    """Rectangles become parts, in the order of their offsets; a tensor in one chunk has no parts."""
    with closing(makers.open_file(ranks / "run/ckpt-100").index) as index:
        found = {extent.layout.name: extent for extent in index}
    parts = {name: [part.origin for part in extent.layout.parts] for name, extent in found.items()}
    assert parts["rows"] == [(0, 0), (2, 0), (4, 0), (6, 0)]
    assert parts["rows.uneven"] == [(0, 0), (2, 0), (4, 0), (6, 0)]
    assert parts["rows.few"] == [(0, 0), (1, 0)]
    assert parts["columns"] == [(0, 0), (0, 2), (0, 4), (0, 6)]
    assert parts["grid"] == [(0, 0), (0, 5), (3, 0), (3, 5)]
    assert parts["hybrid"] == [(0, 0), (3, 0)]
    for name in ("replicated", "replicated.scalar", "plain", "plain.empty"):
        assert isinstance(found[name], Extent)


def test_checkpoints_of_a_run_share_their_layout(ranks: Path) -> None:
    """Equal lists of rectangles are stored once; each checkpoint has its own locations, and so its own tensors."""
    pool = LayoutPool()
    checkpoints = [open_checkpoint(ranks / f"run/ckpt-{step}", pool=pool) for step in STEPS]
    assert len({id(checkpoint.index.layouts) for checkpoint in checkpoints}) == 1
    for checkpoint, step in zip(checkpoints, STEPS, strict=True):
        assert makers.read_all(checkpoint) == makers.expected(full_tensors(step))


@pytest.mark.parametrize("layout", ["run", "titan", "pieces", "fsdp"])
def test_the_average_is_the_fold(ranks: Path, ema_avg: Run, tmp_path: Path, layout: str) -> None:
    """The command line finds the folders of a run, orders them by step and averages them like a float64 reference."""
    steps = ["--steps", "100,200,300"] if layout == "pieces" else []
    folders = sorted((ranks / layout).iterdir())
    done = ema_avg(*folders, "--decay", DECAY, "-o", "ema.safetensors", *steps)
    assert done.returncode == 0, done.stderr
    if layout == "fsdp":
        series = [torch.load(ranks / f"fsdp_{step}.pt") for step in STEPS]
    else:
        series = [full_tensors(step) for step in STEPS]
    expected = fold(series)
    found = load_file(tmp_path / "ema.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert makers.tensor_bytes(found[name]) == makers.tensor_bytes(tensor), name


def test_planning_needs_neither_torch_nor_numpy(ranks: Path) -> None:
    """The structure of such a folder is read with the standard library."""
    code = (
        "import sys, ema_cli; plan = ema_cli.plan(sys.argv[1:], decay=0.5, probe=False); assert len(plan.tensors) > 4;"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert run_python(code, *map(str, sorted((ranks / "run").iterdir()))) == "[]"


def test_every_kind_of_tensor_of_one_process(tmp_path: Path) -> None:
    """Every element type and memory layout, compared with what torch loads."""
    kinds = {name: tensor for name, tensor in makers.every_kind().items() if type(tensor) is torch.Tensor}
    folder = dcp_makers.save(tmp_path / "ckpt", {"model": kinds})
    assert makers.read_file(folder) == makers.expected(kinds)
    loaded = dcp_makers.load(folder, kinds, "model")
    assert makers.read_file(folder) == makers.expected(loaded)


def test_strides_are_kept(tmp_path: Path) -> None:
    """A transposed tensor is stored in the order that it had in memory."""
    folder = dcp_makers.save(tmp_path / "ckpt", {"t": torch.arange(6.0).reshape(2, 3).t()})
    with closing(makers.open_file(folder).index) as index:
        assert makers.whole(index.extent(0)).layout.strides == (1, 3)


def test_tied_tensors_are_stored_twice(tmp_path: Path) -> None:
    """Torch writes a shared tensor once per name; both are read."""
    shared = torch.randn(3)
    folder = dcp_makers.save(tmp_path / "ckpt", {"model": {"a": shared, "b": shared}})
    assert makers.read_file(folder) == makers.expected({"a": shared, "b": shared})


def test_one_file_per_item(tmp_path: Path) -> None:
    """The writer may put every item into a file of its own."""
    state = {"a": torch.randn(3), "b": torch.randn(4), "step": 7}
    folder = dcp_makers.save(tmp_path / "ckpt", state, single_file_per_rank=False)
    assert len(list(folder.glob("*.distcp"))) == 3
    assert makers.read_file(folder) == makers.expected({"a": state["a"], "b": state["b"]})  # type: ignore[dict-item]


def test_archives_that_look_alike_and_are_not(tmp_path: Path) -> None:
    """Chunks of one size, type and shape may have different strides: each is read by its own."""
    plain = torch.randn(4, 4)
    tensors = {"plain": plain, "turned": torch.randn(4, 4).t(), "again": torch.randn(4, 4)}
    folder = dcp_makers.save(tmp_path / "ckpt", tensors)
    assert makers.read_file(folder) == makers.expected(tensors)


def test_large_chunks_are_located_by_their_ends(tmp_path: Path) -> None:
    """Chunks that are too large to be read whole, remembered and compared by their first bytes."""
    tensors = {f"w{number}": torch.randn(100, 101) for number in range(3)}
    assert makers.read_file(dcp_makers.save(tmp_path / "ckpt", tensors)) == makers.expected(tensors)


MODEL = {"w": torch.ones(2, 3), "b": torch.zeros(2)}


@dataclass
class TrainState:
    """Entries that count the progress of a trainer."""

    step: int


@pytest.mark.parametrize(
    ("state", "key", "ignored"),
    [
        ({**MODEL}, "", ()),
        ({"model": MODEL}, "model", ()),
        ({"model": MODEL, "optimizer": {"state": MODEL}, "step": 3}, "model", ("optimizer", "step")),
        ({"app": {"model": MODEL, "optim": MODEL}}, "app.model", ("optim",)),
        ({"state_dict": MODEL, "extra": [1, 2]}, "state_dict", ("extra",)),
        ({**MODEL, "optimizer": {"w": MODEL["w"]}, "train_state": {"step": torch.tensor(3)}}, "", None),
        ({**MODEL, "optimizer.w.exp_avg": MODEL["w"], "lr_scheduler.last_epoch": 3}, "", None),
    ],
    ids=["flat", "model", "trainer", "app", "state_dict", "titan", "flattened"],
)
def test_the_weights_are_found(tmp_path: Path, state: Any, key: str, ignored: tuple[str, ...] | None) -> None:
    """Nested states are read as they were saved; the optimizer's tensors are excluded by name."""
    folder = dcp_makers.save(tmp_path / "ckpt", state)
    checkpoint = makers.open_file(folder)
    assert checkpoint.key == key
    assert ignored is None or checkpoint.ignored == ignored
    assert makers.read_all(checkpoint) == makers.expected(MODEL)


def test_numbers_among_the_weights_are_missed(tmp_path: Path) -> None:
    """As in a file: numbers and arrays that are not tensors are named; text, whole numbers and extra state are not."""
    model = {
        "w": torch.ones(4, 3),
        "scale": 0.07,
        "centers": [1.0, 2.0],
        "freq": np.ones(3),
        "depth": 3,
        "name": "net",
        "none": None,
        "fc._extra_state": io.BytesIO(b"scales"),
    }
    found = makers.open_file(
        dcp_makers.save(tmp_path / "ckpt_1", {"model": model, "lr": 0.1, "optimizer": {"lr": 0.1}})
    )
    found.index.close()
    assert [warning.message.partition(" among")[0] for warning in found.dropped] == [
        "1 numpy array",
        "1 number",
        "1 list of numbers",
    ]
    assert found.dropped[1].message.endswith('"scale"')


def test_flat_saves_without_paths(small: Path) -> None:
    """Planners that flatten by themselves write no paths: the optimizer's parts are recognized by their names."""

    def forget(metadata: Any) -> None:
        metadata.planner_data = None

    dcp_makers.edit_metadata(small, forget)
    checkpoint = makers.open_file(small)
    assert set(makers.read_all(checkpoint)) == {"model.w", "model.b"}
    assert checkpoint.ignored == ("optimizer", "step")


@pytest.mark.parametrize("flat", [True, False])
def test_an_average_of_the_trainer_is_no_weight(tmp_path: Path, flat: bool, ema_avg: Run) -> None:
    """The average of torchtitan is skipped, stated, and chosen by ``--key`` with the names of the weights."""
    series = []
    for step in STEPS:
        model = {name: tensor + step for name, tensor in MODEL.items()}
        ema = {f"state.{name}.ema_params": 2 * tensor for name, tensor in model.items()}
        other = {f"ema_optimizer.{name}": tensor for name, tensor in ema.items()} if flat else {"ema_optimizer": ema}
        moments = {f"state.{name}.exp_avg": tensor for name, tensor in model.items()}
        state = {**model, **other, "optimizer": moments, "train_state": {"step": torch.tensor(step)}}
        dcp_makers.save(tmp_path / f"run/step-{step}", state)
        series.append(model)
    checkpoint = makers.open_file(tmp_path / "run/step-100")
    assert 'not used: "ema_optimizer" (by its name an average)' in checkpoint.choice[0]
    assert makers.read_all(checkpoint) == makers.expected(series[0])
    for key, factor in (((), 1), (("--key", "ema_optimizer"), 2)):
        done = ema_avg("run", "--decay", "0.75", "-o", "out.safetensors", "--force", *key)
        assert done.returncode == 0, done.stderr
        assert "(weights-" not in done.stderr
        found = load_file(tmp_path / "out.safetensors")
        expected = fold([{name: factor * tensor for name, tensor in model.items()} for model in series])
        assert {name: tensor.tolist() for name, tensor in found.items()} == {
            name: tensor.tolist() for name, tensor in expected.items()
        }


def test_several_keys_read_several_models(tmp_path: Path) -> None:
    """Each model has its key in front of its names, and loses its own prefix."""
    state = {
        "generator": {"module.w": torch.ones(2)},
        "critic": {"w": torch.zeros(2)},
        "optimizer": {"w": torch.ones(2)},
    }
    folder = dcp_makers.save(tmp_path / "ckpt", state)
    checkpoint = makers.open_file(folder, key=("generator", "critic"), strip_prefix=None)
    assert (checkpoint.key, checkpoint.stripped) == ("generator, critic", ("module.",))
    wanted = {"generator.w": torch.ones(2), "critic.w": torch.zeros(2)}
    assert makers.read_all(checkpoint) == makers.expected(wanted)


def test_key_chooses(tmp_path: Path) -> None:
    """``--key`` selects any dictionary of the state; a key that does not exist is reported."""
    state = {"generator": {"w": torch.ones(2)}, "critic": {"w": torch.zeros(2)}}
    folder = dcp_makers.save(tmp_path / "ckpt", state)
    assert makers.read_file(folder, key="critic") == makers.expected(state["critic"])
    with pytest.raises(InputRefused, match="holds several models"):
        makers.open_file(folder)
    with pytest.raises(UsageError, match="no tensors under --key"):
        makers.open_file(folder, key="judge")


@pytest.mark.parametrize(
    ("others", "step", "source"),
    [
        ({"step": 1234}, 1234, "step"),
        ({"global_step": 7, "epoch": 2}, 7, "global_step"),
        ({"iteration": torch.tensor(50)}, 50, "iteration"),
        ({"step": np.int64(12)}, 12, "step"),
        ({"train_state": {"step": torch.tensor(5, dtype=torch.int32)}}, 5, "train_state.step"),
        ({"train_state": TrainState(step=8)}, 8, "train_state.step"),
        ({"step": 0.5}, None, ""),
        ({"step": "many"}, None, ""),
        ({}, None, ""),
    ],
)
def test_steps_are_found(tmp_path: Path, others: dict[str, object], step: int | None, source: str) -> None:
    """A step is a pickled object, or a tensor of one number."""
    folder = dcp_makers.save(tmp_path / "ckpt", {"model": MODEL, **others})
    with closing(makers.open_file(folder).index):
        steps = makers.open_file(folder).steps
    if step is None:
        assert steps == ()
    else:
        assert (steps[0].value, steps[0].source) == (step, f"inside: {source}")


def test_unreadable_tensors_are_reported_only_if_selected(tmp_path: Path) -> None:
    """A tensor of a type that cannot be averaged is listed, and the others are read."""
    folder = dcp_makers.save(tmp_path / "ckpt", {"w": torch.ones(2), "z": torch.ones(2, dtype=torch.complex128)})
    checkpoint = makers.open_file(folder)
    assert [name for name, _ in checkpoint.unreadable] == ["z"]
    assert set(makers.read_all(checkpoint)) == {"w"}


def test_damaged_data_is_found_while_folding(small: Path, ema_avg: Run) -> None:
    """The checksum of each chunk's archive is compared while it is read."""
    data = bytearray((small / "__0_0.distcp").read_bytes())
    place = data.index(np.arange(12, dtype=np.float32).tobytes())
    data[place + 5] ^= 1
    (small / "__0_0.distcp").write_bytes(data)
    done = ema_avg(small, "--decay", 0.5, "-o", "ema.safetensors")
    assert done.returncode == 3
    assert "checksum" in done.stderr


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_memory_does_not_grow_with_the_shards(tmp_path: Path, ema_avg: Run, axis: int) -> None:
    """Two checkpoints of one tensor of 64 MB, in two shards by rows or by columns, are folded in far less memory."""
    series = [in_two(tmp_path / f"ckpt-{number}", axis, (4096, 4096), number) for number in (1, 2)]
    done = ema_avg("ckpt-1", "ckpt-2", "--decay", DECAY, "-o", "ema.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["peak_memory_bytes"] < 80_000_000
    with safe_open(tmp_path / "ema.safetensors", "pt") as written:
        assert torch.equal(written.get_tensor("w"), fold([{"w": one} for one in series])["w"])


def test_saves_of_one_run_have_one_digest(tmp_path: Path) -> None:
    """Metadata that declare the same are parsed once, whatever the folders and the saves are called."""
    names = ("ckpt-9", "ckpt-100", "a/b/c")
    folders = [dcp_makers.save(tmp_path / name, {"model": MODEL, "step": number}) for number, name in enumerate(names)]
    raw = [(folder / ".metadata").read_bytes() for folder in folders]
    assert len(set(raw)) == 3
    assert len(set(map(items_digest, raw))) == 1
    other = dcp_makers.save(tmp_path / "other", {"model": {**MODEL, "c": torch.ones(1)}})
    assert items_digest((other / ".metadata").read_bytes()) != items_digest(raw[0])
    again, newer = (
        items_digest((dcp_makers.edit_metadata(folders[0], set_all(version=version)) / ".metadata").read_bytes())
        for version in ("1.0.0", "2.0.0")
    )
    assert again != newer


Rectangles = list[tuple[tuple[int, ...], tuple[int, ...]]]


@st.composite
def cut_up(draw: st.DrawFn) -> tuple[tuple[int, ...], Rectangles]:
    """Cut a tensor by straight cuts, again and again."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    pieces: Rectangles = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 8))):
        origin, sizes = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        cut = draw(st.integers(0, sizes[axis]))
        low = (*sizes[:axis], cut, *sizes[axis + 1 :])
        high = (*sizes[:axis], sizes[axis] - cut, *sizes[axis + 1 :])
        pieces += [(origin, low), ((*origin[:axis], origin[axis] + cut, *origin[axis + 1 :]), high)]
    return shape, draw(st.permutations(pieces))


@given(cut_up())
def test_what_is_cut_up_tiles(made: tuple[tuple[int, ...], Rectangles]) -> None:
    """Whatever straight cuts make of a tensor is accepted, pieces without elements too."""
    check_tiling(*made)


@given(cut_up(), st.data())
def test_what_does_not_tile_is_refused(made: tuple[tuple[int, ...], Rectangles], data: st.DataObject) -> None:
    """A piece that is moved, resized, dropped or doubled is found, as counting the pieces of each element finds it."""
    shape, pieces = made
    number = data.draw(st.integers(0, len(pieces) - 1))
    sizes = st.tuples(*[st.integers(0, size) for size in shape])
    pieces[number : number + data.draw(st.integers(0, 1))] = data.draw(st.lists(st.tuples(sizes, sizes), max_size=2))
    count = np.zeros(shape, dtype=int)
    inside = True
    for origin, extent in pieces:
        inside &= 0 in extent or all(a + b <= whole for a, b, whole in zip(origin, extent, shape, strict=True))
        count[tuple(slice(a, a + b) for a, b in zip(origin, extent, strict=True))] += 1
    if inside and (count == 1).all():
        check_tiling(shape, pieces)
    else:
        with pytest.raises(InputRefused):
            check_tiling(shape, pieces)


def test_tiling_is_bounded_work() -> None:
    """Half a million columns are checked, and overlaps among 5,000 pieces are refused, in little time."""
    columns: Rectangles = [((0, number), (3, 1)) for number in range(500_000)]
    check_tiling((3, 500_000), columns)
    steps: Rectangles = [((number, number), (1, 100)) for number in range(5_000)]
    with pytest.raises(InputRefused):
        check_tiling((5_000, 5_100), [*steps, ((0, 0), (5_000, 5_000))])


# Refusals, each with its reason.


def refusal(path: Path) -> str:
    """Return why a checkpoint is refused."""
    with pytest.raises(InputRefused) as refused:
        makers.open_file(path)
    return f"{refused.value.message} | {refused.value.hint}"


def test_a_save_that_did_not_finish(small: Path) -> None:
    """The metadata is written last."""
    (small / ".metadata").rename(small / ".metadata.tmp")
    assert "has no .metadata, which is written last" in refusal(small)
    (small / "__0.metadata").touch()
    assert "metadata of single ranks" in refusal(small)


def test_missing_and_short_files(small: Path) -> None:
    """A file is missing or too short."""
    data = (small / "__0_0.distcp").read_bytes()
    (small / "__0_0.distcp").write_bytes(data[:-1500])
    assert '"__0_0.distcp" has' in refusal(small)
    (small / "__0_0.distcp").unlink()
    assert "is missing: the folder is incomplete" in refusal(small)


def place_of(metadata: Any, name: str = "model.w") -> Any:
    """Return the location of a tensor with one chunk."""
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def chunks_of(metadata: Any, name: str = "model.w") -> Any:
    """Return the chunks of a tensor."""
    return metadata.state_dict_metadata[name].chunks


def set_place(**fields: object) -> dcp_makers.Edit:
    """Change the location of a tensor."""
    return lambda metadata: vars(place_of(metadata)).update(fields)


def set_chunk(**fields: object) -> dcp_makers.Edit:
    """Change the rectangle of a tensor's only chunk."""
    return lambda metadata: vars(chunks_of(metadata)[0]).update(fields)


def set_tensor(**fields: object) -> dcp_makers.Edit:
    """Change the declaration of a tensor."""
    return lambda metadata: vars(metadata.state_dict_metadata["model.w"]).update(fields)


def set_all(**fields: object) -> dcp_makers.Edit:
    """Change the metadata as a whole."""

    def edit(metadata: Any) -> None:
        for name, value in fields.items():
            setattr(metadata, name, value)

    return edit


def same_bytes(metadata: Any) -> None:
    """Put two tensors in one place."""
    set_place(**vars(place_of(metadata, "model.b")))(metadata)


def two_places(metadata: Any) -> None:
    """Add a second location of a chunk."""
    index = torch_metadata.MetadataIndex("model.w", torch.Size([0, 0]))
    other = torch_metadata.MetadataIndex("model.w", torch.Size([9, 9]))
    metadata.storage_data = {index: place_of(metadata), other: place_of(metadata), **metadata.storage_data}
    vars(other)["offset"] = torch.Size([0, 0])


def lost_place(metadata: Any) -> None:
    """Drop the location of a tensor."""
    metadata.storage_data = {key: place for key, place in metadata.storage_data.items() if key.fqn != "model.w"}


def inside_itself(metadata: Any) -> None:
    """Make the metadata contain itself."""
    metadata.state_dict_metadata["model.w"] = metadata.state_dict_metadata


def other_dtype(metadata: Any) -> None:
    """Declare another type than is stored."""
    metadata.state_dict_metadata["model.w"].properties.dtype = torch.int32


def object_for_tensor(metadata: Any) -> None:
    """Point from a tensor to the step."""
    info = place_of(metadata, "step")
    vars(place_of(metadata)).update(vars(info))
    metadata.storage_data = {key: place for key, place in metadata.storage_data.items() if key.fqn != "step"}
    del metadata.state_dict_metadata["step"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_place(relative_path="../other.distcp"), "which is not a name in this folder"),
        (set_place(relative_path="/etc/passwd"), "which is not a name in this folder"),
        (set_place(relative_path=7), "invalid byte range"),
        (set_place(offset=-1), "invalid byte range"),
        (set_place(offset=1 << 70), "invalid byte range"),
        (set_place(length=0), "invalid byte range"),
        (set_place(length=True), "invalid byte range"),
        (set_place(length=1 << 60), "in the same bytes"),
        (set_place(length=100), "truncated or damaged"),
        (set_place(transform_descriptors=["zstd"]), 'behind a stream extension \\("zstd"\\)'),
        (set_chunk(offsets=torch.Size([1, 0])), "outside its shape"),
        (set_chunk(sizes=torch.Size([3, 5])), "outside its shape"),
        (set_chunk(sizes=torch.Size([2, 4])), "4 of its 12 elements are in no piece"),
        (set_chunk(sizes=(3, -4)), "damaged shape"),
        (set_chunk(sizes=(3,)), "outside its shape"),
        (set_chunk(sizes=[1] * 100), "damaged shape"),
        (lambda metadata: chunks_of(metadata).append(chunks_of(metadata)[0]), "pieces that overlap"),
        (lambda metadata: chunks_of(metadata).clear(), "12 of its 12 elements are in no piece"),
        (lambda metadata: chunks_of(metadata).extend(chunks_of(metadata) * 3_000_000), "exceeds the limit of"),
        (set_tensor(size=torch.Size([1 << 40, 1 << 40])), "elements are in no piece"),
        (set_tensor(size=(1 << 70,)), "damaged shape"),
        (set_tensor(size=None), "damaged shape"),
        (set_tensor(chunks=None), "no list of chunks"),
        (set_tensor(properties=None), "no element type"),
        (set_tensor(size=torch.Size([4, 3]), chunks=None), "no list of chunks"),
        (set_all(version="2.0.0"), 'its version is "2.0.0"'),
        (set_all(storage_data=None), "it has no storage_data"),
        (set_all(state_dict_metadata=[1]), "it has no state_dict_metadata"),
        (set_all(planner_data={"model.w": ("x",), "model.b": ("x",)}), "two items at the path"),
        (set_all(planner_data={"model.w": ("step",), "step": ("step", "x")}), "not a dictionary|two items"),
        (set_all(planner_data={"model.w": ("model", None)}), "not consist of names"),
        (
            set_all(mcore_data={"model.w": {"nd_reformulated_orig_global_shape": (12,)}}),
            "Megatron stored in a different",
        ),
        (same_bytes, "in the same bytes of"),
        (two_places, "twice at the same origin"),
        (lost_place, "has no bytes for"),
        (inside_itself, "a TensorStorageMetadata object is missing"),
        (other_dtype, "metadata declare"),
        (object_for_tensor, "does not hold a tensor"),
        (lambda _: {"just": "a dictionary"}, "a Metadata object is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(small: Path, edit: Callable[[Any], object], reason: str) -> None:
    """Every number of the metadata is checked against the others and against the bytes of the files."""
    dcp_makers.edit_metadata(small, edit)
    with pytest.raises(InputRefused, match=reason):
        makers.open_file(small)


def test_an_unknown_kind_names_the_official_conversion(small: Path) -> None:
    """Torch may still be able to convert what cannot be read here."""
    dcp_makers.edit_metadata(small, set_all(version="9"))
    assert HINT in refusal(small)


def test_other_serializations_are_refused(tmp_path: Path) -> None:
    """Torch can also write safetensors into .distcp files, where not even torch finds the tensors."""
    from torch.distributed.checkpoint.filesystem import SerializationFormat  # noqa: PLC0415 - of newer torch

    options = {"serialization_format": SerializationFormat.SAFETENSORS}
    folder = dcp_makers.save(tmp_path / "ckpt", {"w": torch.ones(2, 3), "b": torch.ones(30)}, **options)
    assert "SerializationFormat.TORCH_SAVE" in refusal(folder)
    folder = dcp_makers.save(tmp_path / "single", {"w": torch.ones(2, 3)}, **options)
    assert "not a torch.save archive" in refusal(folder)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_nothing_in_the_metadata_is_run(small: Path, tmp_path: Path) -> None:
    """A command in the metadata, which torch would run, is not run; sound metadata around it is read as usual."""
    canary = tmp_path / "canary"
    dcp_makers.edit_metadata(small, lambda _: Payload(f"touch {canary}"))
    assert "a Metadata object is missing" in refusal(small)
    raw = (small / ".metadata").read_bytes()
    assert not canary.exists()
    pickle.loads(raw)
    assert canary.exists()


def test_nothing_in_an_object_is_run(tmp_path: Path) -> None:
    """A command in the object under ``step``."""
    canary = tmp_path / "canary"
    folder = dcp_makers.save(tmp_path / "ckpt", {"model": MODEL, "step": Payload(f"touch {canary}")})
    assert makers.open_file(folder).steps == ()
    assert not canary.exists()


def test_damaged_pickles(small: Path) -> None:
    """Metadata that ends early, is empty, or is no pickle."""
    raw = (small / ".metadata").read_bytes()
    for damaged in (b"", raw[:-1], raw[: len(raw) // 2], b"not a pickle"):
        (small / ".metadata").write_bytes(damaged)
        assert "damaged .metadata" in refusal(small)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its metadata damaged again and again."""
    state = {"model": {"w": torch.ones(3, 4), "b": torch.ones(3)}, "optimizer": {"w": torch.ones(3)}, "step": 12}
    folder = dcp_makers.save(tmp_path_factory.mktemp("victim") / "ckpt", state)
    shutil.copy(folder / ".metadata", folder / "sound")
    return folder


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(victim: Path, data: st.DataObject) -> None:
    """Bytes of real metadata are changed: the folder is refused, or the bytes of its files are read."""
    raw = bytearray((victim / "sound").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (victim / ".metadata").write_bytes(raw)
    try:
        checkpoint = makers.open_file(victim)
    except EmaAvgError:
        return
    assert makers.read_all(checkpoint) or checkpoint.unreadable


# Pieces in safetensors.


def test_a_rank_alone_is_refused(ranks: Path) -> None:
    """One rank's file is a part of every tensor. Its header states it; the first rank's shows it only by its name."""
    for file in sorted((ranks / "pieces/step-100").iterdir()):
        assert "holds pieces of tensors" in refusal(file)


def test_renamed_pieces_are_refused(ranks: Path, tmp_path: Path) -> None:
    """Pieces under the names of whole shards are known by their metadata, with an index or without."""
    for number in (1, 2):
        source = ranks / f"pieces/step-100/shard-00002-model-0000{number}-of-00002.safetensors"
        shutil.copy(source, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert "holds pieces of tensors" in refusal(tmp_path)


def test_an_index_next_to_pieces_changes_nothing(ranks: Path, tmp_path: Path) -> None:
    """The header of each piece names its tensor."""
    folder = tmp_path / "ckpt"
    shutil.copytree(ranks / "pieces/step-100", folder)
    names = sorted(path.name for path in folder.iterdir())
    index = {"weight_map": dict.fromkeys(full_tensors(100), names[0])}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert makers.read_file(folder) == makers.expected(full_tensors(100))


def test_whole_tensors_of_the_same_writer(tmp_path: Path) -> None:
    """The writer marks whole tensors as it marks pieces; they are read, as a folder and as a file."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # noqa: PLC0415 - of newer torch

    folder = tmp_path / "ckpt"
    dcp_makers.save_with(HuggingFaceStorageWriter(str(folder)), MODEL)
    assert makers.read_file(folder) == makers.expected(MODEL)
    assert makers.read_file(next(folder.glob("*.safetensors"))) == makers.expected(MODEL)


def test_a_missing_rank_leaves_a_hole(ranks: Path, tmp_path: Path) -> None:
    """Without the second rank's files some rows are in no file."""
    folder = tmp_path / "ckpt"
    shutil.copytree(ranks / "pieces/step-100", folder)
    for file in folder.glob("shard-00002-*"):
        file.unlink()
    message = refusal(folder)
    assert 'tensor "rows" is incomplete: 6 of its 24 elements are in no piece' in message
    assert "files of all ranks" in message


def test_key_does_not_apply_to_pieces(ranks: Path) -> None:
    """Safetensors files are flat."""
    with pytest.raises(InputRefused, match="--key does not apply"):
        makers.open_file(ranks / "pieces/step-100", key="model")


def test_mosaics_know_their_tiles(ranks: Path) -> None:
    """A tensor in pieces is a mosaic of tiles from the files of several ranks."""
    with closing(makers.open_file(ranks / "pieces/step-100").index) as index:
        located = {extent.layout.name: extent for extent in index}
    rows = located["rows"]
    assert isinstance(rows, Mosaic)
    assert len({tile.source.name for _, tile in rows.tiles}) == 4
