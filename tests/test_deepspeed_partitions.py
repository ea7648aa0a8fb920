"""DeepSpeed's partitions: the weights in the files of all ranks are read as DeepSpeed's own script joins them."""

from __future__ import annotations

import math
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import EmaAvgError, InputRefused, UsageError
from ema_cli.events import Progress
from ema_cli.fold import integrity
from ema_cli.fold.file_blocks import FileBlocks
from ema_cli.fold.schedule import Block
from ema_cli.formats.deepspeed.partitions import JoinedParameters, PieceTable, SplitParameters
from ema_cli.formats.open import open_checkpoint
from ema_cli.options.average import make_options
from ema_cli.pipeline import run_average
from ema_cli.storage.extents import Chain, LayoutPool
from ema_cli.storage.source import ByteSource
from tests.helpers.deepspeed_files import PADDING, Training, write_stage_2, write_stage_3
from tests.helpers.makers import expected, open_file, read_all, read_file
from tests.helpers.program import Run
from tests.helpers.series import load

RANKS = (1, 2, 3, 7)
Change = Callable[[dict[str, Any]], None]


def training(step: int = 100, seed: int = 0, **others: Any) -> Training:
    """Return a training with odd sizes, a scalar, two parameter groups, buffers, frozen and tied parameters."""
    torch.manual_seed(seed)
    groups = [
        {"embed.weight": torch.randn(11, 7), "scale": torch.randn(()), "deep.weight": torch.randn(3, 5, 2)},
        {"embed.bias": torch.randn(11), "deep.bias": torch.randn(1)},
    ]
    defaults: dict[str, Any] = {
        "groups": groups,
        "buffers": {"norm.running_mean": torch.randn(5), "norm.count": torch.tensor(4)},
        "frozen": {"old.weight": torch.randn(3, 3), "old.empty": torch.randn(0)},
        "shared": {"head.weight": "embed.weight"},
    }
    return Training(step=step, **{**defaults, **others})


def refusal(folder: Path, key: str | tuple[str, ...] = ()) -> InputRefused:
    """Return why a folder is refused."""
    with pytest.raises(InputRefused) as refused:
        open_file(folder, key=key)
    return refused.value


def change(path: Path, edit: Change) -> None:
    """Save a file of a rank again, with other values."""
    states = torch.load(path, weights_only=False)
    edit(states)
    torch.save(states, path)


def optimizer(folder: Path, rank: int, edit: Change) -> None:
    """Change the optimizer states of a rank."""
    (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    change(path, lambda states: edit(states["optimizer_state_dict"]))


def model(folder: Path, rank: int, edit: Change) -> None:
    """Change the model states of a rank."""
    change(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", edit)


# What is read


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("per_flat", [0, 1, 2])
def test_stage_3(ranks: int, per_flat: int, tmp_path: Path) -> None:
    """Every parameter is put together from the flat tensors of all ranks, without their padding."""
    trained = training()
    found = open_file(write_stage_3(tmp_path / "global_step100", trained, ranks, per_flat=per_flat))
    assert found.format == f"DeepSpeed ZeRO-3, {ranks} rank{'s' if ranks > 1 else ''}"
    assert (found.key, found.steps[0].value) == ("fp32", 100)
    assert found.ties == {"head.weight": "embed.weight"}
    assert found.second_copy == ""
    assert read_all(found) == expected(trained.whole)


class Stage:
    """A member of DeepSpeed's enumeration of stages, which Python pickles by its number or by its name."""

    def __init__(self, how: object, which: object) -> None:
        self.how, self.which = how, which

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.how, (Stage, self.which)) if self.how is getattr else (self.how, (self.which,))


@pytest.mark.parametrize("stage", [Stage(getattr, "weights"), Stage(Stage, 3)], ids=["name", "number"])
def test_a_stage_is_an_enumeration(stage: Stage, tmp_path: Path) -> None:
    """Python 3.11.0 to 3.11.3 pickle a member of an enumeration as ``getattr`` with its name, others as its number."""
    trained = training()
    folder = write_stage_3(tmp_path / "global_step100", trained, 2)
    for rank in range(2):
        optimizer(folder, rank, lambda states: states.update(zero_stage=stage))
    assert read_all(open_file(folder)) == expected(trained.whole)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    "options",
    [{}, {"stage": 1, "kind": "zero"}, {"stage": 0, "padded": True}, {"alignment": 8}, {"kind": "fp16_zero"}],
)
def test_stages_1_and_2_by_key(ranks: int, options: dict[str, Any], tmp_path: Path) -> None:
    """With ``--key fp32`` the float32 vectors are cut into parameters, with every alignment; else "module" is read."""
    trained = training()
    folder = write_stage_2(tmp_path / "global_step100", trained, ranks, **options)
    found = open_file(folder, key="fp32")
    assert found.format.startswith(f"DeepSpeed ZeRO-{options.get('stage', 2) or 1}, {ranks} rank")
    assert found.choice[0].startswith("the weights are the float32 partitions in")
    assert found.second_copy == '"module" in "mp_rank_00_model_states.pt"'
    assert read_all(found) == expected(trained.whole)
    halves = {name: one.bfloat16() if one.is_floating_point() else one for name, one in trained.whole.items()}
    plain = open_file(folder)
    assert "in bfloat16; --key fp32 takes the float32 partitions in" in "".join(plain.choice)
    assert read_all(plain).keys() == halves.keys()
    plain = open_file(folder, key="module")
    assert read_all(plain)["deep.weight"] == expected(halves)["deep.weight"]


