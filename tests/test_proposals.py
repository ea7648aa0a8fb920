"""Commands that errors propose: complete, planned before they are shown, and true."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

import ema_cli
from ema_cli.cli.app import app
from ema_cli.cli.config.command import ConfiguredCommand
from ema_cli.cli.options import CommandLine, Given, takes
from ema_cli.errors import InputRefused, Proposal
from ema_cli.options.average import Options, make_options
from ema_cli.options.declaration import declared
from ema_cli.options.shell_command import shell_command, update_command
from ema_cli.pipeline import planned
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

EXAMPLES: dict[str, Any] = {
    "text": "x y'z",
    "number": 0.7,
    "whole number": 7,
    "list": (3, 5),
    "pairs": {"run": "a=b c", "note": ""},
}
SPECIAL = {
    "allow": ("first-dominates",),
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
    parser = typer.Typer()
    seen: list[Options] = []

    @parser.command("average", cls=ConfiguredCommand)
    @takes()
    def _average(paths: Annotated[list[str], typer.Argument()], *, given: Given, line: CommandLine) -> None:
        assert line.verbose in (True, False)
        seen.append(make_options(paths, **given))

    program, *words = shlex.split(command)
    assert program == "ema-avg"
    done = CliRunner().invoke(parser, words[1:] if words[0] == "plan" else words, catch_exceptions=False)
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
    assert shell_command(Options(paths=("-b.pt",), decay=(0.9,))) == "ema-avg ./-b.pt --decay 0.9"


def test_a_batch_has_its_runs_and_outputs_of_its_own() -> None:
    """An output that all runs would share is left out; one with the name of the run stays."""
    shared = Options(paths=("a", "b"), decay=(0.9,), output=Path("o.safetensors"), report=(Path("r.html"),))
    assert shell_command(shared, ["-a", "b"]) == "ema-avg batch ./-a b --decay 0.9"
    own = Options(paths=("a",), decay=(0.9,), output=Path("{name}.safetensors"))
    assert shell_command(own, ["a", "b"]) == "ema-avg batch a b --decay 0.9 -o '{name}.safetensors'"


def test_a_batch_keeps_the_format_that_its_output_is_named_for(tmp_path: Path, ema_avg: Run) -> None:
    """Its runs get files of that name, and the proposal works."""
    for run in ("a", "b"):
        write_series(tmp_path / run, random_states(3))
    done = ema_avg("a", "b", "--decay", "0.5", "-o", "averages/o.pt")
    command = done.stderr.partition("average each")[2].partition("itself: ")[2].strip()
    assert command == "ema-avg batch a b --decay 0.5 -o '{run}/o.pt'"
    assert ema_avg(*shlex.split(command)[1:]).returncode == 0
    assert {(tmp_path / run / "o.pt").exists() for run in ("a", "b")} == {True}


def test_statistics_of_any_output_are_recomputed_into_safetensors() -> None:
    """The name of the new output fits to that of the old one."""
    found = {name: update_command(Path(name), folder=folder).rpartition(" ")[2] for name, folder in OUTPUTS.items()}
    assert found == {
        "ema.safetensors": "ema-bn.safetensors",
        "run/ema_0.9.pt": "run/ema_0.9-bn.safetensors",
        "a.ckpt": "a-bn.safetensors",
        "averaged": "averaged-bn/",
    }


OUTPUTS = {"ema.safetensors": False, "run/ema_0.9.pt": False, "a.ckpt": False, "averaged": True}
"""Names of outputs, and whether they are folders."""


@pytest.mark.parametrize("names", [("a", "b"), ("a/*.pt", "b/*.pt"), (".",)])
def test_several_runs_are_a_batch(tmp_path: Path, ema_avg: Run, names: tuple[str, ...]) -> None:
    """Runs with the same steps, or in one folder, are proposed as a batch, which works."""
    for run in ("a", "b"):
        write_series(tmp_path / run, random_states(3))
    done = ema_avg(*names, "--decay", "0.5", "-o", "o.safetensors")
    assert done.returncode in (3, 7), done.stderr
    command = done.stderr.partition("average each")[2].partition("itself: ")[2].strip()
    assert command == "ema-avg batch a b --decay 0.5"
    assert ema_avg(*command.split()[1:]).returncode == 0
    assert {(tmp_path / run / "ema.safetensors").exists() for run in ("a", "b")} == {True}


def test_a_batch_is_not_proposed_where_it_fails(tmp_path: Path, ema_avg: Run) -> None:
    """One of the runs cannot be averaged, or no decay was given: the hint has placeholders only."""
    for run in ("a", "b"):
        write_series(tmp_path / run, random_states(3))
    assert "ema-avg batch RUNS/" in ema_avg("plan", "a", "b").stderr
    torch.save({"other": torch.ones(2), "step": 400}, tmp_path / "b" / "ckpt_400.pt")
    assert "ema-avg batch RUNS/" in ema_avg("plan", "a", "b", "--decay", "0.5").stderr


def test_a_plan_proposes_a_plan() -> None:
    """What writes nothing proposes what writes nothing, whether an output was named or not."""
    options = Options(paths=("run",), decay=(0.9,))
    assert shell_command(options, writes=False) == "ema-avg plan run --decay 0.9"
    assert shell_command(options, ["run"], writes=False) == "ema-avg batch run --decay 0.9 --dry-run"
    assert shell_command(options) == "ema-avg run --decay 0.9"


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
    assert refused().hint == "the run is there: ema-avg plan run -o o.safetensors"
    proposals.pop()
    assert refused().hint == "a plain hint"


def commands_in(hint: str) -> list[str]:
    """Return the commands that a hint proposes."""
    return re.findall(r"ema-avg [^;]+?(?=; or |; |$)", hint)


def hints_in(module: Path) -> Iterator[str]:
    """Yield the texts that a module gives as hints, with ``{}`` in place of values."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        match node:
            case ast.keyword(arg="hint" | "next_step", value=value):
                yield from texts_in(value)
            case ast.Assign(targets=[ast.Name(id="hint" | "hints")], value=value):
                yield from texts_in(value)
            case ast.FunctionDef(name="hint_for" | "_hint"):
                yield from texts_in(node)


