"""What the commands show on terminals of usual widths: everything that a wide one shows, and nothing broken."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file

from ema_cli.cli.main import run

WIDTHS = (60, 80, 100, 120)
NUMBER = re.compile(r"(?<![\w.])\d[\d.,]*\d(?: %)?(?![\w.])|(?<![\w.])\d(?: %)?(?![\w.,])")
DECAYS = [
    word
    for decay in (0.5, 0.8, 0.9, 0.99, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.95, 0.999)
    for word in ("--decay", f"{decay}")
]
METHODS = [word for name in ("ema-warmup", "ema-hold", "uniform", "lr-decay") for word in ("--method", name)]
PLANS = {
    "1": ["--decay", "0.9"],
    "2": DECAYS[:4],
    "3": ["--per", "step", "--half-life", "50", "--half-life", "100", "--half-life", "1000"],
    "6": DECAYS[:12],
    "12": DECAYS,
    "12 in full": [*DECAYS, "-v"],
    "methods": [*METHODS, "--decay", "0.9999", "--decay", "0.999", "--shape", "1-sqrt"],
    "sigma": ["--sigma-rel", "0.05", "--sigma-rel", "0.1"],
    "manual": ["--weights", ",".join("1" * 9)],
}
LABELS = {
    "3": ["ema H=50", "ema H=100", "ema H=1000"],
    "6": ["ema 0.5", "ema 0.99"],
    "12": ["ema 0.1", "ema 0.999"],
    "12 in full": ["ema 0.1", "ema 0.999"],
    "methods": ["ema-warmup 0.9999", "ema-hold 0.999", "uniform", "lr-decay 1-sqrt"],
    "sigma": ["power 0.05", "power 0.1"],
}
LONG = "base_model.model.model.language_model.layers.10.self_attn.q_proj.lora_A.default.weight"
Shown = Callable[..., str]


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shown:
    """Return what both streams show of a command on a terminal of a width; in a pipe without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")  # no progress bars

    def show(*arguments: str, width: int | None = None) -> str:
        stream = Terminal() if width else io.StringIO()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(width)) if width else patch.delenv("COLUMNS", raising=False)
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            with pytest.raises(SystemExit):
                run(arguments)
        return stream.getvalue()

    return show


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two runs of nine checkpoints; one has names that fit no terminal."""
    for name, tensors in {"run": ("layer.weight",), "lora": (LONG, LONG.replace("10", "11"), "x" * 200)}.items():
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        for step in range(100, 1000, 100):
            state = {tensor: torch.randn(40, 70) for tensor in tensors}
            save_file(state, tmp_path / name / f"ckpt_{step}.safetensors")
    return tmp_path


def numbers_in(text: str) -> set[str]:
    """Return the numbers of a text, percentages with their sign."""
    return set(NUMBER.findall(text))


def without_measurements(text: str) -> str:
    """Return text without seconds, memory and speed, which differ between runs."""
    return re.sub(r"\d+\.\d\d\b|\d[\d.]* MB", "0", text)


def check(narrow: str, wide: str, width: int) -> None:
    """No line is too long unless it is one word; every word and number is one that a pipe gets, too."""
    for line in narrow.splitlines():
        assert cell_len(line) <= width or len(line.split()) == 1, line
        assert line == line.rstrip()
    assert numbers_in(narrow) <= numbers_in(wide)
    assert set(narrow.split()) <= set(wide.split())


@pytest.mark.parametrize("name", PLANS)
def test_plans_keep_labels_and_numbers(name: str, files: Path, shown: Shown) -> None:
    """With 1 to 12 averages each label is on a line, each share is whole, and each option of a hint, too."""
    command = ("plan", "run", "--no-probe", *PLANS[name])
    wide = shown(*command)
    percentages = {number for number in numbers_in(wide) if number.endswith("%")}
    for width in WIDTHS:
        narrow = shown(*command, width=width)
        check(narrow, wide, width)
        lines = narrow.splitlines()
        for label in LABELS.get(name, []):
            assert any(re.search(rf"(?<![\w-]){re.escape(label)}(?![\w.])", line) for line in lines), label
        assert percentages <= numbers_in(narrow)
        assert {word for word in wide.split() if word.startswith("--")} <= set(narrow.split())
    assert files.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "run/ckpt_100.safetensors", "-v"],
        ["diff", "run/ckpt_100.safetensors", "run/ckpt_200.safetensors"],
        ["batch", "run", "lora", "--decay", "0.5", "--dry-run"],
        ["run", "--decay", "0.5", "-o", "ema.safetensors", "--force"],
        ["run"],
        ["run", "--decay", "0.5", "-o", "ema.zip"],
        ["plan", "run", "--decya", "0.5"],
        ["--show-config", "--decay", "0.5"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_other_views_break_nothing(command: list[str], files: Path, shown: Shown) -> None:
    """The same for the content of checkpoints, a comparison, a batch, an average, its errors and the configuration."""
    wide = without_measurements(shown(*command))
    for width in WIDTHS:
        check(without_measurements(shown(*command, width=width)), wide, width)
    assert files.exists()


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_are_broken_at_dots(width: int, files: Path, shown: Shown) -> None:
    """No column is squeezed, each part of a name is whole, and a name without dots loses its middle alone."""
    for command in (
        ["inspect", "lora/ckpt_100.safetensors", "-v"],
        ["diff", "lora/ckpt_100.safetensors", "lora/ckpt_200.safetensors"],
    ):
        wide, narrow = shown(*command), shown(*command, width=width)
        assert wide.count(f"{'x' * 200}  ") == wide.count(f"{LONG}  ") == 1
        assert max(map(cell_len, narrow.splitlines())) <= width
        words = re.split(r"[\s.]+", narrow)
        assert set(LONG.split(".")) <= set(words)
        assert any(re.fullmatch("x{10,}…x{10,}", word) for word in words)
        assert len(narrow.splitlines()) <= 3 * len(wide.splitlines()) + 8
    assert files.exists()
