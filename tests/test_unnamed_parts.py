"""Tensors under keys that are not strings have no names: they are reported, and ``--strict`` fails."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import InputRefused, RunWarning
from tests.helpers.makers import open_file
from tests.helpers.program import Run
from tests.hostile.opcodes import glob, mapping, num, stop, tensor, text, tup
from tests.hostile.zips import checkpoint


class Part(enum.Enum):
    """A key of an enumeration."""

    HEAD = 1


def matrix(*shape: int) -> torch.Tensor:
    """Return a matrix, by default of another shape than the weights."""
    return torch.randn(shape or (3, 5))


W = {"w": torch.randn(4, 4)}
KEYS: dict[str, Any] = {
    "number": 0,
    "negative": -1,
    "pair": ("a", 0),
    "none": None,
    "float": 1.5,
    "true": True,
    "bytes": b"w",
    "enumeration": Part.HEAD,
    "class": torch.float32,
}
"""Keys that are no strings."""


def dropped(path: Path, key: str | tuple[str, ...] = ()) -> tuple[RunWarning, ...]:
    """Return the warnings about what is not in the output."""
    with_them = open_file(path, key=key)
    with_them.index.close()
    assert "w" in [layout.name for layout in with_them.index.layouts]
    return with_them.dropped


def saved(path: Path, value: object) -> Path:
    """Save a checkpoint."""
    torch.save(value, path)
    return path


@pytest.mark.parametrize("key", sorted(KEYS))
@pytest.mark.parametrize(
    ("place", "where"),
    [
        (lambda key: {**W, key: matrix()}, "the top level"),
        (lambda key: {"model": {**W, key: matrix()}}, '"model"'),
        (lambda key: {"model": {**W, key: {"deeper": {"v": matrix()}}}}, '"model"'),
        (lambda key: {"model": {**W, "layers": {key: {"v": matrix()}}}}, '"model.layers"'),
        (lambda key: {"model": W, key: {"v": matrix()}}, "the top level"),
        (lambda key: {"model": W, "experts": {key: {"v": matrix()}}}, '"experts"'),
        (lambda key: {"model": W, "experts": {"all": {key: matrix(4, 4)}}}, '"experts"'),
        (lambda key: {"model": W, "experts": {key: [matrix()]}}, '"experts"'),
        (lambda key: OrderedDict([("w", W["w"]), (key, matrix())]), "the top level"),
        (lambda key: {"model": W, "others": defaultdict(dict, {key: {"v": matrix()}})}, '"others"'),
    ],
)
def test_a_tensor_under_such_a_key_is_a_warning(tmp_path: Path, place: Any, where: str, key: str) -> None:
    """Among the weights and beside them, at every level: one warning, with the place and the number."""
    (warning,) = dropped(saved(tmp_path / "c.pt", place(KEYS[key])))
    assert warning.code == "weights-dropped"
    assert where in warning.message
    assert "not in the output" in warning.message


@pytest.mark.parametrize(
    "value", [matrix(), torch.tensor(3), torch.tensor(0.5), np.ones(4), [matrix()], {"v": np.ones(3)}]
)
def test_any_array_among_the_weights_counts(tmp_path: Path, value: object) -> None:
    """Counters and arrays of numpy too; the same with the key of the weights."""
    path = saved(tmp_path / "c.pt", {"model": {**W, 0: value}})
    for key in ((), "model"):
        (warning,) = dropped(path, key)
        assert warning.message == '1 tensor is under keys that are not strings, and not in the output: "model" (1)'
        assert "str(key)" in warning.hint


def test_what_is_beside_a_given_key_is_no_news(tmp_path: Path) -> None:
    """``--key model`` says that nothing else is wanted."""
    path = saved(tmp_path / "c.pt", {"model": W, 0: {"v": matrix()}, "experts": {0: matrix()}})
    assert len(dropped(path)) == 2
    assert not dropped(path, "model")


def adam(*parameters: torch.Tensor) -> dict[str, Any]:
    """Return the state of an optimizer after one step; its parameters are numbered."""
    made = [torch.nn.Parameter(one.clone()) for one in parameters]
    optimizer = torch.optim.Adam(made)
    for one in made:
        one.grad = torch.ones_like(one)
    optimizer.step()
    return optimizer.state_dict()


SILENT: dict[str, Any] = {
    "optimizer": {"model": W, "optimizer": adam(W["w"])},
    "optimizer of another name": {"model": W, "adam_g": adam(W["w"])},
    "optimizers in a list": {"state_dict": W, "optimizer_states": [adam(W["w"]), adam(W["w"])]},
    "optimizers by numbers": {"model": W, "optimizers": {0: adam(W["w"]), 1: adam(W["w"])}},
    "optimizer under a number": {"model": W, 0: adam(W["w"])},
    "optimizer inside the weights": {"model": {**W, "optimizer": adam(W["w"])}},
    "another optimizer inside": {"model": {**W, "sub": {"state": {0: {"sum": matrix()}}, "param_groups": []}}},
    "optimizer at the top level": {**W, "optimizer": adam(W["w"])},
    "losses of epochs": {"model": W, "losses": {0: 0.5, 1: torch.tensor(0.4)}, "history": {0: matrix()}},
    "numbers of epochs": {"model": W, "seen": {0: 100, 1: 200}, 5: "five", None: None},
    "labels": {"model": W, "id2label": {0: "cat", 1: "dog"}},
    "random states": {"model": W, "rng": {0: torch.get_rng_state(), 1: torch.get_rng_state()}},
    "schedulers": {"model": W, "scheduler": {"milestones": {10: 1, 20: 1}}},
    "empty": {"model": {**W, 0: {}}, 1: []},
}


@pytest.mark.parametrize("trainer", sorted(SILENT))
def test_state_of_the_training_is_no_warning(tmp_path: Path, trainer: str) -> None:
    """Optimizers number their parameters everywhere; records and labels have numbers as keys, too."""
    assert not dropped(saved(tmp_path / "c.pt", SILENT[trainer]))


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ({0: matrix(), 1: matrix()}, '"0", "1"'),
        ({0: W, 1: W}, '"0", "1"'),
        ({None: W}, '"None"'),
        ({("a", 1): matrix()}, '"<tuple>"'),
        ({b"w": matrix()}, '"<bytes>"'),
        ({Part.HEAD: matrix()}, '"<object>"'),
    ],
)
def test_a_checkpoint_without_names_is_refused_with_the_reason(tmp_path: Path, value: object, keys: str) -> None:
    """The message says that the keys are the reason, and the hint how to save them."""
    with pytest.raises(InputRefused, match=f"the keys are not strings: {keys}") as refused:
        open_file(saved(tmp_path / "c.pt", value))
    assert "str(key)" in refused.value.hint


def test_the_entries_of_a_list_can_still_be_chosen(tmp_path: Path) -> None:
    """A list is addressed by numbers, as before."""
    path = saved(tmp_path / "c.pt", [W, {"v": matrix()}])
    chosen = open_file(path, key="0")
    chosen.index.close()
    assert [layout.name for layout in chosen.index.layouts] == ["w"]


def test_strict_fails(tmp_path: Path, ema_avg: Run) -> None:
    """Nothing is written under ``--strict``; without it the run warns once for the series."""
    for number in (1, 2, 3):
        state = {"w": torch.randn(64, 64), "layers": {0: {"w": torch.randn(64, 64)}}}
        saved(tmp_path / f"ckpt_{number}.pt", {"model": state, "step": number})
    names, options = [f"ckpt_{number}.pt" for number in (1, 2, 3)], ["--decay", "0.9", "-o", "o.safetensors"]
    done = ema_avg(*names, *options, "--strict", "--allow", "evidence-unrelated")
    assert done.returncode == 8
    assert not (tmp_path / "o.safetensors").exists()
    done = ema_avg(*names, *options)
    assert done.returncode == 0
    assert done.stderr.count("under keys that are not strings") == 1


def test_hostile_keys_take_no_time(tmp_path: Path) -> None:
    """A value that contains itself, a million numbers, and keys of many bytes are examined in bounded time."""
    itself = b"}q\x00" + num(0) + b"h\x00s"
    many = b"}(" + b"".join(num(number) + b"N" for number in range(100_000)) + b"u"
    long = b"}(" + (b"B\x00\x00\x08\x00" + bytes(1 << 19)) + tensor() + b"u"
    nested = b"}" + (num(1) + b"}") * 3000 + b"s" * 3000
    nested_tuples = b"}" + b")" + b"2\x86" * 60 + tensor() + b"s"
    parts = mapping(w=tensor(), a=itself, b=many, c=long, d=nested, e=nested_tuples)
    path = tmp_path / "c.pt"
    path.write_bytes(checkpoint(pickle=stop(mapping(model=parts, beside=parts))))
    assert all(len(warning.message) < 1000 for warning in dropped(path))


SCALARS = st.one_of(st.integers(-5, 5), st.none(), st.floats(allow_nan=False), st.binary(max_size=3), st.booleans())


@given(
    st.recursive(
        st.just("tensor"),
        lambda inside: st.dictionaries(st.one_of(st.text("abc", min_size=1, max_size=2), SCALARS), inside, max_size=3),
        max_leaves=12,
    )
)
def test_every_tensor_is_written_or_reported(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    """Any tree of mappings: there is a warning exactly if a tensor is below a key that is no string."""

    def opcodes(node: object) -> bytes:
        if not isinstance(node, dict):
            return tensor()
        return b"}(" + b"".join(key_of(key) + opcodes(value) for key, value in node.items()) + b"u"

    def key_of(key: object) -> bytes:
        match key:
            case str():
                return text(key)
            case bool() | None:
                return {True: b"\x88", False: b"\x89", None: b"N"}[key]
            case int():
                return num(key)
            case bytes():
                return b"C" + bytes([len(key)]) + key
        return tup(glob("x", "y"))

    def nameless(node: object, *, below: bool) -> int:
        if not isinstance(node, dict):
            return int(below)
        return sum(nameless(value, below=below or not isinstance(key, str)) for key, value in node.items())

    path = tmp_path_factory.mktemp("tree") / "c.pt"
    path.write_bytes(checkpoint(pickle=stop(mapping(model=mapping(w=tensor(), x=opcodes(tree))))))
    assert bool(dropped(path)) == bool(nameless(tree, below=False))
