"""Commands that errors propose: complete, planned before they are shown, and true."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from ema_cli.cli.config.command import ConfiguredCommand
from ema_cli.cli.options import CommandLine, Given, takes
from ema_cli.errors import InputRefused, Proposal
from ema_cli.options.average import Options, make_options
from ema_cli.options.declaration import declared
from ema_cli.options.shell_command import shell_command
from ema_cli.pipeline import planned

EXAMPLES: dict[str, Any] = {
    "text": "x y'z",
    "number": 0.7,
    "whole number": 7,
    "list": (3, 5),
    "pairs": {"run": "a=b c", "note": ""},
}
SPECIAL = {
    "sigma_rel": (0.1,),
    "device": "cuda:1",
    "output": Path("out dir/ema.safetensors"),
    "report": (Path("r.html"), Path("r 2.md")),
    "continue_from": Path("old.safetensors"),
    "max_memory": 64_000_000,
    "max_shard_size": 5_000,
    "weights": (0.25, 1e-05),
    "include": ("^a|b$", "c d"),
    "exclude": (r"\.running_\w+",),
}
NEEDS: dict[str, dict[str, Any]] = {
    "method": {},
    "decay": {},
    "one_minus_decay": {},
    "half_life": {},
    "sigma_rel": {},
    "weights": {},
    "per": {"decay": (0.9,)},
    "init": {"decay": (0.9,)},
    "warmup": {"method": ("ema-warmup",), "decay": (0.9,)},
    "inv_gamma": {"method": ("ema-warmup",), "warmup": "inv-gamma", "decay": (0.9,)},
    "power": {"method": ("ema-warmup",), "warmup": "inv-gamma", "decay": (0.9,)},
    "shape": {"method": ("lr-decay",)},
    "normalize": {"weights": (0.25, 1e-05)},
    "max_shard_size": {"method": ("uniform",), "output": Path("out")},
    "resume": {"method": ("uniform",)},
}
"""Other options that an option needs; by default a method."""


def example(option: Any) -> Any:
    """Return a value of an option that is not its default."""
    if option.name in SPECIAL:
        return SPECIAL[option.name]
    if option.kind == "switch":
        return not option.default
    if option.words:
        other = next(word for word in option.words if word != option.default)
        return (other,) if option.many else other
    value = EXAMPLES[option.kind]
    return (value,) if option.many and option.kind != "pairs" else value


def parsed(command: str) -> Options:
    """Return the options that the command line reads from a command."""
    app = typer.Typer()
    seen: list[Options] = []

    @app.command("average", cls=ConfiguredCommand)
    @takes()
    def _average(paths: Annotated[list[str], typer.Argument()], *, given: Given, line: CommandLine) -> None:
        assert line.verbose in (True, False)
        seen.append(make_options(paths, **given))

    program, *words = shlex.split(command)
    assert program == "ema-avg"
    done = CliRunner().invoke(app, words[1:] if words[0] == "plan" else words, catch_exceptions=False)
    assert not done.exit_code, done.output
    return seen[0]


@pytest.mark.parametrize("option", declared(Options), ids=lambda one: one.name)
def test_a_command_means_the_options_it_was_made_from(option: Any) -> None:
    """Each option comes back from the command with the value it had, and nothing else changes."""
    basis = NEEDS.get(option.name, {"method": ("uniform",)})
    values = {"output": Path("o.safetensors"), **basis, option.name: example(option)}
    options = Options(paths=("run/it's *.pt", "./-b.pt"), **values)
    assert parsed(shell_command(options)) == options


def test_a_file_name_is_no_option() -> None:
    """A name that begins with a dash is spelled so that it stays a name."""
    assert shell_command(Options(paths=("-b.pt",), decay=(0.9,))) == "ema-avg plan ./-b.pt --decay 0.9"


def test_without_an_output_the_command_plans() -> None:
    """A dry run proposes a dry run."""
    assert shell_command(Options(paths=("run",), decay=(0.9,))) == "ema-avg plan run --decay 0.9"


def test_a_proposal_that_cannot_be_planned_is_not_shown(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that works replaces the hint, whole; without one the hint stays."""
    monkeypatch.chdir(run_folder.parent)
    options = Options(paths=("nothing-here",), output=Path("o.safetensors"))
    proposals = [
        Proposal(reason="gone", changes={"paths": ("also-gone",)}),
        Proposal(reason="the run is there", changes={"paths": ("run",)}),
    ]

    def fail(*_: object) -> None:
        raise InputRefused("no", hint="a plain hint", proposals=proposals)

    def refused() -> InputRefused:
        with pytest.raises(InputRefused) as caught, planned(options):
            pass
        return caught.value

    working = "ema_cli.pipeline.discover"
    original = __import__("ema_cli.pipeline", fromlist=["discover"]).discover
    monkeypatch.setattr(working, lambda o, *rest: fail() if o.paths == options.paths else original(o, *rest))
    assert refused().hint == "the run is there: ema-avg run -o o.safetensors"
    proposals.pop()
    assert refused().hint == "a plain hint"
