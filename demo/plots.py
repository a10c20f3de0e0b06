"""The report's figures, as SVG that inherits the page's text colour, so that it works on light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

ORIGINAL, CUSTOM, LIMIT = "#d97706", "#2f7de1", "#dc2626"
"""Legible on white and near-black, and distinguishable by colour-blind readers."""
_INK = "#010203"
"""Placeholder for the page's text colour."""
BINS = 10

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.transparent": True,
}


def plot_calibration(name: str, points: Sequence[tuple[float, bool]]) -> str:
    """A reliability diagram: the share of correct answers against the model's confidence."""
    confidence = np.array([point[0] for point in points])
    right = np.array([point[1] for point in points], dtype=float)
    group = np.minimum((confidence * BINS).astype(int), BINS - 1)
    kept = [group == k for k in range(BINS) if (group == k).any()]
    x, y = [confidence[rows].mean() for rows in kept], [right[rows].mean() for rows in kept]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.9, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        axes.plot(x, y, color=CUSTOM, linewidth=1)
        axes.scatter(x, y, s=[12 + 340 * rows.mean() for rows in kept], color=CUSTOM, alpha=0.75, linewidth=0)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), title=name, xlabel="confidence", ylabel="share right", aspect=1)
        return _svg(figure, f"calibration of {name}")


def plot_latencies(name: str, latencies: Mapping[str, Sequence[float]]) -> str:
    """Cumulative shares of the answers of each source by their latency, on a logarithmic axis."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        axes = figure.subplots()
        for source, values in latencies.items():
            if values:
                color = ORIGINAL if source == "original" else CUSTOM
                axes.ecdf(np.maximum(values, 1e-3), color=color, linewidth=1.8, label=source)
        axes.set(xscale="log", xlabel="milliseconds", ylabel="share of answers", title=name, ylim=(0, 1.02))
        axes.grid(alpha=0.15, color=_INK)
        axes.legend(loc="best", fontsize=9)
        return _svg(figure, f"latencies of {name}")


def plot_spend(spend: Sequence[tuple[datetime, float]], limit: float | None, actions: Sequence[datetime]) -> str:
    """Money spent over the time of the data, the budget, and when something was stopped."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots()
        if spend:
            times, amounts = zip(*spend, strict=True)
            axes.step(times, amounts, where="post", color=CUSTOM, linewidth=2)
            axes.fill_between(times, amounts, step="post", color=CUSTOM, alpha=0.15, linewidth=0)
        if limit is not None:
            axes.axhline(limit, color=LIMIT, linewidth=1.4, linestyle="--")
            axes.annotate(
                "budget", (0.01, limit), (0, 3), ("axes fraction", "data"), "offset points", color=LIMIT, fontsize=9
            )
        for moment in dict.fromkeys(actions):
            axes.axvline(float(date2num(moment)), color=ORIGINAL, linewidth=1, linestyle=":")
        locator = AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.margins(y=0.15)
        axes.set(ylabel="US dollars", ylim=(0, None))
        return _svg(figure, "spend")


def _svg(figure: Figure, name: str) -> str:
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):  # ids that differ from figure to figure and not from run to run
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<metadata>(?:(?!<metadata>|</metadata>).)*+</metadata>", "", svg, flags=re.DOTALL)
    # The size is the page's to choose; the viewBox keeps the proportions.
    width = re.search(r'width="([\d.]+)pt"', svg)
    style = f'style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg {style} role="img" aria-label="{name}"', 1)
