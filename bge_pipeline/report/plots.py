"""Plots of a benchmark report as SVG, so that a page carries them inside itself and they are sharp on every screen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from bge_pipeline.quality.search_runs import SearchRun
from bge_pipeline.report.benchmark import BenchmarkReport

# What was before is grey, what is now is blue; the lighter one is the tail of the darker.
_NEW, _OLD, _NEW_TAIL, _OLD_TAIL = "#2f63b3", "#8f98a6", "#bcd0ee", "#d9dde3"
_INK = "#1d2430"
_INCHES = (5.2, 2.3)
"""Two of them stand side by side in the Markdown of the Dagster UI, which shows pictures in their natural size."""
_ROWS = 4
"""Bars that there is room for; fewer are as thick as four."""


def report_plots(report: BenchmarkReport) -> dict[str, bytes]:
    """SVG images by title: encoding, search, quality, storage; those without figures are left out."""
    plots = {}
    if report.encode:
        title = "Encoding, texts per second"
        plots[title] = _bars(
            title,
            [f"batches of {run.batch_size}" for run in report.encode],
            [run.texts_per_second for run in report.encode],
            [_NEW for _ in report.encode],
        )
    timed = _alike(report.search)
    if timed:
        title = "Search, milliseconds: median (95th percentile)"
        plots[title] = _search(title, timed)
    judged = [run for run in report.search if run.ndcg is not None]
    if judged:
        title = "Search quality, nDCG@20 on judged questions"
        values = [run.ndcg for run in judged if run.ndcg is not None]
        plots[title] = _bars(title, [run.name for run in judged], values, _colors(judged), "{:.3f}".format)
    sizes = (report.storage.old_vector_bytes, report.storage.new_vector_bytes)
    if None not in sizes:
        title = "One vector, bytes"
        values = [float(size) for size in sizes if size is not None]
        plots[title] = _bars(title, ["before", "now"], values, [_OLD, _NEW])
    return plots


def _alike(runs: Sequence[SearchRun]) -> list[SearchRun]:
    """The runs of the new column, and those of the old one whose milliseconds are of their kind; without a new one, all."""
    new = next((run for run in runs if run.column == "new"), None)
    return [run for run in runs if new is None or run.column == "new" or run.is_like(new)]


def _bars(
    title: str,
    labels: Sequence[str],
    values: Sequence[float],
    colors: Sequence[str],
    spell: Callable[[float], str] = "{:,.0f}".format,
) -> bytes:
    def draw(axes: Any) -> None:
        bars = axes.barh(range(len(labels)), values, color=colors, height=0.72)
        axes.bar_label(bars, [spell(value) for value in values], padding=4)

    return _svg(title, labels, draw)


def _search(title: str, runs: Sequence[SearchRun]) -> bytes:
    def draw(axes: Any) -> None:
        rows = range(len(runs))
        tails = axes.barh(
            rows, [run.p95_milliseconds for run in runs], color=_colors(runs, _NEW_TAIL, _OLD_TAIL), height=0.72
        )
        axes.barh(rows, [run.p50_milliseconds for run in runs], color=_colors(runs), height=0.72)
        axes.bar_label(
            tails, [f"{run.p50_milliseconds:,.1f}  ({run.p95_milliseconds:,.1f})" for run in runs], padding=4
        )

    return _svg(title, [run.name for run in runs], draw)


def _colors(runs: Sequence[SearchRun], new: str = _NEW, old: str = _OLD) -> list[str]:
    return [{"old": old, "new": new}[run.column] for run in runs]


def scatter(title: str, across: str, points: Sequence[tuple[str, float, float, bool]]) -> bytes:
    """Named points as an SVG image, for example quality over speed.

    Args:
        title: of the upright scale.
        across: what the other scale is; it is logarithmic.
        points: name, place on the scale across, place on the upright one, whether the point is one of today.
    """

    def draw(axes: Any) -> None:
        for name, x, y, is_current in points:
            axes.scatter([x], [y], color=_OLD if is_current else _NEW, s=36)
            told = axes.annotate(name.rpartition("/")[2][:40], (x, y), xytext=(6, 4), textcoords="offset points")
            told.set_parse_math(False)  # a name may have dollar signs
            told.set_in_layout(False)
        axes.set_xscale("log")
        axes.set_xlabel(across)
        places = [x for _, x, _, _ in points]
        axes.set_xlim(min(places) / 2, max(places) * 30)  # a name stands to the right of its point
        axes.margins(y=0.2)
        axes.spines[["top", "right"]].set_visible(False)

    return _figure(title, draw)


def _svg(title: str, labels: Sequence[str], draw: Callable[[Any], None]) -> bytes:
    def draw_bars(axes: Any) -> None:
        draw(axes)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(max(len(labels), _ROWS) - 0.5, -0.5)
        # Every bar says its value, so that a scale beneath would only repeat it.
        axes.xaxis.set_visible(False)
        axes.tick_params(length=0, labelcolor=_INK)
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axes.margins(x=0.3)

    return _figure(title, draw_bars)


def _figure(title: str, draw: Callable[[Any], None]) -> bytes:
    # The object interface without pyplot: no window system, and no figures that somebody has to close.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Letters are drawn as outlines, so that no font is needed where the page is read.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "bge-pipeline", "font.size": 9.5, "text.color": _INK}):
        figure = Figure(figsize=_INCHES, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10.5, fontweight="bold")
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
