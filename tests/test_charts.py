"""The charts of the report page: any numbers make a chart that is well formed, inside its frame, legible and right."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.report.charts.axes import Scale, spread_labels
from ema_cli.report.charts.canvas import finite
from ema_cli.report.charts.curves import Curve, first_drawn, thinned
from ema_cli.report.charts.heat_map import heat_map
from ema_cli.report.charts.histogram import histogram
from ema_cli.report.charts.lettering import distinct_parts, shortened, text_width
from ema_cli.report.charts.lr_scale import lr_chart
from ema_cli.report.charts.marks import mark, style
from ema_cli.report.charts.path import path_chart
from ema_cli.report.charts.shades import LEVELS, shades
from ema_cli.report.charts.strip import drift_strip, layer_of, without_common_layer
from ema_cli.report.charts.ticks import inner_ticks, outer_ticks
from ema_cli.report.charts.weights import weights_chart
from ema_cli.text import percent, safe_text
from tests.helpers.drawings import Drawing, drawings

CSS = (Path(ema_cli.__file__).parent / "report" / "charts" / "charts.css").read_text(encoding="utf-8")
PAGE_CSS = (Path(ema_cli.__file__).parent / "report" / "templates" / "page.css").read_text(encoding="utf-8")
NUMBERS = st.none() | st.floats() | st.floats(0, 1) | st.integers(-3, 10**12)
NAMES = st.text(max_size=30).map(safe_text) | st.integers(0, 10**6).map("ckpt_{}.pt".format)
DRAWABLE = st.floats(-1e300, 1e300).map(lambda value: finite(value) or 0.0)
TOLERANCE = 0.6
"""Coordinates are rounded."""


@st.composite
def charts(draw: st.DrawFn) -> str:
    """Return a chart of any kind, of any numbers and names."""
    count = draw(st.integers(0, 25))
    numbers = st.lists(NUMBERS, min_size=count, max_size=count)
    name, names = draw(NAMES), draw(st.lists(NAMES, min_size=count, max_size=count))
    kind = draw(st.sampled_from(["weights", "lr", "path", "heat", "strip", "histogram"]))
    if kind in {"weights", "lr"}:
        curves = [Curve(name=draw(NAMES), values=draw(numbers)) for _ in range(draw(st.integers(0, 13)))]
        return (weights_chart if kind == "weights" else lr_chart)(draw(numbers), curves, x_label=name)
    if kind == "path":
        spots = list(zip(draw(numbers), draw(numbers), strict=True))
        averages = [(name, (draw(NUMBERS), draw(NUMBERS))) for _ in range(draw(st.integers(0, 13)))]
        return path_chart(spots, names, averages, (name, name))
    if kind == "heat":
        rows = draw(numbers)
        return heat_map([[rows[(i + j) % count] for j in range(count)] for i in range(count)], names)
    if kind == "strip":
        return drift_strip(draw(numbers), names)
    return histogram(draw(numbers), x_label=name, y_label=name)


@given(charts())
@settings(max_examples=100, deadline=None)
def test_any_numbers_make_a_legible_chart(chart: str) -> None:
    """Every chart is XML without NaN, has a sentence, everything is inside its frame, and no two texts overlap."""
    for drawing in drawings(chart):
        assert drawing.sentence
        assert not re.search(r'(?:[ "\dMLHVhlv])(?:nan|inf)', re.sub(r">[^<]*<|aria-label=\"[^\"]*\"", "", chart))
        for shape in drawing.shapes:
            assert_inside(drawing, shape.box.left, shape.box.right, shape.box.top, shape.box.bottom)
        for one in drawing.texts:
            assert_inside(drawing, one.box.left, one.box.right, one.box.top, one.box.bottom)
        labels = [one for one in drawing.texts if not one.classes & {"end-of-path", "strong"}]
        assert not Drawing.overlaps(Drawing(name="", sheet=drawing.sheet, sentence="", shapes=(), texts=tuple(labels)))


def assert_inside(drawing: Drawing, left: float, right: float, top: float, bottom: float) -> None:
    """Fail if a part of a chart is cut off."""
    sheet = drawing.sheet
    assert sheet.left - TOLERANCE <= left <= right <= sheet.right + TOLERANCE
    assert sheet.top - TOLERANCE <= top <= bottom <= sheet.bottom + TOLERANCE


def ema(count: int, decay: float) -> list[float]:
    """Return the shares of an EMA that starts from the first checkpoint."""
    return [decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - i) for i in range(1, count))]


def curves_of(checkpoints: int, averages: int) -> list[Curve]:
    """Return the shares of several averages."""
    decays = [1 - 0.5 ** (k + 1) for k in range(averages)]
    return [Curve(name=f"ema_{decay:g}.safetensors", values=ema(checkpoints, decay)) for decay in decays]


@pytest.mark.parametrize("averages", [1, 3, 12])
@pytest.mark.parametrize("checkpoints", [1, 2, 13, 50, 1000, 10_000])
def test_the_size_of_a_chart_is_bounded(checkpoints: int, averages: int) -> None:
    """Any number of checkpoints and averages makes charts of some tens of kilobytes, with few marks."""
    curves, xs = curves_of(checkpoints, averages), range(100, 100 + 10 * checkpoints, 10)
    drawn = [weights_chart(xs, curves, x_label="step"), lr_chart(xs, curves, x_label="step")]
    names = [f"ckpt_{x}.pt" for x in xs]
    drawn.append(path_chart([(x % 70, x % 90) for x in xs], names, [("average", (1, 2))] * averages, ("a", "b")))
    drawn.append(drift_strip([1 / x for x in xs], names))
    drawn.append(histogram([1 / x for x in xs], x_label="drift", y_label="tensors"))
    for chart in drawn:
        assert len(chart) < 110_000
        assert len(chart) < 60_000 or checkpoints > 1000
        for drawing in drawings(chart):
            assert len(drawing.shapes) < 500
            assert not drawing.overlaps()


def test_a_heat_map_is_thinned() -> None:
    """At most 64 rows are drawn, of 400 checkpoints too."""
    matrix = [[abs(i - j) * 1.2 for j in range(400)] for i in range(400)]
    chart = heat_map(matrix, [f"ckpt_{k}.pt" for k in range(400)])
    assert len(chart) < 60_000
    (drawing,) = drawings(chart)
    assert not drawing.overlaps()
    assert drawing.sentence == "Distances between all pairs of 400 checkpoints; the largest is 479."


@given(DRAWABLE, DRAWABLE, st.integers(1, 12))
def test_ticks_are_round_and_true(low: float, high: float, most: int) -> None:
    """Ticks are 1, 2 or 5 times a power of ten apart, inside or around the range, and their texts are their numbers."""
    low, high = sorted((low, high))
    for ticks, is_inner in ((inner_ticks(low, high, most), True), (outer_ticks(low, high, most), False)):
        assert len(ticks.values) <= most + 2
        if len(ticks.values) < 2 or high - low < 1e-6 * max(abs(low), abs(high)):
            continue
        step = (ticks.values[-1] - ticks.values[0]) / (len(ticks.values) - 1)
        assert round(step / 10 ** math.floor(math.log10(step * 1.0000001)), 6) in {1, 2, 5}
        assert [number_in(text) for text in ticks.texts] == pytest.approx(ticks.values, abs=step / 4)
        if is_inner:
            assert ticks.values[0] >= low - step * 1e-6
            assert ticks.values[-1] <= high + step * 1e-6
        else:
            assert ticks.values[0] <= low + step * 1e-6
            assert ticks.values[-1] >= high - step * 1e-6


def number_in(text: str) -> float:
    """Return the number that the text of a tick states."""
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    return float(text.rstrip("kMBT").replace(",", "")) * factor


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (520, 1000, ["600", "700", "800", "900", "1,000"]),
        (0, 20_000, ["0", "5,000", "10,000", "15,000", "20,000"]),
        (0, 400_000, ["0", "100k", "200k", "300k", "400k"]),
        (1e6, 3e6, ["1.0M", "1.5M", "2.0M", "2.5M", "3.0M"]),
        (1e6, 1e6 + 4, ["1,000,000", "1,000,001", "1,000,002", "1,000,003", "1,000,004"]),
        (0, 2e-9, ["0", "0.5e-9", "1.0e-9", "1.5e-9", "2.0e-9"]),
        (0, 0.02, ["0", "0.005", "0.010", "0.015", "0.020"]),
        (7, 7, ["7"]),
    ],
)
def test_ticks_are_short(low: float, high: float, texts: list[str]) -> None:
    """Separators up to 100,000, then k, M, B; an exponent only for what is very large or small."""
    assert list(inner_ticks(low, high, 5).texts) == texts


def test_ticks_are_at_the_checkpoints_if_there_is_room() -> None:
    """13 checkpoints each have a tick in a wide chart; in a narrow one, round numbers have."""
    steps = list(range(520, 1001, 40))
    wide, narrow = drawings(weights_chart(steps, curves_of(13, 1), x_label="step"))
    texts = {one.words for one in wide.texts}
    assert {f"{step:,}" for step in steps} <= texts
    assert {"600", "800", "1,000"} <= {one.words for one in narrow.texts}


def test_bars_are_as_high_as_the_shares() -> None:
    """A bar per checkpoint, at its step, whose height is proportional to its share; below zero if it is negative."""
    shares = [-0.3, 0.2, 0.5, -0.1, 0.7]
    for drawing in drawings(weights_chart([1, 2, 3, 4, 8], [Curve(name="a", values=shares)], x_label="step")):
        (bars,) = drawing.having("bar")
        boxes = [bars.corners[k : k + 5] for k in range(0, 25, 5)]
        zero = boxes[0][0][1]
        heights = [zero - corners[1][1] for corners in boxes]
        assert heights == pytest.approx([heights[4] / 0.7 * share for share in shares], abs=0.11)
        middles = [(corners[1][0] + corners[2][0]) / 2 for corners in boxes]
        assert middles[4] - middles[3] == pytest.approx(4 * (middles[1] - middles[0]), abs=0.5)


@pytest.mark.parametrize(("checkpoints", "kind"), [(1, "bar"), (13, "bar"), (60, "bar"), (61, "area"), (1000, "area")])
def test_one_average_is_bars_or_an_area(checkpoints: int, kind: str) -> None:
    """At most 60 checkpoints are bars, more are an area; steps too near for bars are stems."""
    flat = [Curve(name="a", values=[1 / checkpoints] * checkpoints)]
    for drawing in drawings(weights_chart(range(checkpoints), flat, x_label="step")):
        kinds = {name for name in ("bar", "stem", "area") if drawing.having(name)}
        assert kinds <= {kind, "stem"}
    near = drawings(weights_chart([1, 2, 100_000], [Curve(name="a", values=[0.2, 0.3, 0.5])], x_label="step"))
    assert all(drawing.having("stem") and not drawing.having("bar") for drawing in near)


def test_the_lr_scale_is_a_step_function() -> None:
    """The value at a checkpoint holds since the checkpoint before."""
    (wide, _) = drawings(lr_chart([0, 10, 30], [Curve(name="a", values=[1, 0.5, 0.25])], x_label="step"))
    (line,) = wide.having("line")
    xs, ys = zip(*line.corners, strict=True)
    assert len(line.corners) == 5
    assert ys[1] == ys[2]
    assert ys[3] == ys[4]
    assert xs[0] == xs[1]
    assert xs[2] == xs[3]
    assert (ys[3] - ys[0]) == pytest.approx(1.5 * (ys[1] - ys[0]), abs=0.3)
    assert (xs[4] - xs[2]) == pytest.approx(2 * (xs[2] - xs[0]), abs=0.3)


def test_the_part_of_a_long_run_that_matters_is_drawn() -> None:
    """Of 1,000 checkpoints, those that make up 99.9 % of every average; all if a share at the beginning is large."""
    sums = [list(np.cumsum(ema(1000, decay))) for decay in (0.5, 0.9)]
    begin, earlier = first_drawn(sums)
    assert sums[1][begin] < 0.001 <= sums[1][begin + 1]
    assert earlier == f" ({begin} earlier checkpoints: < 0.1 %)"
    assert first_drawn([*sums, [0.5] * 1000]) == (0, "")
    assert first_drawn([list(np.cumsum(ema(50, 0.5)))]) == (0, "")
    assert first_drawn([]) == (0, "")
    chart = weights_chart(range(1000), [Curve(name="a", values=ema(1000, 0.9))], x_label="step")
    assert all(any(one.words == f"step{earlier}" for one in drawing.texts) for drawing in drawings(chart))


@pytest.mark.parametrize("most", [4, 5, 50, 1000])
@pytest.mark.parametrize("count", [0, 1, 5, 100, 5000])
def test_thinned_curves_keep_their_extremes(count: int, most: int) -> None:
    """At most so many points stay, in order, with both ends, the highest and the lowest."""
    points = list(enumerate(map(float, np.random.default_rng(count).normal(size=count))))
    kept = thinned(points, most)
    assert len(kept) <= most
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    if points:
        assert {points[0], points[-1]} <= set(kept)
        heights = [y for _, y in kept]
        assert (min(heights), max(heights)) == (min(y for _, y in points), max(y for _, y in points))


def test_averages_differ_without_color() -> None:
    """No two of twelve averages have the same dash and mark, and those with the same color differ in both."""
    looks = [(style(k).split()[1], mark(k, (0, 0))) for k in range(12)]
    assert len(set(looks)) == 12
    for k in range(4):
        assert style(k).split()[0] == style(k + 8).split()[0]
        assert not set(looks[k]) & set(looks[k + 8])


def test_the_legend_has_every_average() -> None:
    """With several averages all names are in the legend, long ones shortened; with one there is none."""
    curves = [*curves_of(5, 2), Curve(name="x" * 200, values=[0.2] * 5)]
    for drawing in drawings(weights_chart(range(5), curves, x_label="step")):
        texts = [one.words for one in drawing.texts]
        assert {"ema_0.5.safetensors", "ema_0.75.safetensors"} <= set(texts)
        assert any(re.fullmatch("x+…x+", words) for words in texts)
    many = [Curve(name=f"e{k}", values=[1.0]) for k in range(20)]
    assert "and 8 more" in [one.words for one in drawings(lr_chart([1], many, x_label="step"))[0].texts]


def test_numbers_are_shown_under_the_mouse() -> None:
    """The wide chart has, for each checkpoint, its share in every average."""
    wide, narrow = drawings(weights_chart([100, 1200], curves_of(2, 2), x_label="step"))
    assert [tip.tip for tip in wide.having("tip")] == [
        "step 100\nema_0.5.safetensors: 50.0 %\nema_0.75.safetensors: 75.0 %",
        "step 1,200\nema_0.5.safetensors: 50.0 %\nema_0.75.safetensors: 25.0 %",
    ]
    assert narrow.having("tip") == []
    shares = [0.9996877, 0.0003123]
    small, _ = drawings(weights_chart([1, 2], [Curve(name="a", values=shares)], x_label="step"))
    assert [tip.tip for tip in small.having("tip")] == [
        f"step {k}: {percent(share)}" for k, share in enumerate(shares, 1)
    ]
    assert wide.sentence == narrow.sentence
    assert wide.sentence == (
        "Share of each checkpoint in the average: 2 checkpoints, step 100 to 1,200. ema_0.5.safetensors: first 50.0 %, "
        "last 50.0 %, largest 50.0 %; ema_0.75.safetensors: first 75.0 %, last 25.0 %, largest 75.0 %."
    )


def run_of(count: int, seed: int) -> list[tuple[float, float]]:
    """Return a random walk in a plane."""
    steps = np.random.default_rng(seed).normal(size=(count, 2))
    return [(float(x + k), float(y)) for k, (x, y) in enumerate(steps.cumsum(axis=0))]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2, 5, 13])
def test_labels_of_the_path_lie_on_nothing(count: int, seed: int) -> None:
    """The labels of the average and of both ends are shown, and no label is on a point, a mark or another label."""
    run = run_of(count, seed)
    middle = float(np.mean([x for x, _ in run])), float(np.mean([y for _, y in run]))
    names = [f"ckpt_{520 + 40 * k}.pt" for k in range(count)]
    (drawing,) = drawings(path_chart(run, names, [("average", middle)], ("axis 1", "axis 2")))
    labels = [one for one in drawing.texts if one.classes & {"strong", "end-of-path"}]
    assert len(labels) == min(count, 2) + 1
    assert not drawing.overlaps()
    points = [shape.box for kind in ("spot", "average") for shape in drawing.having(kind)]
    assert len(points) == count + 1
    for one in drawing.texts:
        assert not any(one.box.touches(point) for point in points), one.words


def test_both_axes_of_the_path_have_the_same_scale() -> None:
    """A circle is drawn as a circle, and far points are as far apart as near ones, times the same factor."""
    circle = [(5 + math.cos(k / 3), 7 + math.sin(k / 3)) for k in range(19)]
    (drawing,) = drawings(path_chart(circle, [str(k) for k in range(19)], [], ("a", "b")))
    places = [(shape.box.left + shape.box.right, shape.box.top) for shape in drawing.having("spot")]
    drawn = [math.dist((a[0] / 2, a[1]), (b[0] / 2, b[1])) for a, b in pairwise(places)]
    assert drawn == pytest.approx([drawn[0]] * 18, abs=0.3)


def test_the_path_darkens_and_points_forward() -> None:
    """Later parts of the path have a later age, and an arrow points to the later checkpoint."""
    (drawing,) = drawings(path_chart([(0, 0), (10, 0)], ["first", "second"], [], ("a", "b")))
    ages = [next(int(name[3:]) for name in shape.classes if name.startswith("age")) for shape in drawing.having("spot")]
    assert ages == sorted(ages)
    assert ages[0] < ages[1]
    (arrow,) = drawing.having("arrow")
    assert arrow.corners[0][0] == arrow.box.right


def test_a_heat_map_shows_every_pair() -> None:
    """The shade of a pair grows with its distance, and each has its names and its number under the mouse."""
    matrix = [[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]]
    (drawing,) = drawings(heat_map(matrix, ["ckpt_100.pt", "ckpt_200.pt", "ckpt_300.pt"]))
    squares = [shape for shape in drawing.having("shade") if shape.tip]
    assert squares[2].tip == "ckpt_100.pt, ckpt_300.pt: 4.00"
    levels = [next(int(name[5:]) for name in shape.classes if name.startswith("level")) for shape in squares]
    assert levels == [0, 3, 11, 3, 0, 6, 11, 6, 0]
    assert [one.words for one in drawing.texts].count("200") == 2
    (undefined,) = drawings(heat_map([[0.0, None], [math.nan, 0.0]], ["a", "b"]))
    assert len([shape for shape in undefined.having("shade") if shape.tip]) == 2


@given(st.lists(st.floats(0, 1e300), min_size=1))
def test_shades_grow_with_the_numbers(values: list[float]) -> None:
    """A larger number never has a lighter shade, and the ticks of the legend are between its ends."""
    scale = shades(values)
    kinds = [scale.kind(value) for value in sorted(values)]
    levels = [-1 if kind == "zero-shade" else int(kind.removeprefix("level")) for kind in kinds]
    assert levels == sorted(levels)
    assert all(-1 <= level < LEVELS for level in levels)
    assert all(scale.low * 0.99 <= value <= scale.high * 1.01 for value in scale.ticks.values)


def test_shades_are_by_powers_of_ten_if_numbers_span_several() -> None:
    """The legend has powers of ten then, and zero has a shade of its own; otherwise it has even numbers."""
    assert shades([1e-9, 5, 6, 7, 8]).ticks.texts == ("0", "2", "4", "6", "8")
    spread = shades([0, 1e-4, 1e-3, 0.1, 1])
    assert spread.ticks.texts == ("0.0001", "0.001", "0.01", "0.1", "1")
    assert spread.kind(0) == "zero-shade"
    assert shades([0, 1, 2]).ticks.texts == ("0", "0.5", "1.0", "1.5", "2.0")


def counted(drawing: Drawing) -> list[int]:
    """Return what the bars of a histogram state."""
    return [int(bar.tip.rpartition(": ")[2].split()[0].replace(",", "")) for bar in drawing.having("bar")]


@given(st.lists(st.floats(0, 100) | st.just(0.0), max_size=60))
@settings(deadline=None)
def test_a_histogram_counts_every_number_once(values: list[float]) -> None:
    """Zeros are counted apart, the others as numpy counts them between the bounds of the bars."""
    values = [0.0 if value < 1e-300 else value for value in values]
    wide, _ = drawings(histogram(values, x_label="drift", y_label="tensors"))
    assert sum(counted(wide)) == len(values)
    zeros = wide.having("zero-bar")
    assert (int(zeros[0].tip.split()[1]) if zeros else 0) == values.count(0)


def test_the_bars_of_a_histogram_are_as_numpy_counts() -> None:
    """Linear bins for numbers of one size; bins per power of ten for a wide range."""
    values = [float(value) for value in np.random.default_rng(0).uniform(3, 9, 200)]
    (wide, _) = drawings(histogram(values, x_label="drift", y_label="tensors"))
    bounds = [float(bar.tip.split(" ")[0]) for bar in wide.having("bar")]
    step = bounds[1] - bounds[0]
    assert counted(wide) == list(np.histogram(values, bins=[*bounds, bounds[-1] + step])[0])
    (wide, _) = drawings(histogram([0, 0, 0.002, 0.03, 0.4, 5, 60], x_label="drift", y_label="tensors"))
    assert counted(wide) == [2, 1, 1, 1, 1, 1]
    assert {"0", "0.001", "1", "10"} <= {one.words for one in wide.texts}


def test_a_few_tiny_numbers_do_not_stretch_a_histogram() -> None:
    """They are counted in the first bin, which has no number where it begins."""
    (wide, _) = drawings(histogram([1e-200, *(10 ** (k / 20) for k in range(100))], x_label="x", y_label="tensors"))
    assert wide.having("bar")[0].tip.startswith("1e-200 to ")
    assert len(wide.having("bar")) > 5
    assert not any("e-" in one.words for one in wide.texts)


def test_a_strip_shows_layers() -> None:
    """The layers are below their first tensors, without what all names share; a tensor has its name and drift."""
    names = [f"model.layers.{k}.{part}.weight" for k in range(3) for part in "qkvo"]
    (wide, _) = drawings(drift_strip([k / 100 for k in range(12)], names))
    assert {"layers.0", "layers.1", "layers.2"} <= {one.words for one in wide.texts}
    begins = [one.box.left for one in wide.texts if one.words.startswith("layers.")]
    assert begins == pytest.approx([0, 760 / 3, 2 * 760 / 3], abs=1)
    fields = [shape for shape in wide.having("field") if shape.tip]
    assert fields[3].tip == "model.layers.0.o.weight: 3.0 %"
    assert wide.sentence.endswith("the largest is 11.0 %, of model.layers.2.o.weight.")
    assert layer_of("weight") == "weight"
    assert layer_of("conv.weight") == "conv"
    assert without_common_layer(["model.embed", "model.layers.0", "model.norm"]) == ["embed", "layers.0", "norm"]
    assert without_common_layer(["a.b", "a.b"]) == ["b", "b"]
    assert without_common_layer([]) == []


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["ckpt_0500.pt", "ckpt_1000.pt"], ["500", "1,000"]),
        (["a/step=800k.pt", "a/step=1M.pt"], ["800k", "1M"]),
        (["same", "same"], ["same", "same"]),
        (["x", "xy"], ["x", "y"]),
        (["epoch1-1.pt", "epoch1-2.pt"], ["1", "2"]),
        (["only.pt"], ["only.pt"]),
        ([], []),
    ],
)
def test_names_lose_what_they_share(names: list[str], parts: list[str]) -> None:
    """The common beginning and end are removed, numbers stay whole; a name that would be empty stays."""
    assert distinct_parts(names) == parts


@given(st.text(max_size=80), st.floats(20, 300))
def test_shortened_text_fits(text: str, width: float) -> None:
    """A text that fits is unchanged; a longer one keeps its beginning and end, and is not wider than the room."""
    short = shortened(text, width)
    assert text_width(short) <= width
    assert short == text or "…" in short
    if len(short) > 3 and short != text:
        begin, _, end = short.partition("…") if "…" not in text else (short[0], "", short[-1])
        assert text.startswith(begin)
        assert text.endswith(end)


@given(st.lists(st.tuples(st.floats(0, 400), st.text(max_size=8)), max_size=12))
def test_tick_labels_keep_their_distance(ticks: Sequence[tuple[float, str]]) -> None:
    """Labels are inside the chart and do not touch, or there are none."""
    ticks = sorted(ticks)
    labels = spread_labels([place for place, _ in ticks], [words for _, words in ticks], 400)
    for one in labels or []:
        assert text_width(one.words) / 2 - 1e-6 <= one.middle <= 400 - text_width(one.words) / 2 + 1e-6
    for a, b in pairwise(labels or []):
        assert b.middle - a.middle > (text_width(a.words) + text_width(b.words)) / 2


@given(DRAWABLE, DRAWABLE, DRAWABLE)
def test_a_scale_stays_between_its_ends(low: float, high: float, value: float) -> None:
    """Any number has a place between the ends of the axis."""
    low, high = sorted((low, high))
    assert 10 <= Scale(low=low, high=high, start=10, stop=90)(value) <= 90


def test_text_is_escaped() -> None:
    """Markup in names is shown as text, in labels, tips and sentences."""
    evil = "</text><script>\"&'"
    for chart in (
        weights_chart([1, 2], [Curve(name=evil, values=[0.5, 0.5])] * 2, x_label=evil),
        path_chart([(0, 0), (1, 1)], [evil, "b"], [(evil, (0, 1))], (evil, evil)),
        heat_map([[0, 1], [1, 0]], [evil, "b"]),
        drift_strip([0.1], [evil]),
        histogram([1], x_label=evil, y_label=evil),
    ):
        assert drawings(chart)
        assert "<script" not in chart


def test_every_class_is_in_the_style_sheet() -> None:
    """What the charts use is defined, and all colors are defined for light and dark."""
    steps = range(70)
    used: set[str] = set()
    for chart in (
        weights_chart(steps, curves_of(70, 12), x_label="s"),
        weights_chart(steps, curves_of(70, 1), x_label="s"),
        weights_chart([1, 2, 9999], [Curve(name="a", values=[-1, 1, 1])], x_label="s"),
        weights_chart([1, 2], curves_of(2, 1), x_label="s"),
        path_chart(run_of(70, 1), [str(k) for k in steps], [("a", (0, 0))], ("a", "b")),
        path_chart(run_of(20, 1), [str(k) for k in range(20)], [("a", (0, 0)), ("b", (1, 1))], ("a", "b")),
        heat_map([[abs(i - j) for j in steps] for i in steps], [str(k) for k in steps]),
        drift_strip([10.0**-k for k in range(8)] + [0], [str(k) for k in range(9)]),
        histogram([0, 1, 2], x_label="x", y_label="y"),
    ):
        used |= {name for found in re.findall(r'class="([^"]*)"', chart) for name in found.split()}
    without_rule = {"weights", "lr", "heat-map", "drift", "histogram", "square", "dash0", "age5", "label"}
    assert used - without_rule <= set(re.findall(r"\.([a-z][a-z0-9-]*)", CSS))
    light, dark = CSS.split("@media (prefers-color-scheme: dark)")[0], CSS.split("prefers-color-scheme: dark)")[1]
    assert set(re.findall(r"(--[a-z0-9]+): #", light)) <= set(re.findall(r"(--[a-z0-9]+): #", dark))


def luminance(color: str) -> float:
    """Return the relative luminance of a color, as WCAG 2 defines it."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colors_have_contrast(mode: int) -> None:
    """Curves stand out from the card by at least 3:1, and the shades are in order."""
    pattern = r"(--[a-z0-9]+): (#[0-9a-f]{3,6})"
    colors, page = (dict(re.findall(pattern, css.splitlines()[mode])) for css in (CSS, PAGE_CSS))
    card = page["--card"] if len(page["--card"]) == 7 else "#ffffff"
    colors |= {"--series0": page["--accent"], "--series1": page["--mark"]}
    bright = [luminance(colors[f"--series{k}"]) for k in range(8)]
    for one in bright:
        high, low = max(one, luminance(card)), min(one, luminance(card))
        assert (high + 0.05) / (low + 0.05) >= 3
    shade = [luminance(colors[f"--level{k}"]) for k in range(LEVELS)]
    assert shade == sorted(shade, reverse=mode == 0)
