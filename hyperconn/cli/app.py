"""The commands, each in a module beside this one."""

from __future__ import annotations

from typing import Annotated

import typer

import hyperconn
from hyperconn.cli.bench import bench
from hyperconn.cli.catalogue import list_, show
from hyperconn.cli.compare import CompareCommand, compare
from hyperconn.cli.console import say
from hyperconn.cli.doctor import doctor
from hyperconn.cli.init import init
from hyperconn.cli.report import report
from hyperconn.cli.train import train
from hyperconn.cli.verify import VerifyCommand, verify

app = typer.Typer(
    name="hyperconn",
    help="Hyper-connections with any residual-matrix constraint, chosen by name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"hyperconn {hyperconn.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


for _command in (init, train, report, show, bench, doctor):
    app.command()(_command)
app.command("list")(list_)
app.command(cls=CompareCommand)(compare)
app.command(cls=VerifyCommand)(verify)
