"""The script of the page sorts and searches its tables, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
from ema_cli.records.files import FileRole
from ema_cli.records.reported_output import File
from ema_cli.report.html import to_html
from ema_cli.report.model import Report
from tests.helpers.series import write_series

SCRIPT = Path(__file__).parent.parent / "scripts" / "screenshots"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, ("chromium", "chromium-browser"))), reason="needs Chromium"),
]


def as_folder(report: Report) -> Report:
    """Return a report as if its output were a folder with side files, so that all columns of files are wide."""
    names = ("model.safetensors", "model.safetensors.index.json", "tokenizer_config.json", "generation_config.json")
    roles = (FileRole.WEIGHTS, FileRole.INDEX, FileRole.SIDE_FILE, FileRole.SIDE_FILE)
    pairs = zip(names, roles, strict=True)
    files = (File(name=name, role=role, bytes=1, sha256="0" * 64, modified_ns=0) for name, role in pairs)
    average = report.averages[0]
    output = replace(average.output, path="runs/ema_0.5", files=tuple(files))
    return replace(report, averages=(replace(average, output=output),))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a small transformer, open in a browser."""
    folder = tmp_path_factory.mktemp("page")
    names = [f"model.layers.{k}.{part}.weight" for k in range(12) for part in ("q_proj", "k_proj")]
    states = [{name: torch.randn(8) for name in names} for _ in range(4)]
    target = folder / "page.html"
    report = ema_cli.average(write_series(folder, states), decay=0.5, output=folder / "e.safetensors")
    target.write_text(to_html(as_folder(report)), encoding="utf-8")
    loader = SourceFileLoader("screenshots", str(SCRIPT))
    spec = spec_from_loader("screenshots", loader)
    assert spec is not None
    screenshots = module_from_spec(spec)
    loader.exec_module(screenshots)
    with screenshots.browser() as browser:
        browser.open(target)
        yield browser


def column(page: Any, position: int, number: int) -> list[str]:
    """Click the title of a column of shares so many times, and return its cells."""
    button = f"document.querySelectorAll('table.shares th button')[{position}]"
    page.value("; ".join([f"{button}.click()"] * number))
    cells = f"[...document.querySelectorAll('table.shares tbody tr')].map(row => row.cells[{position}].textContent)"
    found: list[str] = page.value(cells)
    return found


def test_a_click_sorts_numbers_from_the_largest_and_names_from_the_first(page: Any) -> None:
    """A second click turns the order; the state is in ``aria-sort``; the buttons are reached with the keyboard."""
    assert column(page, 2, 1) == ["50.0 %", "25.0 %", "12.5 %", "12.5 %"]
    assert column(page, 2, 1)[-1] == "50.0 %"
    assert page.value("document.querySelector('table.shares th:nth-child(3)').ariaSort") == "ascending"
    assert [name.split("_")[-1] for name in column(page, 0, 1)] == ["100.pt", "200.pt", "300.pt", "400.pt"]
    assert page.value("document.querySelectorAll('[aria-sort]').length") == 1
    assert page.value("document.querySelector('th button').tabIndex") == 0


def test_a_search_shows_the_tensors_with_that_name(page: Any) -> None:
    """It finds parts of whole names, opens their layers, hides the others, and states how many it found."""
    shown = "[...document.querySelectorAll('.layers tbody tr')].filter(row => row.checkVisibility()).length"

    def search(text: str) -> tuple[int, str]:
        """Type a text, and return how many tensors are shown, and the number that the page states."""
        put = f"box.value = '{text}'; box.dispatchEvent(new Event('input'))"
        page.value(f"{{ const box = document.querySelector('.search input'); {put} }}")
        return page.value(shown), page.value("document.querySelector('.search [role=status]').textContent")

    assert search("layers.1.") == (2, "2 of 24")
    assert search("layers.1 q_proj") == (3, "3 of 24")
    assert search("nothing") == (0, "0 of 24")
    assert search("") == (0, "")
    assert page.value("document.querySelectorAll('.layers > details:not([hidden])').length") == 12


def test_the_browser_has_no_complaints(page: Any) -> None:
    """The policy allows the script of the page, and there is no error; the page does not scroll sideways on a phone."""
    page.resize(390, 800)
    assert page.complaints == []
    assert page.value("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("width", [1100, 390])
def test_no_digest_is_cut(page: Any, width: int) -> None:
    """Beside the longest names, and on a phone, the digest of the output is all visible; on a wide page in one line."""
    page.resize(width, 800)
    box = "document.querySelector('table.hash3').parentElement"
    assert page.value(f"{box}.scrollWidth <= {box}.clientWidth")
    lines = "Math.round(range.getBoundingClientRect().height / 12)"
    cell = "document.querySelector('table.hash3 td:nth-child(3)')"
    height = page.value(f"{{ const range = document.createRange(); range.selectNodeContents({cell}); {lines} }}")
    assert (height == 1) is (width == 1100)
