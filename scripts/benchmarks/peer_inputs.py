"""The checkpoints of the peers: one small Llama, in every form that a peer reads."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from .measure import Settings, note
from .series import dtype_name

_LAYERS = 8


class Inputs(NamedTuple):
    """The same weights three times."""

    safetensors: list[Path]
    pt: list[Path]
    """``torch.save({"model": state})``."""
    folders: list[Path]
    """``model.safetensors``, a link, beside a ``config.json``."""
    together: Path
    """A folder with the safetensors files alone."""
    dtype: torch.dtype
    model_bytes: int


def _shapes(elements: int) -> tuple[dict[str, tuple[int, ...]], dict[str, object]]:
    """Return the tensors of a Llama of about so many elements, and its configuration."""
    hidden = max(64, int((elements / 140) ** 0.5) // 64 * 64)
    wide = hidden * 11 // 4
    square, up = (hidden, hidden), (wide, hidden)
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj.weight": square for name in "qkvo"},
        "mlp.gate_proj.weight": up,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": (hidden, wide),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    used = _LAYERS * sum(torch.Size(shape).numel() for shape in layer.values()) + hidden
    words = max(32, (elements - used) // (2 * hidden))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, hidden)}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(_LAYERS) for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (words, hidden)}
    heads = hidden // 64
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": words}
    config |= {"intermediate_size": wide, "num_hidden_layers": _LAYERS, "num_attention_heads": heads}
    return shapes, {**config, "num_key_value_heads": heads, "tie_word_embeddings": False}


@contextmanager
def peer_inputs(count: int, model_bytes: int, dtype: torch.dtype, settings: Settings) -> Iterator[Inputs]:
    """Make the checkpoints; delete them afterwards."""
    folder = settings.scratch / "peers"
    shapes, config = _shapes(model_bytes // dtype.itemsize)
    note(f"making {count} checkpoints of {dtype_name(dtype)} in {folder}")
    (folder / "together").mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    inputs = Inputs([], [], [], folder / "together", dtype, 0)
    try:
        for i in range(count):
            noise = ((name, row + 0.05 * torch.randn(row.shape, generator=generator)) for name, row in base.items())
            state = {name: row.to(dtype) for name, row in noise}
            _save(state, config | {"torch_dtype": dtype_name(dtype)}, i, inputs)
        yield inputs._replace(model_bytes=sum(value.numel() for value in base.values()) * dtype.itemsize)
    finally:
        shutil.rmtree(folder)


def _save(state: dict[str, torch.Tensor], config: dict[str, object], number: int, inputs: Inputs) -> None:
    path = inputs.together / f"step_{number:03}.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    pickled = inputs.together.parent / f"step_{number:03}.pt"
    torch.save({"model": state}, pickled)
    folder = inputs.together.parent / f"checkpoint-{number}"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(path)
    (folder / "config.json").write_text(json.dumps(config))
    inputs.safetensors.append(path)
    inputs.pt.append(pickled)
    inputs.folders.append(folder)
