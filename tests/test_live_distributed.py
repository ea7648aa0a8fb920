"""The live EMA in two real processes: FSDP2, tensor parallelism, DistributedDataParallel, FSDP1, sharded checkpoints.

The judge is torch's AveragedModel in one process on the same weights, "equal" is bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ema_cli import EMA
from ema_cli.errors import UsageError
from tests.helpers.live_nets import STEPS, UnevenNet, averaged, look, numbers, set_weights

ROOT = Path(__file__).parent.parent
DECAYS = (0.5, 0.75)
FSDP2 = ("default", "kept", "freed", "bfloat16", "offloaded", "hybrid")
FSDP1 = ("full", "gradients", "whole", "bfloat16")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("live_distributed"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"),
]


class Ranks:
    """What the two processes saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]

    def both(self, scenario: str, *path: str) -> list[Any]:
        """Return what each process saw in a scenario; fail if one did not get to its end."""
        found = [seen[scenario] for seen in self.found]
        for seen in found:
            assert isinstance(seen, dict), seen
        for key in path:
            found = [seen[key] for seen in found]
        return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Two processes that train every kind of wrapped model."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.helpers.live_ranks", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return Ranks(folder)


def assert_average(found: dict[str, torch.Tensor], judge: torch.nn.Module) -> None:
    """Compare every averaged parameter with the judge's."""
    expected = {name: parameter for name, parameter in judge.named_parameters() if name != "norm.bias"}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def assert_seen(found: torch.Tensor, judge: torch.nn.Module, way: str) -> None:
    """Compare what a model computed with what the judge computes, as exactly as the type of its arithmetic allows."""
    near = 0.1 if way == "bfloat16" else 1e-5
    torch.testing.assert_close(found.float(), look(judge), rtol=near, atol=near)


def own(step: int) -> UnevenNet:
    """Return the network with its own weights after a step."""
    model = UnevenNet()
    set_weights(model, step)
    return model


@pytest.mark.parametrize("way", FSDP2)
def test_fsdp2_averages_shards(way: str, ranks: Ranks) -> None:
    """The shards put together equal the average of one process; also with bfloat16 passes and on the CPU."""
    for seen in ranks.both("ways of FSDP2", way):
        assert_average(seen["average"], averaged(STEPS))
        assert seen["dtypes"] == {torch.float32}


@pytest.mark.parametrize("way", FSDP2)
def test_fsdp2_evaluates_the_average(way: str, ranks: Ranks) -> None:
    """Inside ``apply_shadow`` the model computes with the average, after ``restore`` with its own weights, exactly.

    After a pass without gradients the gathered weights stay in use, unless FSDP is made to free them.
    """
    for seen in ranks.both("ways of FSDP2", way):
        for step in STEPS:
            assert_seen(seen["seen"][step], averaged(STEPS[:step]), way)
        assert_seen(seen["own"], own(STEPS[-1]), way)
        assert seen["restored"] == [True] * len(STEPS)


@pytest.mark.parametrize("way", FSDP2)
def test_fsdp2_communicates_nothing(way: str, ranks: Ranks) -> None:
    """Update, apply and restore run no collective, and each process has its rows only; the last row has no second."""
    first, second = ranks.both("ways of FSDP2", way)
    assert set(first["collectives"] + second["collectives"]) == {0}
    assert (first["parts"]["first.weight"], second["parts"]["first.weight"]) == ((3, 7), (2, 7))
    assert (first["parts"]["last.weight"], second["parts"]["last.weight"]) == ((1, 5), (0, 5))


@pytest.mark.parametrize("layer", ["inner", "outer"])
def test_fsdp2_is_restored_after_an_error(layer: str, ranks: Ranks) -> None:
    """An error in a forward pass inside ``applied`` leaves FSDP in the middle of it; the weights return."""
    for seen in ranks.both("raised", layer):
        assert seen["restored"]
        assert_seen(seen["own"], own(STEPS[-1]), layer)


def test_fsdp2_keeps_accumulated_gradients(ranks: Ranks) -> None:
    """An evaluation of the average between two backward passes changes no gradient that is not reduced yet."""
    for seen in ranks.both("accumulated"):
        assert seen["not"]
        assert seen["evaluated"].keys() == seen["not"].keys()
        for name, gradient in seen["evaluated"].items():
            assert torch.equal(gradient, seen["not"][name]), name


def test_an_ema_made_before_sharding(ranks: Ranks) -> None:
    """An EMA may be made before ``fully_shard``, but not registered; nor be that of a part of a sharded unit."""
    for seen in ranks.both("orders"):
        assert_average(seen["average"], averaged(STEPS))
        assert "two shapes on this process" in seen["sharded later"]
        assert "call register() again" in seen["sharded later"]
        assert "belong to an FSDP unit around it" in seen["a part"]


def test_the_whole_average_is_collected(ranks: Ranks) -> None:
    """FSDP cannot copy a model; the error names the call that collects the whole weights, and it works."""
    for seen in ranks.both("copies"):
        assert "cannot be copied" in seen["message"]
        assert "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))" in seen["message"]
    state = ranks.both("copies")[0]["state"]
    assert state.pop("third.weight").equal(state["second.weight"])
    assert state.pop("norm.bias").equal(numbers("norm.bias", STEPS[-1], [5]))
    assert_average(state, averaged(STEPS))


@pytest.mark.parametrize("way", ["state", "stateful"])
def test_a_sharded_state_is_loaded_by_two(way: str, ranks: Ranks) -> None:
    """``dcp.save`` and ``dcp.load`` of the state, or of the EMA itself, continue several averages exactly."""
    for seen in ranks.both("states", way):
        for found, decay in zip(seen, DECAYS, strict=True):
            assert_average(found, averaged(STEPS, decay))


