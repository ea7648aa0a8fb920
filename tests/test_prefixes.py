"""Wrappers' prefixes are removed if all names have them, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.state_dict.prefixes import strip_prefixes


def stripped(names: list[str], prefix: str | None = None) -> tuple[list[str], tuple[str, ...]]:
    """Return the names without prefixes, and the prefixes."""
    found = strip_prefixes(names, prefix)
    return found.names, found.prefixes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
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
    (note,) = strip_prefixes(names, None).notes
    assert note == 'the prefixes …._orig_mod. are kept: without them two tensors would have the name "a.w"'


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_a_prefix_of_some_names_is_reported(prefix: str) -> None:
    """A single name without the wrapper's prefix keeps it on all, and is named; ``--strip-prefix`` silences that."""
    names = [f"{prefix}a", f"{prefix}b", "head"]
    assert stripped(names) == (names, ())
    (note,) = strip_prefixes(names, None).notes
    assert note == f'the prefix "{prefix}" of 2 of 3 names is kept, as other names, such as "head", do not have it'
    assert strip_prefixes(names, "").notes == ()
    assert strip_prefixes([f"{prefix}a", f"{prefix}b"], None).notes == ()


def test_a_given_prefix_must_be_in_front_of_all_names() -> None:
    """A prefix that the user gives is removed from every name, or refused with the first name that lacks it."""
    assert stripped(["net.a", "net.b"], "net.") == (["a", "b"], ("net.",))
    assert stripped(["net.a", "b"], "") == (["net.a", "b"], ())
    with pytest.raises((InputRefused, UsageError), match=r'tensor "b" does not begin with --strip-prefix "net\."'):
        strip_prefixes(["net.a", "b"], "net.")


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
