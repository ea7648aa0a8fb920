"""Single files as trainers write them, from the command line: the weights, the step, and the reported messages."""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.program import Run
from tests.helpers.series import State, load, reference_average, same_bits

OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
SHARES = (0.25, 0.25, 0.5)
"""Of three checkpoints with a decay of one half."""


class Detector(nn.Module):
    """A model with attributes that are not parameters, pickled whole as ultralytics does."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.names = {0: "person"}
        self.yaml = {"nc": 80}


def weights(number: int, prefix: str = "") -> State:
    """Return the weights of a small model after some steps."""
    torch.manual_seed(number)
    return {f"{prefix}layers.0.weight": torch.randn(4, 3), f"{prefix}layers.0.bias": torch.randn(4)}


def detector(number: int) -> Detector:
    """Return a pickled model in half precision."""
    torch.manual_seed(number)
    return Detector().half()


def fairseq(number: int) -> dict[str, Any]:
    """Return a checkpoint of fairseq: the last entry of the optimizer's history has the number of updates."""
    return {
        "cfg": {"task": "translation"},
        "model": weights(number),
        "criterion": collections.OrderedDict(),
        "optimizer_history": [{"num_updates": 1}, {"num_updates": 5000 * number, "optimizer_name": "Adam"}],
        "extra_state": {"train_iterator": {"epoch": number}},
        "last_optimizer_state": OPTIMIZER,
    }


def megatron(number: int) -> dict[str, Any]:
    """Return a checkpoint of one rank of Megatron: nested mappings of layers."""
    found = weights(number)
    encoder = {"layers.0.weight": found["layers.0.weight"], "layers.0._extra_state": None}
    return {
        "args": argparse.Namespace(lr=0.1),
        "iteration": 100 * number,
        "model": {"language_model": {"encoder": encoder, "pooler": {"bias": found["layers.0.bias"]}}},
        "optimizer": OPTIMIZER,
        "rng_state": [{"cuda_rng_state": torch.ones(3)}],
    }


