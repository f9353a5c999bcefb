"""``hyperconn report``, and how the results of a comparison are printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table as Printed

from hyperconn.cli.console import bad_input, output, say
from hyperconn.cli.run_options import require_plots
from hyperconn.lab.findings import NOTES, VERDICTS, Table, headline, setting, tables, verdicts, write_report
from hyperconn.lab.records import RECORDS, REPORT, Record, merged, read_records, write_records

_WIDTH = 80


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that `hyperconn compare` wrote.")],
    out: Annotated[Path | None, typer.Option(help="New folder for the report of all of them.")] = None,
) -> None:
    """Print the results of comparisons as one: more seeds, more contestants, more learning rates.

    Results that differ in anything else are refused, with the difference.
    """
    with bad_input():
        if out is not None:
            require_plots()
            if out.exists():
                raise FileExistsError(f"{out} exists; name a folder that does not")
        groups = {str(folder): read_records(folder) for folder in folders}
        for folder, found in groups.items():
            if not found:
                raise FileNotFoundError(f"{folder} holds no results of 'hyperconn compare': there is no {RECORDS}")
        records = merged(groups)
    show_records(records)
    if out is not None:
        with bad_input():
            out.mkdir(parents=True)
            write_records(records, out)
            write_folder(records, out)
        say(f"\nreport: {out / REPORT}")


def write_folder(records: Sequence[Record], out: Path) -> None:
    """``report.md`` and its pictures."""
    from hyperconn.lab.plots import draw_plots

    write_report(records, out, draw_plots(records, out))


def show_records(records: Sequence[Record]) -> None:
    """Print all tables in 80 columns, and what they say."""
    _paragraph(f"\n{headline(records)}")
    _paragraph(setting(records))
    for table in tables(records):
        say(f"\n{table.title}")
        _show(table)
    said = verdicts(records)
    _paragraph(f"\n{VERDICTS}" if said else "")
    for line in said:
        _paragraph(f"- {line}", "  ")
    say("")
    for line in (*NOTES, *(f"{r.contestant}, seed {r.seed}: {r.diverged}" for r in records if r.diverged)):
        _paragraph(f"  {line}", "    ")


def _paragraph(text: str, indent: str = "") -> None:
    say(textwrap.fill(text, _WIDTH, subsequent_indent=indent, replace_whitespace=False, break_on_hyphens=False))


def _show(table: Table) -> None:
    # A header breaks where it may, a number never.
    shown = Printed(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for k, column in enumerate(table.columns):
        text = k < table.left
        shown.add_column(
            column if text else column.replace(" ", "\n", 1),
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold",
        )
    for cells in table.rows:
        shown.add_row(*cells)
    Console(file=output.file, width=min(_WIDTH, output.width), highlight=False, markup=False).print(shown)
