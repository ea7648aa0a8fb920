"""Factors of LoRA updates: recognized, and a warning where averaging them one by one is not averaging the updates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli import plan
from ema_cli.dtypes import BY_NAME
from ema_cli.errors import RunWarning
from ema_cli.planning.lora_pairs import find_pairs
from ema_cli.text import percent
from tests.helpers.adapters import DOWN, UP, factors, product, write_adapters
from tests.helpers.series import State, write_series

SHAPES = {
    "peft": {"q.lora_A.weight": (4, 9), "q.lora_B.weight": (6, 4)},
    "peft, with the name of the adapter": {"q.lora_A.default.weight": (4, 9), "q.lora_B.default.weight": (6, 4)},
    "peft, embedding": {"emb.lora_embedding_A": (4, 30), "emb.lora_embedding_B": (6, 4)},
    "peft, embedding, named": {"emb.lora_embedding_A.mine": (4, 30), "emb.lora_embedding_B.mine": (6, 4)},
    "peft, convolution": {"c.lora_A.weight": (4, 3, 5, 5), "c.lora_B.weight": (6, 4, 1, 1)},
    "peft, convolution in one dimension": {"c.lora_A.weight": (4, 3, 5), "c.lora_B.weight": (6, 4, 1)},
    "kohya": {
        "lora_unet_down_blocks_0_to_q.lora_down.weight": (4, 9),
        "lora_unet_down_blocks_0_to_q.lora_up.weight": (6, 4),
    },
    "diffusers": {"unet.to_q.lora.down.weight": (4, 9), "unet.to_q.lora.up.weight": (6, 4)},
    "diffusers, processors": {
        "mid.processor.to_q_lora.down.weight": (4, 9),
        "mid.processor.to_q_lora.up.weight": (6, 4),
    },
    "diffusers, text encoder": {
        "text_encoder.q.lora_linear_layer.down.weight": (4, 9),
        "text_encoder.q.lora_linear_layer.up.weight": (6, 4),
    },
    "x-flux": {"b.0.processor.qkv_lora1.down.weight": (4, 9), "b.0.processor.qkv_lora1.up.weight": (6, 4)},
    "torchtune": {"layers.0.attn.q.lora_a.weight": (4, 9), "layers.0.attn.q.lora_b.weight": (6, 4)},
    "loralib": {"layers.0.q.lora_A": (4, 9), "layers.0.q.lora_B": (6, 4)},
    "MLX, transposed": {"model.layers.0.q.lora_a": (9, 4), "model.layers.0.q.lora_b": (4, 6)},
    "MLX, transposed and square": {"model.layers.0.q.lora_a": (4, 4), "model.layers.0.q.lora_b": (4, 4)},
    "NeMo": {
        "layers.0.attn.adapter_layer.lora_kqv_adapter.linear_in.weight": (4, 9),
        "layers.0.attn.adapter_layer.lora_kqv_adapter.linear_out.weight": (6, 4),
    },
    "at the top": {"lora_A": (4, 9), "lora_B": (6, 4)},
}
NO_PAIRS = {
    "two layers of an MLP": {"w_lora.lora.0.weight": (4, 9), "w_lora.lora.2.weight": (6, 4)},
    "low-rank attention": {"q_a_proj.weight": (4, 9), "q_b_proj.weight": (6, 4)},
    "the layers of an MLP": {"lora_free.mlp.down.weight": (4, 9), "lora_free.mlp.up.weight": (6, 4)},
    "one factor": {"q.lora_A.weight": (4, 9)},
    "grouped convolution": {"c.lora_A.weight": (4, 3, 5, 5), "c.lora_B.weight": (6, 2, 1, 1)},
    "several tasks in one tensor": {"q.lora_A": (5, 4, 9), "q.lora_B": (5, 6, 4)},
    "ranks that differ": {"q.lora_A.weight": (12, 9), "q.lora_B.weight": (6, 4)},
    "vectors": {"q.lora_A.bias": (4,), "q.lora_B.bias": (6,)},
    "empty": {"q.lora_A.weight": (0, 9), "q.lora_B.weight": (6, 0)},
}


def pairs_of(shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> list[tuple[str, str, int]]:
    """Return the pairs among tensors: names and rank."""
    found = find_pairs({name: (BY_NAME[dtype], shape) for name, shape in shapes.items()})
    return [(pair.down, pair.up, pair.rank) for pair in found]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_pairs_are_recognized(shapes: dict[str, tuple[int, ...]]) -> None:
    """The factors as each library names and shapes them, whatever else is in the file and in whatever order."""
    down, up = shapes
    others = {"q.weight": (6, 9), "norm.weight": (9,), "q.lora_dropout": (4,), "alpha": ()}
    for order in (shapes, dict(reversed(shapes.items()))):
        assert pairs_of({**others, **order}) == [(down, up, 4)]
    assert not pairs_of(shapes, "I32")


@pytest.mark.parametrize("shapes", NO_PAIRS.values(), ids=NO_PAIRS)
def test_other_tensors_are_no_pairs(shapes: dict[str, tuple[int, ...]]) -> None:
    """Neither a name nor a shape alone makes a pair."""
    assert not pairs_of(shapes)


def test_a_long_name_takes_no_time() -> None:
    """A hostile name that repeats the word is not searched for ever."""
    assert not pairs_of({"lora_" * 13_000: (4, 9)})


def warnings_of(*paths: Path, **options: Any) -> list[RunWarning]:
    """Return the warnings of a plan about LoRA."""
    made = plan([*paths], **options)
    return [warning for warning in made.warnings if warning.code.startswith("lora")]


def difference(
    states: Sequence[State], weights: Sequence[float], scales: Sequence[float] = (), output_scale: float | None = None
) -> float:
    """Return ``||s mean(B) mean(A) - mean(s B A)|| / ||mean(s B A)||`` in float64, by default with the last scale."""
    pairs = list(zip(states, weights, scales or [1.0] * len(states), strict=True))
    means = {name: torch.stack([w * state[name].double() for state, w, _ in pairs]).sum(0) for name in states[0]}
    right = torch.stack([w * scale * product(state) for state, w, scale in pairs]).sum(0)
    last = pairs[-1][2] if output_scale is None else output_scale
    return float(torch.linalg.norm(last * product(means) - right) / torch.linalg.norm(right))


def test_the_difference_is_measured(tmp_path: Path) -> None:
    """The warning has the difference on these files, with the weights of this average."""
    states = [factors(seed) for seed in range(3)]
    paths = write_series(tmp_path, states)
    for options, weights in (
        ({"method": "uniform"}, [1 / 3] * 3),
        ({"decay": 0.6}, [0.36, 0.24, 0.4]),
        ({"method": "manual", "weights": [1, 0, 3]}, [0.25, 0, 0.75]),
    ):
        (warning,) = warnings_of(*paths, **options)
        assert warning.code == "lora-factors"
        assert f"by {percent(difference(states, weights))} (measured on 1 of them" in warning.message
        assert f"by factors of rank {2 * (3 - weights.count(0))} instead of 2" in warning.hint


def test_the_largest_difference_of_several_averages_is_shown(tmp_path: Path) -> None:
    """With several averages in one run, the warning has the largest of their differences."""
    states = [factors(seed) for seed in range(3)]
    paths = write_series(tmp_path, states)
    (warning,) = warnings_of(*paths, decay=[0.1, 0.6])
    worst = max(difference(states, [d * d, d * (1 - d), 1 - d]) for d in (0.1, 0.6))
    assert percent(worst) in warning.message


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_convolutions_views_and_transposed_factors_are_measured(tmp_path: Path, form: str) -> None:
    """The product is that of the matrices behind the shapes, whatever the strides and the layout of the factors."""
    states = [factors(seed, inside=12) for seed in range(2)]
    weights = [0.5, 0.5]
    wanted = percent(difference(states, weights))
    convolutions = [{"lora_A": s[DOWN].reshape(2, 3, 2, 2), "lora_B": s[UP].reshape(4, 2, 1, 1)} for s in states]
    transposed = [{"q.lora_a": s[DOWN].T.contiguous(), "q.lora_b": s[UP].T.contiguous()} for s in states]
    made = {"convolutions": convolutions, "transposed": transposed}
    if form == "zip":  # tensors of safetensors files are contiguous
        made["views"] = [{"lora_A": s[DOWN].T.contiguous().T, "lora_B": s[UP].T.contiguous().T} for s in states]
    for name, series in made.items():
        (warning,) = warnings_of(*write_series(tmp_path / name, series, form=form), method="uniform")
        assert wanted in warning.message, name


def test_a_large_pair_is_measured_in_part(tmp_path: Path) -> None:
    """Of large factors a part is read; its difference is close to that of the whole."""
    states = [factors(seed, rank=600, inside=900, outside=700) for seed in range(2)]
    (warning,) = warnings_of(*write_series(tmp_path, states), method="uniform")
    found = float(warning.message.partition(" by ")[2].partition(" by ")[2].partition(" %")[0] or "nan")
    assert found == pytest.approx(100 * difference(states, [0.5, 0.5]), rel=0.05)


def test_a_small_difference_is_no_warning(tmp_path: Path) -> None:
    """Checkpoints close to each other, one checkpoint, and updates that are still zero are averaged silently."""
    start = factors(0)
    near = [{name: tensor + 0.001 * factors(seed)[name] for name, tensor in start.items()} for seed in (1, 2)]
    zero = [{**factors(seed), UP: torch.zeros(4, 2)} for seed in (1, 2)]
    assert not warnings_of(*write_series(tmp_path / "near", near), method="uniform")
    assert not warnings_of(*write_series(tmp_path / "zero", zero), method="uniform")
    far = write_series(tmp_path / "far", [factors(1), factors(2)])
    assert not warnings_of(far[0], method="uniform")
    assert not warnings_of(*far, decay=0.5, exclude="lora_B")
    assert warnings_of(*far, method="uniform")


def test_configurations_that_differ_are_a_warning(tmp_path: Path) -> None:
    """The output has the last ``adapter_config.json``: what differs is listed, and is part of the difference."""
    states = [factors(0)] * 3
    folders = write_adapters(tmp_path / "run", states, [{"lora_alpha": 1}, {"lora_alpha": 2}, {"lora_alpha": 4}])
    measured, configs = warnings_of(*folders, method="uniform")
    assert percent(difference(states, [1 / 3] * 3, [0.5, 1.0, 2.0])) in measured.message
    assert configs.code == "lora-configs-differ"
    assert 'lora_alpha is 4 in the last, 1 in "checkpoint-100", 2 in "checkpoint-200"' in configs.message
    assert "use_rslora" not in configs.message
    assert not warnings_of(*write_adapters(tmp_path / "same", states), method="uniform")


def test_alphas_in_tensors_are_part_of_the_difference(tmp_path: Path) -> None:
    """The tool of kohya stores alpha as a tensor, in any type: the scale of an update is alpha / r."""
    names = ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight")
    plain = [factors(seed) for seed in (0, 1)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        states = [
            {names[0]: state[DOWN], names[1]: state[UP], "lora_unet_q.alpha": torch.tensor(alpha).to(dtype)}
            for state, alpha in zip(plain, (1, 4), strict=True)
        ]
        (warning,) = warnings_of(*write_series(tmp_path / str(dtype), states), method="uniform")
        scale = 2.0 if dtype is torch.int64 else 1.25  # whole numbers are copied from the last, others averaged
        assert percent(difference(plain, [0.5, 0.5], [0.5, 2.0], scale)) in warning.message


@pytest.mark.parametrize(
    "config", [b"{", b"[]", b'{"r": 0}', b'{"r": 2, "alpha_pattern": {"(a+)+b": 1}, "lora_alpha": 1}', b'{"r": "2"}']
)
def test_a_configuration_that_cannot_be_used_is_ignored(tmp_path: Path, config: bytes) -> None:
    """A broken configuration changes nothing: the scales are taken to be equal."""
    states = [factors(0), factors(1)]
    folders = write_adapters(tmp_path / "run", states)
    for folder in folders:
        (folder / "adapter_config.json").write_bytes(config)
    (warning,) = warnings_of(*folders, method="uniform")
    assert percent(difference(states, [0.5, 0.5])) in warning.message


def test_the_configuration_beside_a_named_file_is_used(tmp_path: Path) -> None:
    """A file of weights may be named instead of its folder."""
    states = [factors(0)] * 2
    folders = write_adapters(tmp_path / "run", states, [{"lora_alpha": 1}, {"lora_alpha": 4}])
    found = warnings_of(*(folder / "adapter_model.safetensors" for folder in folders), method="uniform")
    assert [warning.code for warning in found] == ["lora-factors", "lora-configs-differ"]


def test_a_plan_of_other_weights_reads_no_factors(tmp_path: Path) -> None:
    """Without a pair nothing is measured."""
    for step in (1, 2):
        save_file({"w": torch.randn(3)}, tmp_path / f"step_{step}.safetensors")
    assert not warnings_of(tmp_path, method="uniform")
