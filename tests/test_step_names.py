"""Steps in the names of a series: which numbers are steps, and what their units and exponents mean."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ema_cli.name_numbers import canonical_name
from ema_cli.step_names import inversion, name_columns, steps_from_names

NAMES = st.text("aB_.-019٣kMe", max_size=6)
UNITS = {"": 1, "k": 10**3, "K": 10**3, "m": 10**6, "M": 10**6, "b": 10**9, "B": 10**9}


def values(*names: str) -> list[int | None]:
    """Return the numbers that are read from a series of names."""
    return [step.value if step else None for step in steps_from_names(names)]


def units(*names: str) -> set[str]:
    """Return their units."""
    return {step.unit for step in steps_from_names(names) if step}


RESULTS = ("model_wer_", "loss_", "val_loss=", "valloss", "ppl-", "fid", "acc_", "mAP_", "reward", "remaining_", "f1_")
"""What is before a result of a checkpoint. Losses would even reverse the order."""
INDICES = ("client_", "agent", "task", "cv", "fold_", "localrank", "model_proc", "cuda", "head_", "block_", "chunk_")
"""What is before the number of one of several things."""
STEPS = [
    # detectron2, timm, fairseq, DETR, MAE, lucidrains, guided-diffusion, DiT
    (["model_0004999.pth", "model_0009999.pth"], [4999, 9999]),
    (["checkpoint-9.pth.tar", "checkpoint-10.pth.tar"], [9, 10]),
    (["checkpoint_3_5000.pt", "checkpoint_3_6000.pt", "checkpoint_4_7000.pt"], [5000, 6000, 7000]),
    (["checkpoint0099.pth", "checkpoint0199.pth"], [99, 199]),
    (["model-1.pt", "model-10.pt", "model-2.pt"], [1, 10, 2]),
    (["model010000.pt", "model020000.pt"], [10000, 20000]),
    (["ema_0.9999_010000.pt", "ema_0.9999_020000.pt"], [10000, 20000]),
    (["0050000.pt", "0100000.pt"], [50000, 100000]),
    # Lightning, NeMo, Composer, Megatron, DeepSpeed, Trainer, litgpt, OLMo, TinyLlama, MLX
    (["epoch=0-step=500.ckpt", "epoch=1-step=1000.ckpt"], [500, 1000]),
    (
        [
            "gpt--val_loss=2.31-step=1000-consumed_samples=64000.ckpt",
            "gpt--val_loss=2.11-step=2000-consumed_samples=128000.ckpt",
        ],
        [1000, 2000],
    ),
    (["ep0-ba1000", "ep0-ba2000"], [1000, 2000]),
    (["ep0-ba1000-rank0.pt", "ep1-ba2000-rank0.pt"], [1000, 2000]),
    (["iter_0000100/m.pt", "iter_0000200/m.pt"], [100, 200]),
    (["global_step100", "global_step200"], [100, 200]),
    (["checkpoint-500/model.bin", "checkpoint-1500/model.bin"], [500, 1500]),
    (["step-00001000/lit_model.pth", "step-00002000/lit_model.pth"], [1000, 2000]),
    (["step1000-tokens4B", "step2000-tokens8B"], [1000, 2000]),
    (["TinyLlama-1.1B-step-50K-105b", "TinyLlama-1.1B-intermediate-step-240k-503b"], [50_000, 240_000]),
    (["0000100_adapters.safetensors", "0000200_adapters.safetensors"], [100, 200]),
    # OpenNMT, JoeyNMT, stable-baselines, VITS, gaussian splatting, BasicSR, ignite, metaseq, SAE
    (["demo_step_1000.pt", "demo_step_2000.pt"], [1000, 2000]),
    (["5000.ckpt", "10000.ckpt"], [5000, 10000]),
    (["rl_model_5000_steps.pt", "rl_model_10000_steps.pt"], [5000, 10000]),
    (["G_1000.pth", "G_2000.pth"], [1000, 2000]),
    (["chkpnt7000.pth", "chkpnt30000.pth"], [7000, 30000]),
    (["net_g_5000.pth", "net_g_10000.pth"], [5000, 10000]),
    (["10_net_G.pth", "5_net_G.pth"], [10, 5]),
    (["checkpoint_iteration=400.pt", "checkpoint_iteration=800.pt"], [400, 800]),
    (["network-snapshot-000100.pt", "network-snapshot-000200.pt"], [100, 200]),
    (["modelStep5.pt", "modelStep10.pt"], [5, 10]),
    (["update7.pt", "it9.pt"], [7, 9]),
    (["model.0005.pth", "model.0010.pth"], [5, 10]),
    # numbers that belong to something else
    (["vit16_100.pt", "vit16_200.pt"], [100, 200]),
    (["commit4_100.pt", "commit4_200.pt"], [100, 200]),
    (["kit3_100.pt", "kit5_200.pt"], [100, 200]),
    (["llama-7b-800k.pt", "llama-7b-1M.pt"], [800_000, 1_000_000]),
    (["llama-1.3B_step_5.pt", "llama-1.3B_step_10.pt"], [5, 10]),
    (["ckpt_100_2.31.pt", "ckpt_200_2.11.pt"], [100, 200]),
    (["lr_1e-4_10.pt", "lr_1e-4_20.pt"], [10, 20]),
    (["model_20240101_101010_3.pt", "model_20240102_101110_4.pt"], [3, 4]),
    (["ckpt_100_2.pt", "ckpt_200_1.pt"], [100, 200]),
    (["checkpoint-500/model_500.bin", "checkpoint-1500/model_1500.bin"], [500, 1500]),
    (["layer_norm_3/step_10.pt", "layer_norm_3/step_20.pt"], [10, 20]),
    (["warmup_step_100_step_5.pt", "warmup_step_100_step_7.pt"], [5, 7]),
    (["step_5_warmup_step_100.pt", "step_7_warmup_step_100.pt"], [5, 7]),
    # units and exponents
    (["step800k.pt", "step900k.pt", "step1M.pt"], [800_000, 900_000, 1_000_000]),
    (["iter_1500.pt", "iter_2k.pt"], [1500, 2000]),
    (["iter_999K.pt", "iter_1.5M.pt", "iter_2B.pt"], [999_000, 1_500_000, 2_000_000_000]),
    (["step_2e4.pt", "step_1e5.pt"], [20_000, 100_000]),
    (["step=9e2.pt", "step=1e3.pt"], [900, 1000]),
    (["step_900.pt", "step_1,000.pt", "step_10,000.pt"], [900, 1000, 10_000]),
    (["step_900.pt", "step_1_000.pt", "step_10_000.pt"], [900, 1000, 10_000]),
    (["step_1_000.pt", "step_2_000.pt"], [1, 2]),
    (["m-900.pt", "m-1,000.pt", "m-1,000,000.pt"], [900, 1000, 1_000_000]),
    # results beside the step
    (["100_psnr31.pt", "200_psnr30.pt"], [100, 200]),
    (["model_1000_acc91.pt", "model_2000_acc89.pt"], [1000, 2000]),
    (["wer_90_step_5.pt", "wer_71_step_10.pt"], [5, 10]),
    (["agent_5000.pt", "agent_10000.pt"], [5000, 10_000]),
    (["model-800k.pt", "model-1M.pt"], [800_000, 1_000_000]),
    (["5ksteps.pt", "10ksteps.pt"], [5000, 10_000]),
]


@pytest.mark.parametrize(("names", "expected"), STEPS, ids=lambda value: str(value[0]))
def test_steps_are_read_from_a_series(names: list[str], expected: list[int]) -> None:
    """The number after or before a step's word, or the only number that differs, however trainers write it."""
    assert values(*names) == expected
    assert units(*names) == {"step"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["epoch=3-val=0.25.ckpt", "epoch=12-val=0.50.ckpt"], [3, 12]),
        (["ep3.pt", "ep12.pt"], [3, 12]),
        (["9epoch.pth", "11epoch.pth"], [9, 11]),
        (["epoch_012.pt", "epoch_013.pt"], [12, 13]),
        (["resnet50-0676ba61_epoch_3.pt", "resnet50-0676ba61_epoch_4.pt"], [3, 4]),
        (["voice_e10_s1000.pth", "voice_e20_s2000.pth"], [10, 20]),
        (["epoch3_acc91.pt", "epoch4_acc89.pt"], [3, 4]),
        (["best_272_epoch_1.pt", "epoch_5.pt"], [1, 5]),
        (["epoch=1-step=100.ckpt", "epoch=2-step=50.ckpt"], [1, 2]),
    ],
)
def test_epochs_are_distinguished_from_steps(names: list[str], expected: list[int]) -> None:
    """The word at the number is its unit. Steps that begin again in every epoch are not those of the series."""
    assert values(*names) == expected
    assert units(*names) == {"epoch"}


