"""The report as HTML and Markdown: complete, self-contained, true to the run, and safe from hostile names."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import OutputError
from ema_cli.records.fold_results import RunGeometry
from ema_cli.report.charts.curves import Curve
from ema_cli.report.charts.heat_map import heat_map
from ema_cli.report.charts.histogram import histogram
from ema_cli.report.charts.lr_scale import lr_chart
from ema_cli.report.charts.path import path_chart
from ema_cli.report.charts.strip import drift_strip
from ema_cli.report.charts.weights import weights_chart
from ema_cli.report.html import to_html
from ema_cli.report.markdown import escaped, to_markdown
from ema_cli.report.model import Input, Report, Tensor
from ema_cli.report.movement import movement
from ema_cli.report.words import verdict
from ema_cli.text import percent
from tests.helpers.reports import reports
from tests.helpers.series import random_states, write_series

HOSTILE = [
    '<script>alert("x")</script>',
    "a|b|c",
    "`code` **bold** [link](http://x) @user #1",
    "::error::forged",
    "\x1b[31mred",
    "line\nbreak",
    "\u202egnp.exe",
    "x" * 64_000,
    "</svg><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real report of two averages."""
    folder = tmp_path_factory.mktemp("run")
    paths = write_series(folder, random_states(6))
    return ema_cli.average(paths, decay=[0.5, 0.9], output=folder / "ema_{decay}.safetensors")


class Page(HTMLParser):
    """Collects the parts that a browser would see: tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br", "path", "circle", "i", "td", "th", "tr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that is open."""
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.text += data


def renamed(report: Report, name: str) -> Report:
    """Return a report in which every text that comes from files is ``name``."""
    tensors = tuple(dataclasses.replace(t, name=name) for t in report.averages[0].tensors)
    output = dataclasses.replace(report.averages[0].output, path=f"/tmp/{name}.safetensors")
    return dataclasses.replace(
        report,
        inputs=tuple(dataclasses.replace(known, path=f"run/{name}", step_source=name) for known in report.inputs),
        averages=(dataclasses.replace(report.averages[0], tensors=tensors, output=output), *report.averages[1:]),
        command=dataclasses.replace(report.command, argv=("ema-avg", name)),
    )


def test_the_page_is_whole(report: Report) -> None:
    """All sections are there, every tag is closed, and the numbers are those of the report."""
    page = Page(to_html(report))
    assert page.open == []
    for title in ("Learning-rate scale", "Path of the run", "Inputs", "Outputs", "Timing", "How to reproduce"):
        assert title in page.text
    for average in report.averages:
        assert verdict(report, average) in page.text
        assert average.output.sha256 in page.text
        for weight in average.weights:
            assert percent(weight) in page.text
    for known in report.inputs:
        assert known.fingerprint in page.text


def test_the_page_needs_nothing_else(report: Report) -> None:
    """No link, script, style, image or font from elsewhere; and a policy that would refuse them."""
    page = Page(to_html(report))
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "base", "form"}
        assert not {"src", "href", "action", "onclick", "onerror"} & set(attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in re.sub(r"http-equiv", "", to_html(report))
    assert "@import" not in to_html(report)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:12])
def test_names_cannot_break_the_page(report: Report, name: str) -> None:
    """Whatever the names of files and tensors, the page has the same tags, except labels for which there is no room."""
    plain, hostile = (Page(to_html(renamed(report, text))) for text in ("name", name))
    labels = {"text", "path"}
    assert [tag for tag, _ in hostile.tags if tag not in labels] == [tag for tag, _ in plain.tags if tag not in labels]
    assert "49" not in re.findall(r"\{\{ 7.*?\}\}", hostile.text)
    assert "\x1b" not in to_html(renamed(report, name))
    assert len(to_html(renamed(report, name))) < 300_000


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:12])
def test_names_cannot_break_the_markdown(report: Report, name: str) -> None:
    """Every table row keeps its cells, no line begins with text from a name, and no name becomes HTML."""
    plain, hostile = (to_markdown(renamed(report, text)) for text in ("name", name))
    assert hostile.count("\n") == plain.count("\n")
    for line in hostile.splitlines():
        assert not line.startswith("::")
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {
                len(re.findall(r"(?<!\\)\|", row)) for row in plain.splitlines()
            }
    outside = hostile.split("```sh")[0]
    assert "<script" not in outside
    assert "<img" not in outside
    assert "@user" not in outside
    assert "http://" not in outside
    assert "\x1b" not in hostile


@given(st.text(max_size=60))
@settings(deadline=None)
def test_escaped_text_has_no_markup(text: str) -> None:
    """Nothing that Markdown takes for markup is left unescaped."""
    shown = escaped(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|<>]", re.sub(r"&\w+;|&#\d+;", "", shown))
    assert shown.count("@") == shown.count("@&#8203;")


