"""Quantized weights are recognized by their structure; integers and eight-bit buffers of ordinary models are not.

Names, types and shapes of the first table were printed from layers that the libraries themselves quantized (torchao
0.18, optimum-quanto 0.2.7, hqq 0.2.8: a linear layer of 128 inputs and 64 outputs), or follow their source (MLX, AQLM,
ExLlamaV2, ComfyUI, AutoAWQ).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao import quantization

import ema_cli
from ema_cli.dtypes import BY_NAME, BY_TORCH_NAME, DType
from ema_cli.errors import InputRefused
from ema_cli.planning.quantization import find_codes
from ema_cli.storage.extents import TensorLayout
from tests.helpers.makers import archive
from tests.helpers.series import load, write_series
from tests.hostile.opcodes import call, glob, mapping, num, stop, storage, tensor, tup

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Element type and shape of each tensor."""


def layouts(shapes: Shapes) -> dict[str, TensorLayout | None]:
    """Return the layouts of contiguous tensors."""
    return {
        name: TensorLayout(name=name, dtype=BY_NAME[dtype], shape=shape, strides=None)
        for name, (dtype, shape) in shapes.items()
    }


def hqq(dtype: str, rows: int, groups: int = 128) -> Shapes:
    """Return the tensors of a layer of HQQ, which stores its settings as tensors."""
    settings: Shapes = {"l.nbits": ("I32", ()), "l.shape": ("I64", (2,)), "l.packing": ("U8", (7,))}
    return {"l.W_q": (dtype, (rows, 64)), "l.scale": ("F16", (groups, 1)), "l.zero": ("F16", (groups, 1)), **settings}


def quanto(codes: str, dtype: str, rows: int, *, shift: bool = False) -> Shapes:
    """Return the tensors of a layer of quanto, in which the weight is a prefix."""
    shifts: Shapes = {"l.weight._shift": ("F32", (64, 1))} if shift else {}
    scales: Shapes = {"l.weight._scale": ("F32", (64, 1)), "l.input_scale": ("F32", ()), "l.output_scale": ("F32", ())}
    return {f"l.weight.{codes}": (dtype, (rows, 128)), **scales, **shifts}


CODES: dict[str, tuple[Shapes, str]] = {
    "MLX, four bits": (
        {"l.weight": ("U32", (64, 16)), "l.scales": ("F16", (64, 2)), "l.biases": ("F16", (64, 2))},
        "l.weight",
    ),
    "MLX, one group": (
        {"l.weight": ("U32", (4, 2)), "l.scales": ("F16", (4, 1)), "l.biases": ("F16", (4, 1))},
        "l.weight",
    ),
    "MLX, mxfp4": ({"l.weight": ("U32", (64, 16)), "l.scales": ("U8", (64, 4))}, "l.weight"),
    "MLX, experts": (
        {"e.weight": ("U32", (8, 64, 16)), "e.scales": ("BF16", (8, 64, 2)), "e.biases": ("BF16", (8, 64, 2))},
        "e.weight",
    ),
    "codes as floating-point numbers": (
        {"l.weight_int": ("F16", (8, 8)), "l.scales": ("F16", (8,)), "l.zeros": ("F16", (8,))},
        "l.weight_int",
    ),
    "codes as floating-point numbers, in groups": (
        {"l.qweight": ("F32", (64, 128)), "l.scale": ("F32", (64, 2)), "l.zero_point": ("F32", (64, 2))},
        "l.qweight",
    ),
    "HQQ, eight bits": (hqq("U8", 128), "l.W_q"),
    "HQQ, four bits": (hqq("U8", 64), "l.W_q"),
    "HQQ, three bits": (hqq("I32", 13), "l.W_q"),
    "HQQ, three bits, 96 inputs": (hqq("I32", 10, groups=96), "l.W_q"),
    "HQQ, two bits": (hqq("U8", 32), "l.W_q"),
    "quanto int8": (quanto("_data", "I8", 64), "l.weight._data"),
    "quanto int4": (quanto("_data._data", "U8", 32, shift=True), "l.weight._data._data"),
    "quanto int2": (quanto("_data._data", "U8", 16, shift=True), "l.weight._data._data"),
    "quanto float8": (quanto("_data", "F8_E4M3", 64), "l.weight._data"),
    "torchao int8": (
        {
            "0._weight_qdata": ("I8", (64, 128)),
            "0._weight_scale": ("F32", (64, 1)),
            "0._weight_zero_point": ("I8", (64, 1)),
        },
        "0._weight_qdata",
    ),
    "torchao float8": (
        {"fc._weight_qdata": ("F8_E4M3", (64, 128)), "fc._weight_scale": ("F32", (64, 1))},
        "fc._weight_qdata",
    ),
    "AQLM": (
        {
            "l.codes": ("I16", (64, 16, 1)),
            "l.codebooks": ("F16", (1, 65536, 1, 8)),
            "l.scales": ("F16", (64, 1, 1, 1)),
        },
        "l.codes",
    ),
    "ExLlamaV2": (
        {
            "l.q_weight": ("I32", (24, 64)),
            "l.q_scale": ("I32", (4, 8)),
            "l.q_scale_max": ("F16", (4,)),
            "l.q_groups": ("I16", (8,)),
            "l.q_invperm": ("I16", (128,)),
        },
        "l.q_weight",
    ),
    "ComfyUI": (
        {
            "l.weight": ("F8_E4M3", (64, 128)),
            "l.scale_weight": ("F32", ()),
            "l.scale_input": ("F32", ()),
            "scaled_fp8": ("F8_E4M3", (0,)),
        },
        "l.weight",
    ),
    "ComfyUI, later": (
        {"l.weight": ("F8_E4M3", (64, 128)), "l.weight_scale": ("F32", ()), "l.comfy_quant": ("U8", (27,))},
        "l.weight",
    ),
    "AWQ": (
        {"l.qweight": ("I32", (128, 8)), "l.qzeros": ("I32", (1, 8)), "l.scales": ("F16", (1, 64))},
        "l.qweight",
    ),
    "a library of tomorrow": (
        {"l.kernel_bits": ("I8", (64, 128)), "l.absmax": ("F16", (64,)), "l.min": ("F16", (64,))},
        "l.kernel_bits",
    ),
    "another": ({"l.nibbles": ("U8", (64, 64)), "l.scales": ("F32", (64, 4))}, "l.nibbles"),
}
"""The tensors of a layer and the name of its codes."""


