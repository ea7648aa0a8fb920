"""Models of diffusers, whose weights are called ``diffusion_pytorch_model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.interop.judge import assert_fold, average, disturb, fold, names_in

NAME = "diffusion_pytorch_model"


def unet() -> Any:
    """Return a tiny U-Net."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return UNet2DModel(8, in_channels=1, out_channels=1, down_block_types=down, up_block_types=up, **sizes)


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_unet_is_averaged(size: str, ema_avg: Run, tmp_path: Path) -> None:
    """One file or shards: the average is a folder that diffusers loads, and denoises as the fold by hand does."""
    from diffusers import UNet2DModel

    model = unet()
    folders = [tmp_path / "run" / f"unet-{number}" for number in (100, 200, 300)]
    for number, folder in enumerate(folders):
        disturb(model, number)
        model.save_pretrained(folder, max_shard_size=size)
        assert (f"{NAME}.safetensors" in names_in(folder)) is (size == "1GB")
    average(ema_avg, tmp_path / "run", "-o", "averaged/")
    assert {"config.json", f"{NAME}.safetensors"} <= names_in(tmp_path / "averaged")
    averaged, expected = UNet2DModel.from_pretrained(tmp_path / "averaged"), unet()
    states = [UNet2DModel.from_pretrained(folder).state_dict() for folder in folders]
    assert_fold(averaged.state_dict(), states)
    expected.load_state_dict(fold(states))
    noise = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert averaged.eval()(noise, 3).sample.equal(expected.eval()(noise, 3).sample)
