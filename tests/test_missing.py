"""Checkpoints with different tensors (``--on-missing``), or with several names of one tensor (``--tied``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import nn

import ema_cli
from ema_cli.errors import InputRefused, UsageError
from tests.helpers.program import Run
from tests.helpers.series import State, load, reference_average, same_bits, write_series

SHARES = (0.25, 0.25, 0.5)
"""Of three checkpoints with a decay of one half."""


def growing() -> list[State]:
    """Return a model that loses a tensor after the first checkpoint, and gets one with the second."""
    torch.manual_seed(0)
    states: list[State] = [{"w": torch.randn(3, 2), "n": torch.tensor(number)} for number in (1, 2, 3)]
    states[0]["old"] = torch.randn(2)
    for later in states[1:]:
        later["new"] = torch.randn(3)
    return states


def reference(states: list[State], name: str) -> torch.Tensor:
    """Return the average of a tensor of three checkpoints."""
    return torch.from_numpy(reference_average([state[name] for state in states], SHARES)).to(torch.float32)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def codes_of(document: dict[str, Any]) -> dict[str, str]:
    """Return the messages of the warnings in a report or a plan, by their codes."""
    return {one["code"]: one["message"] for one in document["warnings"]}


def test_the_tensors_of_the_last_checkpoint_decide(tmp_path: Path, ema_avg: Run) -> None:
    """A tensor that only the last has is copied, one that it lacks is dropped; both are named, the rest is averaged."""
    states = growing()
    write_series(tmp_path / "run", states)
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--on-missing", "last", "--json")
    assert done.returncode == 0, done.stderr
    found = load(tmp_path / "ema.safetensors")
    assert found.keys() == {"w", "n", "new"}
    assert same_bits(found["w"], reference(states, "w"))
    assert same_bits(found["new"], states[2]["new"])
    assert found["n"].item() == 3
    document = json.loads(done.stdout)
    assert codes_of(document) == {
        "missing-copied": '1 tensor copied from the last checkpoint, because other checkpoints lack it: "new"',
        "missing-left-out": '1 tensor dropped, because the last checkpoint lacks it: "old"',
    }
    why = {one["name"]: (one["action"], one["why_copied"]) for one in document["averages"][0]["tensors"]}
    assert why["new"] == ("copied", "not in every checkpoint")
    assert why["w"] == ("averaged", "")
    assert ema_avg("verify", "ema.safetensors").returncode == 0
    assert ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--on-missing", "last").returncode == 0
    other = ema_avg("run", "--decay", "0.5", "-o", "s.safetensors", "--on-missing", "last", "--strict")
    assert other.returncode == 8


def test_the_plan_says_what_is_copied_and_why(tmp_path: Path, ema_avg: Run) -> None:
    """Each reason for copying is counted."""
    write_series(tmp_path / "run", growing())
    done = ema_avg("plan", "run", "--decay", "0.5", "--on-missing", "last")
    text = " ".join(done.stdout.split())
    assert "1 tensor averaged, 2 copied (" in text
    assert "1 no floating-point numbers" in text
    assert "1 not in every checkpoint" in text
    assert "(missing-copied)" in done.stderr


def test_without_the_option_it_is_named_where_it_would_help(tmp_path: Path, ema_avg: Run) -> None:
    """The error of missing tensors has a hint, but not if shapes differ too, or if nothing is in common."""
    states = growing()
    write_series(tmp_path / "run", states)
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 3
    assert '"ckpt_100.pt" lacks 1 tensor of "ckpt_300.pt": "new"' in done.stderr
    assert '"ckpt_300.pt" lacks 1 tensor of "ckpt_100.pt": "old"' in done.stderr
    assert "--on-missing last" in done.stderr
    assert ema_avg("run", "--decay", "0.5", "-o", "e.safetensors", "--exclude", "^(old|new)$").returncode == 0
    reshaped = [{**states[0], "w": torch.ones(9)}, *states[1:]]
    for others in (reshaped, [{"a": torch.ones(1)}, {"b": torch.ones(1)}]):
        with pytest.raises(InputRefused, match="the checkpoints are not of one model") as refused:
            ema_cli.plan(write_series(tmp_path / "other", others), decay=0.5)
        assert "on_missing" not in refused.value.hint


def test_shapes_and_kinds_must_be_equal_all_the_same(tmp_path: Path) -> None:
    """The option is about missing tensors alone; models without a common tensor stay two models."""
    states = growing()
    states[0]["w"] = torch.ones(9)
    with pytest.raises(InputRefused, match=r'"w": shape \(9,\) in "ckpt_100.pt", \(3, 2\) in "ckpt_300.pt"'):
        ema_cli.plan(write_series(tmp_path, states), decay=0.5, on_missing="last")
    states[0]["w"] = torch.ones(3, 2, dtype=torch.int64)
    with pytest.raises(InputRefused, match=r'"w": int64 in "ckpt_100\.pt", float32 in "ckpt_300\.pt"'):
        ema_cli.plan(write_series(tmp_path, states), decay=0.5, on_missing="last")
    states[0] = {"other": torch.ones(1)}
    with pytest.raises(InputRefused, match=r'"ckpt_100\.pt" and "ckpt_300\.pt" have no tensor in common'):
        ema_cli.plan(write_series(tmp_path, states), decay=0.5, on_missing="last")


def test_odd_tensors_that_are_dropped_are_no_fault(tmp_path: Path) -> None:
    """A sparse tensor of an earlier checkpoint is ignored if the last lacks the name, and refused otherwise."""
    states = growing()
    states[0]["old"] = torch.eye(2).to_sparse()
    made = ema_cli.plan(write_series(tmp_path, states), decay=0.5, on_missing="last")
    assert {tensor.name for tensor in made.tensors} == {"w", "n", "new"}
    states[2]["old"] = torch.ones(2)
    with pytest.raises(InputRefused, match='"old" is a sparse tensor'):
        ema_cli.plan(write_series(tmp_path, states), decay=0.5, on_missing="last")


@pytest.mark.parametrize("buffers", ["average", "first", "last"])
def test_statistics_that_the_first_checkpoint_lacks(tmp_path: Path, ema_avg: Run, buffers: str) -> None:
    """BatchNorm statistics are copied from the first checkpoint if it has them, else from the last; both verify."""
    states: list[State] = [{"w": torch.full((2,), n), "a.running_mean": torch.full((2,), n)} for n in (1.0, 2.0, 3.0)]
    for n, later in enumerate(states[1:], 2):
        later["b.running_mean"] = torch.full((2,), float(n))
    write_series(tmp_path / "run", states)
    options = ("--decay", "0.5", "-o", "ema.safetensors", "--on-missing", "last", "--buffers", buffers)
    assert ema_avg("run", *options).returncode == 0
    found = load(tmp_path / "ema.safetensors")
    assert found["a.running_mean"][0].item() == {"average": 2.25, "first": 1, "last": 3}[buffers]
    assert found["b.running_mean"][0].item() == 3
    done = ema_avg("verify", "ema.safetensors")
    assert done.returncode == 0, done.stderr


def test_going_on_copies_what_was_copied(tmp_path: Path) -> None:
    """Continuing from an average with copied tensors gives the same tensors as averaging all at once."""
    paths = write_series(tmp_path, growing())
    options: dict[str, Any] = {"on_missing": "last", "dtype": "float64"}
    ema_cli.average(paths, decay=0.5, output=tmp_path / "all.safetensors", **options)
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=first, **options)
    assert json.loads(metadata_of(first)["ema_avg.lacking"]) == ["new"]
    ema_cli.average(paths[2:], continue_from=first, output=again, **options)
    at_once, went_on = load(tmp_path / "all.safetensors"), load(again)
    assert at_once.keys() == went_on.keys()
    assert all(torch.allclose(at_once[name], went_on[name], rtol=1e-15) for name in at_once)
    assert same_bits(went_on["new"], at_once["new"])
    with pytest.raises(UsageError, match='was made with on_missing="last"'):
        ema_cli.plan(paths[2:], continue_from=first)


@pytest.mark.parametrize("said", ["3", "{}", "[1]", "["])
def test_metadata_with_false_copied_tensors_are_refused(tmp_path: Path, said: str) -> None:
    """The tensors in the metadata of a previous average are checked like all of its metadata."""
    paths = write_series(tmp_path, growing())
    first = tmp_path / "first.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=first, on_missing="last")
    raw = first.read_bytes()
    stored = json.dumps(json.dumps(["new"])).encode()
    spaced = json.dumps(said.ljust(len('["new"]'))).encode()
    assert raw.count(stored) == 1
    changed = raw.replace(stored, spaced + b" " * (len(stored) - len(spaced)))
    first.write_bytes(changed)
    with pytest.raises(InputRefused, match="do not list its checkpoints correctly"):
        ema_cli.plan(paths[2:], continue_from=first, on_missing="last")


def test_both_options_come_from_the_configuration(tmp_path: Path, ema_avg: Run) -> None:
    """A file and the environment may set them; another value is refused; they change the fingerprint of the options."""
    write_series(tmp_path / "run", growing())
    (tmp_path / "ema-avg.toml").write_text('on-missing = "last"\n', encoding="utf-8")
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--json", EMA_AVG_TIED="drop")
    assert done.returncode == 0, done.stderr
    options = json.loads(done.stdout)["command"]["options"]
    assert (options["on_missing"], options["tied"]) == ("last", "drop")
    refused = ema_avg("run", "--decay", "0.5", "-o", "e.safetensors", EMA_AVG_TIED="maybe")
    assert refused.returncode == 2
    with pytest.raises(UsageError, match='on_missing="maybe" is none of error, last'):
        ema_cli.plan(tmp_path / "run", decay=0.5, on_missing="maybe")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match='tied="maybe" is none of keep, drop'):
        ema_cli.plan(tmp_path / "run", decay=0.5, tied="maybe")  # type: ignore[arg-type]
    one = ema_cli.plan(write_series(tmp_path / "one", growing()[1:]), decay=0.5)
    others = [
        ema_cli.plan(tmp_path / "one", decay=0.5, on_missing="last"),
        ema_cli.plan(tmp_path / "one", decay=0.5, tied="drop"),
    ]
    headers = {made.outputs[0].files[0].header for made in (one, *others)}
    assert len(headers) == 3


class Language(nn.Module):
    """A model with the same weights in its embedding and its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, 3)
        self.mid = nn.Linear(3, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.wte.weight


def language(seed: int) -> Language:
    """Return the model after some steps."""
    torch.manual_seed(seed)
    return Language()


def write_language(folder: Path, *, untied: tuple[int, ...] = ()) -> list[Path]:
    """Write three checkpoints of the tied model; some have an output layer of their own."""
    states = [dict(language(seed).state_dict()) for seed in (1, 2, 3)]
    for number in untied:
        states[number]["lm_head.weight"] = torch.randn(5, 3)
    return write_series(folder, states)


def test_tied_tensors_are_written_once_as_save_model_does(tmp_path: Path, ema_avg: Run) -> None:
    """Names, the kept one among them, and metadata are those of ``save_model``; ``load_model`` loads the tied model."""
    write_language(tmp_path / "run")
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--tied", "drop", "--json")
    assert done.returncode == 0, done.stderr
    save_model(language(3), str(tmp_path / "theirs.safetensors"))
    found = load(tmp_path / "ema.safetensors")
    assert list(found) == list(load(tmp_path / "theirs.safetensors"))
    theirs = metadata_of(tmp_path / "theirs.safetensors")
    assert theirs["wte.weight"] == "lm_head.weight"
    assert theirs.items() <= metadata_of(tmp_path / "ema.safetensors").items()
    model = language(4)
    assert not any(load_model(model, tmp_path / "ema.safetensors"))
    states = [dict(language(seed).state_dict()) for seed in (1, 2, 3)]
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor, reference(states, name)), name
    assert model.wte.weight is model.lm_head.weight
    kept = {one["name"]: one["stands_for"] for one in json.loads(done.stdout)["averages"][0]["tensors"]}
    assert kept == {"lm_head.weight": ["wte.weight"], "mid.bias": [], "mid.weight": []}
    assert ema_avg("verify", "ema.safetensors").returncode == 0
    shown = ema_avg("plan", "run", "--decay", "0.5", "--tied", "drop").stdout
    assert 'dropped, tied to another tensor: "wte.weight" ("lm_head.weight")' in shown


