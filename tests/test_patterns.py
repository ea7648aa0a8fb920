"""The meaning of a name on the command line: one file, one folder, or all that match it, here and in a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ema_cli.discovery.patterns import matches
from ema_cli.storage.locations import Location
from ema_cli.storage.url import Url

FILES = (
    "run/checkpoint-5/model.safetensors",
    "run/checkpoint-10/model.safetensors",
    "run/checkpoint-10/unet/model.safetensors",
    "run/checkpoint-20.pt",
    "run/.hidden/model.safetensors",
    "run/a[1].pt",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the files."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def store(tree: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same files behind URLs, listed as a store lists them."""

    def local(location: Location) -> Path:
        return tree.joinpath(*location.parts[2:]) if isinstance(location, Url) else location

    def names_in(location: Location) -> dict[str, bool]:
        return {path.name: path.is_dir() for path in local(location).iterdir()}

    monkeypatch.setattr("ema_cli.discovery.patterns.is_folder", lambda location: local(location).is_dir())
    monkeypatch.setattr("ema_cli.discovery.patterns.names_in", names_in)
    return "s3://bucket"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("run/checkpoint-*", ["run/checkpoint-5", "run/checkpoint-10", "run/checkpoint-20.pt"]),
        ("run/checkpoint-*/", ["run/checkpoint-5", "run/checkpoint-10"]),
        ("run/checkpoint-[0-9]/", ["run/checkpoint-5"]),
        ("run/*/model.safetensors", ["run/checkpoint-5/model.safetensors", "run/checkpoint-10/model.safetensors"]),
        ("*/*/unet", ["run/checkpoint-10/unet"]),
        ("**/unet", ["run/checkpoint-10/unet"]),
        ("run/**/model.safetensors", [FILES[0], FILES[1], FILES[2]]),
        ("run/a[[]1].pt", ["run/a[1].pt"]),
        ("none/*", []),
        ("run/checkpoint-20.pt/*", []),
    ],
)
def test_a_pattern_means_the_same_here_and_in_a_store(pattern: str, found: list[str], tree: Path, store: str) -> None:
    """Hidden names match no pattern, a slash at the end means folders, and the order is the natural one."""
    assert [match.relative_to(tree).as_posix() for match in matches(f"{tree}/{pattern}")] == found
    assert matches(f"file://{tree}/{pattern}") == [tree / name for name in found]
    assert matches(f"{store}/{pattern}") == [Url(f"{store}/{name}") for name in found]


@pytest.mark.parametrize("name", ["s3://bucket/run/x.pt", "https://host/model.safetensors?download=true"])
def test_a_url_that_is_no_pattern_is_itself(name: str) -> None:
    """A URL without a pattern is not looked up in a store; a question mark begins a query."""
    assert matches(name) == [Url(name)]