@pytest.mark.parametrize("library", sorted(CODES))
def test_codes_are_found(library: str) -> None:
    """In a model with ordinary layers, the codes and one of their scales."""
    shapes, codes = CODES[library]
    more: Shapes = {"l.bias": ("F32", (64,)), "norm.weight": ("F32", (64,)), "ids": ("I64", (1, 512))}
    pairs = list(find_codes(layouts({**shapes, **more})))
    assert {pair[0] for pair in pairs} == {codes}
    assert all(scale in shapes for _, scale in pairs)
    assert len({scale for _, scale in pairs}) == len(pairs)


def test_a_series_of_codes_is_refused(tmp_path: Path) -> None:
    """The message names the codes, their type and their scale; ordinary tensors alone can be averaged."""
    layer = {"q.weight": torch.ones(4, 2).to(torch.uint32), "q.scales": torch.ones(4, 1).half()}
    paths = write_series(tmp_path, [{**layer, "norm": torch.full((2,), value)} for value in (1.0, 2.0)])
    with pytest.raises(InputRefused, match=r'1 tensor of codes, .* "q\.weight" \(uint32\) with the scale "q\.scales"'):
        ema_cli.plan(paths, decay=0.5)
    ema_cli.average(paths, decay=0.5, include="norm", output=tmp_path / "out.safetensors")
    assert load(tmp_path / "out.safetensors")["norm"].tolist() == [1.5, 1.5]


