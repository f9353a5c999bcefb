"""The pictures of comparisons and runs. Importing this needs matplotlib, so callers do it when they draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperconn.lab.findings import largest, mean
from hyperconn.lab.records import Mean, Record, Summary, summaries
from hyperconn.lab.run import History

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
_MAPS = 6  # heat maps of a contestant


def draw_plots(records: Sequence[Record], out: Path) -> list[str]:
    """Draw everything into the folder ``out``; returns the file names."""
    found = summaries(records)
    names, factors = dict.fromkeys(name for name, _ in found), sorted({factor for _, factor in found})
    styles = {name: _STYLES[k % len(_STYLES)] for k, name in enumerate(names)}
    figures: dict[str, Figure] = {}
    for factor in factors:
        rows = {name: found[name, factor] for name in names if (name, factor) in found}
        end = "" if factor == 1 else f"_x{factor:g}"
        if any(run.matrices is not None for row in rows.values() for run in row.runs):
            figures[f"composite_gain{end}.png"] = _composite_gain(rows, styles)
        first = {name: row.runs[0].matrices for name, row in rows.items()}
        learning = {name: matrices for name, matrices in first.items() if matrices and any(matrices["learns"])}
        if learning:
            figures[f"mean_matrices{end}.png"] = _mean_matrices(learning)
        figures[f"loss_curves{end}.png"] = _loss_curves(rows, styles)
    if len(factors) > 1:
        figures["learning_rates.png"] = _learning_rates(found, styles)
    for file, figure in figures.items():
        # The figure's own canvas: no global state, no window system.
        FigureCanvasAgg(figure).print_figure(out / file, dpi=130)
    return list(figures)


def draw_curve(history: History, path: Path) -> None:
    """Draw the losses of one run."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    curve = _smoothed(history.train)
    _curve(axes, curve, "training (smoothed)", {"color": "#56B4E9"})
    evaluated = [(step, bits) for step, bits in history.valid if step]
    axes.plot(*zip(*evaluated, strict=True), label="held-out", color="#D55E00", marker="o") if evaluated else None
    late = [*curve[len(curve) // 10 :], *(bits for _, bits in evaluated)]
    axes.set(xlabel="optimizer step", ylabel="bits per byte", ylim=(min(late) - 0.1, max(late) + 0.1))
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_figure(path, dpi=130)


def _composite_gain(rows: Mapping[str, Summary], styles: Mapping[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        for name, summary in rows.items():
            gains = [run.matrices[direction] for run in summary.runs if run.matrices is not None]
            if gains:
                _curve(axes, [largest(values) for values in zip(*gains, strict=True)], name, styles[name])
        axes.axhline(1.0, color="black", linewidth=1, linestyle=":")
        axes.set(yscale="log", xlabel="sublayers composed")
    # Room around the neutral gain, also where no curve leaves it.
    low, high = panels[0].get_ylim()
    panels[0].set(ylim=(min(low, 0.5), max(high, 10.0)), title="forward: a signal (largest absolute row sum)")
    panels[0].set_ylabel("gain of the composed H\n(worst seed and held-out token, log scale)")
    panels[1].set_title("backward: a gradient (largest absolute column sum)")
    panels[1].legend(frameon=False)
    return figure


def _loss_curves(rows: Mapping[str, Summary], styles: Mapping[str, dict[str, Any]]) -> Figure:
    """Training losses, and beside them what is left of each when plain's loss on the same bytes is taken away."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    losses, gaps = figure.subplots(1, 2)
    curves = {name: {run.seed: run.history["train"] for run in row.runs} for name, row in rows.items()}
    plain = next((curves[name] for name, row in rows.items() if row.runs[0].plain), {})
    late: list[float] = []
    for name, summary in rows.items():
        own = curves[name]
        end = f"diverged {summary.diverged}/{len(own)}" if summary.diverged else mean(summary.loss)
        values = _band(losses, [_smoothed(curve) for curve in own.values()], f"{name}  {end}", styles[name])
        late += values[len(values) // 10 :]
        pairs = [(own[seed], plain[seed]) for seed in own if seed in plain]
        # What diverged has fewer steps.
        _band(gaps, [_smoothed([a - b for a, b in zip(*pair)]) for pair in pairs], name, styles[name])  # noqa: B905
    if late:  # the first steps are the same fall for all: leave the room to where the curves differ
        losses.set_ylim(min(late) - 0.1, max(late) + 0.1)
    losses.set(xlabel="optimizer step", ylabel="training loss, bits per byte (smoothed)")
    gaps.set(xlabel="optimizer step", ylabel="the same minus plain's\n(shaded: standard error)")
    losses.legend(title="held-out bits per byte", frameon=False)
    return figure


def _band(axes: Axes, curves: Sequence[Sequence[float]], label: str, style: dict[str, Any]) -> list[float]:
    """Draw the mean of some curves and its standard error, up to where the first ends; returns the mean."""
    found = [Mean.of(values) for values in zip(*curves)]  # noqa: B905
    values = [own.value for own in found if own is not None]
    errors = [own.error or 0.0 for own in found if own is not None]
    if values:
        _curve(axes, values, label, style)
        below, above = zip(*((v - e, v + e) for v, e in zip(values, errors, strict=True)), strict=True)
        axes.fill_between(range(1, len(values) + 1), below, above, color=style["color"], alpha=0.15, linewidth=0)
    return values


def _mean_matrices(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Heat maps of the mean H of some sublayers, those left out whose H makes no difference."""
    chosen = {name: _spread([k for k, learns in enumerate(m["learns"]) if learns]) for name, m in reports.items()}
    columns = max(map(len, chosen.values()))
    figure = Figure(figsize=(1.7 * columns + 1.5, 1.7 * len(reports) + 0.5), layout="constrained")
    panels = figure.subplots(len(reports), columns, squeeze=False)
    for line, (name, layers) in zip(panels, chosen.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, layer in zip(line, layers, strict=False):
            image = axes.imshow(reports[name]["mean"][layer], cmap="RdBu_r", vmin=-1, vmax=1)
            axes.set_title(f"sublayer {layer + 1}", fontsize=8)
            axes.set(xticks=[], yticks=[])
        for axes in line[len(layers) :]:
            axes.axis("off")
    figure.colorbar(image, ax=panels, label="mean H over held-out tokens")
    return figure


def _spread(layers: list[int]) -> list[int]:
    """At most ``_MAPS`` of them, evenly, the first and the last among them."""
    count = min(_MAPS, len(layers))
    return [layers[k * (len(layers) - 1) // max(1, count - 1)] for k in range(count)]


def _learning_rates(found: Mapping[tuple[str, float], Summary], styles: Mapping[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, style in styles.items():
        points = [(factor, row.loss) for (own, factor), row in found.items() if own == name and row.loss is not None]
        lost = [f"×{factor:g}" for (own, factor), row in found.items() if own == name and row.diverged]
        label = name if not lost else f"{name} (diverged at {', '.join(lost)})"
        errors = [loss.error or 0.0 for _, loss in points]
        axes.errorbar(
            [x for x, _ in points], [loss.value for _, loss in points], errors, label=label, capsize=3,
            markerfacecolor="none", **style,
        )  # fmt: skip
    factors = sorted({factor for _, factor in found})
    axes.set(xscale="log", xlabel="multiple of the learning rate", ylabel="held-out bits per byte")
    axes.set_xticks(factors, [f"×{factor:g}" for factor in factors])
    axes.minorticks_off()
    _clean(axes)
    axes.legend(frameon=False)
    return figure


def _curve(axes: Axes, values: Sequence[float], label: str, style: dict[str, Any]) -> None:
    every = max(1, len(values) // 12)
    axes.plot(range(1, len(values) + 1), values, label=label, markevery=every, markerfacecolor="none", **style)
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = _SMOOTHING * total + value, _SMOOTHING * weight + 1.0
        smooth.append(total / weight)
    return smooth
