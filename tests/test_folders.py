"""Checkpoint folders of other trainers: DeepSpeed, Megatron, weights in a folder inside, pipelines; and JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.folder import Folder
from ema_cli.formats.folder_formats import format_of
from ema_cli.formats.json_text import JsonError, parse_object
from tests.helpers.makers import expected, open_file, read_all, read_file
from tests.helpers.program import Run
from tests.helpers.series import State, load, open_files, random_states, reference_average


def refusal(folder: Path, **options: Any) -> InputRefused:
    """Return the message that refuses a folder; no file stays open."""
    before = open_files()
    with pytest.raises(InputRefused) as refused:
        open_file(folder, **options)
    assert open_files() == before
    assert refused.value.message.startswith(f'"{folder}')
    return refused.value


def write_deepspeed(folder: Path, state: State, step: int, *, name: str = "mp_rank_00_model_states.pt") -> Path:
    """Write the model states as DeepSpeed's engine does, up to stage 2 with the optimizer's state of two ranks."""
    folder.mkdir(parents=True)
    states = {
        "module": state,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{key: value.shape for key, value in state.items()}],
        "lr_scheduler": None,
        "global_steps": step,
        "global_samples": 8 * step,
        "dp_world_size": 2,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.15.0",
    }
    torch.save(states, folder / name)
    for rank in range(0 if name.startswith("zero") else 2):
        optimizer = {"optimizer_state_dict": {"single_partition_of_fp32_groups": [torch.randn(9)]}}
        torch.save(optimizer, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


# DeepSpeed


def test_deepspeed_up_to_stage_2(tmp_path: Path) -> None:
    """The module is read, its step is inside, and the optimizer's state is listed as ignored."""
    (state,) = random_states(1, torch.bfloat16)
    found = open_file(write_deepspeed(tmp_path / "global_step500", state, 500))
    assert found.key == "module"
    assert [(step.value, step.source) for step in found.steps] == [(500, "inside: global_steps")]
    assert "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt" in found.ignored
    assert read_all(found) == expected(state)


def test_the_command_that_joins_it_runs_nothing_that_a_name_says(tmp_path: Path) -> None:
    """The name of a folder may contain text that a shell would run; in a pasted command it is one word."""
    folder = tmp_path / "global_step5; touch canary"
    write_deepspeed(folder, {"w": torch.zeros(0)}, 500, name="zero_pp_rank_0_mp_rank_00_model_states.pt")
    command = shlex.split(refusal(folder).hint.partition("python ")[2])
    assert command[-2:] == [folder.name, "--safe_serialization"]


@pytest.mark.parametrize("script", ["beside", "inside", "nowhere"])
def test_stage_3_without_partitions_is_refused_with_the_command_that_joins_it(script: str, tmp_path: Path) -> None:
    """The hint names the script that DeepSpeed leaves with its checkpoints, or else its module."""
    run = tmp_path / "a run"
    folder = run / "global_step500"
    write_deepspeed(folder, {"w": torch.zeros(0)}, 500, name="zero_pp_rank_0_mp_rank_00_model_states.pt")
    path = {"beside": run, "inside": folder}.get(script, tmp_path) / "zero_to_fp32.py"
    path.write_text("")
    refused = refusal(folder)
    assert "is a checkpoint of ZeRO stage 3" in refused.message
    assert "it has no optimizer states of the ranks" in refused.message
    command = shlex.split(refused.hint.partition("python ")[2])
    assert command[-5:] == [
        str(run),
        str(run / "global_step500_joined"),
        "-t",
        "global_step500",
        "--safe_serialization",
    ]
    assert ("-m deepspeed.utils.zero_to_fp32" in refused.hint) is (script == "nowhere")
    assert command[0] == ("-m" if script == "nowhere" else str(path))


