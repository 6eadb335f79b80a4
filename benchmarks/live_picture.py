"""The picture of a comparison of `benchmarks.live`: latency by second of each tool, with the phases marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.live import Race

_KINDS = {"searches": "search, ms", "writes": "write, ms"}
_P95, _LONGEST, _PHASE = "#1f5fa8", "#b9c6d6", "#7a7a7a"


def draw(races: Sequence[Race], path: Path) -> Path:
    """Draw the first turn of each tool: a column a tool, searches above and writes below, on one logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    first = list({race.tool: race for race in reversed(races)}.values())[::-1]
    figure, axes = plt.subplots(
        2, len(first), figsize=(4.6 * len(first), 5.6), sharey="row", squeeze=False, constrained_layout=True
    )
    for column, race in enumerate(first):
        for row, (kind, label) in enumerate(_KINDS.items()):
            plot = axes[row][column]
            seconds, _, p95, longest = zip(*race.timeline[kind], strict=True)
            plot.bar(seconds, longest, width=0.9, align="edge", color=_LONGEST, label="longest")
            plot.step([*seconds, seconds[-1] + 1], [*p95, p95[-1]], where="post", color=_P95, label="p95")
            plot.set_yscale("log")
            for name, at in {"expand": 0.0, **race.marks}.items():
                plot.axvline(at, color=_PHASE, linewidth=0.8, linestyle="--")
                plot.annotate(
                    name,
                    (at, 1.0),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    fontsize=7,
                    color=_PHASE,
                    ha="right",
                    va="top",
                )
            if column == 0:
                plot.set_ylabel(label)
        axes[0][column].set_title(f"{race.tool}\n{race.rows / race.seconds:,.0f} rows/s", fontsize=9)
        axes[1][column].set_xlabel("seconds since the tool began")
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=2)
    figure.suptitle(f"{first[0].rows:,} rows, old index {first[0].old_index}: latency in each second", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
