"""What a checkpoint has besides the weights that are written: trained tensors are a warning, a trainer's own is not."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ema_cli
from ema_cli.errors import InputRefused, RunWarning, UsageError
from tests.helpers.makers import open_file, save
from tests.helpers.program import Run
from tests.helpers.series import State, load, reference_average, same_bits


def weights(prefix: str = "", seed: int = 0) -> State:
    """Return the weights of a small model."""
    made = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}layers.0.weight": torch.randn(4, 3, generator=made),
        f"{prefix}layers.0.bias": torch.randn(4, generator=made),
    }


def adam() -> dict[str, Any]:
    """Return the state of an optimizer after a step."""
    model = nn.Linear(3, 4)
    made = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    made.step()
    return dict(made.state_dict())


def other_part() -> State:
    """Return trained weights of another part."""
    return {"0.weight": torch.ones(5, 4), "0.bias": torch.ones(5)}


def other_matrices() -> State:
    """Return trained weights of two layers, one inside the other part."""
    return {"head.0.weight": torch.ones(5, 4), "head.0.bias": torch.ones(5)}


def dropped(path: Path) -> tuple[RunWarning, ...]:
    """Return the warnings about what is not written."""
    checkpoint = open_file(path, strip_prefix=None)
    checkpoint.index.close()
    assert {warning.code for warning in checkpoint.dropped} <= {"weights-dropped"}
    return checkpoint.dropped


BESIDE: dict[str, tuple[Callable[[], Any], str, str]] = {
    "an output layer": (
        lambda: {"model": weights(), "generator": other_part(), "optim": {"training_step": 5}, "vocab": {"src": []}},
        '"generator" (2 tensors)',
        "--key model --key generator averages each under its own prefix; --key model alone says that",
    ),
    "a module": (
        lambda: {"state_dict": weights(), "head": nn.Linear(2, 2), "epoch": 1},
        '"head" (2 tensors)',
        "--key state_dict --key head averages",
    ),
    "a tensor": (
        lambda: {"model": weights(), "head.weight": torch.ones(3, 3), "temperature": torch.tensor(0.7)},
        '"head.weight" (1 tensor)',
        "--key model --key head.weight averages",
    ),
    "a list of parts": (
        lambda: {"model": weights(), "heads": [other_part(), other_part()]},
        '"heads.0" (2 tensors), "heads.1" (2 tensors)',
        "--key model --key heads.0 --key heads.1 averages",
    ),
    "a list of tensors": (
        lambda: {"model": weights(), "embeddings": [torch.ones(3, 3), torch.ones(3, 3)]},
        '"embeddings" (2 tensors)',
        "--key model alone says that the others are not wanted",
    ),
    "a trained scale": (
        lambda: {"model": weights(), "scale": nn.Parameter(torch.tensor(2.0)), "step": torch.tensor(5.0)},
        '"scale" (1 tensor)',
        "--key model --key scale averages",
    ),
    "the temperature of a policy": (
        lambda: {"model": weights(), "alpha": torch.zeros(1, requires_grad=True), "log_alpha": torch.zeros(1)},
        '"alpha" (1 tensor), "log_alpha" (1 tensor)',
        "--key model --key alpha --key log_alpha averages",
    ),
    "a part with the name of state": (
        lambda: {
            "model": weights(),
            "scaler_net": other_matrices(),
            "noise_scheduler": nn.Linear(2, 3),
            "optimizer": adam(),
        },
        '"scaler_net" (2 tensors), "noise_scheduler" (2 tensors)',
        "--key model --key scaler_net --key noise_scheduler averages",
    ),
    "matrices of any name in what has none": (
        lambda: {
            "model": weights(),
            "scaler_net": {"w2": torch.ones(3, 3)},
            "noise_scheduler": {"e": torch.ones(9, 3)},
        },
        '"scaler_net" (1 tensor), "noise_scheduler" (1 tensor)',
        "--key model --key scaler_net --key noise_scheduler averages",
    ),
    "a loss with layers": (
        lambda: {"model": weights(), "criterion": other_matrices(), "loss_fn": {"centers": torch.ones(3, 3)}},
        '"criterion" (2 tensors), "loss_fn" (1 tensor)',
        "--key model --key criterion --key loss_fn averages",
    ),
    "a part that begins like an optimizer": (
        lambda: {"model": weights(), "optimus_encoder": other_part()},
        '"optimus_encoder" (2 tensors)',
        "--key model --key optimus_encoder averages",
    ),
    "a discriminator": (
        lambda: {"model": weights(), "d": other_part(), "g_optim": adam(), "d_optim": adam()},
        '"d" (2 tensors)',
        "--key model --key d averages",
    ),
    "a second model of the same names and shapes": (
        lambda: {"model": weights(), "critic": weights(seed=1), "model_B": weights(seed=2), "step": 1},
        '"critic" (2 tensors), "model_B" (2 tensors)',
        "--key model --key critic --key model_B averages",
    ),
    "an average of another model": (
        lambda: {"state_dict": other_matrices(), "ema": weights()},
        '"ema" (2 tensors)',
        "--key state_dict --key ema averages",
    ),
    "running statistics": (
        lambda: {"model_state_dict": weights(), "obs_norm_state_dict": {"_mean": torch.ones(1, 8)}, "iter": 1},
        '"obs_norm_state_dict" (1 tensor)',
        "--key model_state_dict --key obs_norm_state_dict averages",
    ),
    "a model beside the one that was found inside": (
        lambda: {"state_dict": {"model": weights(), "state_dict": other_part(), "optimizer": adam()}},
        '"state_dict.model" (2 tensors)',
        "--key state_dict.state_dict --key state_dict.model averages",
    ),
}


@pytest.mark.parametrize("case", sorted(BESIDE))
def test_trained_tensors_beside_the_weights_are_a_warning(tmp_path: Path, case: str) -> None:
    """They are named with their number, and the hint has the keys that average them, too."""
    make, names, hint = BESIDE[case]
    (warning,) = dropped(save(tmp_path / "ckpt_1.pt", make()))
    assert warning.message == f"beside the weights there are tensors that are not in the output: {names}"
    assert warning.hint.startswith(hint)


@pytest.mark.parametrize("case", sorted(case for case in BESIDE if case != "a list of tensors"))
def test_the_keys_of_the_hint_average_all_parts(tmp_path: Path, case: str) -> None:
    """The keys that the warning proposes lead to every tensor, each part under its own prefix, and to no warning."""
    make, _, _ = BESIDE[case]
    path = save(tmp_path / "ckpt_1.pt", make())
    (warning,) = dropped(path)
    keys = tuple(word for word in warning.hint.partition(" averages")[0].split() if word != "--key")
    checkpoint = open_file(path, key=keys)
    checkpoint.index.close()
    names = [layout.name for layout in checkpoint.index.layouts]
    assert [next(key for key in keys if f"{name}.".startswith(f"{key}.")) for name in names]
    assert {key for key in keys if any(f"{name}.".startswith(f"{key}.") for name in names)} == set(keys)
    assert checkpoint.dropped == ()


def composer() -> dict[str, Any]:
    """Return the nested state of a trainer: metrics, an average inside an algorithm, and random states."""
    return {
        "state": {
            "model": weights(),
            "optimizers": {"AdamW": adam()},
            "schedulers": {"CosineAnnealingLR": {"last_epoch": 1}},
            "train_metrics": {"MulticlassAccuracy": {"confusion": torch.ones(3, 3)}},
            "algorithms": [("EMA", {"ema_model": {"named_parameters_dict": weights(seed=1)}})],
            "callbacks": [],
            "timestamp": {"Timestamp": {"batch": 5}},
        },
        "rng": [{"python": (3, (1, 2), None), "cuda": torch.ones(8, dtype=torch.uint8)}],
    }


def twice() -> dict[str, Any]:
    """Return the same tensors under two names."""
    model = weights()
    return {"model": model, "network": dict(model)}


SILENT: dict[str, Callable[[], Any]] = {
    "nanoGPT": lambda: {
        "model": weights("_orig_mod."),
        "optimizer": adam(),
        "model_args": {"n_layer": 1},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.0),
        "config": {"w": torch.ones(9)},
    },
    "optax": lambda: {"params": weights(), "opt_state": ({"mu": weights("p."), "nu": weights("p.")}, 5), "step": 5},
    "detectron2": lambda: {
        "model": weights(),
        "optimizer": adam(),
        "scheduler": {"last_epoch": 5},
        "iteration": 5,
        "trainer": {"iteration": 5, "_trainer": {"optimizer": adam(), "grad_scaler": {"scale": torch.ones(1)}}},
    },
    "fairseq": lambda: {
        "args": argparse.Namespace(lr=0.1),
        "model": weights(),
        "criterion": {"centers": torch.ones(4)},
        "optimizer_history": [{"num_updates": 5}],
        "extra_state": {"metrics": {"default": [1, "loss", {}]}, "train_iterator": {"epoch": 1}, "val_loss": 0.5},
        "last_optimizer_state": adam(),
    },
    "lightning": lambda: {
        "state_dict": weights("model."),
        "callbacks": {"EMACallback": {"ema_weights": weights()}},
        "loops": {"fit_loop": {"state_dict": {}, "total": torch.ones(3)}},
        "hyper_parameters": {"class_weights": torch.ones(10)},
        "native_amp_scaling_state": {"scale": 65536.0},
        "MixedPrecision": {"scale": torch.tensor(2.0)},
        "lr_schedulers": [{"last_epoch": 1}],
        "optimizer_states": [adam()],
    },
    "k-diffusion": lambda: {
        "model": weights(),
        "model_ema": weights(seed=1),
        "opt": adam(),
        "sched": {"last_epoch": 1},
        "ema_sched": {"inv_gamma": 1.0},
        "gns_stats": {"ema_sqnorm": 1.0},
    },
    "ultralytics": lambda: {
        "epoch": 1,
        "best_fitness": np.float64(0.5),
        "model": None,
        "ema": nn.Linear(3, 4).half(),
        "updates": 100,
        "optimizer": adam(),
        "train_args": {"imgsz": 640},
        "train_metrics": {"metrics/mAP50(B)": 0.5},
        "train_results": {"epoch": [1], "train/box_loss": [0.5]},
    },
    "composer": composer,
    "records": lambda: {
        "model": weights(),
        "optim_g": adam(),
        "train_losses": torch.ones(100),
        "loss_history": [torch.ones(4)],
        "metrics": {"confusion": torch.ones(3, 3)},
        "rng_state": torch.get_rng_state(),
        "lr": torch.tensor([0.1]),
        "running_loss_avg": torch.ones(2),
        "epoch": 3,
    },
    "an optimizer of any name": lambda: {
        "model": weights(),
        "solver": {"state": {"layers.0.weight": {"exp_avg": torch.ones(3, 2)}}},
        "prodigy": {"state": {"layers.0.weight": {"s": torch.ones(3, 2)}}, "param_groups": [{"lr": 1.0}]},
        "moments": {"layers.0.weight": {"momentum_buffer": torch.ones(3, 2)}},
        "flat": {"state.layers.0.weight.exp_avg": torch.ones(3, 2)},
    },
    "optimizers of many names": lambda: {
        "model": weights(),
        **{
            name: {"master": [torch.ones(12)]}
            for name in ("optimG", "optimizerD", "d_optim", "optim_state", "OPTIMIZER")
        },
        "optimizer": {"mu": weights(), "nu": weights()},
        "optimizers": {"generator": adam()},
        "lr_scheduler": {"base_lrs": [0.1], "weight": torch.ones(9)},
        "noise_scheduler": {"betas": torch.ones(1000)},
        "callbacks": {"EMACallback": {"shadow": weights("model.")}},
    },
    "results with a graph": lambda: {
        "model": weights(),
        "loss": torch.ones(1, requires_grad=True),
        "lossD": torch.ones(1, requires_grad=True) * 2,
        "temperature": torch.tensor(0.7),
        "frozen": nn.Parameter(torch.tensor(2.0), requires_grad=False),
        "count": nn.Parameter(torch.tensor(2), requires_grad=False),
    },
    "an average": lambda: {"model": weights(), "model_avg": weights(seed=1)},
    "the best so far": lambda: {"model": weights("module."), "best": weights(seed=1), "init": weights("module.")},
    "names of copies": lambda: {
        "model": weights(),
        **{name: weights(seed=1) for name in ("teacher", "target_net", "momentum_encoder", "best_model", "encoder_k")},
        **{name: weights(seed=2) for name in ("master_params", "model_prev", "net_avg", "ref_model", "old_policy")},
    },
    "the same tensors twice": twice,
    "a list of averaged tensors": lambda: {"model": weights(), "ema": {"decay": 0.9, "shadow": [torch.ones(4, 3)]}},
    "torch's counter": lambda: {"model": weights(), "n_averaged": torch.tensor(3)},
    "a plain state dict": weights,
    "a module": lambda: nn.Linear(3, 4),
}


@pytest.mark.parametrize("trainer", sorted(SILENT))
def test_the_state_of_ordinary_trainers_is_no_warning(tmp_path: Path, trainer: str) -> None:
    """Optimizers, schedulers, losses, metrics, settings, random states and averages are not missed in the output."""
    assert dropped(save(tmp_path / "ckpt_1.pt", SILENT[trainer]())) == ()


ANOTHER_MODEL: dict[str, Callable[[], Any]] = {
    "a discriminator": lambda: {"ema": weights(), "d": other_matrices(), "step": 1},
    "statistics of the data": lambda: {"ema": weights(), "normalizer": {"mean": torch.ones(4), "std": torch.ones(4)}},
    "loose statistics": lambda: {"ema": weights(), "obs_rms": torch.ones(4)},
}


@pytest.mark.parametrize("case", sorted(ANOTHER_MODEL))
def test_a_part_beside_the_average_of_another_model_is_not_taken_for_the_model(tmp_path: Path, case: str) -> None:
    """The name of an average says that it is no model only if the other part is what was averaged."""
    checkpoint = ANOTHER_MODEL[case]()
    with pytest.raises(InputRefused, match='holds several models, or parts of one: "ema"') as refused:
        open_file(save(tmp_path / "ckpt_1.pt", checkpoint), strip_prefix=None)
    assert refused.value.proposals[0].changes == {"key": ("ema",)}


@pytest.mark.parametrize(
    "average",
    [
        lambda: {"module": weights("module."), "decay": 0.9},
        lambda: {"shadow_params": list(weights().values())},
        lambda: {"online_model": weights(), "ema_model": weights(seed=1)},
        lambda: {"biases": {"layers.0.bias": torch.ones(4)}},
        lambda: {name.replace(".", ""): tensor for name, tensor in weights().items()},
        lambda: {"flat": torch.ones(16)},
    ],
)
def test_an_average_of_the_weights_is_no_second_model(tmp_path: Path, average: Callable[[], Any]) -> None:
    """Whatever its names are, with copies of the weights, in a list, or of some of the weights only."""
    path = save(tmp_path / "ckpt_1.pt", {"policy": weights(), "ema": average(), "step": 1})
    checkpoint = open_file(path)
    checkpoint.index.close()
    assert checkpoint.key == "policy"
    assert not [one for one in checkpoint.dropped if "ema" in one.message]


def test_an_average_beside_tensors_that_cannot_be_read_is_no_second_model(tmp_path: Path) -> None:
    """Their shapes are unknown: the refusal names what they are."""
    sparse = {name: tensor.to_sparse() for name, tensor in weights().items()}
    checkpoint = open_file(save(tmp_path / "ckpt_1.pt", {"policy": sparse, "ema": weights(), "step": 1}))
    checkpoint.index.close()
    assert [name for name, _ in checkpoint.unreadable] == list(weights())


def test_an_average_of_nameless_tensors_is_stated_without_a_key(tmp_path: Path) -> None:
    """A key is only proposed if it leads to tensors with names."""
    checkpoint = open_file(save(tmp_path / "ckpt_1.pt", SILENT["a list of averaged tensors"]()))
    checkpoint.index.close()
    assert 'also there, and not used: "ema" (by its name an average)' in checkpoint.choice[0]
    assert "--key" not in checkpoint.choice[0]


def test_an_average_inside_an_algorithm_is_stated(tmp_path: Path) -> None:
    """Composer keeps the states of its algorithms in pairs with their names; the key leads into the pair."""
    path = save(tmp_path / "ckpt_1.pt", composer())
    checkpoint = open_file(path)
    checkpoint.index.close()
    key = "state.algorithms.0.1.ema_model"
    assert f'not used: "{key}" (by its name an average); chosen by --key {key}' in checkpoint.choice[0]
    chosen = open_file(path, key=f"{key}.named_parameters_dict")
    chosen.index.close()
    assert [layout.name for layout in chosen.index.layouts] == list(weights())


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_is_no_tensor_among_the_weights_is_a_warning(tmp_path: Path, protocol: int) -> None:
    """Numpy arrays and numbers among the weights are named; whole numbers, text and settings are not weights."""
    model = {
        **weights(),
        "freq": np.arange(3.0),
        "half": np.ones(2, dtype=np.float16),
        "scale": 0.07,
        "gain": np.float32(2),
        "centers": [1, 0.5],
        "rows": ((0.5, 1.0), (1.5, 2.0)),
        "parts": [np.ones(2), np.ones(3)],
        "sizes": [1, 2],
        "words": ["a"],
        "none": [],
        "losses": [0.5],
        "lr_history": [0.5],
        "ids": np.arange(3),
        "depth": 12,
        "flag": True,
        "name": "net",
        "loss": 0.5,
    }
    arrays, numbers, lists = dropped(save(tmp_path / "ckpt_1.pt", {"model": model}, protocol=protocol))
    assert arrays.message == '2 numpy arrays among the weights are not in the output: "freq", "half"'
    assert numbers.message == '2 numbers among the weights are not in the output: "scale", "gain"'
    assert lists.message == ('3 lists of numbers among the weights are not in the output: "centers", "rows", "parts"')
    assert "torch.as_tensor" in arrays.hint


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", [(), ("model",)])
def test_numpy_arrays_alone_are_refused_by_name(tmp_path: Path, protocol: int, key: tuple[str, ...]) -> None:
    """If there are only numpy arrays, the refusal says so, and how to save tensors."""
    model = {name: tensor.numpy() for name, tensor in weights().items()}
    path = save(tmp_path / "ckpt_1.pt", {"model": model, "step": 1}, protocol=protocol)
    with pytest.raises((InputRefused, UsageError), match="2 numpy arrays") as refused:
        open_file(path, key=key)
    assert "torch.from_numpy" in refused.value.hint


def test_what_is_beside_the_module_of_deepspeed_is_a_warning(tmp_path: Path) -> None:
    """The state that a client gives to DeepSpeed is beside its module; of two models the module is read."""
    folder = tmp_path / "global_step5"
    folder.mkdir()
    path = folder / "mp_rank_00_model_states.pt"
    plain: dict[str, object] = {"module": weights(), "optimizer": None, "param_shapes": [], "global_steps": 5}
    save(path, plain)
    assert dropped(folder) == ()
    save(path, {**plain, "head": other_part()})
    assert dropped(folder)[0].message.endswith('"head" (2 tensors)')
    save(path, {**plain, "model": other_part()})
    checkpoint = open_file(folder)
    checkpoint.index.close()
    assert (checkpoint.key, len(checkpoint.index.layouts)) == ("module", 2)
    assert checkpoint.index.size() == path.stat().st_size


def test_extra_state_is_stated(tmp_path: Path) -> None:
    """The state of layers that is stored as bytes, such as FP8 scales, is no weight: it is stated, and no warning."""
    model = {**weights(), "fc._extra_state": io.BytesIO(b"scales"), "none._extra_state": None}
    checkpoint = open_file(save(tmp_path / "ckpt_1.pt", {"model": model}))
    checkpoint.index.close()
    assert checkpoint.dropped == ()
    assert (
        'the extra state of 1 layer, such as FP8 scales of Transformer Engine: "fc._extra_state"'
        in checkpoint.choice[0]
    )


def test_the_warning_is_given_once_for_a_series(tmp_path: Path, ema_avg: Run) -> None:
    """One warning names the last file and the number of the others; ``--strict`` fails, the given key does not."""
    for number in (1, 2, 3):
        parts = {"model": weights(seed=number), "generator": {"0.weight": torch.full((5, 4), float(number))}}
        save(tmp_path / f"ckpt_{number}.pt", parts)
    command = ("ckpt_1.pt", "ckpt_2.pt", "ckpt_3.pt", "--method", "uniform", "-o", "out.safetensors")
    done = ema_avg(*command, "--strict")
    assert done.returncode == 8
    assert '"ckpt_3.pt" and 2 more: beside the weights there are tensors' in done.stderr
    assert ema_avg(*command, "--strict", "--key", "model").returncode == 0
    both = ema_avg(*command, "--force", "--strict", "--key", "model", "--key", "generator")
    assert both.returncode == 0, both.stderr
    found = load(tmp_path / "out.safetensors")
    assert set(found) == {"model.layers.0.weight", "model.layers.0.bias", "generator.0.weight"}
    reference = reference_average(
        [weights(seed=number)["layers.0.bias"] for number in (1, 2, 3)], (1 / 3, 1 / 3, 1 / 3)
    )
    assert same_bits(found["model.layers.0.bias"], torch.from_numpy(reference).float())
    assert found["generator.0.weight"].eq(2).all()


def test_several_models_are_proposed_together(tmp_path: Path, ema_avg: Run) -> None:
    """Two models of unknown names are refused with the commands for each, and for both, which work."""
    for number in (1, 2):
        save(tmp_path / f"ckpt_{number}.pt", {"g": weights(seed=number), "d": other_part(), "d_optim": adam()})
    done = ema_avg("ckpt_1.pt", "ckpt_2.pt", "--method", "uniform", "-o", "out.safetensors")
    assert done.returncode == 3
    *single, proposed = done.stderr.partition("prefixes: ")[2].strip().split("; or ")
    assert single == [f"ema-avg ckpt_1.pt ckpt_2.pt --key {key} --method uniform -o out.safetensors" for key in "gd"]
    assert proposed == "ema-avg ckpt_1.pt ckpt_2.pt --key g --key d --method uniform -o out.safetensors"
    assert ema_avg(*proposed.split()[1:]).returncode == 0
    assert {name.partition(".")[0] for name in load(tmp_path / "out.safetensors")} == {"g", "d"}


@pytest.mark.parametrize(
    ("key", "message", "hint"),
    [
        ("optimizer", '--key "optimizer" is state of the optimizer, not weights', 'the top level has "model", '),
        ("scheduler", '--key "scheduler" is state of the training, not weights', 'the top level has "model", '),
        ("modell", 'there are no tensors under --key "modell"', 'did you mean --key model? the top level has "model"'),
        ("model.layer", 'there are no tensors under --key "model.layer"', "did you mean --key model.layers? "),
        ("step", 'there are no tensors under --key "step"', 'the top level has "model", '),
        ("zzz", 'there are no tensors under --key "zzz"', 'the top level has "model", '),
    ],
)
def test_a_key_without_weights_is_explained(tmp_path: Path, key: str, message: str, hint: str) -> None:
    """State of the training is called so; of a key that is not there, the nearest one is named."""
    model = {"layers": nn.Linear(2, 2).state_dict()}
    root = {"model": model, "optimizer": adam(), "scheduler": {"last_epoch": 1}, "step": 5}
    with pytest.raises(UsageError) as refused:
        open_file(save(tmp_path / "ckpt_1.pt", root), key=key)
    assert refused.value.message == message
    assert refused.value.hint.startswith(hint)


def test_two_keys_are_shown_apart(tmp_path: Path, ema_avg: Run) -> None:
    """The plan and the inspection have each key in quotes of its own."""
    for number in (1, 2):
        save(tmp_path / f"ckpt_{number}.pt", {"g": weights(seed=number), "d": other_part()})
    keys = ("--key", "g", "--key", "d")
    assert 'weights under "g", "d"\n' in ema_avg("plan", ".", *keys, "--method", "uniform").stdout
    assert 'under "g", "d"' in ema_avg("inspect", "ckpt_1.pt", *keys).stdout


def test_a_loose_tensor_beside_a_model_proposes_the_whole(tmp_path: Path) -> None:
    """Where single tensors are beside a model of an unknown name, the proposal is the level that has both."""
    path = save(
        tmp_path / "ckpt_1.pt", {"net_a": {"inner": other_part(), "w": torch.ones(3)}, "free": torch.ones(4, 4)}
    )
    with pytest.raises(InputRefused, match="holds several models, or parts of one") as refused:
        ema_cli.plan([path], method="uniform")
    assert refused.value.hint.endswith(f"ema-avg plan {path} --key . --method uniform")