def lightning(number: int, **others: Any) -> dict[str, Any]:
    """Return a checkpoint of Lightning: the prefix is the attribute of the module, and stays."""
    return {
        "epoch": number,
        "global_step": 400 * number,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": weights(number, "model."),
        "loops": {"fit_loop": {"state_dict": {}, "total": torch.ones(1)}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [{"last_epoch": 1}],
        **others,
    }


def deepspeed(number: int, module: State | None = None) -> dict[str, Any]:
    """Return the model file of DeepSpeed; at ZeRO stage 3 its module has placeholders."""
    found = weights(number)
    shapes = collections.OrderedDict((name, tensor.shape) for name, tensor in found.items())
    return {
        "module": found if module is None else module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [shapes],
        "frozen_param_fragments": None,
        "global_steps": 10 * number,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.17.0",
    }


Maker = Callable[[int], Any]
LAYOUTS: dict[str, tuple[str, Maker, Callable[[int], State], tuple[int, int, int]]] = {
    "lightning": (
        "epoch={n}-step={n}00.ckpt",
        lightning,
        lambda n: weights(n, "model."),
        (400, 800, 1200),
    ),
    "lightning with an average": (
        "epoch={n}-step={n}00.ckpt",
        lambda n: lightning(
            n,
            state_dict=weights(n + 10, "model."),
            current_model_state=weights(n, "model."),
            averaging_state={"n_averaged": torch.tensor(3)},
        ),
        lambda n: weights(n, "model."),
        (400, 800, 1200),
    ),
    "timm": (
        "checkpoint-{n}.pth.tar",
        lambda n: {
            "epoch": n,
            "arch": "resnet50",
            "state_dict": weights(n, "module."),
            "optimizer": OPTIMIZER,
            "amp_scaler": {"scale": 65536.0, "growth": torch.ones(1)},
            "state_dict_ema": weights(n + 10),
            "metric": 70.1,
        },
        weights,
        (1, 2, 3),
    ),
    "older timm": (
        "checkpoint-{n}.pth.tar",
        lambda n: {"epoch": n, "state_dict": weights(n), "model_ema": weights(n + 10)},
        weights,
        (1, 2, 3),
    ),
    "fairseq": ("checkpoint_{n}_{n}000.pt", fairseq, weights, (5000, 10000, 15000)),
    "ultralytics": (
        "epoch{n}.pt",
        lambda n: {"epoch": n, "model": None, "ema": detector(n), "updates": 100 * n, "optimizer": OPTIMIZER},
        lambda n: dict(detector(n).state_dict()),
        (100, 200, 300),
    ),
    "older ultralytics": (
        "epoch{n}.pt",
        lambda n: {"epoch": n, "model": detector(n), "ema": detector(9), "updates": 100 * n},
        lambda n: dict(detector(n).state_dict()),
        (100, 200, 300),
    ),
    "megatron": (
        "iter_{n}.pt",
        megatron,
        lambda n: {
            "language_model.encoder.layers.0.weight": weights(n)["layers.0.weight"],
            "language_model.pooler.bias": weights(n)["layers.0.bias"],
        },
        (100, 200, 300),
    ),
    "icefall": (
        "checkpoint-{n}000.pt",
        lambda n: {
            "model": weights(n),
            "model_avg": {name: tensor.double() for name, tensor in weights(n + 10).items()},
            "optimizer": OPTIMIZER,
            "grad_scaler": {"scale": 65536.0},
            "sampler": {"epoch": 1, "order": torch.ones(5)},
            "batch_idx_train": 1000 * n,
            "best_train_loss": 0.5,
        },
        weights,
        (1000, 2000, 3000),
    ),
    "best weights so far": (
        "ckpt_{n}.pt",
        lambda n: {"model": weights(n), "best_state": weights(9), "losses": torch.ones(50), "step": n},
        weights,
        (1, 2, 3),
    ),
    "mmengine with an average": (
        "epoch_{n}.pth",
        lambda n: {
            "meta": {"epoch": n, "mmengine_version": "0.10.4"},
            "state_dict": weights(n + 10),
            "message_hub": {"log_scalars": {}, "runtime_info": {"iter": 500 * n}},
            "ema_state_dict": {"steps": torch.tensor(500 * n), **weights(n, "module.")},
            "optimizer": OPTIMIZER,
            "param_schedulers": [{"last_step": 1}],
        },
        lambda n: weights(n + 10),
        (500, 1000, 1500),
    ),
    "deepspeed": ("{n}_mp_rank_00_model_states.pt", deepspeed, weights, (10, 20, 30)),
    "stable diffusion": (
        "v1-{n}.ckpt",
        lambda n: {"state_dict": weights(n, "model.diffusion_model."), "global_step": n, "epoch": 0},
        lambda n: weights(n, "model.diffusion_model."),
        (1, 2, 3),
    ),
    "torch.compile under DDP": (
        "ckpt_{n}.pt",
        lambda n: {"model": weights(n, "module._orig_mod."), "step": n},
        weights,
        (1, 2, 3),
    ),
    "FSDP with inner wrappers": (
        "ckpt_{n}.pt",
        lambda n: {
            "model": {
                f"_fsdp_wrapped_module.{name.replace('layers.', 'layers._fsdp_wrapped_module.')}": tensor
                for name, tensor in weights(n).items()
            },
            "step": n,
        },
        weights,
        (1, 2, 3),
    ),
    "a pickled module": (
        "model_{n}.pt",
        detector,
        lambda n: dict(detector(n).state_dict()),
        (1, 2, 3),
    ),
    "torch's AveragedModel": (
        "swa_{n}.pt",
        lambda n: {
            "n_averaged": torch.tensor(n),
            **{f"module.{name}": tensor for name, tensor in weights(n).items()},
        },
        weights,
        (1, 2, 3),
    ),
}


def write(folder: Path, name: str, value: Any) -> Path:
    """Save as ``torch.save`` does."""
    folder.mkdir(exist_ok=True)
    torch.save(value, folder / name)
    return folder / name


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_layouts_of_trainers_are_averaged(tmp_path: Path, ema_avg: Run, layout: str) -> None:
    """The folder of a run gives the reference average of the raw weights, and its steps."""
    name, make, raw, steps = LAYOUTS[layout]
    for number in (1, 2, 3):
        write(tmp_path / "run", name.format(n=number), make(number))
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert tuple(one["step"] for one in json.loads(done.stdout)["inputs"]) == steps
    found, states = load(tmp_path / "ema.safetensors"), [raw(number) for number in (1, 2, 3)]
    assert found.keys() == states[0].keys()
    for key, tensor in found.items():
        series = [state[key] for state in states]
        if tensor.dtype.is_floating_point:
            reference = torch.from_numpy(reference_average(series, SHARES)).to(tensor.dtype)
            assert same_bits(tensor, reference.reshape(tensor.shape)), key
        else:
            assert same_bits(tensor, series[-1]), key


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "lightning with an average",
            '"current_model_state", where Lightning keeps the raw weights; its own average is under "state_dict"',
        ),
        (
            "timm",
            'also there, and not used: "state_dict_ema" (by its name an average); chosen by --key state_dict_ema',
        ),
        ("older timm", 'not used: "model_ema" (by its name an average)'),
        ("older ultralytics", 'not used: "ema" (by its name an average)'),
        ("icefall", 'not used: "model_avg" (by its name an average)'),
        ("best weights so far", 'not used: "best_state" (the same names); chosen by --key best_state'),
    ],
)
def test_averages_beside_the_weights_are_stated(tmp_path: Path, ema_avg: Run, layout: str, expected: str) -> None:
    """What was taken and what else is there is said in the plan, on the screen and in JSON, and is no warning."""
    name, make, _, _ = LAYOUTS[layout]
    for number in (1, 2, 3):
        write(tmp_path / "run", name.format(n=number), make(number))
    plan = json.loads(ema_avg("plan", "run", "--method", "uniform", "--json", "--strict").stdout)
    assert [expected in " ".join(one["notes"]) for one in plan["inputs"]] == [True] * 3
    assert "raw weights are used" not in str(plan)
    assert not {"weights-chosen", "weights-dropped"} & {one["code"] for one in plan["warnings"]}
    shown = ema_avg("run", "--method", "uniform", "-o", "out.safetensors", "--buffers", "last").stderr
    assert expected.partition(";")[0] in shown


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "ultralytics",
            'the only weights are under "ema", by its name an average of the trainer: this averages averages',
        ),
        ("torch's AveragedModel", "the weights are those of torch's AveragedModel: this averages averages"),
        (
            "mmengine with an average",
            "swaps it with the weights when it saves: this averages averages; --key ema_state_dict takes the raw",
        ),
    ],
)
def test_averages_of_averages_are_a_warning(tmp_path: Path, ema_avg: Run, layout: str, expected: str) -> None:
    """If the weights are an average themselves, one warning for all files says so."""
    name, make, _, _ = LAYOUTS[layout]
    for number in (1, 2, 3):
        write(tmp_path / "run", name.format(n=number), make(number))
    warnings = json.loads(ema_avg("plan", "run", "--decay", "0.5", "--json").stdout)["warnings"]
    (message,) = [one["message"] for one in warnings if one["code"] == "weights-chosen"]
    assert expected in message
    assert "and 2 more" in message