ORDINARY: dict[str, Shapes] = {
    "fake quantization of a weight": {
        "l.weight": ("F32", (64, 64)),
        "l.scale": ("F32", (64,)),
        "l.zero_point": ("F32", (64,)),
    },
    "a codebook with scale and bias": {
        "l.codes": ("F32", (64, 64)),
        "l.scale": ("F32", (64,)),
        "l.bias": ("F32", (64,)),
    },
    "quantized beside its weight": {
        "l.weight": ("F32", (64, 64)),
        "l.weight_int": ("F32", (64, 64)),
        "l.scale": ("F32", (64,)),
        "l.zeros": ("F32", (64,)),
    },
    "GPT-2 with byte masks": {
        "h.0.attn.bias": ("U8", (1, 1, 64, 64)),
        "h.0.attn.masked_bias": ("F32", ()),
        "h.0.attn.c_attn.weight": ("F32", (64, 192)),
    },
    "byte mask and a scale": {"attn.mask": ("U8", (64, 64)), "attn.scale": ("F32", (1,))},
    "byte mask and a scale per head": {"attn.mask": ("U8", (1, 1, 64, 64)), "attn.scale": ("F32", (8, 1, 1))},
    "pruning mask": {
        "fc.weight": ("F32", (64, 32)),
        "fc.mask": ("U8", (64, 32)),
        "fc.scale": ("F32", (64, 1)),
        "fc.bias": ("F32", (64, 1)),
    },
    "relative positions": {
        "attn.logit_scale": ("F32", (3, 1, 1)),
        "attn.relative_position_index": ("I32", (49, 49)),
        "attn.relative_position_bias_table": ("F32", (169, 3)),
    },
    "as many heads as positions": {
        "attn.logit_scale": ("F32", (16, 1, 1)),
        "attn.relative_position_index": ("I32", (16, 16)),
    },
    "indices, a scale and a bias per row": {
        "x.index": ("I64", (64, 128)),
        "x.scale": ("F32", (64, 1)),
        "x.bias": ("F32", (64, 1)),
    },
    "images and a scale per channel": {"x.images": ("U8", (16, 3, 8, 8)), "x.scale": ("F32", (3, 1, 1))},
    "a scale per byte": {"x.table": ("U8", (64, 4)), "x.scales": ("F32", (64, 8))},
    "an integer kernel and one scale": {"x.kernel": ("I32", (27, 2)), "x.scale": ("F32", (1,))},
    "position ids": {"e.position_ids": ("I32", (1, 512)), "e.scale": ("F32", (1,)), "e.weight": ("F32", (512, 8))},
    "layer scale in float8": {"b.weight": ("F8_E4M3", (64, 64)), "b.layer_scale": ("F32", (64,))},
    "float8 without scales": {"b.weight": ("F8_E4M3", (64, 64)), "n.scale": ("F32", (64,))},
    "state of Transformer Engine": {
        "fc.weight": ("BF16", (64, 64)),
        "fc._extra_state": ("U8", (4096,)),
        "fc.weight_scale": ("F32", (1,)),
    },
    "observers": {
        "q.weight": ("F32", (4, 4)),
        "q.scale": ("F32", (1,)),
        "q.zero_point": ("I32", (1,)),
        "q.fake_quant_enabled": ("U8", (1,)),
    },
    "observers per channel": {
        "q.weight": ("F32", (64, 64)),
        "q.weight_fake_quant.scale": ("F32", (64,)),
        "q.weight_fake_quant.zero_point": ("I32", (64,)),
    },
    "codebook of a vector quantizer": {
        "vq.embed": ("F32", (1024, 64)),
        "vq.usage": ("I32", (8, 1024)),
        "vq.codebooks": ("F32", (8, 1024, 64)),
    },
    "bool": {"m.weight": ("BOOL", (64, 64)), "m.scale": ("F32", (64, 1))},
    "hash table": {"gate.tid2eid": ("I32", (512, 6)), "gate.weight": ("F32", (64, 32)), "gate.bias": ("F32", (64,))},
}


@pytest.mark.parametrize("model", sorted(ORDINARY))
def test_ordinary_models_have_no_codes(model: str) -> None:
    """Masks, indices, counters and observers beside tensors with the names of scales."""
    assert not list(find_codes(layouts(ORDINARY[model])))


