"""Trainers in 2 and 4 processes load a DCP output: whole tensors, DTensors in every placement, a model under FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import dcp_makers
from tests.helpers.makers import DTYPES, random_tensor
from tests.helpers.program import forked
from tests.helpers.series import State, load
from tests.interop.judge import average, disturb
from tests.interop.ranks import Net

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.xdist_group("dcp-output")
KEYS = {"flat": "", "pytorch_model_fsdp_0": "model", "types": ""}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of DCP outputs, each with a file of the tensors that it must have."""
    folder = tmp_path_factory.mktemp("averaged")
    run = forked(folder)
    for name in ("flat", "pytorch_model_fsdp_0"):
        make_models(folder / "runs" / name, KEYS[name])
        average(run, f"runs/{name}", "-o", f"files/{name}.safetensors")
        torch.save(load(folder / f"files/{name}.safetensors"), folder / f"{name}.pt")
    torch.save(make_types(folder / "runs" / "types"), folder / "types.pt")
    for name in KEYS:
        average(run, f"runs/{name}", "--format", "dcp", "-o", f"{name}/")
    return folder


def make_models(run: Path, key: str) -> None:
    """Save three steps of a model, at the top level or under a key beside the step."""
    model = Net()
    for number in (1, 2, 3):
        disturb(model, number)
        state = {key: model.state_dict(), "step": number} if key else model.state_dict()
        dcp_makers.save(run / f"step-{number}", state)


def make_types(run: Path) -> State:
    """Save tensors of all types twice, which are their own average; the large one is written in several chunks."""
    torch.manual_seed(0)
    shapes = [(), (5,), (2, 3, 4), (7, 33), (1, 1, 3, 5, 2), (0, 4)]
    kinds = [dtype for dtype in DTYPES if dtype is not torch.float8_e8m0fnu]  # scales are refused
    tensors = {f"{dtype}.{k}": random_tensor(dtype, *shape) for dtype in kinds for k, shape in enumerate(shapes)}
    tensors["large"] = torch.randn(3000, 4001)
    for number in (1, 2):
        dcp_makers.save(run / f"step-{number}", tensors)
    return tensors


@pytest.mark.parametrize("count", [2, 4])
def test_processes_load_their_parts(count: int, averaged: Path) -> None:
    """Each process loads its part in every placement; torch's and accelerate's calls are those for a checkpoint."""
    outputs = [text for name, key in KEYS.items() for text in (str(averaged / name), key)]
    command = [sys.executable, "-m", "tests.interop.ranks_of_dcp", str(count), *outputs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
