"""Tensors that are not plain floats in C order: folded exactly, copied, or refused if they are selected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ema_cli
from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import InputRefused
from tests.helpers.exact import FORMATS, rounded
from tests.helpers.makers import random_tensor, safetensors_file
from tests.helpers.program import Run
from tests.helpers.series import State, load, reference_average, same_bits, to_numpy, write_series

SHARES = (0.25, 0.25, 0.5)
"""Of three checkpoints with a decay of one half."""
INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def state(seed: int) -> State:
    """Return tensors of every plain type, and in every order of elements that torch saves."""
    torch.manual_seed(seed)
    base = torch.randn(6, 8)
    shared = torch.randn(4, 3)
    return {
        "float64": torch.randn(7, 3, dtype=torch.float64) * 1e200,
        "complex64": torch.randn(5, 2, dtype=torch.complex64),
        "bfloat16": torch.randn(33).to(torch.bfloat16),
        "float16": torch.randn(33).half(),
        **{str(dtype): random_tensor(dtype, 3, 4) for dtype in INTEGERS},
        "bool": torch.rand(9) > 0.5,
        "scalar": torch.randn(()),
        "scalar.count": torch.tensor(seed),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(5, 7).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "complex.transposed": torch.randn(4, 3, dtype=torch.complex64).t(),
        "columns": base[:, 3:5],
        "steps": base[::2, 1::3],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "embed": shared,
        "head": shared,
    }


def check_average(found: State, series: list[State]) -> None:
    """Compare an output with the reference average, bit for bit; integers and bools are those of the last one."""
    assert found.keys() == series[-1].keys()
    for name, tensor in found.items():
        tensors = [one[name] for one in series]
        if not (tensor.dtype.is_floating_point or tensor.is_complex()):
            assert same_bits(tensor, tensors[-1]), name
            continue
        reference = reference_average(tensors, SHARES)
        if tensor.dtype is torch.bfloat16:
            expected = [rounded(float(value), FORMATS["BF16"]) for value in reference.reshape(-1)]
            assert to_numpy(tensor).reshape(-1).tolist() == expected, name
        elif tensor.is_complex():
            assert np.array_equal(torch.view_as_real(tensor).numpy(), reference.astype(np.float32)), name
        else:
            assert same_bits(tensor, torch.from_numpy(reference).to(tensor.dtype).reshape(tensor.shape)), name


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_type_and_order_gives_the_right_bytes(tmp_path: Path, ema_avg: Run, form: str) -> None:
    """The output equals a float64 reference average of what ``torch.load`` gives, in all formats."""
    series = [state(seed) for seed in (1, 2, 3)]
    if form == "safetensors":
        series = [{name: tensor.contiguous().clone() for name, tensor in one.items()} for one in series]
    write_series(tmp_path / "run", series, form=form)
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    check_average(load(tmp_path / "ema.safetensors"), series)
    ties = {one["name"]: one["tied_to"] for one in json.loads(done.stdout)["averages"][0]["tensors"] if one["tied_to"]}
    assert ties == ({} if form == "safetensors" else {"head": "embed"})
    reasons = {one["name"]: one["why_copied"] for one in json.loads(done.stdout)["averages"][0]["tensors"]}
    assert {name for name, why in reasons.items() if why == "no floating-point numbers"} == {
        *map(str, INTEGERS),
        "bool",
        "scalar.count",
    }


@pytest.mark.parametrize("last", [torch.float32, torch.bfloat16, torch.float16, *FLOAT8], ids=str)
def test_types_that_change_are_folded_exactly(tmp_path: Path, last: torch.dtype) -> None:
    """Checkpoints in half, single and eighth precision are decoded separately; the output has the last type."""
    torch.manual_seed(0)
    types = (torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2, last)
    series = [{"w": torch.randn(64, dtype=torch.float64).to(dtype)} for dtype in types]
    report = ema_cli.average(write_series(tmp_path, series), decay=0.5, output=tmp_path / "ema.safetensors")
    assert "dtypes-differ" in {one.code for one in report.warnings}
    found = load(tmp_path / "ema.safetensors")["w"]
    assert found.dtype is last
    reference = reference_average([one["w"] for one in series], report.averages[0].weights)
    form = BY_TORCH_NAME[str(last).removeprefix("torch.")].name
    if form in FORMATS:
        assert to_numpy(found).tolist() == [rounded(float(value), FORMATS[form]) for value in reference]
    else:
        assert same_bits(found, torch.from_numpy(reference).to(last))


ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "coo": (lambda: torch.eye(3).to_sparse(), "is a sparse tensor"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "is a sparse tensor"),
    "meta": (lambda: torch.empty(3, device="meta"), "is a meta tensor"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is a nested tensor"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "is a wrapped tensor",
    ),
    "complex128": (lambda: torch.ones(3, dtype=torch.complex128), 'the element type "complex128"'),
    "complex32": (lambda: torch.ones(3, dtype=torch.complex32), 'the element type "complex32"'),
    "bits": (lambda: torch.empty(3, dtype=torch.bits8), 'the element type "bits8"'),
    "float4": (lambda: torch.ones(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), 'type "float4_e2m1fn_x2"'),
    "conjugate": (lambda: torch.ones(3, dtype=torch.complex64).conj(), "is a lazy view (conj)"),
    "large": (lambda: torch.ones(1).expand(1 << 25), "is expanded to"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(ODD))
def test_odd_tensors_are_refused_only_where_they_are_wanted(tmp_path: Path, ema_avg: Run, kind: str) -> None:
    """Inside the weights they are named with the reason and the files; excluded, or elsewhere, they are not."""
    make, reason = ODD[kind]
    series = [{"w": torch.full((2,), float(number)), "odd": make()} for number in (1, 2, 3)]
    write_series(tmp_path / "run", series)
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 3
    assert reason in done.stderr
    assert '(in "ckpt_100.pt", "ckpt_200.pt" and 1 more)' in done.stderr
    assert "--exclude" in done.stderr
    assert ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--exclude", "^odd$").returncode == 0
    assert load(tmp_path / "ema.safetensors")["w"].tolist() == [2.25, 2.25]
    for number in (1, 2, 3):
        checkpoint = {"model": {"w": torch.full((2,), float(number))}, "mask": [make()], "step": number}
        torch.save(checkpoint, tmp_path / "run" / f"ckpt_{number}00.pt")
    assert ema_avg("run", "--decay", "0.5", "-o", "beside.safetensors").returncode == 0
    assert load(tmp_path / "beside.safetensors").keys() == {"w"}


def test_many_odd_tensors_are_capped(tmp_path: Path) -> None:
    """A hundred sparse tensors are a short message."""
    sparse = {f"t{number}": torch.eye(2).to_sparse() for number in range(100)}
    with pytest.raises(InputRefused, match="and 92 more") as refused:
        ema_cli.plan(write_series(tmp_path, [{"w": torch.ones(1), **sparse}] * 2), decay=0.5)
    assert refused.value.message.count("\n") == 9


def test_odd_tensors_are_reported_by_inspect_and_diff(tmp_path: Path, ema_avg: Run) -> None:
    """``inspect`` names them with the reason; ``diff`` does not report files as equal if it could not compare them."""
    paths = write_series(tmp_path / "run", [{"w": torch.ones(2), "odd": torch.eye(2).to_sparse()}] * 2)
    (found,) = json.loads(ema_avg("inspect", paths[0], "--json").stdout)["checkpoints"]
    assert found["unreadable"] == {"odd": "is a sparse tensor, which has no plain data; save it with .to_dense()"}
    assert 'unreadable  "odd" is a sparse tensor' in ema_avg("inspect", paths[0]).stdout
    assert ema_avg("diff", *paths).returncode == 3
    assert ema_avg("diff", *paths, "--exclude", "odd").returncode == 0


@pytest.mark.slow
def test_a_shard_of_a_distributed_tensor_is_refused(tmp_path: Path) -> None:
    """One rank's shard of a real ``DTensor`` is refused with the way to save it; a replicated one is averaged."""
    script = tmp_path / "save.py"
    script.write_text(SAVE_DTENSORS, encoding="utf-8")
    import subprocess  # noqa: PLC0415 - the process group would stay in this process
    import sys  # noqa: PLC0415

    subprocess.run([sys.executable, "-W", "ignore", str(script), str(tmp_path)], check=True)
    for kind in ("Shard", "Partial"):
        with pytest.raises(InputRefused, match="and this file has one rank's shard of it; name the folder") as refused:
            ema_cli.plan([tmp_path / f"{kind}_{n}.pt" for n in (1, 2)], decay=0.5)
        assert '"w" is a distributed tensor' in refused.value.message
        assert len(ema_cli.plan([tmp_path / f"{kind}_{n}.pt" for n in (1, 2)], decay=0.5, exclude="w").tensors) == 1
    ema_cli.average([tmp_path / f"Replicate_{n}.pt" for n in (1, 2)], decay=0.5, output=tmp_path / "ema.safetensors")
    assert load(tmp_path / "ema.safetensors")["w"].tolist() == [[1.5, 1.5]] * 4