def test_placeholders_of_stage_3_are_not_averaged(tmp_path: Path) -> None:
    """Empty tensors in place of the parameters are no model, whatever the file is called."""
    state = {"a": torch.zeros(0), "b": torch.zeros(0), "buffer": torch.ones(3)}
    assert "ZeRO stage 3" in refusal(write_deepspeed(tmp_path / "global_step5", state, 5)).message


def test_parts_of_model_parallelism_are_refused(tmp_path: Path) -> None:
    """Several ranks of one model, or the stages of a pipeline, are not joined."""
    folder = write_deepspeed(tmp_path / "global_step5", random_states(1)[0], 5)
    (folder / "layer_00-model_states.pt").write_text("")
    assert "pipeline parallelism" in refusal(folder).message
    (folder / "layer_00-model_states.pt").unlink()
    (folder / "mp_rank_01_model_states.pt").write_text("")
    refused = refusal(folder)
    assert "is split into 2 parts by model parallelism" in refused.message
    assert "ds_to_universal.py" in refused.hint


def test_model_states_without_a_module_are_refused(tmp_path: Path) -> None:
    """A file with the right name and wrong contents is refused; a key of the user is a usage error."""
    folder = tmp_path / "global_step5"
    folder.mkdir()
    torch.save(
        {"module": None, "global_steps": 5, "other": {"w": torch.ones(2)}}, folder / "mp_rank_00_model_states.pt"
    )
    assert 'has no tensors under "module"' in refusal(folder).message
    with pytest.raises(UsageError, match="there are no tensors under --key"):
        open_file(folder, key="nothing")
    assert read_file(folder, key="other") == expected({"w": torch.ones(2)})


# Megatron


def write_megatron(
    folder: Path, state: State, step: int, *, rank: str = "mp_rank_00", name: str = "model_optim_rng"
) -> Path:
    """Write a checkpoint as Megatron-LM does: layers in nested dictionaries."""
    (folder / rank).mkdir(parents=True)
    value = {
        "args": argparse.Namespace(tensor_model_parallel_size=1),
        "checkpoint_version": 3.0,
        "iteration": step,
        "model": {
            "language_model": {"encoder": dict(state), "embedding": {"word_embeddings": {"weight": state["scale"]}}}
        },
        "optimizer": {"state": {0: torch.randn(3)}},
        "rng_state": [{"torch_rng_state": torch.ones(8, dtype=torch.uint8)}],
    }
    torch.save(value, folder / rank / f"{name}.pt")
    return folder


@pytest.mark.parametrize(("rank", "name"), [("mp_rank_00", "model_optim_rng"), ("mp_rank_00_000", "model_rng")])
def test_megatron_of_one_rank(rank: str, name: str, tmp_path: Path) -> None:
    """Nested dictionaries are read under dotted names, the iteration is the step."""
    (state,) = random_states(1)
    found = open_file(write_megatron(tmp_path / "iter_0001000", state, 1000, rank=rank, name=name))
    assert [(step.value, step.source) for step in found.steps] == [(1000, "inside: iteration")]
    assert found.key == "model"
    wanted = {f"language_model.encoder.{key}": value for key, value in state.items()}
    assert read_all(found) == expected(wanted | {"language_model.embedding.word_embeddings.weight": state["scale"]})


def test_megatron_of_several_ranks_is_refused(tmp_path: Path) -> None:
    """A model in parallel parts is not joined; the tool that joins it is named."""
    for rank in ("mp_rank_00", "mp_rank_01"):
        write_megatron(tmp_path / "iter_0001000", random_states(1)[0], 1000, rank=rank)
    refused = refusal(tmp_path / "iter_0001000")
    assert "is split into 2 parts by model parallelism" in refused.message
    assert 'do not state how they fit together: "mp_rank_00", "mp_rank_01"' in refused.message
    load = f"--load {tmp_path} --ckpt-step 1000 --ckpt-convert-format torch_dist --ckpt-convert-save {tmp_path}_dist"
    assert load in refused.hint
    assert (
        f"tools/checkpoint/convert.py --model-type GPT --loader core --saver core --load-dir {tmp_path}" in refused.hint
    )