def texts_in(value: ast.AST) -> Iterator[str]:
    """Yield the strings in an expression."""
    for node in ast.walk(value):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


HINTS = {
    (path.name, command): command
    for path in Path(ema_cli.__file__).parent.rglob("*.py")
    for hint in hints_in(path)
    for command in commands_in(hint)
}


def test_hints_have_commands() -> None:
    """The search for hints finds them."""
    assert len(HINTS) > 8


@pytest.mark.parametrize("command", list(HINTS.values()))
def test_commands_in_hints_have_placeholders_and_parse(command: str) -> None:
    """A hint that no plan stands behind has words in capitals in place of paths, and options that exist."""
    words = shlex.split(command.replace("...", ""))[1:]
    is_word = command in ("ema-avg {}", "ema-avg batch --{} ...")  # a command, an option
    assert is_word or not re.search(r"\{\}", command), command
    name = words[0] if words[0] in COMMANDS else "average"
    rest = words[1:] if words[0] in COMMANDS else words
    assert (
        all(re.fullmatch(r"-.*|[A-Z*/]+(?:\.pt)?|[\d.]+|ema\.safetensors|\{\}|--\{\}", one) for one in rest)
        or name == "help"
    )
    if not is_word and rest[:1] not in (["--help"], ["--show-config"]):
        COMMANDS[name].make_context(name, rest)


def two_models(folder: Path) -> list[str]:
    """A run of folders with an adapter beside the model."""
    for step in (1, 2):
        for name in ("model", "adapter_model"):
            save_tensors(folder / f"run/checkpoint-{step}/{name}.safetensors", step)
    return ["run"]


def parts_of_a_list(folder: Path) -> list[str]:
    """Files that hold a list of a model and an optimizer."""
    for step in (1, 2):
        save_torch(folder / f"run/step_{step}.pt", [weights(step), {"state": {}, "param_groups": []}])
    return ["run/step_1.pt", "run/step_2.pt"]


