"""Small models of transformers."""

from __future__ import annotations

from typing import Any

import torch


def llama() -> Any:
    """Return a tiny Llama in bfloat16, with an output layer of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, **sizes, num_key_value_heads=1, max_position_embeddings=16)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def output_of(model: Any) -> torch.Tensor:
    """Return the output of a model for a few words."""
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.arange(8).reshape(1, 8)).logits
    return logits
