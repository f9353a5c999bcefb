"""``hyperconn verify``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from hyperconn.cli.console import BAD_INPUT, FAILED, bad_input, fail, output, progress, say

STDOUT = "-"


class VerifyCommand(TyperCommand):
    """Takes options with several values, and with none: ``--n 2 3 4`` and ``--json [FILE]``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, rewrite(args))


def rewrite(arguments: Sequence[str]) -> list[str]:
    """``--n 2 3`` as ``--n 2 --n 3``, commas too, and ``--json`` as ``--json=-`` unless a name in .json follows.

    >>> rewrite(["--n", "2", "3,4", "stiefel", "--json"])
    ['--n', '2', '--n', '3', '--n', '4', 'stiefel', '--json=-']
    """
    rest = list(arguments)
    rewritten: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*rewritten, word, *rest]
        if word == "--json":
            word = f"--json={rest.pop(0) if rest and rest[0].endswith('.json') else STDOUT}"
        option, _, value = word.partition("=")
        if option != "--n":
            rewritten.append(word)
            continue
        sizes = value.split(",") if value else []
        while rest and (not sizes or rest[0].replace(",", "").isdecimal()):
            sizes += rest.pop(0).split(",")
        rewritten += [part for size in sizes for part in ("--n", size)] or ["--n"]
    return rewritten


def verify(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_MODULE:CLASS", help="A part by name, or a class to import.")],
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--n", metavar="SIZE ...", min=1, help="Streams, one or several: --n 2 3 4. Default: its examples."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Drawn cases per law, shared out among the instances.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0, max=2**32 - 1024)] = 0,
    json: Annotated[
        str | None,
        typer.Option(metavar="[FILE.json]", help="Write the certificate there; without a file, to stdout alone."),
    ] = None,
) -> None:
    """Run the laws against a part; status 0 only if all hold, 1 for a broken law, 2 for bad input."""
    if importlib.util.find_spec("hypothesis") is None:
        fail("the laws draw their cases with hypothesis: pip install 'hyperconn[test]'", BAD_INPUT)
    from hyperconn.testing.certificate import certificate, dumps
    from hyperconn.testing.expressions import expression
    from hyperconn.testing.subjects import choose, named
    from hyperconn.testing.survey import HEAD, examine, failures, rows, tasks

    to_stdout = json == STDOUT
    with bad_input():
        file = None if json is None or to_stdout else _writable(Path(json))
    # What a class prints is not part of its certificate.
    with redirect_stdout(sys.stderr) if to_stdout else nullcontext():
        with bad_input():
            cls: Any = _import_class(name) if ":" in name else named(name)
            instances = choose(cls, sizes)
        verdicts = []
        torch.set_num_threads(1)  # the matrices are small, and sums in one order give one certificate
        with progress("checking") as status:
            for task in tasks(instances, examples, seed):
                status.update(Text(f"checking {expression(task[0])}"))
                verdicts += examine(task)
    broken = [verdict for verdict in verdicts if not verdict.holds]
    found = certificate(cls, verdicts, examples=examples, seed=seed)
    if to_stdout:
        typer.echo(dumps(found).encode(), nl=False)  # bytes: JSON is UTF-8, whatever the terminal is
    else:
        table = Table(title=Text(f"laws of {name}"), title_justify="left")
        for column in HEAD:
            table.add_column(column, overflow="fold", no_wrap=column == "law")
        for row in rows(verdicts):
            table.add_row(*(Text(cell, style="bold red" if cell == "NO" else "") for cell in row))
        output.print(table)
        for failure in failures(verdicts):
            say(f"\n{failure}")
        held = f"{len(verdicts) - len(broken)} of {len(verdicts)} checks hold"
        say(f"{held}: {len(found['laws'])} laws on {len(instances)} instances, {found['cases']} cases, seed {seed}")
    if file is not None:
        with bad_input():
            file.write_text(dumps(found), encoding="utf-8")
    if broken:
        raise typer.Exit(FAILED)


def _writable(file: Path) -> Path:
    """The file, refused before minutes of work where it cannot be written."""
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OSError(f"--json: {str(file)!r} cannot be written; name a file in a folder that exists and is writable")
    return file


def _import_class(name: str) -> object:
    """What ``module:Class`` names; the current folder is searched too, as ``python -m`` would."""
    from hyperconn.testing.law import CRASHES

    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *class_name.split("."))):
        raise ValueError(f"{name!r} is neither a name nor package.module:Class; name a module as import does")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except CRASHES as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            fail(f"there is no module {module_name!r} in the current folder or installed", BAD_INPUT)
        traceback.print_exception(error)  # of the module itself: its author needs it
        fail(f"{module_name} cannot be imported: {type(error).__name__}: {error}", BAD_INPUT)
    for part in class_name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name!r}: {module_name} has no {class_name}")
        found = getattr(found, part)
    return found