@pytest.mark.parametrize(
    "names",
    [
        ["resnet50.pth"],
        ["yolov8n.pt"],
        ["net-0676ba61.pt", "best.pt"],
        ["a.pt", "b.pt"],
        ["x1.pt", "y2.pt"],
        ["a.pth.tar", "b.pth.tar"],
        ["loss0.31_a.pt", "loss0.11_a.pt"],
        ["v1.2.3.pt", "v1.2.4.pt"],
        ["model10x.pt", "model20x.pt"],
        ["llama-7b.pt", "llama-13b.pt"],
        ["vit-86m.pt", "vit-300m.pt"],
        ["seed1.pt", "seed2.pt"],
        ["run1.pt", "run2.pt"],
        ["fold_0/model.pt", "fold_1/model.pt"],
        ["ckpt_100_seed9.pt", "ckpt_200_seed3.pt"],
        ["consolidated.00.pth", "consolidated.01.pth"],
        ["model-00001-of-00002.bin", "model-00002-of-00002.bin"],
        ["rank0.pt", "rank1.pt"],
        ["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"],
        ["step_1.00005k.pt", "step_2.00005k.pt"],
        ["model_" + "9" * 30 + ".pt", "model_" + "8" * 30 + ".pt"],
        ["step_005.pt", "step_5.pt"],
        ["step_-100.pt", "step_-50.pt"],
        *([f"{one}90.pt", f"{one}71.pt"] for one in RESULTS),
        *([f"{one}0.pt", f"{one}1.pt", f"{one}2.pt"] for one in INDICES),
    ],
    ids=lambda names: names[0],
)
def test_a_number_without_a_reason_is_no_step(names: list[str]) -> None:
    """One name, a size, a version, a seed, a part of a model, or names that differ in more: none of these is a step."""
    assert set(values(*names)) == {None}


