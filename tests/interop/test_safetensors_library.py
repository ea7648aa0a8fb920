"""Files of the safetensors library itself, with ties as it writes and restores them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_model, save_file, save_model

from tests.helpers.program import Run
from tests.helpers.series import State, load
from tests.interop.judge import assert_fold, average, disturb, fold


class Tied(torch.nn.Module):
    """A network with one tensor for its embedding and output layer, and a buffer that is a part of nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return a score for each word."""
        scores: torch.Tensor = self.head(self.norm(self.embedding(words)))
        return scores


def write_run(folder: Path) -> list[State]:
    """Save a tied model three times by ``save_model``; return its states."""
    folder.mkdir()
    model, states = Tied(), []
    for number in (1, 2, 3):
        disturb(model, number)
        model(torch.arange(11))
        save_model(model, str(folder / f"model_{number}.safetensors"))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return states


def test_save_model_leaves_ties_out_and_load_model_puts_them_back(ema_avg: Run, tmp_path: Path) -> None:
    """The average has the tensors of the files, and the library ties them again when it loads the average."""
    states = write_run(tmp_path / "run")
    average(ema_avg, "run", "-o", "ema.safetensors")
    averaged, expected = Tied(), Tied()
    load_model(averaged, tmp_path / "ema.safetensors")
    assert_fold(averaged.state_dict(), states)
    assert averaged.head.weight is averaged.embedding.weight
    expected.load_state_dict(fold(states))
    words = torch.arange(11)
    assert averaged.eval()(words).equal(expected.eval()(words))


def test_tied_names_of_a_pickle_are_all_in_the_average(ema_avg: Run, tmp_path: Path) -> None:
    """``torch.save`` keeps both names of a tied tensor; the average has both, so that any loader finds its name."""
    states = write_run(tmp_path / "ties")
    (tmp_path / "run").mkdir()
    for number, state in enumerate(states):
        shared = {**state, "head.weight": state["embedding.weight"]}
        torch.save(shared, tmp_path / "run" / f"step_{number}.pt")
    average(ema_avg, "run", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), states)


def test_save_file_with_metadata_is_averaged(ema_avg: Run, tmp_path: Path) -> None:
    """Files with metadata of their own, and tensors of several types, are averaged to what the library reads."""
    generator = torch.Generator().manual_seed(0)
    states = [
        {
            "w": torch.randn(5, 3, generator=generator),
            "half": torch.randn(4, generator=generator).to(torch.bfloat16),
            "count": torch.tensor(number),
        }
        for number in range(3)
    ]
    for number, state in enumerate(states):
        save_file(state, tmp_path / f"w_{number}.safetensors", {"format": "pt", "step": str(number), "note": "ä"})
    average(ema_avg, "w_2.safetensors", "w_0.safetensors", "w_1.safetensors", "-o", "ema.safetensors")
    assert_fold(load(tmp_path / "ema.safetensors"), states)