def test_a_key_takes_the_raw_weights_that_a_trainer_swapped(tmp_path: Path, ema_avg: Run) -> None:
    """The raw weights of mmengine have names with ``module.`` and a counter beside them: both are no obstacle."""
    name, make, _, _ = LAYOUTS["mmengine with an average"]
    for number in (1, 2, 3):
        write(tmp_path / "run", name.format(n=number), make(number))
    done = ema_avg("run", "--decay", "0.5", "-o", "e.safetensors", "--key", "ema_state_dict", "--strict")
    assert done.returncode == 0, done.stderr
    found = load(tmp_path / "e.safetensors")
    assert found.keys() == weights(1).keys()
    for name, tensor in found.items():
        reference = reference_average([weights(number)[name] for number in (1, 2, 3)], SHARES)
        assert same_bits(tensor, torch.from_numpy(reference).to(torch.float32))


@pytest.mark.parametrize(
    ("layout", "key"),
    [("timm", "state_dict_ema"), ("older timm", "model_ema"), ("lightning with an average", "state_dict")],
)
def test_a_key_chooses_the_trainers_average(tmp_path: Path, ema_avg: Run, layout: str, key: str) -> None:
    """``--key`` takes the average in place of the raw weights, and then nothing is reported."""
    name, make, _, _ = LAYOUTS[layout]
    for number in (1, 2, 3):
        write(tmp_path / "run", name.format(n=number), make(number))
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--key", key, "--strict")
    assert done.returncode == 0, done.stderr
    series = [make(number)[key] for number in (1, 2, 3)]
    for name, tensor in load(tmp_path / "ema.safetensors").items():
        reference = reference_average([state[name] for state in series], SHARES)
        assert same_bits(tensor, torch.from_numpy(reference).to(torch.float32))