@pytest.mark.parametrize("way", ["state", "stateful"])
def test_a_sharded_state_is_loaded_by_one(way: str, ranks: Ranks) -> None:
    """One process puts the shards of two together."""
    model = UnevenNet()
    ema = EMA(model, DECAYS)
    ema.register()
    state = {"ema": ema.state_dict()}
    dcp.load(state, checkpoint_id=ranks.folder / way, no_dist=True)
    ema.load_state_dict(state["ema"])
    assert ema.step == len(STEPS) - 1
    set_weights(model, STEPS[-1])
    ema.update()
    for number, decay in enumerate(DECAYS):
        assert_average(ema.average_of(number), averaged(STEPS, decay))


def test_a_state_is_loaded_into_tensors(ranks: Ranks) -> None:
    """``dcp.load`` loads into the tensors that are there; without any, the error says to call ``register()``."""
    ema = EMA(UnevenNet(), DECAYS)
    with pytest.raises(UsageError, match=r'the state has no average of "first\.weight"') as error:
        dcp.load({"ema": ema}, checkpoint_id=ranks.folder / "stateful", no_dist=True)
    assert "register()" in error.value.hint


def test_a_whole_state_is_loaded_into_shards(ranks: Ranks) -> None:
    """A state of one process continues under FSDP2."""
    for seen in ranks.both("states", "whole"):
        assert_average(seen["average"], averaged(STEPS))
        assert seen["collectives"] == [0]


def test_wrappers_inside_fsdp2(ranks: Ranks) -> None:
    """Activation checkpointing and torch.compile change neither names nor results."""
    for seen in ranks.both("wrapped inside"):
        assert_average(seen["average"], averaged(STEPS))
        assert_seen(seen["seen"], averaged(STEPS), "compiled")
        assert_seen(seen["own"], own(STEPS[-1]), "compiled")


def test_placements(ranks: Ranks) -> None:
    """Rows, columns and copies are averaged, applied and copied where they are; a partial sum is refused."""
    for seen in ranks.both("placements"):
        for found in seen["averages"]:
            for name, tensor in found.items():
                expected = numbers(name, STEPS[0], [3, 5])
                for step in STEPS[1:]:
                    expected = torch.lerp(expected, numbers(name, step, [3, 5]), 0.5)
                assert torch.equal(tensor, expected), name
        assert seen["restored"]
        assert set(seen["collectives"]) == {0}
        assert '"summed" is not a weight' in seen["partial"]


@pytest.mark.parametrize("way", ["alone", "parallel", "sharded"])
def test_tensor_parallelism(way: str, ranks: Ranks) -> None:
    """Columns and rows of layers are averaged, alone and inside FSDP2; a whole state is split as the model is."""
    for seen in ranks.both("tensor parallel", way):
        expected = averaged(STEPS)
        average = dict(seen["average"])
        average.pop("third.weight")
        assert_average(average, expected)
        assert seen["loaded"]


def test_data_parallel(ranks: Ranks) -> None:
    """Under DistributedDataParallel both processes have one average, without communication, named as the model."""
    first, second = ranks.both("data parallel")
    expected = first["trajectory"][0]
    for weights in first["trajectory"][1:]:
        expected = {name: torch.lerp(tensor, weights[name], 0.5) for name, tensor in expected.items()}
    assert expected.pop("norm.bias").equal(first["copy"]["norm.bias"])
    model = UnevenNet()
    for seen in (first, second):
        assert seen["average"].keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in seen["average"].items())
        assert seen["inside"]
        assert set(seen["collectives"]) == {0}
        model.load_state_dict(seen["copy"])
        assert_seen(seen["seen"], model, "float32")
        model.load_state_dict(seen["trajectory"][-1], strict=False)
        assert_seen(seen["own"], model, "float32")


@pytest.mark.parametrize("way", FSDP1)
def test_fsdp1_averages_its_parts(way: str, ranks: Ranks) -> None:
    """With ``use_orig_params=True`` the applied average is whole, is what the model computes with, and is undone."""
    for seen in ranks.both("ways of FSDP1", way):
        applied = seen["applied"]
        applied.pop("norm.bias")
        assert_average(applied, averaged(STEPS))
        for step in STEPS:
            assert_seen(seen["seen"][step], averaged(STEPS[:step]), way)
        assert_seen(seen["own"], own(STEPS[-1]), way)
        assert seen["restored"] == [True] * len(STEPS)
        assert set(seen["collectives"]) == {0}


@pytest.mark.parametrize("way", [way for way in FSDP1 if way != "whole"])
def test_fsdp1_is_restored_after_an_error(way: str, ranks: Ranks) -> None:
    """An error in a forward pass inside ``applied`` does not leave the average in the model."""
    for seen in ranks.both("ways of FSDP1", way, "after an error"):
        assert seen["restored"]
        assert_seen(seen["own"], own(STEPS[-1]), way)


@pytest.mark.parametrize("way", FSDP1)
def test_what_fsdp1_cannot_do(way: str, ranks: Ranks) -> None:
    """No copy, no part of a unit; each process has a state of its own, and that of another is refused."""
    for rank, seen in enumerate(ranks.both("ways of FSDP1", way)):
        assert "cannot be copied" in seen["copy"]
        assert "belong to an FSDP unit around it" in seen["a part"]
        assert seen["continued"]["equal"]
        assert seen["continued"]["step"] == len(STEPS)
        assert f"no part of process {rank} of 2" in seen["continued"]["other"]


def test_fsdp1_without_names(ranks: Ranks) -> None:
    """Without ``use_orig_params`` the parameters have no names, and the error says what to set."""
    for seen in ranks.both("without names"):
        assert "use_orig_params=True" in seen["message"]
