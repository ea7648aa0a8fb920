"""Wrappers' prefixes are removed where they are; ``module.`` only if all weights have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix, strip_prefixes


def stripped(names: list[str], prefix: str | None = None) -> tuple[list[str], tuple[str, ...]]:
    """Return the names without prefixes, and the prefixes."""
    found = strip_prefixes(names, prefix)
    return found.names, found.prefixes


WRAPPERS = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module."]


@pytest.mark.parametrize("prefix", ["module.", *WRAPPERS])
def test_a_wrapper_of_the_whole_model_is_taken_off(prefix: str) -> None:
    """A wrapper's prefix that all names have is removed, and reported."""
    assert stripped([f"{prefix}a.w", f"{prefix}b"]) == (["a.w", "b"], (prefix,))


def test_nested_wrappers_are_taken_off() -> None:
    """Wrappers around wrappers are removed from the outside in."""
    names = ["module._orig_mod.a", "module._orig_mod.b"]
    assert stripped(names) == (["a", "b"], ("module.", "_orig_mod."))


def test_a_prefix_that_some_names_lack_stays() -> None:
    """A model may have a part called ``module`` and others."""
    names = ["module.a", "head.b"]
    assert stripped(names) == (names, ())


@pytest.mark.parametrize("names", [["model.a", "model.b"], ["module.", "module.a"], ["modules.a"], [""], []])
def test_what_is_no_wrapper_stays(names: list[str]) -> None:
    """``model.`` is the name of a part in many libraries; a name that would be empty is kept."""
    assert stripped(names) == (names, ())


def test_wrappers_of_inner_modules_are_taken_off() -> None:
    """Compiled, sharded and checkpointed inner modules lose their wrappers, however they are stacked."""
    names = [
        "a._orig_mod.w",
        "b._fsdp_wrapped_module._checkpoint_wrapped_module.w",
        "c._checkpoint_wrapped_module._fsdp_wrapped_module.w",
        "d._orig_mod._orig_mod.w",
        "plain.w",
    ]
    cleaned, prefixes = stripped(names)
    assert cleaned == ["a.w", "b.w", "c.w", "d.w", "plain.w"]
    assert len(prefixes) == 3


def test_names_that_would_collide_are_kept() -> None:
    """When two names would become equal, nothing is removed, and that is reported."""
    names = ["a.w", "a._orig_mod.w"]
    assert stripped(names) == (names, ())
    (note,) = strip_prefixes(names, None).warnings
    assert note == 'the prefixes …._orig_mod. are kept: without them two tensors would have the name "a.w"'


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_name_that_no_model_uses_is_removed_where_it_is(prefix: str) -> None:
    """The names of wrappers other than ``module`` are never a model's own, so some names may lack them."""
    assert stripped([f"{prefix}a", f"module.{prefix}b", "head"]) == (["a", "module.b", "head"], (prefix, f"….{prefix}"))


def test_what_is_not_wrapped_is_no_obstacle() -> None:
    """Counters, and tensors that are not wanted, need not have the prefix; two equal names are one."""
    names = ["steps", "module.a", "module.b"]
    assert strip_prefixes(names, None, bare=["steps"]).names == ["steps", "a", "b"]
    assert strip_prefixes(names, None, bare=["steps", "module.a"]).names == ["steps", "a", "b"]
    assert strip_prefixes(names, None).names == names
    assert strip_prefixes(["steps", "module.steps"], None, bare=["steps"]).names == ["steps", "module.steps"]
    assert strip_prefixes(["steps"], None, bare=["steps"]).prefixes == ()


def test_each_part_has_its_own_prefixes() -> None:
    """Of several parts, each loses the prefixes that its own names have."""
    names = ["g.module.a", "g.module.b", "d.c", "d.module.e", "h.net.a"]
    found = strip_prefixes(names, None, parts=["g", "d", "h"])
    assert (found.names, found.prefixes) == (["g.a", "g.b", "d.c", "d.module.e", "h.net.a"], ("module.",))
    assert "2 names" in found.warnings[0]
    assert strip_prefixes(names, "net.", parts=["g", "d", "h"]).names[-1] == "h.a"


def test_a_prefix_of_some_names_is_reported() -> None:
    """A single name without ``module.`` keeps it on all, and is named; ``--strip-prefix`` silences that."""
    prefix = "module."
    names = [f"{prefix}a", f"{prefix}b", "head"]
    assert stripped(names) == (names, ())
    (note,) = strip_prefixes(names, None).warnings
    assert note == f'the prefix "{prefix}" of 2 of 3 names is kept, as other names, such as "head", do not have it'
    assert strip_prefixes(names, "").warnings == ()
    assert strip_prefixes([f"{prefix}a", f"{prefix}b"], None).warnings == ()


def test_a_given_prefix_is_removed_where_it_is() -> None:
    """A prefix that the user gives is removed from the names that have it, and refused if that makes two equal."""
    assert stripped(["net.a", "net.b"], "net.") == (["a", "b"], ("net.",))
    assert stripped(["net.a", "b"], "") == (["net.a", "b"], ())
    assert stripped(["net.a", "b"], "net.") == (["a", "b"], ("net.",))
    assert stripped(["a", "b"], "net.") == (["a", "b"], ())
    with pytest.raises(UsageError, match='two tensors would have the name "a" after --strip-prefix'):
        strip_prefixes(["net.a", "a"], "net.")
    refuse_unused_prefix("net.", [("net.",), ()])
    refuse_unused_prefix("", [()])
    with pytest.raises(UsageError, match=r'no tensor begins with --strip-prefix "net\."'):
        refuse_unused_prefix("net.", [(), ()])


def test_a_given_prefix_cannot_be_a_whole_name() -> None:
    """A tensor without a name could not be loaded by any program."""
    with pytest.raises((InputRefused, UsageError), match='tensor "net" would have an empty name'):
        strip_prefixes(["net.a", "net"], "net")


parts = st.sampled_from(["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "a", "b", "w"])


@given(st.lists(st.lists(parts, min_size=1, max_size=5).map(".".join), unique=True, max_size=6))
def test_stripping_keeps_names_apart_and_in_order(names: list[str]) -> None:
    """Distinct names stay distinct, keep their last part, and stripping twice changes nothing more."""
    cleaned, prefixes = stripped(names)
    assert len(set(cleaned)) == len(names)
    assert [name.split(".")[-1] for name in cleaned] == [name.split(".")[-1] for name in names]
    if prefixes:
        assert cleaned != names
