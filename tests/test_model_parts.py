"""Parts of one checkpoint are never averaged with each other; series with such words in their names are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.errors import InputRefused
from tests.helpers.series import write_one


def make(folder: Path, names: Sequence[str], inside: Sequence[dict[str, Any]] = ()) -> list[Path]:
    """Write checkpoints, with the numbers ``inside`` them."""
    others = inside or [{} for _ in names]
    return [write_one(folder / name, n, **more) for n, (name, more) in enumerate(zip(names, others, strict=True))]


def plan_of(*paths: Path | str, **options: Any) -> list[str]:
    """Return the warnings of a plan that could be made, apart from those about shares."""
    made = ema_cli.plan([*paths], decay=0.5, **options)
    return [warning.code for warning in made.warnings if "order" in warning.code or "step" in warning.code]


PARTS = [
    (["consolidated.00.pth", "consolidated.01.pth"], "tensor-parallel parts", "convert_llama_weights_to_hf.py"),
    (["rank0.pt", "rank1.pt"], "ranks", "the trainer that wrote them"),
    (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "ranks", "verl.model_merger"),
    (["iter_5/mp_rank_00/m.pt", "iter_5/mp_rank_01/m.pt"], "ranks", "tools/checkpoint/convert.py"),
    (["tp_rank_00_pp_rank_000.pt", "tp_rank_01_pp_rank_000.pt"], "ranks", "tools/checkpoint/convert.py"),
    (["reshard-model_part-0.pt", "reshard-model_part-1.pt"], "parts", "metaseq.scripts.reshard_fsdp"),
    (["checkpoint_5-shard0.pt", "checkpoint_5-shard1.pt"], "shards", "metaseq.scripts.reshard_fsdp"),
    (["model0-mp2.pt", "model1-mp2.pt"], "shards", "the trainer that wrote them"),
    (["ft-1_of_2.pt", "ft-2_of_2.pt"], "shards", "the trainer that wrote them"),
    (["s_1/rank_0.pt", "s_1/rank_1.pt", "s_2/rank_0.pt", "s_2/rank_1.pt"], "ranks", "the trainer that wrote them"),
    (["layer_00.pt", "layer_01.pt"], "layers", "the trainer that wrote them"),
    (["s_1/pp_00/tp_00/sdp_00.pt", "s_1/pp_00/tp_00/sdp_01.pt"], "data-parallel shards", "the trainer that wrote them"),
    (["pp0.pt", "pp1.pt"], "stages of a pipeline", "the trainer that wrote them"),
]


@pytest.mark.parametrize(("names", "what", "tool"), PARTS, ids=lambda value: str(value[0]))
@pytest.mark.parametrize("order", ["auto", "name", "given"])
def test_parts_of_one_checkpoint_are_refused(
    tmp_path: Path, names: list[str], what: str, tool: str, order: str
) -> None:
    """The message says what they are, and the hint what joins them, whatever order was asked for."""
    with pytest.raises(InputRefused, match=f"are {what} of one checkpoint, not a series") as refused:
        plan_of(*make(tmp_path, names), order=order)
    assert tool in refused.value.hint
    with pytest.raises(InputRefused, match=what):
        ema_cli.plan(make(tmp_path, names), method="uniform")


SERIES = [
    ["run-part2/step_100.pt", "run-part2/step_200.pt"],
    ["step_100/rank_0.pt", "step_200/rank_0.pt"],
    ["layer_norm_experiment/ckpt_1.pt", "layer_norm_experiment/ckpt_2.pt"],
    ["iter_1/mp_rank_00/model.pt", "iter_2/mp_rank_00/model.pt"],
    ["step_1/consolidated.00.pth", "step_2/consolidated.00.pth"],
    ["ep0-ba100-rank0.pt", "ep1-ba200-rank0.pt"],
    ["rank1_epoch=12.pt", "rank2_epoch=10.pt"],
    ["stage1/step_1.pt", "stage2/step_2.pt"],
    ["part1_step_1.pt", "part2_step_2.pt"],
    ["layers12_step_100.pt", "layers12_step_200.pt"],
    ["step_1_of_9.pt", "step_2_of_10.pt"],
    ["epoch-3-of-10.pt", "epoch-10-of-10.pt"],
    ["m_step_3_of_10.pt", "m_step_10_of_10.pt"],
    ["rank_0/step_1.pt", "rank_0/step_2.pt", "rank_1/step_3.pt"],
]


@pytest.mark.parametrize("names", SERIES, ids=lambda names: names[0])
def test_series_with_words_of_parts_are_averaged(tmp_path: Path, names: list[str]) -> None:
    """A single rank, a folder called part or layer, or the rank of a checkpoint by its quality: no part of a model."""
    assert plan_of(*make(tmp_path, names)) == []


def test_different_steps_inside_prove_a_series(tmp_path: Path) -> None:
    """Parts of one checkpoint have one step."""
    assert plan_of(*make(tmp_path, ["rank1.pt", "rank2.pt"], [{"step": 10}, {"step": 20}])) == []
    names = ["part1.pt", "part2.pt"]
    assert plan_of(*make(tmp_path, names, [{"step": 10}, {"step": 20}])) == []
    with pytest.raises(InputRefused, match="are parts of one checkpoint"):
        plan_of(*make(tmp_path, names, [{"step": 10}, {"step": 10}]))


def test_steps_by_hand_are_the_way_for_whole_checkpoints(tmp_path: Path) -> None:
    """Whoever gives the steps says that these are checkpoints, as the hint proposes."""
    paths = make(tmp_path, ["part1.pt", "part2.pt"])
    with pytest.raises(InputRefused) as refused:
        plan_of(*paths)
    assert "give the steps with" in refused.value.hint
    assert plan_of(*paths, steps=(100, 200)) == []
    known = make(tmp_path, ["consolidated.00.pth", "consolidated.01.pth"])
    with pytest.raises(InputRefused, match="tensor-parallel parts") as refused:
        plan_of(*known, steps=(100, 200))
    assert "steps" not in refused.value.hint, "the names of this format leave no doubt"


def test_one_part_of_each_checkpoint_is_refused(tmp_path: Path) -> None:
    """The other ranks are beside those that were named, as files or as folders."""
    make(tmp_path, ["step_1/rank_0.pt", "step_1/rank_1.pt", "step_2/rank_0.pt", "step_2/rank_1.pt"])
    with pytest.raises(InputRefused, match=r'is one of several ranks of a checkpoint: "rank_1\.pt" is beside it'):
        plan_of(str(tmp_path / "step_*" / "rank_0.pt"))
    make(tmp_path, ["i_1/mp_rank_00/m.pt", "i_2/mp_rank_00/m.pt", "i_2/mp_rank_01/m.pt"])
    with pytest.raises(InputRefused, match=r'is one of several ranks of a checkpoint: "mp_rank_01" is beside it'):
        plan_of(str(tmp_path / "i_*" / "mp_rank_00" / "m.pt"))


def test_a_probe_of_one_layer_has_others_beside_it(tmp_path: Path) -> None:
    """Layers and parts of a training are no reason to refuse one of them in each checkpoint."""
    make(tmp_path, [f"step_{step}/layer_{layer}.pt" for step in (1, 2) for layer in (3, 4)])
    assert plan_of(str(tmp_path / "step_*" / "layer_3.pt")) == []


def test_a_layer_of_a_pipeline_is_refused_alone(tmp_path: Path) -> None:
    """DeepSpeed's name says that a file is one layer, also where it is the only one of each step."""
    for step in (500, 1000):
        folder = tmp_path / f"global_step{step}"
        folder.mkdir()
        torch.save({"w": torch.ones(2)}, folder / "layer_00-model_00-model_states.pt")
    pattern = str(tmp_path / "*" / "layer_00-model_00-model_states.pt")
    for options in ({"decay": 0.5}, {"method": "uniform"}, {"decay": 0.5, "steps": (500, 1000)}):
        with pytest.raises(InputRefused, match="one layer of a pipeline-parallel model") as refused:
            ema_cli.plan([pattern], **options)
        assert "ds_to_universal.py" in refused.value.hint
    with pytest.raises(Exception, match="split by pipeline parallelism") as nothing:
        ema_cli.plan([tmp_path], decay=0.5)
    assert "layer_00" not in nothing.value.hint  # type: ignore[attr-defined]