def test_megatron_without_its_file_is_incomplete(tmp_path: Path) -> None:
    """A rank's folder without the model is an incomplete save; a damaged file is named with its folder."""
    folder = tmp_path / "iter_0001000"
    (folder / "mp_rank_00").mkdir(parents=True)
    assert "is incomplete" in refusal(folder).message
    (folder / "mp_rank_00" / "model_optim_rng.pt").write_bytes(b"PK")
    assert '"mp_rank_00": "model_optim_rng.pt" is not a checkpoint' in refusal(folder).message


# Weights in a folder inside


def write_state(folder: Path, step: int) -> None:
    """Write the files that a trainer leaves in its checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "config.json").write_text("{}")


def test_deepspeed_in_a_checkpoint_of_the_trainer(tmp_path: Path) -> None:
    """``checkpoint-500/global_step500`` is read if the checkpoint itself has no weights."""
    state, other = random_states(2)
    folder = tmp_path / "checkpoint-500"
    write_state(folder, 500)
    write_deepspeed(folder / "global_step500", state, 499)
    (folder / "latest").write_text("global_step500")
    found = open_file(folder)
    assert [step.value for step in found.steps] == [500, 499]
    assert found.steps[0].source == "inside: trainer_state.json"
    assert found.side_files == ("config.json",)
    assert "global_step500/" not in found.ignored
    assert read_all(found) == expected(state)
    save_file(other, folder / "model.safetensors")
    assert read_file(folder) == expected(other)


def test_placeholders_alone_in_a_checkpoint_of_the_trainer_are_refused(tmp_path: Path) -> None:
    """The refusal names the folder inside, and the script in the checkpoint."""
    folder = tmp_path / "checkpoint-500"
    write_state(folder, 500)
    (folder / "zero_to_fp32.py").write_text("")
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    write_deepspeed(folder / "global_step500", {"w": torch.zeros(0)}, 500, name=name)
    refused = refusal(folder)
    assert '"global_step500" is a checkpoint of ZeRO stage 3' in refused.message
    assert f"python {folder}/zero_to_fp32.py {folder} {folder}/global_step500_joined -t global_step500" in refused.hint


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_fsdp_in_a_checkpoint_of_the_trainer(tmp_path: Path) -> None:
    """``pytorch_model_fsdp_0`` is a folder of torch.distributed.checkpoint; that of the optimizer is ignored."""
    (state,) = random_states(1)
    state.pop("empty")
    folder = tmp_path / "checkpoint-500"
    write_state(folder, 500)
    for name, value in (("pytorch_model_fsdp_0", {"model": state}), ("optimizer_0", {"optimizer": state})):
        dcp.save(value, checkpoint_id=folder / name, no_dist=True)
    found = open_file(folder)
    assert found.steps[0].value == 500
    assert "optimizer_0/" in found.ignored
    read = read_all(found)
    assert {name.removeprefix("model."): value for name, value in read.items()} == expected(state)


def test_several_models_of_fsdp_are_refused(tmp_path: Path) -> None:
    """A training of two models has two folders, and the user must name one."""
    for number in range(2):
        (tmp_path / "checkpoint_1" / f"pytorch_model_fsdp_{number}").mkdir(parents=True)
    refused = refusal(tmp_path / "checkpoint_1")
    assert 'several models: "pytorch_model_fsdp_0", "pytorch_model_fsdp_1"' in refused.message


# Pipelines and folders that are no checkpoints


@pytest.mark.parametrize("marker", ["model_index.json", "optimizer.bin"])
def test_a_pipeline_is_refused_with_the_command_for_a_part(marker: str, tmp_path: Path) -> None:
    """Each part is a model of its own, and a part's folder is a checkpoint."""
    folder = tmp_path / "run[a]" / "checkpoint-5"
    (state,) = random_states(1)
    for name in ("unet", "text_encoder", "scheduler"):
        (folder / name).mkdir(parents=True)
    (folder / marker).write_text("{}")
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "config.json").write_text("{}")
    refused = refusal(folder)
    assert 'is a pipeline of several models: "text_encoder", "unet"' in refused.message
    assert refused.proposals[0].changes["paths"] == (f"{tmp_path}/run[[]a]/*/text_encoder",)
    found = open_file(folder / "unet")
    assert found.stem == "diffusion_pytorch_model"
    assert read_all(found) == expected(state)


