"""The table and the figure of all outcomes, by kind of input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.hostile.cases import MEGABYTES, SECONDS, Outcome, problems
from tests.hostile.collection import corpus


@dataclass
class Row:
    """All inputs of one kind."""

    kind: str
    refused: int = 0
    answered: int = 0
    failed: int = 0
    seconds: float = 0.0  # of the slowest
    megabytes: float = 0.0  # of the one that took the most

    @property
    def inputs(self) -> int:
        return self.refused + self.answered + self.failed


def summary(outcomes: dict[str, Outcome]) -> list[Row]:
    """The rows of the table, from outcomes by the names of their cases."""
    rows: dict[str, Row] = {}
    for name, outcome in outcomes.items():
        case = corpus()[name]
        row = rows.setdefault(case.kind, Row(case.kind))
        if problems(case, outcome):
            row.failed += 1
        elif outcome.answer is None:
            row.refused += 1
        else:
            row.answered += 1
        row.seconds = max(row.seconds, outcome.seconds)
        row.megabytes = max(row.megabytes, outcome.megabytes)
    return list(rows.values())


def table(rows: list[Row]) -> str:
    lines = [f"{'kind':<20} {'inputs':>6} {'refused':>8} {'answered':>9} {'failed':>7} {'slowest':>9} {'memory':>9}"]
    for row in rows:
        lines.append(
            f"{row.kind:<20} {row.inputs:>6} {row.refused:>8} {row.answered:>9} "
            f"{row.failed:>7} {row.seconds:>7.1f} s {row.megabytes:>6.0f} MB"
        )
    return "\n".join(lines)


# --- the figure -------------------------------------------------------------------------------------------------------

INK = "#1f2933"
GREY = "#8a94a0"
ORANGE = "#e08214"
BARS = (  # field of a row, colour, label
    ("refused", "#3565c4", "refused with one sentence"),
    ("answered", "#2e8b57", "odd but sound: answered"),
    ("failed", "#c0392b", "failed"),
)


def draw(rows: list[Row], path: str) -> None:
    """Bars by kind: how many were refused and answered, how long the slowest took, the most memory that one took."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "text.color": INK, "ytick.labelcolor": INK})
    rows = rows[::-1]  # the first at the top
    size = (10, 0.34 * len(rows) + 1.3)
    figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, width_ratios=(2, 1.1, 1.1))

    legend = draw_counts(axes[0], rows)
    draw_largest(axes[1], [row.seconds for row in rows], SECONDS, "slowest", "s", "{:.1f} s".format)
    draw_largest(axes[2], [row.megabytes for row in rows], MEGABYTES, "most memory", "MB", "{:.0f} MB".format)

    for axis in axes:
        axis.tick_params(length=0)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.spines["left"].set_color(GREY)
    figure.tight_layout(w_pad=1.5)
    figure.savefig(path, dpi=150, bbox_inches="tight", bbox_extra_artists=[legend])


def draw_counts(axis, rows: list[Row]):
    """How the inputs of each kind ended, one bar beside the other; returns the legend."""
    places = np.arange(len(rows))
    totals = np.zeros(len(rows), int)
    for field, colour, label in BARS:
        counts = np.array([getattr(row, field) for row in rows])
        if counts.any():
            axis.barh(places, counts, 0.7, left=totals, color=colour, label=label)
        totals += counts
    for place, total in zip(places, totals):
        axis.text(total + 1, place, str(total), va="center", fontsize=9)

    axis.set_xlim(0, 1.12 * totals.max())
    axis.set_yticks(places, [row.kind for row in rows])
    axis.set_title(f"{totals.sum():,} hostile or odd inputs", loc="left", fontsize=10.5)
    legend = axis.legend(frameon=False, fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(-0.02, 0), borderpad=0)
    legend.set_in_layout(False)
    return legend


def draw_largest(axis, values: list[float], limit: float, title: str, unit: str, text: Callable[[float], str]) -> None:
    """One bar for each kind, and a line at the limit."""
    end = max(limit, *values)
    places = np.arange(len(values))
    axis.barh(places, values, 0.7, color=ORANGE)
    axis.axvline(limit, color=INK, lw=1, ls=(0, (4, 3)))

    background = {"fc": "white", "lw": 0, "pad": 1}
    for place, value in zip(places, values):
        axis.text(value + 0.02 * end, place, text(value), va="center", fontsize=9, bbox=background)
    axis.set_xlim(0, 1.25 * end)
    axis.set_title(f"{title} (limit {limit:,} {unit})", loc="left", fontsize=10.5)