def test_every_name_is_written_unless_it_is_said(tmp_path: Path) -> None:
    """By default a loader that knows nothing of ties finds every name; the report lists the tie."""
    report = ema_cli.average(write_language(tmp_path), decay=0.5, output=tmp_path / "ema.safetensors")
    found = load(tmp_path / "ema.safetensors")
    assert set(found) == set(language(1).state_dict())
    assert same_bits(found["lm_head.weight"], found["wte.weight"])
    assert {t.name: t.tied_to for t in report.averages[0].tensors}["lm_head.weight"] == "wte.weight"
    assert "wte.weight" not in metadata_of(tmp_path / "ema.safetensors")


@pytest.mark.parametrize("untied", [0, 1])
def test_a_tie_that_another_checkpoint_has_not_is_kept(tmp_path: Path, ema_avg: Run, untied: int) -> None:
    """Their averages differ, so both names are written, and that is reported."""
    write_language(tmp_path / "run", untied=(untied,))
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--tied", "drop", "--json")
    assert "tied-kept" in codes_of(json.loads(done.stdout))
    found = load(tmp_path / "ema.safetensors")
    assert set(found) == set(language(1).state_dict())
    assert not same_bits(found["lm_head.weight"], found["wte.weight"])


def test_a_tie_that_only_the_last_has_not_is_none(tmp_path: Path) -> None:
    """The last checkpoint decides: if it has no tie, every name is written, and nothing is reported."""
    made = ema_cli.plan(write_language(tmp_path, untied=(2,)), decay=0.5, tied="drop")
    assert {tensor.name for tensor in made.tensors} == set(language(1).state_dict())
    assert made.warnings == ()