SAVE_DTENSORS = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
mesh = init_device_mesh("cpu", (2,))
for placement in (Shard(0), Replicate(), Partial()):
    for number in (1, 2):
        local = torch.full((4, 2), float(number))
        tensor = DTensor.from_local(local, mesh, [placement], run_check=False)
        path = f"{sys.argv[1]}/{type(placement).__name__}_{number}.pt"
        torch.save({"model": {"w": tensor, "b": torch.ones(2)}, "step": number}, path)
"""


def test_types_of_safetensors_that_are_not_known(tmp_path: Path, ema_avg: Run) -> None:
    """Four-bit floats, and types from the future, are refused if they are selected, and only then."""
    for number in (1, 2):
        entries = {
            "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "four": {"dtype": "F4", "shape": [8], "data_offsets": [4, 8]},
        }
        safetensors_file(tmp_path / f"c_{number}.safetensors", json.dumps(entries).encode(), bytes(8))
    done = ema_avg(tmp_path, "--decay", "0.5", "-o", "out.safetensors")
    assert done.returncode == 3
    assert '"four" has the element type "F4"' in done.stderr
    assert ema_avg(tmp_path, "--decay", "0.5", "-o", "out.safetensors", "--include", "^w$").returncode == 0


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return random codes."""
    return random_tensor(dtype, *shape)


