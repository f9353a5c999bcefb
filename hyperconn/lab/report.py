"""The report folder of a comparison: a table in Markdown, and every number in JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import hyperconn
from hyperconn.files import write_atomically
from hyperconn.lab.contest import Contestant
from hyperconn.manifolds import Manifold, invariants

COLUMNS = (
    "residual", "H is", "bits per byte", "params added", "speed", "error of H", "gain forward", "gain backward", "norm",
)  # fmt: skip
NOTES = (
    "bits per byte: loss on held-out text, lower is better",
    "speed: tokens/s over plain's; median over steps taken in turns, so that other load on the machine hits all alike",
    "error of H: worst violation of the constraint by any H of any layer and held-out token",
    "gain: largest absolute row sum (forward), column sum (backward) of the composed H, the product of the layers so "
    "far; worst over depth and tokens; 1 is neutral",
    "norm: largest spectral norm of the same products",
)


def table(contestants: Sequence[Contestant]) -> list[tuple[str, ...]]:
    """What is said of each contestant, as text, in the order of ``COLUMNS``."""
    plain = next((contestant for contestant in contestants if contestant.is_plain), None)
    return [_cells(contestant, plain) for contestant in contestants]


def _cells(contestant: Contestant, plain: Contestant | None) -> tuple[str, ...]:
    kind, matrices = contestant.run.config.hyper_connection, contestant.matrices
    if matrices is None:
        gains = ["1.00" if contestant.is_plain else "–"] * 3
    else:
        gains = [number(max(values)) for values in (matrices.forward, matrices.backward, matrices.spectral)]
    return (
        contestant.name,
        "identity" if kind is None else kind_of(kind.make_manifold()),
        "diverged" if contestant.diverged is not None else f"{contestant.bits_per_byte:.3f}",
        f"{contestant.run.model.num_connection_parameters():,}",
        f"{contestant.speed_over(plain):.2f}" if plain and plain.seconds and contestant.seconds else "–",
        "–" if matrices is None or matrices.violation is None else f"{matrices.violation:.0e}",
        *gains,
    )


def kind_of(manifold: Manifold) -> str:
    """What a residual matrix is, in words that follow from its invariants.

    >>> from hyperconn.manifolds import make
    >>> kind_of(make("kronecker", n=4)), kind_of(make("stiefel", n=4))
    ('doubly stochastic', 'orthogonal')
    """
    held = set(manifold.invariants)
    kinds = {
        "identity": {invariants.is_identity},
        "doubly stochastic": {invariants.row_sums, invariants.column_sums, invariants.nonnegative},
        "projection": {invariants.idempotent},
        "orthogonal": {invariants.orthogonal},
        "spectral norm 1": {invariants.spectral_norm},
    }
    by_name = ", ".join(invariant.name for invariant in manifold.invariants) or "free"
    return next((kind for kind, conditions in kinds.items() if conditions <= held), by_name)


def number(value: float) -> str:
    """Three significant digits below a thousand, whole numbers below a million, then powers of ten.

    >>> number(1.0), number(23456.7), number(1.4e8)
    ('1.00', '23,457', '1.4e+08')
    """
    if abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def markdown(contestants: Sequence[Contestant], plots: Sequence[str]) -> str:
    """The report, with the plots of these file names."""
    run = max((contestant.run for contestant in contestants), key=lambda run: run.step)
    model, train = run.config.model, run.config.train
    setting = (
        f"{model.blocks} blocks, {model.channels} channels, context {model.context}, batch {train.batch}, AdamW at "
        f"{train.learning_rate:g}, {run.step} steps, seed {train.seed}, on {run.corpus.source}."
    )
    rows = [COLUMNS, (*[":--"] * 2, *["--:"] * (len(COLUMNS) - 2)), *table(contestants)]
    lines = ["# The same model under different residual connections", "", setting, ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in NOTES)]
    lines += [f"- {c.name} diverged: {c.diverged}" for c in contestants if c.diverged is not None]
    lines += [line for file in plots for line in ("", f"![{file}]({file})")]
    return "\n".join(lines) + "\n"


def plain_data(contestants: Sequence[Contestant]) -> dict[str, Any]:
    """Everything that table and plots are made of, with versions, config and seed; nan and inf become null."""
    first = contestants[0].run
    shared = dataclasses.replace(first.config, hyper_connection=None)
    versions = {"hyperconn": hyperconn.__version__, "python": platform.python_version(), "torch": torch.__version__}
    data = {
        "versions": {**versions, "platform": platform.platform()},
        "config": shared.to_dict(),
        "data": {"source": first.corpus.source, "digest": first.corpus.digest},
        "threads": torch.get_num_threads(),
        "contestants": {contestant.name: _plain(contestant) for contestant in contestants},
    }
    finite: dict[str, Any] = json.loads(json.dumps(data), parse_constant=lambda constant: None)
    return finite


def _plain(contestant: Contestant) -> dict[str, Any]:
    run, kind, matrices = contestant.run, contestant.run.config.hyper_connection, contestant.matrices
    return {
        "hyper_connection": None if kind is None else kind.to_dict(),
        "steps": run.step,
        "diverged": contestant.diverged,
        "bits_per_byte": contestant.bits_per_byte,
        "parameters": run.model.num_parameters(),
        "parameters_added": run.model.num_connection_parameters(),
        "matrices": None if matrices is None else dataclasses.asdict(matrices),
        "history": dataclasses.asdict(run.history),
        "step_seconds": contestant.seconds,
    }


def write_report(contestants: Sequence[Contestant], out: Path, plots: Sequence[str]) -> None:
    """Write ``report.md`` and ``report.json`` into the folder ``out``."""
    write_atomically(out / "report.md", markdown(contestants, plots).encode())
    content = json.dumps(plain_data(contestants), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(out / "report.json", content.encode())
