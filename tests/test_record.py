"""Records: the same as frozen, slotted, keyword-only dataclasses, which are the judge."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.record import record


@record
class Point:
    """A record with every kind of field."""

    x: int
    name: str = "p"
    parts: list[int] = field(default_factory=list)
    unseen: int = field(default=0, compare=False)


@record
class Deeper(Point):
    """One that inherits, has methods of its own, and checks its values."""

    depth: float = 0.0

    def __post_init__(self) -> None:
        """Raise for a depth below zero."""
        if self.depth < 0:
            raise ValueError(self.depth)

    def __repr__(self) -> str:
        return f"depth {self.depth}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePoint:
    """The same as a dataclass."""

    x: int
    name: str = "p"
    parts: list[int] = field(default_factory=list)
    unseen: int = field(default=0, compare=False)


@record
class Empty:
    """A record without fields."""


VALUES = st.fixed_dictionaries(
    {"x": st.integers(0, 2)},
    optional={
        "name": st.sampled_from("ab"),
        "parts": st.lists(st.integers(0, 1), max_size=1),
        "unseen": st.integers(0, 1),
    },
)


@given(VALUES, VALUES)
def test_records_are_made_compared_and_shown_as_dataclasses_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Values, defaults, equality, text, ``asdict`` and ``replace`` agree with a dataclass of the same fields."""
    ours, judge = Point(**one), JudgePoint(**one)
    assert asdict(ours) == asdict(judge)
    assert (ours == Point(**other)) == (judge == JudgePoint(**other))
    assert repr(ours) == repr(judge).removeprefix("Judge")
    assert asdict(replace(ours, **other)) == asdict(replace(judge, **other))
    assert [(part.name, part.default) for part in fields(ours)] == [(part.name, part.default) for part in fields(judge)]


@given(VALUES)
def test_records_are_copied_and_stored(values: dict[str, Any]) -> None:
    """``copy``, ``deepcopy`` and ``pickle`` make an equal record; a default that is made is not shared."""
    ours = Point(**values)
    for again in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (again, again.unseen) == (ours, ours.unseen)
    assert Point(x=1).parts is not Point(x=1).parts


def test_equal_records_have_equal_hashes() -> None:
    """A record whose values have hashes is a key, by the fields that are compared; one with a list is none."""
    assert hash(Point(x=1, parts=(), unseen=1)) == hash(Point(x=1, parts=()))  # type: ignore[arg-type]
    assert len({Empty(), Empty()}) == 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(x=1))


@pytest.mark.parametrize("change", [lambda one: setattr(one, "x", 2), lambda one: delattr(one, "x")])
def test_records_are_frozen(change: Callable[[Point], None]) -> None:
    """No field can be set or deleted, and there is no room for another attribute."""
    point = Point(x=1)
    with pytest.raises(FrozenInstanceError):
        change(point)
    assert point.x == 1
    assert not hasattr(point, "__dict__")


@pytest.mark.parametrize("wrong", [{}, {"x": 1, "y": 2}, {"y": 2}, {"x": 1, "name": "", "parts": [], "y": 0}])
def test_arguments_have_the_names_of_fields(wrong: dict[str, Any]) -> None:
    """A missing or an unknown argument is a TypeError that names it; values have no place, only names."""
    with pytest.raises(TypeError, match=r"missing arguments|unexpected arguments"):
        Point(**wrong)
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]


def test_a_record_inherits_and_keeps_its_own_methods() -> None:
    """Fields of a base come first, ``__post_init__`` is called, own methods stay, and other classes are never equal."""
    assert [one.name for one in fields(Deeper)] == ["x", "name", "parts", "unseen", "depth"]
    assert repr(Deeper(x=1, depth=2.0)) == "depth 2.0"
    assert Deeper(x=1) != Point(x=1)
    with pytest.raises(ValueError, match=r"-1\.0"):
        Deeper(x=1, depth=-1.0)


def test_tools_see_the_arguments() -> None:
    """``inspect`` shows the fields as keywords, with their types and defaults."""
    ours, judge = inspect.signature(Point), inspect.signature(JudgePoint)
    assert [(one.name, one.kind, one.annotation) for one in ours.parameters.values()] == [
        (one.name, one.kind, one.annotation) for one in judge.parameters.values()
    ]
    assert ours.parameters["x"].default is inspect.Parameter.empty
    assert ours.parameters["name"].default == "p"