def test_copies_of_the_last_checkpoint_are_skipped(tmp_path: Path, ema_avg: Run) -> None:
    """``last.ckpt`` and ``last-v1.ckpt`` next to numbered files are named and skipped, unless they are newer."""
    for number in (1, 2):
        write(tmp_path / "run", f"epoch={number}-step={400 * number}.ckpt", lightning(number))
    for name in ("last.ckpt", "last-v1.ckpt"):
        write(tmp_path / "run", name, lightning(2))
    document = json.loads(ema_avg("plan", "run", "--decay", "0.5", "--json").stdout)
    assert [one["step"] for one in document["inputs"]] == [400, 800]
    assert {Path(one["path"]).name for one in document["left_out"]} == {"last.ckpt", "last-v1.ckpt"}
    write(tmp_path / "run", "last.ckpt", lightning(3))
    document = json.loads(ema_avg("plan", "run", "--decay", "0.5", "--json").stdout)
    assert [one["step"] for one in document["inputs"]] == [400, 800, 1200]


def test_a_stripped_checkpoint_has_no_epoch(tmp_path: Path, ema_avg: Run) -> None:
    """The epoch -1 of a finished ultralytics model is no position in training."""
    path = write(tmp_path / "run", "best.pt", {"epoch": -1, "model": detector(1), "ema": None, "updates": None})
    document = json.loads(ema_avg("inspect", path, "--json").stdout)["checkpoints"][0]
    assert (document["key"], document["steps"]) == ("model", [])


def test_several_models_are_listed(tmp_path: Path, ema_avg: Run) -> None:
    """A file with two models, or the stages of a virtual pipeline, is refused with their names; a key chooses."""
    pair = {"generator": weights(1), "discriminator": weights(2), "step": 1}
    stages = {"model0": weights(1), "model1": weights(2), "iteration": 1, "optimizer": OPTIMIZER}
    for value, names in ((pair, '"generator", "discriminator"'), (stages, '"model0", "model1"')):
        path = write(tmp_path / "run", "gan.pt", value)
        done = ema_avg("inspect", path)
        assert done.returncode == 3
        assert f"holds several models, or parts of one: {names}" in done.stderr
        assert "--key NAME" in done.stderr
        name = names.split('"')[1]
        document = json.loads(ema_avg("inspect", path, "--key", name, "--json").stdout)["checkpoints"][0]
        assert [one["name"] for one in document["tensors"]] == list(weights(1))


def test_an_average_without_names_is_refused_with_a_message(tmp_path: Path, ema_avg: Run) -> None:
    """The state of diffusers' ``EMAModel`` is a list of tensors: the file does not have their names."""
    value = {"decay": 0.99, "optimization_step": 100, "shadow_params": [torch.ones(2)], "collected_params": None}
    done = ema_avg("inspect", write(tmp_path / "run", "ema.pt", value))
    assert done.returncode == 3
    assert 'the tensors in "shadow_params" are a list, without names' in done.stderr


@pytest.mark.parametrize("key", [(), ("--key", "module"), ("--key", ".")])
def test_placeholders_of_zero_are_refused(tmp_path: Path, ema_avg: Run, key: tuple[str, ...]) -> None:
    """The model file of ZeRO stage 3 has empty tensors; the error names the script that finds the weights."""
    module = {name: torch.empty(0, dtype=torch.bfloat16) for name in weights(1)}
    path = write(tmp_path / "run", "zero_pp_rank_0_mp_rank_00_model_states.pt", deepspeed(1, module))
    done = ema_avg(path, "--decay", "0.5", "-o", "ema.safetensors", *key)
    assert done.returncode == 3
    assert "holds 2 empty placeholders instead of weights" in done.stderr
    assert "python zero_to_fp32.py" in done.stderr


