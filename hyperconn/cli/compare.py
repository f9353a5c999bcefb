"""``hyperconn compare``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hyperconn.cli.console import FAILED, INTERRUPTED, bad_input, fail, output, say
from hyperconn.cli.run_options import Data, Seed, Steps, Threads, training_progress, with_options
from hyperconn.lab import Contestant, LabConfig, contestants, load_corpus, train_side_by_side
from hyperconn.lab.report import COLUMNS, NOTES, table, write_report


def compare(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="TOML or YAML file.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The shipped comparison, sized for two cores.")] = False,
    presets: Annotated[
        str | None, typer.Option(help="Comma-separated: plain, presets, config (the file's own section).")
    ] = None,
    data: Data = None,
    seed: Seed = None,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/compare"),
    threads: Threads = None,
) -> None:
    """Train the same model with each residual connection and report what the constraint buys."""
    with bad_input():
        if importlib.util.find_spec("matplotlib") is None:  # said now, not after minutes of training
            raise ModuleNotFoundError("the plots of a comparison need matplotlib: pip install 'hyperconn[cli]'")
        settings = with_options(_read(config, demo), data=data, seed=seed, steps=steps, threads=threads)
        names = [name.strip() for name in (presets or "").split(",") if name.strip()]
        if presets is not None and not names:
            raise ValueError("--presets is a comma-separated list of names, for example plain,hc,kromhc; got none")
        field = contestants(settings, load_corpus(settings.data, settings.model.context), names)
        out.mkdir(parents=True, exist_ok=True)

    finished = _with_progress(settings.train.steps, field)
    _show(field)  # before anything is written: minutes of training survive a full disk on the screen
    from hyperconn.lab.plots import draw_plots

    try:
        write_report(field, out, draw_plots(field, out))
    except OSError as error:
        fail(f"cannot write the report to {out}: {error.strerror or error}", FAILED)
    say(f"\nreport: {out / 'report.md'}")
    if not finished:
        taken = max(contestant.run.step for contestant in field)
        say(f"stopped after step {taken} of {settings.train.steps}: the report shows that much")
        raise typer.Exit(INTERRUPTED)


def _read(path: Path | None, demo: bool) -> LabConfig:
    if demo and path is not None:
        raise ValueError(f"--demo has its own config; pass it or {path}, not both")
    if demo:
        with as_file(files("hyperconn.lab") / "demo.toml") as shipped:
            return LabConfig.from_file(shipped)
    return LabConfig() if path is None else LabConfig.from_file(path)


def _with_progress(steps: int, field: list[Contestant]) -> bool:
    say(f"{', '.join(contestant.name for contestant in field)}: {steps} steps each, in turns")
    say(f"text: {field[0].run.corpus.source}")
    with training_progress() as progress:
        task = progress.add_task("training", total=steps)

        def on_round() -> None:
            progress.advance(task)
            done = int(progress.tasks[0].completed)
            # A log has no moving bar: a line now and then says that the work goes on.
            if not output.is_terminal and done % max(1, steps // 6) == 0:
                say(f"{done} of {steps} steps")

        return train_side_by_side(field, on_round=on_round)


def _show(field: Sequence[Contestant]) -> None:
    # Narrow enough for 80 columns: a header breaks where it may, a number never.
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for k, column in enumerate(COLUMNS):
        shown.add_column(column.replace(" ", "\n", 1) if k > 1 else column, justify="left" if k < 2 else "right")
    for cells in table(field):
        shown.add_row(*cells)
    output.print("", shown, "", sep="\n")
    for line in (*NOTES, *(f"{c.name} diverged: {c.diverged}" for c in field if c.diverged is not None)):
        say(f"  {line}")