F8, U8, I8, I32, F32 = torch.float8_e4m3fn, torch.uint8, torch.int8, torch.int32, torch.float32
QUANTIZED: dict[str, tuple[State, str, str]] = {
    "compressed-tensors": (
        {"l.weight": codes(F8, 4, 4), "l.weight_scale": torch.ones(4, 1), "l.input_scale": torch.ones(1)},
        "l.weight",
        "l.",
    ),
    "DeepSeek": (
        {"l.weight": codes(F8, 4, 4), "l.weight_scale_inv": torch.ones(1, 1)},
        "l.weight",
        "l.weight_scale_inv",
    ),
    "DeepSeek's own code": ({"l.weight": codes(F8, 4, 4), "l.scale": torch.ones(1, 1)}, "l.weight", "l.scale"),
    "static activations": ({"l.weight": codes(F8, 4, 4), "l.input_scale": torch.ones(1)}, "l.weight", "l.input_scale"),
    "int8": ({"l.weight": codes(I8, 4, 4), "l.weight_scale": torch.ones(4)}, "l.weight", "l.weight_scale"),
    "packed int4": (
        {"l.weight_packed": codes(I32, 4, 1), "l.weight_scale": torch.ones(4), "l.weight_shape": torch.tensor([4, 8])},
        "l.weight_packed",
        "l.weight_scale",
    ),
    "NVFP4": (
        {"l.weight": codes(U8, 4, 2), "l.weight_scale": codes(F8, 4, 1), "l.weight_scale_2": torch.ones(1)},
        "l.weight",
        "l.weight_scale",
    ),
    "MXFP4": ({"l.proj_blocks": codes(U8, 4, 2), "l.proj_scales": codes(U8, 4)}, "l.proj_blocks", "l.proj_scales"),
    "GPTQ": (
        {
            "l.qweight": codes(I32, 4, 4),
            "l.qzeros": codes(I32, 1, 1),
            "l.scales": torch.ones(1, 4).half(),
            "l.g_idx": torch.arange(4).int(),
        },
        "l.qweight",
        "l.",
    ),
    "bitsandbytes 4 bits": (
        {
            "l.weight": codes(U8, 8, 1),
            "l.weight.absmax": torch.ones(1),
            "l.weight.quant_map": torch.ones(16),
            "l.weight.quant_state.bitsandbytes__nf4": codes(U8, 9),
        },
        "l.weight",
        "l.weight.absmax",
    ),
    "bitsandbytes 8 bits": ({"l.weight": codes(I8, 4, 4), "l.SCB": torch.ones(4)}, "l.weight", "l.SCB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", sorted(QUANTIZED))
def test_quantized_weights_are_refused(tmp_path: Path, ema_avg: Run, kind: str, suffix: str) -> None:
    """Codes with scales are refused with both names, and so are the scales or the codes alone; the rest is averaged."""
    tensors, coded, scale = QUANTIZED[kind]
    for number in (1, 2):
        save = torch.save if suffix == ".pt" else save_file
        save({**tensors, "norm.weight": torch.full((4,), float(number))}, tmp_path / f"c_{number}{suffix}")
    pattern = str(tmp_path / f"c_*{suffix}")
    done = ema_avg(pattern, "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 3
    assert f'"{coded}"' in done.stderr
    assert f'with the scale "{scale}' in done.stderr
    assert "is quantized" in done.stderr
    assert "average the training checkpoints, then quantize the average" in done.stderr
    others = [name for name in tensors if name != coded]
    for left_out in (coded, *others[:1]) if len(others) == 1 else (coded,):
        assert ema_avg(pattern, "--decay", "0.5", "-o", "e.safetensors", "--exclude", f"^{left_out}$").returncode == 3
    assert ema_avg(pattern, "--decay", "0.5", "-o", "e.safetensors", "--exclude", r"^l\.").returncode == 0
    assert load(tmp_path / "e.safetensors")["norm.weight"].tolist() == [1.5] * 4


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_of_torch_are_refused(tmp_path: Path) -> None:
    """The error names the state dict of a dynamically quantized module as quantized."""
    packed = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    paths = write_series(tmp_path, [{"w": packed, "b": torch.ones(1)}] * 2)
    with pytest.raises(
        InputRefused, match=r'"w" is a quantized tensor, and its codes cannot be averaged; average the t'
    ):
        ema_cli.plan(paths, decay=0.5)


ORDINARY: dict[str, State] = {
    "CLIP": {"logit_scale": torch.tensor(2.0), "logit": torch.ones(2), "visual.proj": torch.ones(2, 2)},
    "layer scale": {"ls1.gamma": torch.ones(3), "ls1.gamma_scale": torch.ones(3), "layer_scale": torch.ones(1)},
    "norm": {"norm.weight": torch.ones(3), "norm.scale": torch.ones(3), "norm.scales": torch.ones(3)},
    "integers": {"position_ids": torch.arange(4), "position_ids_scale": torch.ones(1), "zeros": torch.ones(1)},
    "mask": {"attn.mask": torch.ones(2, 2, dtype=torch.bool), "attn.mask_scale": torch.ones(1)},
    "bytes": {"table": torch.ones(4, dtype=torch.uint8), "scale": torch.ones(1), "attn.scale": torch.ones(1)},
    "half": {"l.weight": torch.ones(2).bfloat16(), "l.weight_scale": torch.ones(1), "l.input_scale": torch.ones(1)},
    "indices": {"l.g_idx": torch.arange(4), "l.weight": torch.ones(4), "blocks.0.w": torch.ones(1)},
}


@pytest.mark.parametrize("kind", sorted(ORDINARY))
def test_ordinary_models_are_not_called_quantized(tmp_path: Path, kind: str) -> None:
    """Parameters with names like scales are averaged if the weights next to them are plain numbers."""
    paths = write_series(tmp_path, [ORDINARY[kind]] * 2)
    assert len(ema_cli.plan(paths, decay=0.5).tensors) == len(ORDINARY[kind])


def test_float8_without_scales_is_averaged_with_a_warning(tmp_path: Path) -> None:
    """Eight-bit weights without scales are averaged, and a warning says what is lost."""
    paths = write_series(tmp_path, [{"l.weight": torch.ones(4).to(F8), "other.scale": torch.ones(1)}] * 3)
    assert [warning.code for warning in ema_cli.plan(paths, decay=0.5).warnings] == ["float8-averaged"]


def test_one_quantized_checkpoint_among_two(tmp_path: Path) -> None:
    """The quantized checkpoint is named, wherever it is in the series."""
    for number, tensors in ((1, {"l.weight": torch.ones(4, 4)}), (2, QUANTIZED["int8"][0])):
        torch.save(tensors, tmp_path / f"c_{number}.pt")
    with pytest.raises(InputRefused, match=r'c_2\.pt" is quantized: 1 tensor of codes, .* \(int8\)'):
        ema_cli.plan([tmp_path / "c_1.pt", tmp_path / "c_2.pt"], decay=0.5)


CONFIGS: dict[str, tuple[str, Any, str]] = {
    "method": (
        "config.json",
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        'has a quantization_config in "config.json" (method "gptq")',
    ),
    "part": ("config.json", {"text_config": {"quantization_config": {}}}, "has a quantization_config"),
    "AutoGPTQ": ("quantize_config.json", {"bits": 4}, 'has "quantize_config.json"'),
}


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_configuration_says_that_weights_are_quantized(tmp_path: Path, ema_avg: Run, kind: str) -> None:
    """A folder with a configuration for quantization is refused; plain tensors selected from it are averaged."""
    name, config, message = CONFIGS[kind]
    for number in (1, 2):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
        save_file({"w": torch.ones(2) * number, "n": torch.ones(2, dtype=U8)}, folder / "model.safetensors")
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    done = ema_avg(*folders, "--decay", "0.5", "-o", "out.safetensors")
    assert done.returncode == 3
    assert message in done.stderr
    assert "average the training checkpoints, then quantize" in done.stderr
    assert message in " ".join(ema_avg("inspect", folders[0]).stdout.split())
    assert ema_avg(*folders, "--decay", "0.5", "-o", "out.safetensors", "--include", ".").returncode == 3
    assert ema_avg(*folders, "--decay", "0.5", "-o", "out.safetensors", "--include", "w").returncode == 0


@pytest.mark.parametrize("config", [b'{"quantization_config": null}', b"{", b"[]", b'{"a": 1}', b""])
def test_a_configuration_that_says_nothing(tmp_path: Path, config: bytes) -> None:
    """A configuration without an entry for quantization, or an unreadable one, stops no average."""
    for number in (1, 2):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "config.json").write_bytes(config)
        save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    assert len(ema_cli.plan([tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"], decay=0.5).tensors) == 1