def two_networks(folder: Path) -> list[str]:
    """Files that hold two networks under names of their own."""
    for step in (1, 2):
        save_torch(folder / f"run/step_{step}.pt", {"encoder_net": weights(step), "decoder_net": weights(step)})
    return ["run"]


def pipelines(folder: Path) -> list[str]:
    """Pipelines of several models, in folders."""
    for step in (1, 2):
        for part in ("unet", "vae"):
            save_tensors(folder / f"my run/checkpoint-{step}/{part}/diffusion_pytorch_model.safetensors", step)
        (folder / f"my run/checkpoint-{step}/model_index.json").write_text("{}")
    return ["my run"]


def networks_side_by_side(folder: Path) -> list[str]:
    """Two series of files of different models in one folder."""
    for step in (1, 2):
        save_torch(folder / f"run/G_{step}.pth", weights(step))
        save_torch(folder / f"run/D_{step}.pth", {"conv.weight": torch.ones(3, 3) * step})
    return ["run"]


def unusual_suffix(folder: Path) -> list[str]:
    """Checkpoints whose names do not end as those of others."""
    for step in (1, 2):
        save_torch(folder / f"run/model_{step}.pyth", weights(step))
    return ["run"]


def everything_in_a_folder(folder: Path) -> list[str]:
    """What a shell makes of ``run/*``: the files of a trainer beside its checkpoints."""
    for step in (1, 2):
        save_tensors(folder / f"run/checkpoint-{step}/model.safetensors", step)
    (folder / "run/config.json").write_text("{}")
    save_torch(folder / "run/optimizer.pt", {"state": {}, "param_groups": []})
    return [f"run/{path.name}" for path in (folder / "run").iterdir()]


def copies_of_members(folder: Path) -> list[str]:
    """What a shell makes of ``run/*.ckpt``, with the copy that Lightning calls ``last``."""
    for step, name in ((1, "step=1"), (2, "step=2"), (2, "last")):
        save_torch(folder / f"run/{name}.ckpt", {"state_dict": weights(step), "global_step": step})
    (folder / "run/hparams.yaml").write_text("")
    return ["run/*.ckpt"]


def weights(step: int) -> dict[str, torch.Tensor]:
    """Return the weights at a step."""
    return {"fc.weight": torch.full((2, 2), float(step)), "fc.bias": torch.ones(2)}


def save_torch(path: Path, value: object) -> None:
    """Save a value in a new folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def save_tensors(path: Path, step: int) -> None:
    """Save weights as safetensors, in a new folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights(step), path)


LAYOUTS = (
    two_models,
    parts_of_a_list,
    two_networks,
    pipelines,
    networks_side_by_side,
    unusual_suffix,
    everything_in_a_folder,
    copies_of_members,
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_commands_that_errors_propose_work(layout: Callable[[Path], list[str]], ema_avg: Run, tmp_path: Path) -> None:
    """Each command in the hint of a refusal averages, as it is shown."""
    done = ema_avg(*layout(tmp_path), "--decay", "0.9", "-o", "out.safetensors", "--json")
    assert done.returncode, done.stdout
    commands = commands_in(json.loads(done.stdout)["error"]["hint"])
    assert commands
    for command in commands:
        assert "-o out.safetensors" in command
        again = ema_avg(*shlex.split(command)[1:], "--force")
        assert again.returncode == 0, (command, again.stderr)


def test_whoever_names_a_part_of_a_folder_is_not_shown_the_whole(tmp_path: Path, ema_avg: Run) -> None:
    """The other files were not meant."""
    everything_in_a_folder(tmp_path)
    done = ema_avg("run/checkpoint-1", "run/config.json", "--decay", "0.9")
    assert done.returncode == 3
    assert "name the folder, of which" not in done.stderr
    copies_of_members(tmp_path / "other")
    save_torch(tmp_path / "other/run/step=3.ckpt", {"state_dict": weights(3), "global_step": 3})
    done = ema_avg(*(f"other/run/{name}.ckpt" for name in ("step=1", "step=2", "last")), "--decay", "0.9")
    assert done.returncode == 3
    assert "name the folder, of which" not in done.stderr
