"""The completion of shells: what it offers, and what the program does if its variables make no sense."""

from __future__ import annotations

import pytest

from ema_cli.cli.group import check_completion
from ema_cli.errors import UsageError
from tests.helpers.program import Run

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def asked(words: str, shell: str) -> dict[str, str]:
    """Return the variables that a shell sets for a command line, to complete its last word."""
    return {
        "_EMA_AVG_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": words.rpartition(" ")[2],
    }


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ema-avg --per ", {"checkpoint", "step"}),
        ("ema-avg pla", {"plan"}),
        ("ema-avg plan run --buffers l", {"last"}),
        ("ema-avg pln --per s", {"step"}),
        ("ema-avg --version ver", {"verify"}),
    ],
)
def test_words_are_completed(words: str, offered: set[str], shell: str, ema_avg: Run) -> None:
    """Commands and values, also after a misspelled command and after an option that prints something."""
    done = ema_avg(**asked(words, shell))
    assert (done.returncode, done.stderr) == (0, "")
    for word in offered:
        assert word in done.stdout
    assert "ema-avg 0" not in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_printed(shell: str, ema_avg: Run) -> None:
    """``source_SHELL`` prints the script that calls the program with this variable."""
    done = ema_avg(_EMA_AVG_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert "_EMA_AVG_COMPLETE" in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_without_the_variables_of_the_shell(shell: str, ema_avg: Run) -> None:
    """The variable alone is no bug of the program: bash needs two more, others complete an empty line."""
    done = ema_avg(_EMA_AVG_COMPLETE=f"complete_{shell}")
    assert done.returncode == (2 if shell == "bash" else 0)
    assert ("COMP_WORDS" in done.stderr) == (shell == "bash")


@pytest.mark.parametrize(
    "instruction",
    [
        *("complete", "complete_", "_", "foo", "1", "bash_complete", "bash_source", "complete_ksh", "source_"),
        *("run_bash", "complete_bash_x", "COMPLETE_BASH", "complete_\x1b[31m", " complete_bash"),
    ],
)
def test_instructions_that_no_shell_gives(instruction: str, ema_avg: Run) -> None:
    """They are usage errors that name the variable."""
    with pytest.raises(UsageError) as refused:
        check_completion({"_EMA_AVG_COMPLETE": instruction})
    assert "unset _EMA_AVG_COMPLETE" in refused.value.hint
    if instruction in ("foo", "complete_\x1b[31m"):
        done = ema_avg("plan", "x.pt", _EMA_AVG_COMPLETE=instruction)
        assert done.returncode == 2
        assert "_EMA_AVG_COMPLETE" in done.stderr
        assert "\x1b" not in done.stderr


@pytest.mark.parametrize("number", ["", "x", "-1", "1.5", "²", "9" * 5000])
def test_positions_that_bash_does_not_give(number: str) -> None:
    """The position of the word is a small whole number."""
    given = {"_EMA_AVG_COMPLETE": "complete_bash", "COMP_WORDS": "ema-avg ", "COMP_CWORD": number}
    with pytest.raises(UsageError, match="COMP_CWORD"):
        check_completion(given)
    check_completion(given | {"COMP_CWORD": "1"})


@pytest.mark.parametrize("words", ["", " ", "'", 'ema-avg "a', "ema-avg \\", "x" * 10_000])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_unfinished_lines(words: str, shell: str, ema_avg: Run) -> None:
    """An open quote or a line of another command completes something or nothing."""
    assert ema_avg(**asked(words, shell)).returncode == 0


def test_an_empty_variable_is_not_set(ema_avg: Run) -> None:
    """Then the command line is run."""
    assert ema_avg("--version", _EMA_AVG_COMPLETE="").stdout.startswith("ema-avg ")
