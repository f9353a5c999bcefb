"""The commands and their options; what they do lives in the modules beside this one."""

from __future__ import annotations

from typing import Annotated

import typer

import hyperconn
from hyperconn.cli.arguments import VerifyCommand
from hyperconn.cli.compare import compare
from hyperconn.cli.console import say
from hyperconn.cli.doctor import doctor
from hyperconn.cli.parts import list_, show
from hyperconn.cli.train import train

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


for _name, _command in (("train", train), ("compare", compare), ("list", list_), ("show", show), ("doctor", doctor)):
    app.command(_name)(_command)


@app.command(cls=VerifyCommand)
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_MODULE:CLASS", help="A manifold, or a class to import.")],
    n: Annotated[
        list[int] | None,
        typer.Option(
            metavar="SIZE ...",
            help="Streams, one size or several: --n 2 3 4 8. Default: the manifold's own examples.",
            min=1,
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(help="Random cases per law, shared out among the instances that it concerns.", min=1)
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the cases.", min=0, max=2**32 - 1024)] = 0,
    json: Annotated[
        str | None,
        typer.Option(metavar="[FILE.json]", help="Write the certificate there; without a file, to stdout alone."),
    ] = None,
) -> None:
    """Run the laws against a manifold; status 0 only if all hold, 1 for a broken law, 2 for bad input."""
    from hyperconn.cli.verify import run_verify

    run_verify(name, sizes=n, examples=examples, seed=seed, json=json)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Manifolds. Default: all.")] = None,
    streams: Annotated[int, typer.Option(help="Streams.", min=1)] = 4,
    dim: Annotated[int, typer.Option(help="Channels of a stream.", min=1)] = 768,
    tokens: Annotated[int, typer.Option(help="Tokens.", min=1)] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the streams: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch or triton.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Rounds of the comparison.", min=1)] = 11,
    seed: Annotated[int, typer.Option(help="Seed of the data.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Time a layer with each manifold on this machine, forward and backward, against the plain residual."""
    from hyperconn.cli.bench import run_bench

    run_bench(
        names or (), streams=streams, dim=dim, tokens=tokens, dtype=dtype, device=device, backend=backend,
        rounds=rounds, seed=seed,
    )  # fmt: skip
