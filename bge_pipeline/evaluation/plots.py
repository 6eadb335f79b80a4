"""Plots of a benchmark report as PNG bytes, so that a page carries them inside itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from bge_pipeline.evaluation.report import BASELINE_TEXTS_PER_SECOND, BenchmarkReport

_BLUE, _GREY = "#3b6fb6", "#b8bec8"
_INCHES = (6.4, 2.6)


def report_plots(report: BenchmarkReport) -> dict[str, bytes]:
    """PNG images by title: encoding, search latency, storage; those without figures are left out."""
    plots = {
        "Encoding, texts per second": _bars(
            ["baseline (reported)", *(f"batch {run.batch_size}" for run in report.encode)],
            [BASELINE_TEXTS_PER_SECOND, *(run.texts_per_second for run in report.encode)],
            "texts/s",
        )
    }
    if report.search:
        plots["Search, milliseconds"] = _paired_bars(
            [run.name for run in report.search],
            {
                "p50": [run.p50_milliseconds for run in report.search],
                "p95": [run.p95_milliseconds for run in report.search],
            },
            "ms",
        )
    if report.storage.old_vector_bytes is not None:
        plots["One vector, bytes"] = _bars(
            ["before", "after"],
            [report.storage.old_vector_bytes, report.storage.new_vector_bytes],
            "bytes",
        )
    return plots


def _bars(labels: Sequence[str], values: Sequence[float], unit: str) -> bytes:
    figure, axes = _figure()
    colors = [_BLUE if n else _GREY for n in range(len(labels))]  # the first bar is what was before
    bars = axes.barh(range(len(labels)), values, color=colors)
    axes.bar_label(bars, fmt=lambda value: f"{value:,.0f}", padding=3)
    return _png(figure, axes, labels, unit)


def _paired_bars(labels: Sequence[str], series: dict[str, list[float]], unit: str) -> bytes:
    figure, axes = _figure()
    height = 0.8 / len(series)
    for n, (name, values) in enumerate(series.items()):
        places = [row + (n - (len(series) - 1) / 2) * height for row in range(len(labels))]
        bars = axes.barh(places, values, height, label=name, color=(_BLUE, _GREY)[n % 2])
        axes.bar_label(bars, fmt=lambda value: f"{value:,.1f}", padding=3)
    axes.legend(frameon=False, loc="lower right")
    return _png(figure, axes, labels, unit)


def _figure() -> tuple[Any, Any]:
    # The object interface without pyplot: no global state, no window system, safe in threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any, axes: Any, labels: Sequence[str], unit: str) -> bytes:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