def test_what_is_no_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    """The error for a folder in place of a single checkpoint lists the contents of the folder."""
    assert refusal(tmp_path).message.endswith("is a folder, but not a checkpoint: it is empty")
    for name in ("a.pt", "b.pt", "c.pt", "d.pt", "e\x1b.pt"):
        (tmp_path / name).write_text("")
    (tmp_path / "runs").mkdir()
    listed = 'it contains "a.pt", "b.pt", "c.pt", "d.pt" and 2 more'
    assert refusal(tmp_path).message.endswith(f"is a folder, but not a checkpoint: {listed}")


def test_names_alone_say_what_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is opened to recognize a folder."""
    write_deepspeed(tmp_path / "global_step5", random_states(1)[0], 5)
    write_megatron(tmp_path / "iter_1", random_states(1)[0], 1)
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")

    def forbidden(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ema_cli.formats.folder.open_source", forbidden)
    for folder in (tmp_path, tmp_path / "global_step5", tmp_path / "iter_1"):
        assert format_of(Folder(folder)) is not None
    assert format_of(Folder(tmp_path / "iter_1" / "mp_rank_00")) is None


@pytest.mark.parametrize(("make", "name"), [(write_deepspeed, "global_step{}"), (write_megatron, "iter_{:07}")])
def test_runs_of_other_trainers_are_averaged(
    make: Callable[..., Path], name: str, tmp_path: Path, ema_avg: Run
) -> None:
    """A run folder of DeepSpeed or Megatron, with the files that say which is the latest, is averaged by step."""
    states = random_states(2)
    for state, step in zip(states, (900, 1000), strict=True):
        make(tmp_path / "run" / name.format(step), state, step)
    for latest in ("latest", "latest_checkpointed_iteration.txt", "zero_to_fp32.py"):
        (tmp_path / "run" / latest).write_text("1000")
    done = ema_avg("run", "--decay", "0.75", "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    output = load(tmp_path / "ema.safetensors")
    (weight,) = (value for key, value in output.items() if key.endswith("layer.weight"))
    reference = reference_average([state["layer.weight"] for state in states], [0.75, 0.25])
    assert torch.equal(weight, torch.from_numpy(reference).float())


# JSON


def test_json_is_parsed_within_bounds() -> None:
    """Entries are counted before anything is created; NaN is accepted only where it is expected."""
    assert parse_object(b'{"a": [1, 2, {"b": null}]}', most=5) == {"a": [1, 2, {"b": None}]}
    with pytest.raises(JsonError, match="more than 4 entries"):
        parse_object(b'{"a": [1, 2, {"b": null}]}', most=4)
    assert parse_object(b'{"a": Infinity}', nan=True) == {"a": float("inf")}
    with pytest.raises(JsonError, match="contains -Infinity"):
        parse_object(b'{"a": -Infinity}')


@pytest.mark.slow
@given(value=st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=9)))
def test_json_of_others_is_read_as_it_is(value: dict[str, object]) -> None:
    """JSON that the standard library writes is read back."""
    assert parse_object(json.dumps(value).encode()) == value


@given(raw=st.binary() | st.text(alphabet='{}[]",:1aN').map(str.encode))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    """Any bytes are an object, or are refused with a message."""
    with suppress(JsonError):
        assert isinstance(parse_object(raw, most=1000), dict)