def test_tensors_that_are_empty_on_purpose_are_weights(tmp_path: Path, ema_avg: Run) -> None:
    """A parameter with a declared shape without elements is no placeholder."""
    value = deepspeed(1)
    value["module"]["none"] = torch.empty(0, 3)
    value["param_shapes"][0]["none"] = torch.Size([0, 3])
    assert ema_avg("inspect", write(tmp_path / "run", "mp_rank_00_model_states.pt", value)).returncode == 0


@pytest.mark.parametrize("prefix", ["_forward_module.", "module.", "net."])
def test_a_prefix_in_half_of_the_files_is_no_obstacle(tmp_path: Path, ema_avg: Run, prefix: str) -> None:
    """Prefixes are removed from the files that have them: those of wrappers by themselves, another one on request."""
    for number in (1, 2, 3):
        write(tmp_path / "run", f"ckpt_{number}.pt", {"state_dict": weights(number, prefix if number < 3 else "")})
    for option in ((), ("--strip-prefix", prefix)):
        done = ema_avg("run", "--decay", "0.5", "-o", "e.safetensors", "--strict", "--force", *option)
        assert done.returncode == (3 if prefix == "net." and not option else 0), done.stderr
    found = load(tmp_path / "e.safetensors")
    assert found.keys() == weights(1).keys()
    for name, tensor in found.items():
        reference = reference_average([weights(number)[name] for number in (1, 2, 3)], SHARES)
        assert same_bits(tensor, torch.from_numpy(reference).to(torch.float32))
    done = ema_avg("plan", "run", "--decay", "0.5", "--strip-prefix", "nothing.")
    assert done.returncode == 2
    assert 'no tensor begins with --strip-prefix "nothing."' in done.stderr


def test_a_tensor_that_is_excluded_needs_no_prefix(tmp_path: Path, ema_avg: Run) -> None:
    """``module.`` is removed if all weights have it that are wanted; verify and diff agree."""
    for number in (1, 2, 3):
        model = {**weights(number, "module."), "head.weight": torch.ones(3)}
        write(tmp_path / "run", f"ckpt_{number}.pt", {"model": model})
    done = ema_avg("run", "--decay", "0.5", "-o", "e.safetensors", "--strict", "--exclude", "^head")
    assert done.returncode == 0, done.stderr
    assert set(load(tmp_path / "e.safetensors")) == set(weights(1))
    assert ema_avg("verify", "e.safetensors").returncode == 0
    same = ema_avg("diff", "e.safetensors", "run/ckpt_3.pt", "--exclude", "^head", "--json")
    assert json.loads(same.stdout)["total"]["tensors"] == 2


def test_a_prefix_that_some_names_lack_is_reported(tmp_path: Path, ema_avg: Run) -> None:
    """A wrapper's prefix on some names stays on all of them, and is reported; with ``--strip-prefix`` it is not."""
    for number in (1, 2, 3):
        model = {**weights(number, "module."), "head.weight": torch.ones(1)}
        write(tmp_path / "run", f"ckpt_{number}.pt", {"model": model})
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors")
    assert (
        'the prefix "module." of 2 of 3 names is kept, as other names, such as "head.weight", do not have it'
        in done.stderr
    )
    assert set(load(tmp_path / "ema.safetensors")) == {"module.layers.0.weight", "module.layers.0.bias", "head.weight"}
    assert ema_avg("run", "--decay", "0.5", "-o", "e.safetensors", "--strip-prefix", "", "--strict").returncode == 0


def test_ignored_entries_are_listed(tmp_path: Path, ema_avg: Run) -> None:
    """With ``-v``, and as JSON, the plan lists the other contents of every checkpoint."""
    for number in (1, 2, 3):
        write(tmp_path / "run", f"checkpoint_{number}_{number}000.pt", fairseq(number))
    extra = ["cfg", "criterion", "optimizer_history", "extra_state", "last_optimizer_state"]
    plan = json.loads(ema_avg("plan", "run", "--decay", "0.5", "--json").stdout)
    assert [one["ignored"] for one in plan["inputs"]] == [extra] * 3
    done = ema_avg("plan", "run", "--decay", "0.5", "-v")
    text = " ".join(done.stdout.split())
    assert 'ignored in "checkpoint_1_1000.pt", "checkpoint_2_2000.pt" and 1 more, not model tensors: "cfg"' in text
    assert '"last_optimizer_state"' in text
