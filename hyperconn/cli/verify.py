"""``hyperconn verify``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from hyperconn.cli.blame import blaming_plugins
from hyperconn.cli.console import BAD_INPUT, FAILED, bad_input, fail, output, progress, say
from hyperconn.manifolds import PluginError

if TYPE_CHECKING:
    from hyperconn.testing import Verdict

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
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME_OR_MODULE:CLASS]...", help="Parts by name, or classes to import."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every registered part; takes long.")] = False,
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--n", metavar="SIZE ...", min=1, help="Streams, one or several: --n 2 3 4. Default: its examples."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Drawn cases per law, shared out among the instances.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0, max=2**32 - 1024)] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, a core each.")] = 1,
    device: Annotated[str, typer.Option(help="Where the tensors live.")] = "cpu",
    json: Annotated[
        str | None,
        typer.Option(metavar="[FILE.json]", help="Write the certificate there; without a file, to stdout alone."),
    ] = None,
    pages: Annotated[
        Path | None, typer.Option(help="Write a summary into NAME.md of this folder.", exists=True, file_okay=False)
    ] = None,
) -> None:
    """Run the laws against parts; status 0 only if all hold, 1 for a broken law, 2 for bad input."""
    if importlib.util.find_spec("hypothesis") is None:
        fail("the laws draw their cases with hypothesis: pip install 'hyperconn[cli]'", BAD_INPUT)
    from hyperconn.testing.certificate import certificate, write_block
    from hyperconn.testing.expressions import expression
    from hyperconn.testing.subjects import choose, named
    from hyperconn.testing.survey import in_processes, tasks

    to_stdout = json == STDOUT
    with bad_input():
        file = None if json is None or to_stdout else _writable(Path(json))
        if bool(names) == everything:
            raise ValueError("verify takes names of parts, or --all")
        if json is not None and len(names or ()) != 1:
            raise ValueError("--json writes the certificate of one part: name one")
    # What a class prints is not part of its certificate.
    with redirect_stdout(sys.stderr) if to_stdout else nullcontext():
        with bad_input():
            classes = [_import_class(name) if ":" in name else named(name) for name in names or ()]
            chosen: dict[Any, Any] = _all(sizes) if everything else {cls: choose(cls, sizes) for cls in classes}
        planned = [(cls, task) for cls, found in chosen.items() for task in tasks(found, examples, seed)]
        by_class: dict[Any, list[Verdict]] = {cls: [] for cls in chosen}
        torch.set_num_threads(1)  # the matrices are small, and sums in one order give one certificate
        with progress("checking") as status:
            for (cls, task), found in in_processes(planned, jobs, device):
                by_class[cls] += found
                status.update(Text(f"checked {expression(task[0])}"))
    verdicts = [verdict for found in by_class.values() for verdict in found]
    if not to_stdout:
        _show(verdicts, ", ".join(names or ["everything"]), f"{len(planned)} instances", seed)
    if json is not None or pages is not None:
        certificates = [certificate(cls, found, examples=examples, seed=seed) for cls, found in by_class.items()]
        written = (dumps(certificates[0], ensure_ascii=False, indent=1) + "\n").encode()  # JSON is UTF-8 everywhere
        if to_stdout:
            typer.echo(written, nl=False)
        if file is not None:
            with bad_input():
                file.write_bytes(written)
        if pages is not None:
            for one in certificates:
                write_block(pages, one)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(FAILED)


def _show(verdicts: Sequence[Verdict], title: str, instances: str, seed: int) -> None:
    from hyperconn.testing.survey import HEAD, failures, rows

    table = Table(title=Text(f"laws of {title}"), title_justify="left")
    for column in HEAD:
        table.add_column(column, overflow="fold", no_wrap=column == "law")
    for row in rows(verdicts):
        table.add_row(*(Text(cell, style="bold red" if cell == "NO" else "") for cell in row))
    output.print(table)
    for failure in failures(verdicts):
        say(f"\n{failure}")
    holding, laws = sum(verdict.holds for verdict in verdicts), len({verdict.law for verdict in verdicts})
    cases = sum(verdict.cases for verdict in verdicts)
    say(f"{holding} of {len(verdicts)} checks hold: {laws} laws on {instances}, {cases} cases, seed {seed}")


def _all(sizes: Sequence[int] | None) -> dict[Any, Any]:
    """The instances of everything registered by class; plugins that give none are remarked upon and left out."""
    from hyperconn.testing.subjects import KINDS, choose

    chosen = {}
    for registry in KINDS:
        for name in registry.available():
            try:
                with blaming_plugins(name, registry):  # what is wrong with a built-in is not left out
                    cls = registry.get(name)
                    chosen[cls] = choose(cls, sizes)
            except PluginError as error:
                say(f"{name} is left out: {' '.join(str(error).split())}")
    return chosen


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
