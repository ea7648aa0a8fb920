"""The tensors of a model by layer: few enough groups for any naming, and the drift of a group."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ema_cli.report.model import Tensor
from ema_cli.report.tensor_groups import FEWEST, MOST, group_drift, group_tensors

NAMES = st.one_of(
    st.text(max_size=12),
    st.text("ab12_.-/:", max_size=20),
    st.lists(st.sampled_from(["model", "layers", "0", "1", "12", "conv1", "weight", "bias"]), max_size=5).map(".".join),
    st.builds("layers.{}.{}.weight".format, st.integers(0, 300), st.sampled_from("qkvo")),
)


def tensor(name: str, *, drift: float | None = 0.1, norm: float | None = 1.0, tied_to: str | None = None) -> Tensor:
    """Return a tensor of a report."""
    return Tensor(
        name=name, dtype="F32", shape=(2,), action="averaged", norm=norm, drift=drift, cosine=1.0, tied_to=tied_to
    )


def labels(names: list[str]) -> list[str]:
    """Return the labels of the groups of some tensors."""
    return [group.label for group in group_tensors([tensor(name) for name in names])]


@given(st.lists(NAMES, max_size=150))
@settings(deadline=None, max_examples=80)
def test_any_naming_has_a_readable_number_of_groups(names: list[str]) -> None:
    """There are 4 to 60 groups, unless there are fewer names; each tensor is in one, below a beginning of its name."""
    groups = group_tensors([tensor(name) for name in names])
    assert min(FEWEST, len(set(names))) <= len(groups) <= MOST
    assert sorted(one.name for group in groups for one in group.tensors) == sorted(names)
    assert all(one.name.startswith(group.beginning) for group in groups for one in group.tensors)
    assert len({group.label for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [f"model.layers.{k}.{part}.weight" for k in (0, 10, 2, 3) for part in ("q", "k")] + ["model.norm.weight"],
            ["model.layers.0", "model.layers.2", "model.layers.3", "model.layers.10", "model.norm"],
        ),
        (
            ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "fc.bias"],
            ["conv1", "bn1", "layer1.0", "layer1.1", "fc"],
        ),
        (
            [f"params/layer_{k}/{part}/kernel" for part in ("a", "b") for k in range(4)],
            [f"params/layer_{k}" for k in range(4)],
        ),
        (
            ["layers.0.a.w", "layers.0.b.w", "layers.1.a.w", "head.w"],
            ["layers.0.a", "layers.0.b", "layers.1.a", "head"],
        ),
        (
            ["conv1_weight", "conv1_bias", "conv2_weight", "conv3_weight", "fc4_bias"],
            ["conv1", "conv2", "conv3", "fc4"],
        ),
        (["a", "b", "c"], ["a", "b", "c"]),
    ],
    ids=["transformer", "resnet", "flax", "few layers", "underscores", "flat"],
)
def test_layers_are_found_in_usual_names(names: list[str], expected: list[str]) -> None:
    """A layer ends at the first number, or at the next one if these are few; numbers are in natural order."""
    assert labels(names) == expected


def test_neighbors_are_put_together_where_there_are_many_layers() -> None:
    """126 layers become 42 groups of three, and the tensors outside of them stay on their own."""
    names = [f"model.layers.{k}.mlp.weight" for k in range(126)] + ["model.embed.weight", "model.norm.weight"]
    found = group_tensors([tensor(name) for name in ["lm_head.weight", *names]])
    assert len(found) == 45
    assert {group.label for group in found} > {"lm_head", "model.embed", "model.norm", "model.layers.123 … 125"}
    (some,) = (group for group in found if group.label == "model.layers.3 … 5")
    assert [one.name for one in some.tensors] == [f"model.layers.{k}.mlp.weight" for k in (3, 4, 5)]
    assert some.beginning == "model.layers."


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=20))
def test_the_drift_of_a_group_weighs_tensors_with_their_norm(pairs: list[tuple[float, float]]) -> None:
    """It is the distance over all elements, relative to their norm; tied tensors and undefined ones do not count."""
    tensors = [tensor(f"{k}", drift=drift, norm=norm) for k, (drift, norm) in enumerate(pairs)]
    tensors += [tensor("tied", drift=1e6, tied_to="0"), tensor("copied", drift=None, norm=None)]
    expected = math.sqrt(sum((d * n) ** 2 for d, n in pairs) / sum(n * n for _, n in pairs))
    assert group_drift(tensors) == pytest.approx(expected)


def test_a_group_without_drift_has_none() -> None:
    """Copied tensors have no drift; without norms, all tensors have the same weight."""
    assert group_drift([tensor("a", drift=None)]) is None
    assert group_drift([tensor("a", drift=3.0, norm=None), tensor("b", drift=4.0, norm=0.0)]) == pytest.approx(
        math.sqrt(12.5)
    )