@given(reports())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_with_an_average_can_be_shown(report: Report) -> None:
    """Numbers of any size and texts of any kind make a page and a summary, never an error."""
    if not report.averages or not all(
        average.weights and average.diagnostics.implied_lr for average in report.averages
    ):
        return
    averages = tuple(
        dataclasses.replace(
            average,
            weights=(0.5,) * max(1, len(report.inputs)),
            diagnostics=dataclasses.replace(average.diagnostics, implied_lr=(1.0,) * max(1, len(report.inputs))),
        )
        for average in report.averages
    )
    inputs = report.inputs or (
        Input(path="a", format="f", step=None, step_source=None, bytes=1, fingerprint="f", sha256=None),
    )
    shown = dataclasses.replace(report, inputs=inputs, averages=averages, geometry=None)
    assert Page(to_html(shown)).open == []
    assert to_markdown(shown)


def test_a_large_report_stays_small(report: Report) -> None:
    """50 checkpoints of 1,000 tensors are less than 300 kB of HTML, and far less of Markdown."""
    count = 50
    tensors = tuple(
        Tensor(
            name=f"model.layers.{k // 8}.self_attn.some_projection_{k % 8}.weight",
            dtype="BF16", shape=(4096, 4096), action="averaged", norm=123.456789, drift=0.001234 * (k % 97),
            cosine=0.99987654, spread=1.2345678, tied_to=None,
        )
        for k in range(1000)
    )  # fmt: skip
    average = dataclasses.replace(
        report.averages[0],
        tensors=tensors,
        weights=(1 / count,) * count,
        diagnostics=dataclasses.replace(
            report.averages[0].diagnostics, implied_lr=tuple(1 - i / count for i in range(count))
        ),
    )
    geometry = RunGeometry(
        inputs=tuple(range(count)),
        pairwise_distance=tuple(tuple(abs(i - j) * 1.2345 for j in range(count)) for i in range(count)),
        average_distance=((1.0,) * count,),
        path_2d=tuple((float(i), float(i % 7)) for i in range(count)),
        averages_2d=((25.0, 3.0),),
        explained=(0.7, 0.2),
        step_cosines=(0.1,) * (count - 2),
        sampled_fraction=0.01,
    )
    large = dataclasses.replace(report, inputs=(report.inputs[0],) * count, averages=(average,), geometry=geometry)
    page = to_html(large)
    assert len(page.encode()) < 300_000
    assert page.count("some_projection_3") >= 125
    assert len(to_markdown(large).encode()) < 60_000


@pytest.mark.parametrize(
    ("cosines", "words"),
    [
        ((-0.6, -0.4), "oscillate around a center"),
        ((0.7, 0.9), "still moving in one direction"),
        ((0.05, -0.1), "as in a random walk"),
        ((None, 0.9), "still moving in one direction"),
    ],
)
def test_movement_is_described_in_words(report: Report, cosines: tuple[float | None, ...], words: str) -> None:
    """Oscillation, one direction, or neither; the text never says that the average is better."""
    assert report.geometry is not None
    sentence = movement(dataclasses.replace(report.geometry, step_cosines=cosines), None)
    assert words in sentence
    assert "only an evaluation can tell" in sentence
    assert movement(dataclasses.replace(report.geometry, step_cosines=(None,)), None) == ""


def test_drawings_are_markup_that_closes(report: Report) -> None:
    """Each chart is one element with escaped text, for any numbers."""
    for drawing in (
        weights_chart([1], [Curve(name="<a>", values=[1.0])], x_label="<step>"),
        lr_chart([1, 2, 30], [Curve(name="<a>", values=[1, 0.5, 0.1])] * 2, x_label="<step>"),
        path_chart([(0, 0), (0, 0)], ["<a>", "b"], [("<avg>", (0, 0))], ("<a>", "y")),
        heat_map([[0, 1], [1, 0]], ["<a>", "b"]),
        drift_strip([0, 0], ["<t>", "u"]),
        histogram([0, 1], x_label="<t>", y_label="<step>"),
    ):
        page = Page(drawing)
        assert page.open == []
        assert page.tags[0][0] == "div"
        assert "nan" not in drawing
        assert not {"a", "t", "avg", "step"} & {tag for tag, _ in page.tags}
    assert report.geometry is not None


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_reports_are_written_where_they_are_asked_for(suffix: str, tmp_path: Path) -> None:
    """By suffix, for a new average and for one that is up to date; a foreign file of that name is not overwritten."""
    paths = write_series(tmp_path / "run", random_states(3))
    target = tmp_path / f"run{suffix}"
    options: dict[str, Any] = {"decay": 0.5, "output": tmp_path / "e.safetensors", "report": [target]}
    ema_cli.average(paths, **options)
    first = target.read_bytes()
    ema_cli.average(paths, **options)
    assert target.read_bytes() == first
    target.write_text("my notes")
    with pytest.raises(OutputError, match="is not a report of ema-avg"):
        ema_cli.average(paths, **options)
    assert target.read_text() == "my notes"


def test_a_single_checkpoint_has_a_page(tmp_path: Path) -> None:
    """Without geometry or a comparison, the page is still written."""
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    target = tmp_path / "a.html"
    ema_cli.average(tmp_path / "a.pt", decay=0.5, output=tmp_path / "e.safetensors", report=[target])
    assert "Path of the run" not in target.read_text()
