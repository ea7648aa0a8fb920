"""Adapters of peft: a LoRA saved at every step, averaged, and put on its base model again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.program import Run
from tests.interop.judge import assert_fold, average, fold, names_in
from tests.interop.models import llama, output_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STEPS = (10, 20, 30)


def base() -> Any:
    """Return the model that the adapter changes."""
    return llama().to(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of training a LoRA, saved after each."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("peft") / "run"
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    words = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(1))
    for step in STEPS:
        model(input_ids=words, labels=words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.save_pretrained(folder / f"checkpoint-{step}")
    return folder


def test_an_adapter_is_averaged(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The average of a run of adapters is an adapter: it loads on the base model and computes what the fold does."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    def adapter(name: str) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(PeftModel.from_pretrained(base(), run / name))
        return tensors

    average(ema_avg, run, "-o", "averaged/")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names_in(tmp_path / "averaged")
    states = [adapter(f"checkpoint-{step}") for step in STEPS]
    assert_fold(load_file(tmp_path / "averaged" / "adapter_model.safetensors"), states)
    averaged = PeftModel.from_pretrained(base(), tmp_path / "averaged")
    assert_fold(get_peft_model_state_dict(averaged), states)
    expected = PeftModel.from_pretrained(base(), run / "checkpoint-30")
    set_peft_model_state_dict(expected, fold(states))
    assert output_of(averaged).equal(output_of(expected))
    assert not output_of(averaged).equal(output_of(base()))
