"""``--lora exact``: the update of the output is the average of the updates, whatever the ranks, scales and layouts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import average, plan
from ema_cli.errors import EmaAvgError, InputRefused, UsageError
from ema_cli.events import Progress
from ema_cli.fold.cuda import TorchLane
from ema_cli.fold.engine import fold
from ema_cli.fold.lanes import cpu_lane
from ema_cli.options.average import make_options
from ema_cli.pipeline import planned, run_average
from ema_cli.report.beside import report_path
from ema_cli.report.serialize import to_json
from ema_cli.verification.checks import verify
from tests.helpers.adapters import DOWN, UP, factors, product, write_adapters
from tests.helpers.outputs import Memory
from tests.helpers.reports import check
from tests.helpers.series import State, data_section, write_series

CLOSE = 1e-6
"""Relative: two factors in float32, each rounded once."""
UNIFORM: dict[str, Any] = {"method": "uniform", "lora": "exact"}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative distance of two updates."""
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


def weighted(updates: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the float64 average of updates."""
    return torch.stack([w * update for update, w in zip(updates, weights, strict=True)]).sum(0)


def update_of(folder: Path) -> torch.Tensor:
    """Return the update of a written adapter with the scale of its configuration."""
    config = json.loads((folder / "adapter_config.json").read_text())
    r = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    return float(config["lora_alpha"] / r) * product(load_file(folder / "adapter_model.safetensors"))


def joined(states: Sequence[State], weights: Sequence[float], *, keep_zeros: bool = False) -> State:
    """Return the concatenated factors as torch makes them, rounded once from float64."""
    kept = [(state, math.sqrt(w)) for state, w in zip(states, weights, strict=True) if w or keep_zeros]
    return {
        DOWN: torch.cat([root * state[DOWN].double() for state, root in kept], dim=0).float(),
        UP: torch.cat([root * state[UP].double() for state, root in kept], dim=1).float(),
    }


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"method": "uniform"}, [1 / 3] * 3),
        ({"decay": 0.6}, [0.36, 0.24, 0.4]),
        ({"method": "manual", "weights": [1, 0, 3]}, [0.25, 0, 0.75]),
        ({"method": "manual", "weights": [3, 1, 0]}, [0.75, 0.25, 0]),
        ({"method": "manual", "weights": [3, 1, 2], "normalize": False}, [3, 1, 2]),
    ],
    ids=["uniform", "ema", "a checkpoint without weight", "the last without weight", "not normalized"],
)
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_the_update_is_the_average_of_the_updates(
    options: dict[str, Any], weights: list[float], tmp_path: Path, *, rank_stabilized: bool
) -> None:
    """Checkpoints without weight are left out of the rank; alpha grows so that the scale stays."""
    states = [factors(seed) for seed in range(3)]
    folders = write_adapters(tmp_path / "run", states, [{"use_rslora": rank_stabilized}] * 3)
    report = average(folders, output=f"{tmp_path}/avg/", lora="exact", **options)
    used = sum(weight != 0 for weight in weights)
    config = json.loads((tmp_path / "avg/adapter_config.json").read_text())
    assert config["r"] == 2 * used
    assert config["lora_alpha"] == pytest.approx(4 * (math.sqrt(used) if rank_stabilized else used), rel=1e-15)
    assert distance(update_of(tmp_path / "avg"), weighted([update_of(f) for f in folders], weights)) < CLOSE
    written = load_file(tmp_path / "avg/adapter_model.safetensors")
    if not rank_stabilized:
        assert all(written[name].equal(tensor) for name, tensor in joined(states, weights).items())
    assert not [warning for warning in report.warnings if warning.code.startswith("lora")]
    assert verify(tmp_path / "avg").ok
    check(json.loads(to_json(report)))


def test_other_ranks_and_scales(tmp_path: Path) -> None:
    """Ranks, alphas and signs may differ: the factors get what alpha cannot have."""
    states = [factors(seed, rank=rank) for seed, rank in enumerate((2, 3, 1))]
    changes: list[dict[str, Any]] = [
        {"r": 2, "lora_alpha": 4},
        {"r": 3, "lora_alpha": -8, "use_rslora": True},
        {"r": 1, "lora_alpha": 7},
    ]
    folders = write_adapters(tmp_path / "run", states, changes)
    average(folders, output=f"{tmp_path}/avg/", decay=0.6, lora="exact")
    expected = weighted([update_of(folder) for folder in folders], [0.36, 0.24, 0.4])
    assert distance(update_of(tmp_path / "avg"), expected) < CLOSE
    assert json.loads((tmp_path / "avg/adapter_config.json").read_text())["r"] == 6
    assert verify(tmp_path / "avg").ok


def test_the_bytes_do_not_depend_on_blocks_threads_or_lane(tmp_path: Path) -> None:
    """Every block size, both lanes and several averages at once: the bytes of torch's concatenation."""
    states = [factors(seed, rank=3, inside=701, outside=433) for seed in range(3)]
    paths = write_series(tmp_path, [{**state, "bias": torch.ones(5)} for state in states])
    for memory, threads in ((None, 1), (150_000, 1), (400_000, 3), (260_000, 2)):
        options = make_options(
            paths,
            decay=[0.0, 0.6],
            output=tmp_path / "{decay}.safetensors",
            lora="exact",
            max_memory=memory,
            threads=threads,
        )
        with planned(options) as made:
            for lane in (cpu_lane, partial(TorchLane, torch.device("cpu"))):
                sinks = [Memory(made.data_bytes) for _ in made.outputs]
                make = partial(lane, block_elements=made.buffers.block_elements, averages=2)
                fold(made, sinks, make, measure_geometry=True)
                for sink, weights in zip(sinks, ([0, 0, 1.0], [0.36, 0.24, 0.4]), strict=True):
                    expected = joined(states, weights, keep_zeros=True)
                    data = b"".join(expected[name].numpy().tobytes() for name in (DOWN, UP))
                    assert bytes(sink.data).startswith(data)


def test_views_and_types(tmp_path: Path) -> None:
    """Factors with strides, in several types, are read as they are; the output has the type asked for."""
    states = [factors(seed) for seed in range(2)]
    states[0] = {name: tensor.T.contiguous().T for name, tensor in states[0].items()}
    states[1] = {name: tensor.bfloat16() for name, tensor in states[1].items()}
    paths = write_series(tmp_path, states)
    average(paths, output=tmp_path / "avg.safetensors", dtype="float64", **UNIFORM)
    written = load_file(tmp_path / "avg.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float64}
    assert distance(product(written), weighted([product(state) for state in states], [0.5, 0.5])) < 1e-15
    assert verify(tmp_path / "avg.safetensors").ok


NAMES = {
    "kohya": ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight", "lora_unet_q.alpha"),
    "diffusers": ("unet.q.lora.down.weight", "unet.q.lora.up.weight", "unet.q.alpha"),
    "processors": (
        "q.processor.to_q_lora.down.weight",
        "q.processor.to_q_lora.up.weight",
        "q.processor.to_q_lora.alpha",
    ),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64], ids=str)
def test_alpha_in_a_tensor(names: tuple[str, str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    """Alpha is scaled with the rank; what its type cannot hold is in the factors. Alphas may differ."""
    down, up, alpha = names
    made = [factors(seed, rank=3) for seed in range(3)]
    alphas = [torch.tensor(value).to(dtype) for value in (1, 3, 7)]
    states = [
        {down: state[DOWN], up: state[UP], alpha: value, "text.norm": torch.ones(2)}
        for state, value in zip(made, alphas, strict=True)
    ]
    report = average(write_series(tmp_path, states), output=tmp_path / "avg.safetensors", decay=0.6, lora="exact")
    written = load_file(tmp_path / "avg.safetensors")
    assert written[alpha].dtype is dtype
    assert written[alpha].item() == (7 if dtype is torch.int64 else 21)
    updates = [float(value) / 3 * product(state) for state, value in zip(made, alphas, strict=True)]
    found = float(written[alpha]) / written[down].shape[0] * product(written, (down, up))
    assert distance(found, weighted(updates, [0.36, 0.24, 0.4])) < CLOSE
    assert "lora-scale-not-stored" not in {w.code for w in report.warnings} or dtype == torch.int64
    assert verify(tmp_path / "avg.safetensors").ok


def test_an_alpha_that_its_type_cannot_hold(tmp_path: Path) -> None:
    """The rounding of alpha, and an alpha that would overflow, are made up for by the factors."""
    for value, dtype in ((40_000.0, torch.float16), (193 / 128, torch.bfloat16)):
        made = [factors(seed) for seed in range(3)]
        names = NAMES["kohya"]
        states = [dict(zip(names, (s[DOWN], s[UP], torch.tensor(value).to(dtype)), strict=True)) for s in made]
        folder = tmp_path / str(dtype)
        average(write_series(folder, states), output=folder / "avg.safetensors", **UNIFORM)
        written = load_file(folder / "avg.safetensors")
        found = float(written[names[2]]) / 6 * product(written, names[:2])
        expected = float(states[0][names[2]]) / 2 * weighted([product(state) for state in made], [1 / 3] * 3)
        assert distance(found, expected) < CLOSE


def test_an_alpha_of_another_type_is_refused(tmp_path: Path) -> None:
    """A number in eight bits is not read."""
    names = NAMES["kohya"]
    state = dict(zip(names, (*factors(0).values(), torch.tensor(1.0).to(torch.float8_e4m3fn)), strict=True))
    paths = write_series(tmp_path, [state] * 2)
    with pytest.raises(InputRefused, match=r"alpha.*float8"):
        plan(paths, **UNIFORM)


def test_transposed_factors_and_convolutions(tmp_path: Path) -> None:
    """The rank is on another axis in MLX; convolutions have more axes behind it."""
    made = [factors(seed, inside=12) for seed in range(2)]
    mlx = [{"q.lora_a": s[DOWN].T.contiguous(), "q.lora_b": s[UP].T.contiguous()} for s in made]
    average(write_series(tmp_path / "mlx", mlx), output=tmp_path / "mlx.safetensors", **UNIFORM)
    written = load_file(tmp_path / "mlx.safetensors")
    expected = weighted([product(state) for state in made], [0.5, 0.5])
    assert distance((written["q.lora_a"].double() @ written["q.lora_b"].double()).T, expected) < CLOSE
    conv = [
        {"c.lora_A.weight": s[DOWN].reshape(2, 3, 2, 2), "c.lora_B.weight": s[UP].reshape(4, 2, 1, 1)} for s in made
    ]
    average(write_series(tmp_path / "conv", conv), output=tmp_path / "conv.safetensors", **UNIFORM)
    written = load_file(tmp_path / "conv.safetensors")
    assert written["c.lora_A.weight"].shape == (4, 3, 2, 2)
    down, up = written["c.lora_A.weight"].reshape(4, 12), written["c.lora_B.weight"].reshape(4, 4)
    assert distance(up.double() @ down.double(), expected) < CLOSE
    assert verify(tmp_path / "mlx.safetensors").ok
    assert verify(tmp_path / "conv.safetensors").ok


def test_layers_with_patterns(tmp_path: Path) -> None:
    """Where layers differ, patterns list all of them, so that none is matched by the pattern of another."""
    layers = {"q": (2, 4.0), "x.q": (3, 5.0), "a.x.q": (3, 6.0), "a.xXq": (1, 6.0)}
    states = [
        {
            f"base_model.model.{layer}.lora_{side}.weight": tensor
            for layer, (rank, _) in layers.items()
            for side, tensor in zip("AB", factors(seed, rank=rank).values(), strict=True)
        }
        for seed in range(2)
    ]
    change = {"r": 3, "rank_pattern": {"^q": 2, "xXq": 1}, "lora_alpha": 5, "alpha_pattern": {"^q": 4, "a.x.q": 6}}
    average(write_adapters(tmp_path / "run", states, [change] * 2), output=f"{tmp_path}/avg/", **UNIFORM)
    config = json.loads((tmp_path / "avg/adapter_config.json").read_text())
    wanted = {"a.x.q": (6, 12), "x.q": (6, 10), "q": (4, 8), "a.xXq": (2, 12)}
    for pattern, number in (("rank_pattern", 0), ("alpha_pattern", 1)):
        assert len(config[pattern]) == len(layers)
        for layer in layers:  # as peft.utils.other.get_pattern_key does
            key = next(key for key in config[pattern] if re.match(rf"(.*\.)?({key})$", layer))
            assert config[pattern][key] == wanted[layer][number]


def write_changed(folder: Path, change: Mapping[str, Any], extra: Mapping[str, torch.Tensor]) -> list[Path]:
    """Write two adapters with a changed configuration and more tensors."""
    return write_adapters(folder / "run", [{**factors(seed), **extra} for seed in range(2)], [change] * 2)


LAYER = "base_model.model.q"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "DoRA": ({}, {f"{LAYER}.lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector"),
    "DoRA of kohya": ({}, {f"{LAYER}.dora_scale": torch.ones(4, 1)}, "dora_scale"),
    "DoRA of torchtune": ({}, {f"{LAYER}.magnitude": torch.ones(4)}, "magnitude"),
    "Tucker": ({}, {f"{LAYER}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "lora_mid"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, {}, "the type ADALORA"),
    "AdaLoRA, by its tensors": ({}, {f"{LAYER}.lora_E": torch.ones(2, 1)}, "lora_E"),
    "a variant": ({"use_dora": True}, {}, "use_dora"),
    "experts in one tensor": ({"target_parameters": ["w"]}, {}, "target_parameters"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa_niter_4"),
    "another rank": ({"r": 4}, {}, "rank 4, but"),
    "a factor alone": ({}, {"base_model.model.k.lora_A.weight": torch.ones(2, 5)}, "k.lora_A.weight"),
    "no scale": ({"lora_alpha": 0}, {}, "zero"),
    "a pattern that takes long": ({"alpha_pattern": {"(a+)+b": 2}}, {}, "too complex"),
    "a pattern that is none": ({"rank_pattern": {"[": 2}}, {}, "not a regular expression"),
}


@pytest.mark.parametrize(("change", "extra", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exact_is_refused(
    change: dict[str, Any], extra: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    """The message says what is in the way; averaging the factors one by one still works."""
    folders = write_changed(tmp_path, change, extra)
    with pytest.raises(InputRefused, match=r"(?s).*") as refused:
        plan(folders, **UNIFORM)
    assert words in refused.value.message
    hints = {w.code: w.hint for w in plan(folders, method="uniform").warnings}
    assert "--lora exact" not in hints.get("lora-factors", "")


HOSTILE = {
    "deep where it counts": b'{"r": 2, "use_rslora": %s1%s, "init_lora_weights": [[]]}' % (b"[" * 900, b"]" * 900),
    "a large rank": b'{"r": %s}' % (b"9" * 4000),
    "a large alpha": b'{"r": 2, "lora_alpha": %s}' % (b"9" * 4000),
    "not finite": b'{"r": 2, "lora_alpha": NaN}',
    "a list": b'{"r": 2, "rank_pattern": [1]}',
    "a type of another type": b'{"r": 2, "peft_type": {}}',
    "not JSON": b"{",
    "twice": b'{"r": 2, "r": 3}',
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_configuration_is_refused(config: bytes, tmp_path: Path) -> None:
    """A configuration is as untrusted as every file: it is refused or used, and never crashes the program."""
    folders = write_adapters(tmp_path / "run", [factors(seed) for seed in range(2)])
    for folder in folders:
        (folder / "adapter_config.json").write_bytes(config)
    with pytest.raises(InputRefused):
        plan(folders, output=f"{tmp_path}/avg/", **UNIFORM)
    assert [warning.code for warning in plan(folders, method="uniform").warnings] == ["lora-factors"]


def test_scales_that_are_not_known(tmp_path: Path) -> None:
    """Without an alpha the ranks must be equal, and the user is told what to set; with it, a folder has it."""
    states = [factors(seed) for seed in range(2)]
    paths = write_series(tmp_path / "files", states)
    (warning,) = plan(paths, **UNIFORM).warnings
    assert warning.code == "lora-scale-not-stored"
    assert "rank 4 instead of 2" in warning.message
    paths[1].unlink()
    torch.save(factors(1, rank=3), paths[1])
    with pytest.raises(InputRefused, match="has no alpha"):
        plan(paths, **UNIFORM)
    folders = write_adapters(tmp_path / "run", states)
    (warning,) = plan(folders, output=tmp_path / "avg.safetensors", **UNIFORM).warnings
    assert "lora_alpha 8" in warning.message
    assert not plan(folders, output=f"{tmp_path}/avg/", **UNIFORM).warnings
    (folders[0] / "adapter_config.json").unlink()
    with pytest.raises(InputRefused, match="has no alpha"):
        plan(folders, output=f"{tmp_path}/avg/", **UNIFORM)


def test_biases_and_other_tensors_are_averaged(tmp_path: Path) -> None:
    """The bias of a factor is averaged where the scales are equal, and refused where they are not."""
    bias = UP.replace("weight", "bias")
    other = "base_model.model.head.weight"
    states = [{**factors(s), bias: torch.full((4,), float(s)), other: torch.full((3,), 2.0 * s)} for s in (1, 2)]
    folders = write_adapters(tmp_path / "run", states, [{"lora_bias": True}] * 2)
    average(folders, output=f"{tmp_path}/avg/", **UNIFORM)
    written = load_file(tmp_path / "avg/adapter_model.safetensors")
    assert written[bias].eq(1.5).all()
    assert written[other].eq(3.0).all()
    with pytest.raises(InputRefused, match=r"lora_B\.bias"):
        plan(write_adapters(tmp_path / "other", states, [{"lora_alpha": 1}, {"lora_alpha": 2}]), **UNIFORM)


def test_contradictions_are_usage_errors(tmp_path: Path) -> None:
    """No pairs, a continued average, numbers that are not finite."""
    plain = write_series(tmp_path / "plain", [{"w": torch.ones(2)}] * 2)
    with pytest.raises(UsageError, match="no pairs of LoRA factors"):
        plan(plain, **UNIFORM)
    with pytest.raises(UsageError, match="--continue-from"):
        make_options(plain, continue_from=tmp_path / "e.safetensors", lora="exact")
    with pytest.raises(UsageError, match="--allow-nonfinite"):
        make_options(plain, method="uniform", lora="exact", allow_nonfinite=True)
    states = [factors(seed) for seed in range(3)]
    states[1][UP][3, 1] = torch.nan
    paths = write_series(tmp_path / "nan", states)
    with pytest.raises(InputRefused, match=r"lora_B.weight.*ckpt_200.*NaN"):
        average(paths, output=tmp_path / "avg.safetensors", **UNIFORM)
    large = [{name: 1e6 * tensor for name, tensor in factors(seed).items()} for seed in range(2)]
    wide = write_series(tmp_path / "wide", large)
    with pytest.raises(InputRefused, match="too large for float16"):
        average(wide, output=tmp_path / "h.safetensors", dtype="float16", **UNIFORM)


def test_a_joined_average_cannot_be_continued(tmp_path: Path) -> None:
    """Neither exactly nor factor by factor."""
    paths = write_series(tmp_path, [factors(seed) for seed in range(3)])
    average(paths[:2], output=tmp_path / "avg.safetensors", decay=0.5, lora="exact")
    with pytest.raises(InputRefused, match="cannot be continued"):
        plan(paths, continue_from=tmp_path / "avg.safetensors")


def test_updates_that_differ_are_refused(tmp_path: Path) -> None:
    """A checkpoint without one of the updates is no zero update: which of both is meant is not known."""
    states = [factors(0), {**factors(1), **factors(2, names=("k.lora_A", "k.lora_B"))}]
    paths = write_series(tmp_path, states)
    with pytest.raises(InputRefused, match="different LoRA updates"):
        plan(paths, on_missing="last", **UNIFORM)
    assert plan(paths, on_missing="last", exclude="^k", **UNIFORM).tensors
    other = write_series(tmp_path / "shapes", [factors(0), factors(1, inside=6)])
    with pytest.raises(InputRefused, match="shape"):
        plan(other, **UNIFORM)


def test_copies_are_noticed_and_the_report_describes_the_pieces(tmp_path: Path) -> None:
    """The digest of a checkpoint covers its factors; the statistics of a concatenated tensor are undefined."""
    states = [factors(0), factors(1), factors(1)]
    report = average(write_series(tmp_path, states), output=tmp_path / "avg.safetensors", **UNIFORM)
    assert "same-weights" in {warning.code for warning in report.warnings}
    assert report.geometry is None
    for tensor in report.averages[0].tensors:
        assert (tensor.action, tensor.norm, tensor.drift, tensor.cosine) == ("concatenated", None, None, None)
        assert tensor.pieces is not None
        assert tensor.pieces.inputs == (0, 1, 2)
        assert tensor.pieces.factors == (math.sqrt(1 / 3),) * 3


def test_verification_finds_changes(tmp_path: Path) -> None:
    """A changed output, a changed input and a changed number in the report are found."""
    paths = write_series(tmp_path, [factors(seed) for seed in range(2)])
    output = tmp_path / "avg.safetensors"
    average(paths, output=output, **UNIFORM)
    report = json.loads(report_path(output).read_text())
    report["averages"][0]["tensors"][0]["pieces"]["factors"][1] *= 1.01
    report_path(output).write_text(json.dumps(report))
    assert [found.name for found in verify(output).failures] == ["samples"]
    report["averages"][0]["tensors"][0]["pieces"]["inputs"][1] = 7
    report_path(output).write_text(json.dumps(report))
    assert [found.name for found in verify(output).failures] == ["report"]
    average(paths, output=output, force=True, **UNIFORM)
    raw = bytearray(output.read_bytes())
    raw[-1] ^= 1
    output.write_bytes(raw)
    assert {"sha256", "samples"} <= {found.name for found in verify(output).failures}
    average(paths, output=output, force=True, **UNIFORM)
    torch.save({**factors(1), UP: factors(5)[UP]}, paths[1])
    assert {"input 2", "samples"} <= {found.name for found in verify(output).failures}


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    """With ``--resume``, complete factors are not read again, and the bytes are those of a whole run."""
    names = [(f"{layer}.lora_A", f"{layer}.lora_B") for layer in "abcdefgh"]
    states = [
        {k: v for own in names for k, v in factors(seed, names=own, inside=4000, outside=3000).items()}
        for seed in range(2)
    ]
    paths = write_series(tmp_path, states)
    options = make_options(
        paths, output=tmp_path / "avg.safetensors", resume=True, threads=1, max_memory=90_000, **UNIFORM
    )

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.activity == "folding" and event.done_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_average(options, stop)
    report = run_average(options).report
    average(paths, output=tmp_path / "whole.safetensors", **UNIFORM)
    assert data_section(tmp_path / "avg.safetensors") == data_section(tmp_path / "whole.safetensors")
    assert (
        report.inputs[0].content == average(paths, output=tmp_path / "whole.safetensors", **UNIFORM).inputs[0].content
    )


def test_a_second_run_is_up_to_date_unless_a_scale_changed(tmp_path: Path) -> None:
    """The configuration of every checkpoint decides the bytes, so a change of one is noticed."""
    folders = write_adapters(tmp_path / "run", [factors(seed) for seed in range(2)])
    options = make_options(folders, output=f"{tmp_path}/avg/", **UNIFORM)
    run_average(options)
    assert run_average(options).up_to_date
    config = folders[0] / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 5'))
    with pytest.raises(EmaAvgError, match="already exists"):
        run_average(options)


def test_the_plan_shows_the_rank(tmp_path: Path, ema_avg: Any) -> None:
    """On the terminal: what is concatenated, the rank, and where a smaller one comes from; the option in words."""
    for step in (1, 2):
        save_file(factors(step), tmp_path / f"step_{step}.safetensors")
    done = ema_avg("plan", tmp_path, "--method", "uniform", "--lora", "exact")
    assert done.returncode == 0, done.stderr
    assert "\n2 factors of 1 LoRA update concatenated; " in done.stdout + done.stderr
    assert "factors of rank 4" in done.stdout + done.stderr
    assert "svd" in done.stdout + done.stderr


def test_the_outcome_has_no_drift_of_joined_factors(tmp_path: Path, ema_avg: Any) -> None:
    """They have another shape than those of the last checkpoint, so nothing is said about a drift."""
    for step in (1, 2):
        save_file(factors(step), tmp_path / f"step_{step}.safetensors")
    done = ema_avg(tmp_path, "--method", "uniform", "--lora", "exact", "-o", "out/")
    assert done.returncode == 0, done.stderr
    assert "drift" not in done.stdout + done.stderr
    done = ema_avg(tmp_path, "--method", "uniform", "-o", "factors.safetensors")
    assert "drift from the last checkpoint" in done.stdout + done.stderr
