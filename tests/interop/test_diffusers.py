"""Models of diffusers, saved under ``diffusion_pytorch_model`` as its example scripts do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.program import Run
from tests.interop.judge import DECAY, assert_fold, average, fold, names_in

NAME = "diffusion_pytorch_model"
STEPS = (500, 1000, 1500)


def unet() -> Any:
    """Return a tiny U-Net."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return UNet2DModel(8, in_channels=1, out_channels=1, down_block_types=down, up_block_types=up, **sizes)


@pytest.fixture(params=["1GB", "20KB"], scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of accelerate with the hook of the example scripts: the U-Net in a folder inside, in one file or shards."""
    from accelerate import Accelerator

    folder = tmp_path_factory.mktemp("diffusers") / "run"
    accelerator = Accelerator(cpu=True)

    def save(models: list[Any], weights: list[Any], output: str) -> None:
        for model in models:
            model.save_pretrained(Path(output) / "unet", max_shard_size=request.param)
            weights.pop()

    accelerator.register_save_state_pre_hook(save)
    net = unet()
    model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01))
    for step in STEPS:
        accelerator.backward(model(torch.randn(2, 1, 8, 8), 3).sample.pow(2).sum())
        optimizer.step()
        accelerator.save_state(folder / f"checkpoint-{step}")
        files = names_in(folder / f"checkpoint-{step}" / "unet")
        assert (f"{NAME}.safetensors" in files) is (request.param == "1GB")
    return folder


def assert_unet(folder: Path, run: Path) -> None:
    """Assert that diffusers loads the average of a run, and that it denoises as the reference average does.

    The weights are equal to the last bit; what is computed from them depends on where they are in memory.
    """
    from diffusers import UNet2DModel

    states = [UNet2DModel.from_pretrained(run / f"checkpoint-{step}" / "unet").state_dict() for step in STEPS]
    averaged, expected = UNet2DModel.from_pretrained(folder), unet()
    assert_fold(averaged.state_dict(), states)
    expected.load_state_dict(fold(states))
    noise = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(averaged.eval()(noise, 3).sample, expected.eval()(noise, 3).sample, rtol=1e-4, atol=1e-6)


def test_a_unet_is_averaged(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The folder of one model in each checkpoint is averaged into a folder with the same names that loads like them."""
    average(ema_avg, f"{run}/*/unet", "-o", "averaged/")
    assert {"config.json", f"{NAME}.safetensors"} <= names_in(tmp_path / "averaged")
    assert_unet(tmp_path / "averaged", run)


def test_the_run_is_refused_with_a_way_that_works(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """A checkpoint may contain several models, so the run itself is refused; the folder in the hint is averaged."""
    refused = ema_avg(run / "checkpoint-500", "--decay", DECAY, "-o", "averaged/")
    assert refused.returncode == 3
    pattern = re.search(r"ema-avg '([^']+)'", refused.stderr)
    assert pattern, refused.stderr
    average(ema_avg, pattern[1], "-o", "averaged/", "--max-shard-size", "10KB")
    assert f"{NAME}.safetensors.index.json" in names_in(tmp_path / "averaged")
    assert_unet(tmp_path / "averaged", run)
