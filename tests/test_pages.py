"""The report as HTML and Markdown: complete, self-contained, true to the run, and safe from hostile names."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
from ema_cli.report.html import breakable, fragment, hint, to_html
from ema_cli.report.markdown import escaped, to_markdown
from ema_cli.report.model import Input, Report, Tensor
from ema_cli.report.warning_rank import ranked
from ema_cli.report.words import overview, verdict
from ema_cli.text import percent
from tests.helpers.html_page import Page
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
    for title in ("Averages", "Weights", "Drift from the last checkpoint", "Path of the run", "Files", "Details"):
        assert title in page.text
    for average in report.averages:
        assert verdict(report, average) in page.text
        assert average.output.sha256 in page.text
        for weight in average.weights:
            assert percent(weight) in page.text
    for known in report.inputs:
        assert known.fingerprint in page.text


def test_no_word_of_the_page_itself_is_escaped(report: Report) -> None:
    """A percent sign stays beside its number by a space that does not break, which is no control character."""
    for shown in (report, dataclasses.replace(report, averages=report.averages[:1], geometry=None)):
        text = Page(re.sub(r"<(script|style)>.*?</\1>", "", to_html(shown), flags=re.DOTALL)).text
        assert "\\x" not in text
        assert re.search(r"median tensor (has a drift of )?[0-9.]+\N{NO-BREAK SPACE}%", text)


def test_a_reader_meets_the_answers_in_the_order_of_the_questions(report: Report) -> None:
    """What it is, whether it is all right, which weights, how far, still moving, where, how; formulas at the end."""
    text = Page(to_html(report)).text
    warning = ranked(report.warnings)[0].message if report.warnings else "No warnings."
    beginning = ["ema-avg report", "2 averages of 6", warning, "Averages", "Weights", "Equivalent learning-rate decay"]
    rest = ["Drift from the last", "Path of the run", "Files", "How to reproduce", "Details", "E_1 = theta_1"]
    places = [text.index(one) for one in [*beginning, *rest]]
    assert places == sorted(places)


def test_several_averages_share_charts_and_tables(report: Report) -> None:
    """Two averages have one chart of weights, one of LR scales and one table of shares; one average has the same."""
    for shown in (report, dataclasses.replace(report, averages=report.averages[:1], geometry=None)):
        page = to_html(shown)
        assert page.count("<h2>Weights</h2>") == page.count('class="plot weights"') == 1
        assert page.count("Equivalent learning-rate decay") == 1
        assert Page(page).text.count("checkpoint_100") <= 4


def test_the_page_needs_nothing_else(report: Report) -> None:
    """No link, style, image or font from elsewhere; the policy refuses them, and all scripts but its own."""
    text = to_html(report)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "base", "form"}
        assert not {"src", "href", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "@import" not in text


def test_a_fragment_is_verdict_warnings_and_the_first_chart(report: Report) -> None:
    """It has a style that only applies inside of it, and no script, so that a notebook can show it."""
    text = fragment(report)
    page = Page(text)
    assert page.open == []
    assert overview(report) in page.text
    assert ranked(report.warnings)[0].message in page.text if report.warnings else "No warnings." in page.text
    assert text.count('class="plot weights"') == 1
    assert not {"script", "table", "html", "body", "h1", "h2"} & set(page.names)
    style = text.partition("<style>")[2].partition("</style>")[0].strip()
    assert style.startswith(".ema-avg {")
    assert style.endswith("}")
    assert ":root" not in style
    assert "& { --grid" in style
    depths = itertools.accumulate({"{": 1, "}": -1}.get(character, 0) for character in style)
    assert min(list(depths)[len(".ema-avg {") : -1]) == 1


@pytest.mark.parametrize("render", [to_html, fragment], ids=["page", "fragment"])
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:12])
def test_names_cannot_break_the_page(report: Report, name: str, render: Callable[[Report], str]) -> None:
    """Whatever the names of files and tensors, the page has the same tags, except labels for which there is no room."""
    plain, hostile = (Page(render(renamed(report, text))) for text in ("name", name))
    assert hostile.names == plain.names
    assert "49" not in re.findall(r"\{\{ 7.*?\}\}", hostile.text)
    assert "\x1b" not in render(renamed(report, name))
    assert len(render(renamed(report, name))) < 300_000


@given(st.text(max_size=80) | st.text("abc_./:=- <&", max_size=80))
def test_a_name_may_break_and_stays_the_same_text(name: str) -> None:
    """Places to break are put after separators of long names; the text is escaped, and otherwise unchanged."""
    marked = str(breakable(name))
    assert html.unescape(marked.replace("<wbr>", "")) == name
    assert "<" not in marked.replace("<wbr>", "")
    assert all(piece[-1:] in "./_:=-" for piece in marked.split("<wbr>")[:-1])


def test_a_long_name_breaks_at_its_separators() -> None:
    """Dots, slashes and underscores are places to break; short names have none."""
    assert breakable("model.layers.12.self_attn.weight") == "model.<wbr>layers.<wbr>12.self_<wbr>attn.<wbr>weight"
    assert breakable("/data/runs/seed_17") == "/data/<wbr>runs/<wbr>seed_<wbr>17"
    assert breakable("out/ema_0.1.safetensors") == "out/ema_0.1.<wbr>safetensors"
    assert breakable("fc.weight") == "fc.weight"


@given(st.text(max_size=80) | st.text("a-b .<&(", max_size=80))
def test_a_hint_stays_the_same_text(text: str) -> None:
    """It is escaped; only places to break and marks of what does not break are added."""
    assert html.unescape(re.sub(r'<wbr>|<span class="whole">|</span>', "", str(hint(text)))) == text


def test_options_in_a_hint_do_not_break() -> None:
    """Nor do the names of commands; a very long word may break."""
    shown = hint("accept them: --buffers average, or ema-avg update-bn x-1.pt -o y (--allow-nonfinite)")
    whole = re.findall(r'<span class="whole">(.*?)</span>', shown)
    assert whole == ["--buffers", "ema-avg update-bn", "-o", "--allow-nonfinite"]
    assert "span" not in hint("--" + "x" * 200)


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
    assert Page(page).text.count("some_projection_3") >= 125
    assert len(to_markdown(large).encode()) < 60_000


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