def test_a_model_in_float32_needs_no_note(tmp_path: Path) -> None:
    """If the model is in float32, its weights are those of the partitions."""
    folder = write_stage_2(tmp_path / "global_step1", training(dtype=torch.float32), 2, kind="zero")
    found = open_file(folder)
    found.index.close()
    assert not any("--key fp32" in note for note in found.choice)


shapes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(shapes, min_size=1, max_size=3), ranks=st.integers(1, 9), per_flat=st.integers(0, 3))
def test_any_shapes_and_ranks(
    groups: list[list[tuple[int, ...]]], ranks: int, per_flat: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever shapes, groups and ranks there are, the elements are found in their order."""
    numbers = iter(range(10**6))
    trained = Training(
        groups=[
            {
                f"{g}.{p}": torch.tensor([float(next(numbers)) for _ in range(math.prod(shape))]).reshape(shape)
                for p, shape in enumerate(group)
            }
            for g, group in enumerate(groups)
        ]
    )
    if sum(tensor.numel() for tensor in trained.trained.values()) == 0:
        return
    folder = tmp_path_factory.mktemp("any")
    assert read_file(write_stage_3(folder / "3", trained, ranks, per_flat=per_flat)) == expected(trained.whole)
    assert read_file(write_stage_2(folder / "2", trained, ranks), key="fp32") == expected(trained.whole)
    shutil.rmtree(folder)


def test_a_parameter_across_two_flat_tensors() -> None:
    """If the flat tensors of a rank end inside a parameter, its part continues in the next one."""
    table = PieceTable()
    split = SplitParameters([3, 0, 4], 2)
    assert split.take(4, table) == (0, 2)
    assert split.take(9, table) == (0, 1, 5, 6)  # five elements per rank: one in the first tensor, four in the third
    assert list(table.slots) == [0, 3, 0, 2, 3, 5]
    assert list(table.starts) == [0, 0, 2, 0, 2, 0]
    split.finish()


def test_links_are_shared_and_counted() -> None:
    """Parameters of one size have one list of links; the number of pieces is limited."""
    table = PieceTable()
    split = SplitParameters([10**9], 1000)
    links = [split.take(5000, table) for _ in range(3)]
    assert links[0] is links[1] is links[2]
    for _ in range(5997):
        split.take(1000, table)
    with pytest.raises(InputRefused, match="in more than 6,000,000 pieces"):
        split.take(1000, table)


def test_runs_of_elements(tmp_path: Path) -> None:
    """Any range of a tensor is read across the links that hold it."""
    whole = torch.arange(101.0)
    folder = write_stage_3(tmp_path / "global_step1", Training(groups=[{"w": whole}]), 7)
    checkpoint = open_file(folder)
    with closing(checkpoint.index) as index:
        chain = index.extent(0)
        assert isinstance(chain, Chain)
        for start in range(0, 101, 5):
            runs = list(chain.split(start, 101 - start))
            assert sum(count for *_, count in runs) == 101 - start
            raw = b"".join(link.source.read(link.offset + 4 * first, 4 * count) for link, first, count in runs)
            assert raw == whole[start:].numpy().tobytes()


@pytest.mark.parametrize("flat", [False, True])
def test_a_universal_checkpoint(flat: bool, tmp_path: Path) -> None:
    """A file per parameter, flat after stage 3; buffers, frozen and tied parameters are in the model states."""
    trained = training()
    folder = (write_stage_3 if flat else write_stage_2)(tmp_path / "global_step100", trained, 2)
    for path in folder.glob("*optim_states.pt"):
        path.unlink()
    for name, tensor in trained.trained.items():
        (folder / "zero" / name).mkdir(parents=True)
        torch.save(tensor.reshape(-1) if flat else {"param": tensor}, folder / "zero" / name / "fp32.pt")
    found = open_file(folder)
    assert (found.format, found.key, found.steps[0].value) == ("DeepSpeed universal, 5 files", "fp32", 100)
    assert read_all(found) == expected(trained.whole)
    assert read_file(folder, key="fp32") == expected(trained.whole)
    torch.save({"param": torch.zeros(3)}, folder / "zero" / "scale" / "fp32.pt")
    assert '"zero/scale/fp32.pt" holds a tensor of shape [3]' in refusal(folder).message
    torch.save({"other": 1}, folder / "zero" / "scale" / "fp32.pt")
    assert '"zero/scale/fp32.pt" holds no tensor' in refusal(folder).message
    (folder / "zero" / "scale" / "fp32.pt").unlink()
    assert '"zero/scale" has no "fp32.pt"' in refusal(folder).message
    (folder / "zero" / "scale").rmdir()
    assert 'it has no folder in "zero" of "scale"' in refusal(folder).message


# The program


@pytest.mark.parametrize(("write", "key"), [(write_stage_3, ()), (write_stage_2, ("--key", "fp32"))])
def test_a_run_is_averaged_and_verified(
    write: Callable[..., Path], key: tuple[str, ...], tmp_path: Path, ema_avg: Run
) -> None:
    """Of a run folder every checkpoint is found; the average is that of the whole tensors, and can be verified."""
    steps = (100, 200, 300)
    for step in steps:
        write(tmp_path / "run" / f"global_step{step}", training(step, seed=step), 3)
    (tmp_path / "run" / "latest").write_text("global_step300")
    (tmp_path / "run" / "zero_to_fp32.py").write_text("")
    done = ema_avg("run", "--decay", 0.5, *key, "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    first, second, third = (training(step, seed=step).whole for step in steps)
    found = load(tmp_path / "ema.safetensors")
    for name, tensor in found.items():
        average = 0.25 * first[name].double() + 0.25 * second[name].double() + 0.5 * third[name].double()
        assert torch.equal(tensor, average.to(third[name].dtype)), name
    assert ema_avg("verify", "ema.safetensors").returncode == 0
    again = ema_avg("run", "--decay", 0.5, *key, "-o", "ema.safetensors")
    assert "up to date" in again.stdout + again.stderr


def test_inspect_names_ranks_and_pieces(tmp_path: Path, ema_avg: Run) -> None:
    """People see the stage, the number of ranks, and that tensors are in pieces."""
    write_stage_3(tmp_path / "global_step5", training(), 4)
    shown = ema_avg("inspect", "global_step5").stdout
    assert "DeepSpeed ZeRO-3, 4 ranks" in shown
    assert "pieces   5 tensors in 19 pieces" in shown


def test_some_tensors_of_a_run(tmp_path: Path, ema_avg: Run) -> None:
    """``--include`` chooses by name; what cannot be read is refused only if it is wanted."""
    folder = write_stage_3(tmp_path / "global_step5", training(), 2)
    for rank in range(2):
        model(folder, rank, lambda states: states["module"].update({"lost.weight": torch.zeros(0)}))
    refused = ema_avg("global_step5", "--method", "uniform", "-o", "x.safetensors")
    assert refused.returncode == 3
    assert "empty placeholder" in refused.stderr
    done = ema_avg("global_step5", "--method", "uniform", "--include", "deep.*", "-o", "x.safetensors")
    assert done.returncode == 0, done.stderr
    assert sorted(load(tmp_path / "x.safetensors")) == ["deep.bias", "deep.weight"]


def test_other_numbers_of_ranks_in_one_run(tmp_path: Path) -> None:
    """A run that was continued on other machines has checkpoints of 2 and of 3 ranks, which are averaged."""
    states = []
    for step, ranks in ((100, 2), (200, 3)):
        write_stage_3(tmp_path / "run" / f"global_step{step}", training(step, seed=step), ranks)
        states.append(training(step, seed=step).whole)
    ema_cli.average(tmp_path / "run", method="uniform", output=tmp_path / "x.safetensors")
    found = load(tmp_path / "x.safetensors")
    assert torch.equal(
        found["embed.weight"], ((states[0]["embed.weight"].double() + states[1]["embed.weight"].double()) / 2).float()
    )


def test_blocks_in_one_link_and_across(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors are folded block by block, with the bytes of the whole tensors.

    The compiled kernel reads the blocks that are in one link itself; those across two are read link by link.
    """
    by_kernel: list[bool] = []
    average = FileBlocks.average

    def counted(self: FileBlocks, block: Block, *arguments: Any) -> Any:
        found = average(self, block, *arguments)
        if found is not None or block.parts == 1:  # several that cannot be folded together follow one by one
            by_kernel.append(found is not None)
        return found

    monkeypatch.setattr(FileBlocks, "average", counted)
    plain, split = tmp_path / "plain", tmp_path / "split"
    for step in (1, 2, 3):
        torch.manual_seed(step)
        trained = Training(groups=[{"w": torch.randn(700, 900), "b": torch.randn(3)}], step=step)
        write_stage_3(split / f"global_step{step}", trained, 3)
        plain.mkdir(exist_ok=True)
        torch.save({"model": trained.whole, "global_step": step}, plain / f"ckpt_{step}.pt")
    for run in (plain, split):  # three links of 210,000 elements, in blocks of 65,536
        ema_cli.average(run, decay=0.5, output=tmp_path / f"{run.name}.safetensors", max_memory="6MB", threads=1)
    assert not by_kernel or by_kernel.count(False) == 3  # two blocks across two links, and the small tensor
    one, other = (load(tmp_path / f"{run.name}.safetensors") for run in (plain, split))
    assert torch.equal(one["w"], other["w"])
    assert torch.equal(one["b"], other["b"])


def test_checkpoints_of_a_run_share_their_layout(tmp_path: Path) -> None:
    """Names, shapes and links are held once, and so are the numbers of the files."""
    pool = LayoutPool()
    found = [
        open_checkpoint(write_stage_3(tmp_path / f"global_step{step}", training(step), 3), pool=pool) for step in (1, 2)
    ]
    assert found[0].index.layouts is found[1].index.layouts
    assert found[0].index.places[1] is found[1].index.places[1]
    for one in found:
        one.index.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_damage_is_found(rank: int, tmp_path: Path) -> None:
    """A changed byte in a partition, or in the padding between two, is found by the checksum of its file."""
    trained = Training(groups=[{"w": torch.randn(101)}])
    folder = write_stage_3(tmp_path / "run" / "global_step1", trained, 2)
    path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    raw = bytearray(path.read_bytes())
    flat = torch.load(path, weights_only=False)["optimizer_state_dict"]["fp32_flat_groups"][0].numpy().tobytes()
    raw[raw.index(flat) + len(flat) - 1] ^= 1  # of the last rank, it is padding
    path.write_bytes(raw)
    with pytest.raises(EmaAvgError, match="is damaged"):
        ema_cli.average(folder, method="uniform", output=tmp_path / "x.safetensors")


def test_padding_is_read_for_the_checksum_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum of a partition includes its padding: only that is read in addition, not the partition again."""
    read: list[int] = []
    checksum = integrity._crc32_of

    def recorded(source: ByteSource, begin: int, end: int) -> int:
        read.append(end - begin)
        return checksum(source, begin, end)

    monkeypatch.setattr(integrity, "_crc32_of", recorded)
    trained = Training(groups=[{"a": torch.randn(1001), "b": torch.randn(50, 2), "c": torch.randn(11)}])
    folder = write_stage_3(tmp_path / "global_step1", trained, 3)
    ema_cli.average(folder, method="uniform", output=tmp_path / "x.safetensors")
    assert read == [4, 8, 4]  # one element after "a", two after "b", one after "c", on the last of three ranks


def test_a_partition_is_verified_whole_for_a_small_tensor(tmp_path: Path) -> None:
    """Damage in a part that is not wanted is found, too: the checksum is that of the whole partition."""
    trained = Training(groups=[{"a": torch.randn(1000), "b": torch.randn(10)}])
    folder = write_stage_3(tmp_path / "run" / "global_step1", trained, 1)
    path = folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    raw = bytearray(path.read_bytes())
    raw[raw.index(trained.groups[0]["a"].numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EmaAvgError, match="is damaged"):
        ema_cli.average(folder, method="uniform", include="b", output=tmp_path / "x.safetensors")


def test_a_run_of_partitions_is_resumed(tmp_path: Path) -> None:
    """An interrupted run is continued, and writes the same bytes."""
    for step in (1, 2):
        torch.manual_seed(step)
        trained = Training(groups=[{f"w{n}": torch.randn(30, 50) for n in range(6)}], step=step)
        write_stage_3(tmp_path / "run" / f"global_step{step}", trained, 3)

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.activity == "folding" and event.done_bytes == event.total_bytes:
            raise KeyboardInterrupt

    options = make_options(tmp_path / "run", decay=0.5, output=tmp_path / "x.safetensors", resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_average(options, stop)
    assert not (tmp_path / "x.safetensors").exists()
    assert run_average(options, lambda _: None).report.summary.resumed_tensors
    ema_cli.average(tmp_path / "run", decay=0.5, output=tmp_path / "y.safetensors")
    resumed, whole = load(tmp_path / "x.safetensors"), load(tmp_path / "y.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_checkpoint_of_another_training_is_found(tmp_path: Path, ema_avg: Run) -> None:
    """The weights are sampled across the links of large tensors: a checkpoint of another training is a warning."""
    torch.manual_seed(0)
    weights = torch.randn(300, 400)
    for step in range(1, 7):
        weights = torch.randn(300, 400) if step == 4 else weights + 0.01 * torch.randn(300, 400)
        write_stage_3(
            tmp_path / "run" / f"global_step{step}", Training(groups=[{"w": weights}], step=step), 2 + step % 2
        )
    done = ema_avg("run", "--decay", 0.5, "-o", "x.safetensors")
    assert "global_step4" in done.stderr, done.stderr
    assert "weights compared: not one series" in done.stderr


def test_a_copy_with_the_averages(tmp_path: Path) -> None:
    """``--format same``: the partitions of all ranks hold the averages, and so do the buffers of every rank."""
    for step in (100, 200):
        write_stage_3(tmp_path / "run" / f"global_step{step}", training(step, seed=step), 3, per_flat=2)
    ema_cli.average(tmp_path / "run", decay=0.5, format="same", output=f"{tmp_path}/averaged/")
    ema_cli.average(tmp_path / "run", decay=0.5, output=tmp_path / "x.safetensors")
    averages = load(tmp_path / "x.safetensors")
    found = read_file(tmp_path / "averaged")
    assert {name: found[name] for name in averages} == expected(averages)
    assert found["head.weight"] == found["embed.weight"]
    for path in (tmp_path / "run" / "global_step200").iterdir():
        with zipfile.ZipFile(tmp_path / "averaged" / path.name) as archive:
            assert archive.testzip() is None
        last, copy = (
            torch.load(folder / path.name, weights_only=False) for folder in (path.parent, tmp_path / "averaged")
        )
        if "module" in last:
            assert torch.equal(copy["module"]["norm.running_mean"], averages["norm.running_mean"])
            last["module"].pop("norm.running_mean")
            copy["module"].pop("norm.running_mean")
            assert last.pop("frozen_param_fragments").keys() == copy.pop("frozen_param_fragments").keys()
        else:
            flats = [one["optimizer_state_dict"].pop("fp32_flat_groups") for one in (last, copy)]
            assert not any(torch.equal(one, other) for one, other in zip(*flats, strict=True))
            assert path.name.startswith("zero_pp_rank_0") or flats[1][-1][-1] == PADDING
        assert pickle.dumps(to_lists(last)) == pickle.dumps(to_lists(copy))


def to_lists(value: Any) -> Any:
    """Return a value with lists in place of tensors."""
    if isinstance(value, dict):
        return {str(key): to_lists(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_lists(inner) for inner in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def test_a_copy_would_contradict_itself(tmp_path: Path) -> None:
    """Up to stage 2 the weights are there as a model and as partitions: averages in one of them are refused."""
    folder = write_stage_2(tmp_path / "run" / "global_step1", training(), 2)
    with pytest.raises(InputRefused, match=r'has the weights once more: "module" in .* would contradict them'):
        ema_cli.average(folder, method="uniform", key="fp32", format="same", output=f"{tmp_path}/averaged/")
    assert not (tmp_path / "averaged").exists()


def test_a_copy_would_change_something_else(tmp_path: Path) -> None:
    """If the flat tensor of a rank has its bytes in common with another tensor, that would change, too."""
    folder = write_stage_3(tmp_path / "run" / "global_step1", training(), 2)
    optimizer(folder, 1, lambda states: states.update(best=states["fp32_flat_groups"][0][:2]))
    with pytest.raises(InputRefused, match=r"optimizer_state_dict\.best"):
        ema_cli.average(folder, method="uniform", format="same", output=f"{tmp_path}/averaged/")


# What is refused


def test_missing_files_of_ranks(tmp_path: Path) -> None:
    """Without the partitions of all ranks there are no weights; the command of DeepSpeed joins them elsewhere."""
    folder = write_stage_3(tmp_path / "global_step100", training(), 4)
    (folder / "zero_pp_rank_3_mp_rank_00_model_states.pt").unlink()
    assert "has model states of 3 ranks, but optimizer states of 4 ranks" in refusal(folder).message
    (folder / "zero_pp_rank_3_mp_rank_00_optim_states.pt").unlink()
    assert '"zero_pp_rank_0_mp_rank_00_optim_states.pt" is one of 4 partitions' in refusal(folder).message
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    refused = refusal(folder)
    assert "of 2 ranks up to rank 2, but none of rank 1" in refused.message
    assert "zero_to_fp32" in refused.hint
    for path in folder.glob("*optim*"):
        path.unlink()
    assert "it has no optimizer states of the ranks" in refusal(folder).message
    stage_2 = write_stage_2(tmp_path / "global_step200", training(), 1)
    (stage_2 / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    assert "it has no optimizer states of the ranks" in refusal(stage_2, "fp32").message


def of_two_steps(folder: Path) -> None:
    """Let the optimizer of a rank be of another step."""
    optimizer(folder, 1, lambda states: states["optimizer_state_dict"]["state"][0].update(step=torch.tensor(200.0)))


def of_two_saves(folder: Path) -> None:
    """Let the model states of a rank be of another step."""
    model(folder, 1, lambda states: states.update(global_steps=200))


def of_other_parameters(folder: Path) -> None:
    """Let a rank have another model."""
    model(folder, 1, lambda states: states["param_shapes"].pop())


def of_two_types(folder: Path) -> None:
    """Let a rank have partitions in float64."""
    optimizer(
        folder, 1, lambda states: states.update(fp32_flat_groups=[x.double() for x in states["fp32_flat_groups"]])
    )


def of_other_sizes(folder: Path) -> None:
    """Let a rank have longer partitions."""
    longer: Change = lambda states: states.update(fp32_flat_groups=[x.repeat(2) for x in states["fp32_flat_groups"]])  # noqa: E731
    optimizer(folder, 1, longer)


def with_too_much(folder: Path) -> None:
    """Let all ranks have longer partitions than the parameters need, as within groups of ranks."""
    for rank in range(2):
        optimizer(folder, rank, lambda s: s.update(fp32_flat_groups=[x.repeat(2) for x in s["fp32_flat_groups"]]))


def with_too_little(folder: Path) -> None:
    """Let all ranks have shorter partitions."""
    for rank in range(2):
        optimizer(folder, rank, lambda s: s.update(fp32_flat_groups=[x[:3].clone() for x in s["fp32_flat_groups"]]))


def with_experts(folder: Path) -> None:
    """Let parameter groups be partitioned over different ranks."""
    optimizer(folder, 0, lambda states: states.update(partition_count=[2, 1]))


def with_a_matrix(folder: Path) -> None:
    """Let a flat tensor have two dimensions."""
    optimizer(folder, 0, lambda states: states.update(fp32_flat_groups=[x[None] for x in states["fp32_flat_groups"]]))


def of_another_stage(folder: Path) -> None:
    """Let the optimizer be of stage 2."""
    for rank in range(2):
        optimizer(folder, rank, lambda s: s.update(zero_stage=2, single_partition_of_fp32_groups=s["fp32_flat_groups"]))


def of_no_zero(folder: Path) -> None:
    """Let the optimizer be another one."""
    optimizer(folder, 0, lambda states: states.pop("fp32_flat_groups"))


def without_a_fragment(folder: Path) -> None:
    """Let a rank have no fragment of a frozen parameter."""
    model(folder, 1, lambda states: states["frozen_param_fragments"].pop("old.weight"))


def with_a_wrong_fragment(folder: Path) -> None:
    """Let a rank have a longer fragment."""
    model(folder, 1, lambda states: states["frozen_param_fragments"].update({"old.weight": torch.zeros(8)}))


def shaped(shape: Any) -> Callable[[Path], None]:
    """Return a change of the shape of a parameter on all ranks."""

    def edit(folder: Path) -> None:
        for rank in range(2):
            model(folder, rank, lambda states: states["param_shapes"][0].update({"embed.weight": shape}))

    return edit


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "two steps": (of_two_steps, "mixes the ranks of two saves: .* step 100, .* step 200"),
    "two saves": (of_two_saves, "mixes the ranks of two saves: .* step 100, .* step 200"),
    "other parameters": (of_other_parameters, "declares other parameters than the first rank"),
    "two types": (of_two_types, "of the element type float32, .* float64"),
    "other sizes": (of_other_sizes, "flat tensors of different sizes"),
    "too much": (with_too_much, "contradicts itself: its flat tensors have"),
    "too little": (with_too_little, "fewer than its parameters"),
    "experts": (with_experts, "over different numbers of ranks"),
    "a matrix": (with_a_matrix, "flat tensor 0 has the shape"),
    "another stage": (of_another_stage, "has optimizer states of ZeRO stage 2 or lower, but"),
    "no ZeRO": (of_no_zero, "is not the state of a ZeRO optimizer"),
    "no fragment": (without_a_fragment, 'has no fragment of the parameter "old.weight"'),
    "a wrong fragment": (with_a_wrong_fragment, 'has a fragment of 8 elements of "old.weight"'),
    "a negative size": (shaped((-1, 7)), 'declares a damaged shape of "embed.weight"'),
    "a huge size": (shaped((1 << 40, 1 << 40)), "more elements than any file holds"),
    "a large size": (shaped((1 << 40, 7)), "fewer than its parameters"),
    "no shape": (shaped("wide"), "damaged shape"),
    "long shape": (shaped((1,) * 65), "damaged shape"),
    "no shapes": (lambda folder: model(folder, 0, lambda s: s.pop("param_shapes")), "does not declare the shapes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused(case: str, tmp_path: Path) -> None:
    """Ranks of two saves, shapes that do not fit, and damaged numbers are refused with the reason."""
    edit, reason = REFUSED[case]
    folder = write_stage_3(tmp_path / "global_step100", training(), 2)
    edit(folder)
    with pytest.raises(InputRefused, match=reason):
        open_file(folder)


def test_a_name_in_two_groups_is_refused(tmp_path: Path) -> None:
    """Two parameters cannot have one name."""
    folder = write_stage_3(tmp_path / "global_step100", training(), 1)
    model(folder, 0, lambda states: states["param_shapes"][1].update({"embed.weight": torch.Size([1])}))
    assert 'declares "embed.weight" twice' in refusal(folder).message


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    """A file that ends early is named."""
    for kind in ("model", "optim"):
        folder = write_stage_3(tmp_path / kind, training(), 2)
        path = folder / f"zero_pp_rank_1_mp_rank_00_{kind}_states.pt"
        path.write_bytes(path.read_bytes()[:-100])
        assert refusal(folder).message.startswith(f'"{folder}": "{path.name}" is truncated')
        path.write_bytes(b"")
        assert f'"{path.name}" is empty' in refusal(folder).message
        path.write_bytes(b"no zip")
        assert f'"{path.name}" is not a zip archive' in refusal(folder).message


def test_other_splits_are_refused(tmp_path: Path) -> None:
    """Experts, model parallelism and the files of two saves are refused, by names alone."""
    trained = training()
    folder = write_stage_2(tmp_path / "experts", trained, 2)
    (folder / "layer_0_expert_1_mp_rank_00_model_states.pt").write_text("")
    assert "has experts in files of their own" in refusal(folder).message
    folder = write_stage_3(tmp_path / "parallel", trained, 2)
    (folder / "zero_pp_rank_0_mp_rank_01_model_states.pt").write_text("")
    assert "is split into 2 parts by model parallelism" in refusal(folder).message
    folder = write_stage_3(tmp_path / "twice", trained, 2)
    (folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("")
    assert "holds two files of rank 0" in refusal(folder).message
    folder = write_stage_3(tmp_path / "both", trained, 2)
    write_stage_2(folder, trained, 2, kind="zero")
    assert "holds two saves" in refusal(folder).message


def test_keys(tmp_path: Path) -> None:
    """``fp32`` is the default of stage 3; the placeholders are refused; what a user stored beside them can be read."""
    trained = training(client={"head": {"weight": torch.ones(2, 2)}})
    folder = write_stage_3(tmp_path / "global_step100", trained, 2)
    assert read_file(folder, key="fp32") == expected(trained.whole)
    assert read_file(folder, key="head") == expected({"weight": torch.ones(2, 2)})
    assert "empty placeholder" in refusal(folder, "module").message
    with pytest.raises(UsageError, match="there are no tensors under --key"):
        open_file(folder, key="nothing")
    found = open_file(folder)
    found.index.close()
    assert '"head" (1 tensor)' in found.dropped[0].message


def test_names_that_are_no_ranks(tmp_path: Path) -> None:
    """The number of a rank is limited, so that nothing counts up to it."""
    folder = write_stage_3(tmp_path / "global_step100", training(), 1)
    shutil.copy(
        folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        folder / f"zero_pp_rank_{10**12}_mp_rank_00_optim_states.pt",
    )
    assert "up to rank 1000000000000, but none of rank 1, 2, 3" in refusal(folder).message.replace(",000", "000")


def test_paddings_that_do_not_fit(tmp_path: Path) -> None:
    """Stages 1 and 2: paddings must be those of the parameters, and the vectors as long as both together."""
    folder = write_stage_2(tmp_path / "one", training(), 2, alignment=8)
    for rank in range(2):
        optimizer(folder, rank, lambda states: states["param_alignment_paddings"][0].pop())
    assert "has paddings of 2 parameters in group 0, which has 3" in refusal(folder, "fp32").message
    folder = write_stage_2(tmp_path / "two", training(), 2)
    change(folder / "mp_rank_00_model_states.pt", lambda states: states["param_shapes"].pop())
    assert "has flat tensors for 2 parameter groups, but shapes for 1" in refusal(folder, "fp32").message
    folder = write_stage_2(tmp_path / "three", training(), 2)
    edit: Change = lambda states: states["param_shapes"][0].update(scale=torch.Size([9]))  # noqa: E731
    change(folder / "mp_rank_00_model_states.pt", edit)
    assert "contradicts itself" in refusal(folder, "fp32").message or "fewer" in refusal(folder, "fp32").message
    joined = JoinedParameters([4, 4], 0, 1)
    joined.take(3, 0, PieceTable())
    with pytest.raises(InputRefused, match="contradicts itself: its flat tensors have 8 elements in group 0"):
        joined.finish()
