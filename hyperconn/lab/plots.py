"""The pictures of a comparison. Importing this needs matplotlib, so callers do it when they draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperconn.lab.contest import Contestant
from hyperconn.lab.measure import MatrixReport

# Okabe and Ito's colours, distinct for colour-blind readers; dashes and hollow markers of falling size repeat the
# distinction, and keep curves visible that lie on top of each other.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "marker": ""},
    {"color": "#D55E00", "linestyle": "-", "marker": "o", "markersize": 5},
    {"color": "#0072B2", "linestyle": "-", "marker": "s", "markersize": 10},
    {"color": "#E69F00", "linestyle": (0, (6, 3)), "marker": "^", "markersize": 8},
    {"color": "#009E73", "linestyle": (0, (2, 2)), "marker": "v", "markersize": 5},
    {"color": "#CC79A7", "linestyle": "-", "marker": "D", "markersize": 7},
    {"color": "#56B4E9", "linestyle": "-", "marker": "P", "markersize": 6},
    {"color": "#7F7F7F", "linestyle": "--", "marker": "X", "markersize": 6},
)
_SMOOTHING = 0.95


def draw_plots(contestants: Sequence[Contestant], out: Path) -> list[str]:
    """Draw everything into the folder ``out``; returns the file names."""
    styles = {c.name: _STYLES[k % len(_STYLES)] for k, c in enumerate(contestants)}
    measured = {c.name: c.matrices for c in contestants if c.matrices is not None}
    figures = {"composite_gain.png": _composite_gain(measured, styles)} if measured else {}
    figures["loss_curves.png"] = _loss_curves(contestants, styles)
    for file, figure in figures.items():
        # The figure's own canvas: no global state, no window system.
        FigureCanvasAgg(figure).print_figure(out / file, dpi=150, bbox_inches="tight")
    return list(figures)


def _composite_gain(measured: dict[str, MatrixReport], styles: dict[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        for name, matrices in measured.items():
            _curve(axes, getattr(matrices, direction), name, styles[name])
        axes.axhline(1.0, color="black", linewidth=1, linestyle=":")
        axes.set(yscale="log", xlabel="sublayers composed")
    # Room around the neutral gain, also where no curve leaves it.
    low, high = panels[0].get_ylim()
    panels[0].set(ylim=(min(low, 0.5), max(high, 10.0)), title="forward: a signal (largest absolute row sum)")
    panels[0].set_ylabel("gain of the composed H\n(worst held-out token, log scale)")
    panels[1].set_title("backward: a gradient (largest absolute column sum)")
    panels[1].legend(frameon=False)
    return figure


def _loss_curves(contestants: Sequence[Contestant], styles: dict[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    late: list[float] = []
    for contestant in contestants:
        curve = _smoothed(contestant.run.history.train)
        end = f"{contestant.bits_per_byte:.3f}" if contestant.diverged is None else "diverged"
        _curve(axes, curve, f"{contestant.name}  {end}", styles[contestant.name])
        late += curve[len(curve) // 10 :]
    if late:  # the first steps are the same fall for all: leave the room to where the curves differ
        axes.set_ylim(min(late) - 0.1, max(late) + 0.1)
    axes.set(xlabel="optimizer step", ylabel="training loss, bits per byte (smoothed)")
    axes.legend(title="held-out bits per byte", frameon=False)
    return figure


def _curve(axes: Axes, values: Sequence[float], label: str, style: dict[str, Any]) -> None:
    every = max(1, len(values) // 12)
    axes.plot(range(1, len(values) + 1), values, label=label, markevery=every, markerfacecolor="none", **style)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = _SMOOTHING * total + value, _SMOOTHING * weight + 1.0
        smooth.append(total / weight)
    return smooth
