"""What a comparison found, in words and tables: pure functions of its records."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperconn.files import write_atomically
from hyperconn.lab.records import FREE, MIN_SEEDS, REPORT, Mean, Record, Summary, gap, spikes, summaries

VERDICTS = f"Against plain, in bits per byte; a verdict is beyond two standard errors, of {MIN_SEEDS} seeds or more:"
NOTES = (
    "bits per byte: loss on held-out text, lower is better; mean over seeds ± its standard error",
    "minus plain: the same, seed by seed, minus that of the plain residual",
    "at equal time: the same at the step that it reaches in the time that plain takes for all steps; between two "
    "evaluations the loss is interpolated; unknown where the learning rate decays",
    "speed: steps per second over plain's; median over steps taken in turns, so that other load on the machine hits "
    "all alike",
    "error of H: worst violation of the constraint by any H of any seed, layer and held-out token",
    "gain: largest absolute row sum (forward), column sum (back) of the composed H, the product of the layers so far; "
    "worst over seeds, depth and tokens; 1 is neutral",
    "norm: largest spectral norm of the same products",
    "gradient: its norm after the warm-up, before clipping, mean and largest; spikes: steps above ten times its median",
)


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; the first ``left`` columns are aligned to the left."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def markdown(self) -> list[str]:
        """The lines of the table in Markdown, with its title above."""
        align = [":--"] * self.left + ["--:"] * (len(self.columns) - self.left)
        rows = (self.columns, align, *self.rows)
        return [f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in rows)]


def tables(records: Sequence[Record]) -> list[Table]:
    """Who takes part, then for each multiple of the learning rate the losses, and the matrices and gradients."""
    found = summaries(records)
    names = list(dict.fromkeys(name for name, _ in found))
    runs = {name: [record for record in records if record.contestant == name] for name in names}
    result = [_field(runs)]
    rate = records[0].setting["train"]["learning_rate"]
    for factor in sorted({multiplier for _, multiplier in found}):
        rows = {name: found[name, factor] for name in names if (name, factor) in found}
        at = f"learning rate {rate * factor:g}" + ("" if factor == 1 else f" (×{factor:g})")
        result += [_losses(rows, at), _matrices(rows, at)]
    return result


def _field(runs: Mapping[str, Sequence[Record]]) -> Table:
    columns = ("residual", "H is", "variant of", "params added", "speed")
    rows = [
        (name, own[0].kind, base_of(own[0]), f"{own[0].parameters_added:,}", _speed(own)) for name, own in runs.items()
    ]
    return Table("contestants", columns, tuple(rows), left=3)


def base_of(record: Record) -> str:
    """What its config is a variant of, and all keys in which it differs."""
    changes = [f"{key} = {_shown(value)}" for key, value in record.differences.items()]
    return record.base if not changes else f"{record.base}, {', '.join(changes)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _speed(runs: Sequence[Record]) -> str:
    speeds = [run.speed for run in runs if run.speed is not None]
    return f"{statistics.median(speeds):.2f}" if speeds else "–"


def _losses(rows: Mapping[str, Summary], at: str) -> Table:
    seeds = sorted({len(summary.runs) for summary in rows.values()})
    columns = ("residual", "seeds", "bits per byte", "minus plain", "at equal time")
    cells = [(name, str(len(s.runs)), *_means(s)) for name, s in rows.items()]
    words = " or ".join(map(str, seeds))
    return Table(f"loss at {at}, {words} seed{'s' * (seeds != [1])}", columns, tuple(cells))


def _means(summary: Summary) -> tuple[str, str, str]:
    if summary.diverged:
        return f"diverged {summary.diverged}/{len(summary.runs)}", "–", "–"
    plain = summary.runs[0].plain
    gaps = ("", "") if plain else (mean(summary.gap, sign="+"), mean(summary.gap_at_equal_time, sign="+"))
    return (mean(summary.loss), *gaps)


def mean(value: Mean | None, sign: str = "") -> str:
    """A mean with its standard error, where there is one.

    >>> mean(Mean(2.5449, 0.0031, 5)), mean(Mean(0.02, None, 1), sign="+")
    ('2.545 ± 0.003', '+0.020')
    """
    if value is None:
        return "–"
    return f"{value.value:{sign}.3f}" + ("" if value.error is None else f" ± {value.error:.3f}")


def _matrices(rows: Mapping[str, Summary], at: str) -> Table:
    columns = ("residual", "error of H", "gain forward", "gain back", "norm", "gradient mean", "gradient max", "spikes")
    return Table(f"matrices and gradients at {at}", columns, tuple((name, *_worst(s.runs)) for name, s in rows.items()))


def _worst(runs: Sequence[Record]) -> tuple[str, ...]:
    measured = [run.matrices for run in runs if run.matrices is not None]
    gains = ["1.00" if runs[0].plain else "–"] * 3
    if measured:
        gains = [number(max(largest(found[key]) for found in measured)) for key in ("forward", "backward", "spectral")]
    errors = [found["violation"] for found in measured if found["violation"] is not None]
    after = [run.history["gradient"][run.setting["train"]["warmup"] :] for run in runs]
    norms = [own for own in after if own]
    gradients = ["–"] * 3
    if norms:
        gradients = [number(statistics.fmean(statistics.fmean(own) for own in norms)), number(max(map(max, norms)))]
        gradients.append(str(sum(map(spikes, norms))))
    return (f"{max(errors):.0e}" if errors else "–", *gains, *gradients)


def largest(values: Sequence[float | None]) -> float:
    """The largest, infinite if one is: JSON has null for it."""
    return max(float("inf") if value is None else value for value in values)


def number(value: float) -> str:
    """Three significant digits below a thousand, whole numbers below a million, then powers of ten.

    >>> number(1.0), number(23456.7), number(1.4e8)
    ('1.00', '23,457', '1.4e+08')
    """
    if abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def headline(records: Sequence[Record]) -> str:
    """What it costs to leave H free, and where it wins: divergence, and losses apart by more than two standard errors.

    Empty where no contestant is free, or none has a constraint.
    """
    found = summaries(records)
    free = {key: s for key, s in found.items() if s.runs[0].kind == FREE}
    held = {key: s for key, s in found.items() if s.runs[0].kind != FREE and not s.runs[0].plain}
    if not free or not held:
        return ""
    costs, wins, few = [], [], False
    for (name, factor), loose in free.items():
        at = f"at learning rate ×{factor:g}"
        rivals = {other: s for (other, rate), s in held.items() if rate == factor}
        gaps = {other: gap(loose.runs, s.runs) for other, s in rivals.items() if not s.diverged}
        few = few or len(loose.runs) < MIN_SEEDS
        if loose.diverged:
            safe = ", ".join(gaps) or "no constrained one"
            costs.append(f"{name} diverged in {loose.diverged} of {len(loose.runs)} runs {at}, {safe} in none")
        else:
            above = [
                f"{other} ({mean(own, '+')})" for other, own in gaps.items() if own and own.value > 0 and _word(own)
            ]
            if above:
                costs.append(f"{name} ends above {', '.join(above)} {at}")
            if gaps and all(own and own.value < 0 and _word(own) for own in gaps.values()):
                wins.append(f"{name} {at}")
    won = f"{'; '.join(wins)} ended below every constraint that did not diverge"
    if costs:
        return f"Leaving H free costs something here: {'; '.join(costs)}." + (f" But {won}." if wins else "")
    if few:
        return f"Fewer than {MIN_SEEDS} seeds: no verdict on whether leaving H free costs anything here."
    if wins:
        return f"Leaving H free {'wins' if len(wins) == len(free) else 'wins in part'} here: {won}."
    return "Leaving H free costs nothing here that goes beyond two standard errors."


def verdicts(records: Sequence[Record]) -> list[str]:
    """What can be said of each against plain: in words only what lies beyond two standard errors, and what diverged."""
    found = summaries(records)
    several = len({multiplier for _, multiplier in found}) > 1
    said = []
    for (name, factor), summary in found.items():
        who = f"{name}, learning rate ×{factor:g}" if several else name
        gaps = {"equal steps": summary.gap, "equal time": summary.gap_at_equal_time}
        words = [f"{_word(own) or 'no verdict'} at {of}, {mean(own, '+')}" for of, own in gaps.items() if own]
        if summary.gap and summary.gap.count < len(summary.runs):
            words.append(f"plain finished {summary.gap.count} of {len(summary.runs)} seeds")
        if summary.diverged:
            words = [f"{summary.diverged} of {len(summary.runs)} runs diverged"]
        if words:
            said.append(f"{who}: {'; '.join(words)}")
    return said


def _word(gap: Mean) -> str:
    return ("worse" if gap.value > 0 else "better") if gap.significant() else ""


def setting(records: Sequence[Record]) -> str:
    """One sentence on what was trained, and on what."""
    model, train = records[0].setting["model"], records[0].setting["train"]
    seeds = sorted({record.seed for record in records})
    return (
        f"{model['blocks']} blocks, {model['channels']} channels, context {model['context']}, batch {train['batch']}, "
        f"{train['steps']} steps of AdamW at {train['learning_rate']:g} ({train['schedule']}), {train['dtype']}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, on {records[0].setting['text']['source']}"
    )


def markdown(records: Sequence[Record], plots: Sequence[str]) -> str:
    """The report, with the plots of these file names."""
    lines = ["# The same model under different residual connections", "", headline(records), "", f"{setting(records)}."]
    for table in tables(records):
        lines += ["", *table.markdown()]
    lines += ["", VERDICTS, "", *(f"- {line}" for line in verdicts(records))]
    lines += ["", "How to read it:", "", *(f"- {note}" for note in NOTES)]
    failed = [f"- {r.contestant}, seed {r.seed}, ×{r.multiplier:g}: {r.diverged}" for r in records if r.diverged]
    lines += ["", *failed] if failed else []
    lines += [line for file in plots for line in ("", f"![{file}]({file})")]
    return "\n".join(lines) + "\n"


def write_report(records: Sequence[Record], out: Path, plots: Sequence[str]) -> None:
    """Write ``report.md`` into the folder ``out``."""
    write_atomically(out / REPORT, markdown(records, plots).encode())
