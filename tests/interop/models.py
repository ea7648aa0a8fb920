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


def gpt2() -> Any:
    """Return a tiny GPT-2; its output layer is its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def output_of(model: Any) -> torch.Tensor:
    """Return the output of a model for a few words."""
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.arange(8).reshape(1, 8)).logits
    return logits