def test_quantization_aware_training_is_averaged(tmp_path: Path) -> None:
    """Real layers with fake quantizers of torch hold floating-point weights, and are averaged in silence."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for config in ("fbgemm", "qnnpack"):
            model.qconfig = quantization.get_default_qat_qconfig(config)
            prepared = quantization.prepare_qat(model.train())
            state = {name: value for name, value in prepared.state_dict().items() if value.isfinite().all()}
            paths = write_series(tmp_path / config, [state] * 3)
            assert any("fake_quant" in name for name in state)
            plan = ema_cli.plan(paths, decay=0.5)
            assert {warning.code for warning in plan.warnings} <= {"same-weights"}


@pytest.mark.slow
def test_real_models_have_no_codes() -> None:
    """Models of transformers, also with all their integers as 32 bits and their masks as bytes."""
    import transformers  # noqa: PLC0415 - takes seconds

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    window = {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [4, 16], "window_size": 4}
    models = [
        transformers.BertModel(transformers.BertConfig(**small, intermediate_size=16)),
        transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32)),
        transformers.SwinModel(transformers.SwinConfig(**window)),
        transformers.Swinv2Model(transformers.Swinv2Config(**window)),
    ]
    for model in models:
        shapes: Shapes = {}
        for name, value in [*model.state_dict().items(), *model.named_buffers()]:
            name_of_type = {"int64": "I32", "bool": "U8"}.get(str(value.dtype).removeprefix("torch."), "F32")
            shapes[name] = (name_of_type, tuple(value.shape))
        assert not list(find_codes(layouts(shapes))), type(model).__name__


def test_a_module_of_many_tensors_is_searched_quickly() -> None:
    """A hostile module of integers and scales costs no more than a bounded number of comparisons each."""
    shapes: Shapes = {f"x{number}": ("I8", (3, 5)) for number in range(20_000)}
    shapes |= {f"scale_y{number}": ("F32", (7,)) for number in range(20_000)}
    assert not list(find_codes(layouts(shapes)))


names = st.lists(st.sampled_from(["weight", "qweight", "scale", "scales", "W_q", "zero", "l", "SCB", "_data", ""]))
types = st.sampled_from([*BY_TORCH_NAME.values(), None])
sizes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.dictionaries(names.map(".".join), st.tuples(types, sizes), max_size=8))
def test_pairs_of_codes_and_scales_are_sound(found: dict[str, tuple[DType | None, tuple[int, ...]]]) -> None:
    """Codes and scales are different tensors, both exist, and the codes have a type for codes."""
    made = {
        name: TensorLayout(name=name, dtype=dtype, shape=shape, strides=None) if dtype else None
        for name, (dtype, shape) in found.items()
    }
    for coded, scale in find_codes(made):
        assert coded != scale
        assert scale in made
        dtype = found[coded][0]
        assert dtype is None or dtype.torch_name != "bool"
        assert dtype is None or dtype.itemsize == 1 or not dtype.averaged


def wrapper(kind: bytes, attributes: bytes) -> bytes:
    """Return the pickle of a tensor subclass that keeps its data in other tensors."""
    return call(
        glob("torch._tensor", "_rebuild_from_type_v2"),
        glob("torch._utils", "_rebuild_wrapper_subclass"),
        kind,
        tup(kind, glob("torch", "bfloat16"), tup(num(2), num(2))),
        attributes,
    )


def test_tensor_subclasses_say_what_they_are(tmp_path: Path) -> None:
    """With a matrix of integers inside, also one level deeper, it is quantized; the class is named."""
    ints = tensor(storage(kind="CharStorage"), shape=(2, 2), strides=(2, 1))
    plain = tensor(storage("1"), shape=(2,), strides=(1,))
    kind = glob("torchao.quantization", "Int8Tensor")
    flat = wrapper(kind, mapping(qdata=ints, scale=plain))
    nested = wrapper(glob("torchao.dtypes", "AffineQuantizedTensor"), mapping(tensor_impl=flat))
    other = wrapper(glob("x.y", "Masked"), mapping(data=plain))
    path = archive(
        tmp_path / "c_1.pt", stop(mapping(w=plain, a=flat, b=nested, c=other)), {"0": bytes(4), "1": bytes(16)}
    )
    with pytest.raises(InputRefused) as refused:
        ema_cli.plan(path, decay=0.5)
    lines = refused.value.message.splitlines()[1:]
    assert lines[0].startswith(
        '  "a" is a quantized tensor, of the class torchao.quantization.Int8Tensor, and its codes'
    )
    assert "average the training checkpoints, then quantize" in lines[0]
    assert '"b" is a quantized tensor, of the class torchao.dtypes.AffineQuantizedTensor' in lines[1]
    assert '"c" is a wrapped tensor, of the class x.y.Masked, which has no plain data; save plain tensors' in lines[2]


class OnDevice:
    """Pickles as a tensor of an XLA device does; the CPU stands in for the device when it is loaded."""

    def __init__(self, function: str, data: Any) -> None:
        self.made = (getattr(torch._utils, function), (data, torch.float32, "cpu", False))

    def __reduce__(self) -> Any:
        return self.made


def test_tensors_of_xla(tmp_path: Path) -> None:
    """Those saved by way of the CPU are read; those saved as numpy arrays are named, with what to do."""
    for number in (1, 2):
        value = torch.full((2, 3), float(number)).t()
        torch.save({"w": OnDevice("_rebuild_device_tensor_from_cpu_tensor", value)}, tmp_path / f"c_{number}.pt")
        loaded = torch.load(tmp_path / f"c_{number}.pt", weights_only=False)
        assert torch.equal(loaded["w"], value)
    paths = [tmp_path / "c_1.pt", tmp_path / "c_2.pt"]
    ema_cli.average(paths, decay=0.5, output=tmp_path / "out.safetensors")
    assert load(tmp_path / "out.safetensors")["w"].tolist() == [[1.5, 1.5]] * 3
    array = OnDevice("_rebuild_device_tensor_from_numpy", torch.ones(2).numpy())
    torch.save({"w": array, "v": torch.ones(1)}, tmp_path / "n_1.pt")
    with pytest.raises(InputRefused, match=r'"w" is a device \(XLA\) tensor, .* save it with xm\.save, or model\.cpu'):
        ema_cli.plan(tmp_path / "n_1.pt", decay=0.5)


@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantized_module_is_named(tmp_path: Path) -> None:
    """Its codes are in a tuple beside the bias: a real module of torch."""
    model = quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)), {nn.Linear})
    torch.save(model.state_dict(), tmp_path / "c_1.pt")
    with pytest.raises(InputRefused, match=r'is quantized: "0\._packed_params\._packed_params" holds codes') as refused:
        ema_cli.plan(tmp_path / "c_1.pt", decay=0.5)
    assert refused.value.hint == "average the training checkpoints, then quantize the average"