def test_a_word_is_enough_for_a_single_name() -> None:
    """A word marks a step also where there is nothing to compare."""
    assert values("ckpt_300.pt", "final.pt") == [300, None]
    assert values("step_0.pt") == [0]


def test_names_of_two_kinds_keep_their_units() -> None:
    """Epochs and steps side by side are read both, for the caller to decide."""
    columns = name_columns(["epoch-1.pt", "epoch-2.pt", "checkpoint-4000.pt"])
    assert [(column.unit, column.values) for column in columns] == [
        ("step", (None, None, 4000)),
        ("epoch", (1, 2, None)),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["CKPT+2023-01-01+12-10-05+00", "CKPT+2023-01-02+11-10-05+00"],
        ["model_20231231_235959.pt", "model_20240101_000000.pt"],
        ["2023_01_05/model.pt", "2023_02_01/model.pt"],
        ["model_20231231.pt", "model_20240101.pt"],
    ],
)
def test_a_date_gives_an_order_but_no_steps(names: list[str]) -> None:
    """SpeechBrain names its folders by the time; the numbers of a date are read together."""
    (column,) = name_columns(names)
    assert column.unit == "time"
    assert list(column.values) == sorted(value for value in column.values if value is not None)
    assert set(values(*names)) == {None}


@given(
    number=st.integers(0, 10**6),
    fraction=st.integers(0, 999),
    unit=st.sampled_from(sorted(UNITS)),
    exponent=st.none() | st.integers(0, 6),
    zeros=st.integers(0, 3),
)
@settings(deadline=None)
def test_units_and_exponents_belong_to_the_number(
    number: int, fraction: int, unit: str, exponent: int | None, zeros: int
) -> None:
    """The value is that of exact arithmetic; a number that is not whole, or a plain decimal, is no step."""
    decimals = f".{fraction:03d}" if fraction else ""
    power = "" if exponent is None else f"e{exponent}"
    exact = (number + Fraction(fraction, 1000)) * 10 ** (exponent or 0) * UNITS[unit]
    plain = bool(fraction) and not unit and exponent is None
    if exponent is not None:
        unit = ""  # an exponent takes no unit besides
        exact = (number + Fraction(fraction, 1000)) * 10**exponent
    expected = int(exact) if exact.denominator == 1 and not plain else None
    name = f"step_{'0' * zeros}{number}{decimals}{power}{unit}"
    assert values(f"{name}.pt") == [expected]


@given(st.lists(st.integers(0, 10**12), unique=True, min_size=2, max_size=5), st.integers(0, 12))
@settings(deadline=None)
def test_zeros_in_front_do_not_matter(numbers: list[int], width: int) -> None:
    """``step_005`` is step 5, and the names of one step are known to be equal."""
    names = [f"run_step_{number:0{width}d}.pt" for number in numbers]
    assert values(*names) == numbers
    assert [canonical_name(name) for name in names] == [canonical_name(f"run_step_{number}") for number in numbers]


@given(
    word=st.sampled_from(["rank", "shard", "part", "layer", "stage", "tp", "pp", "mp_rank"]), count=st.integers(2, 9)
)
def test_parts_are_no_steps(word: str, count: int) -> None:
    """The numbers of the parts of one checkpoint never order a series."""
    assert set(values(*(f"model_{word}_{number:02d}.pt" for number in range(count)))) == {None}


@given(st.lists(NAMES, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_names_have_steps_or_none(names: list[str], shuffle: random.Random) -> None:
    """There is one answer per name, and it does not depend on the order in which the names were listed."""
    found = values(*names)
    assert len(found) == len(names)
    assert all(value is None or value >= 0 for value in found)
    order = list(range(len(names)))
    shuffle.shuffle(order)
    assert values(*(names[n] for n in order)) == [found[n] for n in order]


@given(st.lists(st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 4)), max_size=6))
def test_an_inversion_is_found_if_there_is_one(pairs: list[tuple[int | None, int | None]]) -> None:
    """Compared with all pairs: one column increases where the other decreases."""
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    exists = any(a < c and b > d for a, b in known for c, d in known)
    found = inversion(first, second)
    assert (found is not None) == exists
    if found is not None:
        earlier, later = (pairs[n] for n in found)
        assert (earlier[0] or 0) < (later[0] or 0)
        assert (earlier[1] or 0) > (later[1] or 0)
