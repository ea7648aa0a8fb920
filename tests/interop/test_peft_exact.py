"""``--lora exact`` against peft: the merged model of the output is the float64 average of the merged models."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from ema_cli import average, plan
from ema_cli.errors import InputRefused
from ema_cli.verification.checks import verify

pytestmark = pytest.mark.filterwarnings("ignore:Adapter .* LoRA tensor:UserWarning")  # about the bias of a factor
STEPS = (10, 20, 30)
CLOSE = 1e-6
"""Relative to the largest change of a tensor: two factors in float32, each rounded once."""
TARGETS = ["embedding", "conv", "blocks.0", "blocks.1"]
WEIGHTS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "uniform": ({"method": "uniform"}, [1 / 3] * 3),
    "ema": ({"decay": 0.6}, [0.36, 0.24, 0.4]),
    "manual": ({"method": "manual", "weights": [1, 0, 3]}, [0.25, 0, 0.75]),
}


class Small(nn.Module):
    """A model with every kind of layer that peft adapts with two factors."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 5)])
        self.head = nn.Linear(5, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return (batch, 3) logits of (batch, length) words."""
        image = self.conv(self.embedding(words)[:, None]).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(torch.relu(self.blocks[1](torch.relu(self.blocks[0](image)))))
        return logits


def base() -> Small:
    """Return the base model."""
    torch.manual_seed(0)
    return Small()


def train(run: Path, configs: Sequence[Mapping[str, Any]], *, lr: float = 0.05) -> list[Path]:
    """Train an adapter for a few steps and save it; one with another configuration starts anew, with random factors."""
    from peft import LoraConfig, get_peft_model

    model: Any = None
    folders = [run / f"checkpoint-{step}" for step in STEPS]
    draw = torch.Generator().manual_seed(1)
    for number, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        if model is None or config != configs[number - 1]:
            torch.manual_seed(number)
            common = {"target_modules": TARGETS, "init_lora_weights": number == 0}
            model = get_peft_model(base(), LoraConfig(**{**common, **config}))
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        for _ in range(4):
            words, labels = torch.randint(0, 11, (16, 6), generator=draw), torch.randint(0, 3, (16,), generator=draw)
            optimizer.zero_grad()
            functional.cross_entropy(model(words), labels).backward()
            optimizer.step()
        model.save_pretrained(folder)
    return folders


def merged(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the base model with an adapter merged by peft, in float64."""
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(base(), folder).double()
    state: dict[str, torch.Tensor] = copy.deepcopy(model).merge_and_unload().state_dict()
    return state


def assert_average_of_merged(output: Path, folders: Sequence[Path], weights: Sequence[float]) -> None:
    """Compare every tensor of the merged output with the average of those of the merged checkpoints."""
    models = [merged(folder) for folder in folders]
    found, start = merged(output), base().double().state_dict()
    changed = 0
    for name, tensor in found.items():
        expected = torch.stack([w * model[name] for model, w in zip(models, weights, strict=True)]).sum(0)
        size = (expected - start[name]).abs().max()
        changed += bool(size > 0)
        assert (tensor - expected).abs().max() <= CLOSE * size + 1e-15, name
    assert changed >= len(TARGETS)


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"r": 2, "lora_alpha": 4}] * 3,
    "rsLoRA": [{"r": 3, "lora_alpha": 5, "use_rslora": True}] * 3,
    "patterns": [
        {"r": 2, "lora_alpha": 3, "rank_pattern": {"blocks.1": 1, "^conv": 3}, "alpha_pattern": {r"blocks\.\d": 7}}
    ]
    * 3,
    "other alphas": [{"r": 2, "lora_alpha": alpha} for alpha in (4, 1, 3)],
    "other signs": [{"r": 2, "lora_alpha": alpha} for alpha in (4, -1, -3)],
    "other ranks": [{"r": 1, "lora_alpha": 2}, {"r": 3, "lora_alpha": 2, "rank_pattern": {"conv": 2}}, {"r": 2}],
    "rsLoRA or not": [{"r": 2, "use_rslora": True}, {"r": 2}, {"r": 3, "use_rslora": True}],
    "biases of the factors": [{"r": 2, "lora_alpha": 4, "lora_bias": True, "target_modules": TARGETS[1:]}] * 3,
    "biases of the layers": [{"r": 2, "lora_alpha": 4, "bias": "lora_only"}] * 3,
    "a layer trained as a whole": [{"r": 2, "lora_alpha": 4, "modules_to_save": ["head"]}] * 3,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_merged_output_is_the_average_of_the_merged_models(kind: str, tmp_path: Path) -> None:
    """Linear, convolution and embedding; whatever scale and rank the adapters have, and for every method."""
    folders = train(tmp_path / "run", CONFIGS[kind])
    for name, (options, weights) in WEIGHTS.items():
        output = tmp_path / name
        report = average(folders, output=f"{output}/", lora="exact", **options)
        assert not [warning for warning in report.warnings if warning.code.startswith("lora")]
        assert_average_of_merged(output, folders, weights)
        assert verify(output).ok


def test_the_warning_is_about_a_difference_that_peft_shows(tmp_path: Path) -> None:
    """Averaged factor by factor, the merged model is not the average of the merged models, as the warning says."""
    folders = train(tmp_path / "run", CONFIGS["plain"], lr=0.5)
    report = average(folders, output=f"{tmp_path}/avg/", method="uniform")
    assert "lora-factors" in {warning.code for warning in report.warnings}
    with pytest.raises(AssertionError):
        assert_average_of_merged(tmp_path / "avg", folders, WEIGHTS["uniform"][1])


def test_dora_is_refused(tmp_path: Path) -> None:
    """Its update is not a product of two factors."""
    config = {"r": 2, "use_dora": True, "target_modules": ["blocks.0", "blocks.1"]}
    folders = train(tmp_path / "run", [config] * 3)
    with pytest.raises(InputRefused, match="magnitude"):
        plan(folders, method="uniform", lora="exact")


def test_peft_approximates_the_output_by_a_smaller_rank(tmp_path: Path) -> None:
    """What the plan recommends for a smaller rank works on the output."""
    from peft import PeftModel

    folders = train(tmp_path / "run", [{"r": 2, "lora_alpha": 4, "target_modules": ["blocks.0", "blocks.1"]}] * 3)
    average(folders, output=f"{tmp_path}/avg/", method="uniform", lora="exact")
    assert json.loads((tmp_path / "avg/adapter_config.json").read_text())["r"] == 6
    model: Any = PeftModel.from_pretrained(base(), tmp_path / "avg")
    model.add_weighted_adapter(["default"], [1.0], "small", combination_type="svd", svd_rank=4)
    model.set_adapter("small")
    small = model.merge_and_unload().state_dict()
    exact = merged(tmp_path / "avg")
    for name, start in base().state_dict().items():
        size = float((exact[name] - start).abs().max())
        assert float((small[name].double() - exact[name]).abs().max()) <= 0.5 * size + 1e-6, name