def test_a_name_that_was_dropped_before_is_no_difference(tmp_path: Path) -> None:
    """If some checkpoints were saved without the tied name, all are one model, by the name that all have."""
    paths = write_language(tmp_path / "run")
    torch.save({k: v for k, v in torch.load(paths[0]).items() if k != "lm_head.weight"}, paths[0])
    made = ema_cli.plan(paths, decay=0.5, tied="drop")
    assert {tensor.name for tensor in made.tensors} == {"wte.weight", "mid.weight", "mid.bias"}
    with pytest.raises(InputRefused, match=r'"ckpt_100\.pt" lacks 1 tensor of "ckpt_300\.pt": "lm_head\.weight"'):
        ema_cli.plan(paths, decay=0.5)


def test_excluded_names_are_not_kept(tmp_path: Path) -> None:
    """A tie to an excluded tensor is ignored."""
    made = ema_cli.plan(write_language(tmp_path), decay=0.5, tied="drop", exclude="lm_head")
    assert {tensor.name for tensor in made.tensors} == {"wte.weight", "mid.weight", "mid.bias"}
    assert all(tensor.stands_for == () for tensor in made.tensors)


def test_going_on_from_an_output_without_tied_names(tmp_path: Path) -> None:
    """The previous average lacks the dropped name, and so does the next; without new checkpoints it is up to date."""
    paths = write_language(tmp_path / "run")
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=first, tied="drop")
    ema_cli.average(paths[2:], continue_from=first, output=again, tied="drop")
    assert metadata_of(again)["wte.weight"] == "lm_head.weight"
    assert not any(load_model(language(4), again))
    before = again.read_bytes()
    ema_cli.average(paths, continue_from=again, output=again, tied="drop")
    assert again.read_bytes() == before
    with pytest.raises(UsageError, match='was made with tied="drop"'):
        ema_cli.plan(paths[2:], continue_from=first)


def test_metadata_of_the_user_win(tmp_path: Path) -> None:
    """A metadata key of the user with the name of a dropped tensor stays, as in ``save_model``."""
    paths = write_language(tmp_path)
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output, tied="drop", metadata={"wte.weight": "mine"})
    assert metadata_of(output)["wte.weight"] == "mine"


def test_a_copied_tensor_need_not_have_one_shape(tmp_path: Path, ema_avg: Run) -> None:
    """A tensor that some checkpoint lacks is copied from the last, whatever the others call by its name."""
    states = growing()
    states[1]["new"] = torch.randn(5, dtype=torch.float64)
    write_series(tmp_path / "run", states)
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--on-missing", "last")
    assert done.returncode == 0, done.stderr
    assert same_bits(load(tmp_path / "ema.safetensors")["new"], states[2]["new"])
    assert "dtypes-differ" not in done.stderr
    assert ema_avg("verify", "ema.safetensors").returncode == 0


@pytest.mark.parametrize("buffers", ["first", "last"])
def test_copied_statistics_have_the_shape_of_their_own_checkpoint(tmp_path: Path, ema_avg: Run, buffers: str) -> None:
    """A layer that grew: its statistics are copied from one checkpoint, and the output verifies."""
    states: list[State] = [
        {"w": torch.full((2,), float(n)), "bn.running_var": torch.full((n,), float(n))} for n in (1, 2, 3)
    ]
    write_series(tmp_path / "run", states)
    assert ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors").returncode == 3
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors", "--buffers", buffers)
    assert done.returncode == 0, done.stderr
    expected = states[0 if buffers == "first" else 2]["bn.running_var"]
    assert same_bits(load(tmp_path / "ema.safetensors")["bn.running_var"], expected)
    assert ema_avg("verify", "ema.safetensors").returncode == 0


def test_continuing_copies_integers_of_another_shape(tmp_path: Path) -> None:
    """The previous average holds the extra state of its last checkpoint; the new last one decides."""
    states: list[State] = [
        {"w": torch.full((2,), float(n)), "_extra_state": torch.zeros(n, dtype=torch.uint8)} for n in (1, 2, 3, 4)
    ]
    paths = write_series(tmp_path, states)
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    ema_cli.average(paths[:2], decay=0.5, output=first)
    report = ema_cli.average(paths[2:], decay=0.5, output=again, continue_from=first)
    assert load(again)["_extra_state"].shape == (4,)
    assert not [warning for warning in report.warnings if warning.code != "continued-from-rounded"]
