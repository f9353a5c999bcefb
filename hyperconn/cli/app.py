"""The commands and their options; what they do lives in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hyperconn
from hyperconn.cli.arguments import VerifyCommand
from hyperconn.cli.console import say

app = typer.Typer(
    name="hyperconn",
    help="Hyper-connections with any residual-matrix constraint, chosen by name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML or YAML file; see docs/training.md.")]
_Data = Annotated[Path | None, typer.Option(help="Text file or folder. Default: the standard library's sources.")]
_Seed = Annotated[int | None, typer.Option(help="Seed of weights, data order and dropout; replaces train.seed.")]
_Steps = Annotated[int | None, typer.Option(help="Optimizer steps; replaces train.steps.", min=1)]
_Threads = Annotated[int | None, typer.Option(help="CPU threads; replaces train.threads.", min=1)]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A manifold, an alias or a preset.")]


def _version(wanted: bool) -> None:
    if wanted:
        say(f"hyperconn {hyperconn.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def train(
    config: _Config,
    data: _Data = None,
    seed: _Seed = None,
    steps: _Steps = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint. Default: runs/CONFIG.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    threads: _Threads = None,
) -> None:
    """Train a small GPT on real text, with the residual connection that the config names."""
    from hyperconn.cli.train import run_train

    run_train(config, data=data, seed=seed, steps=steps, out=out, resume=resume, threads=threads)


@app.command()
def compare(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="TOML or YAML file.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The shipped comparison, sized for two cores.")] = False,
    presets: Annotated[
        str | None, typer.Option(help="Comma-separated: plain, presets, config (the file's own section).")
    ] = None,
    data: _Data = None,
    seed: _Seed = None,
    steps: _Steps = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/compare"),
    threads: _Threads = None,
) -> None:
    """Train the same model with each residual connection and report what the constraint buys."""
    from hyperconn.cli.compare import run_compare

    run_compare(config, demo=demo, presets=presets, data=data, seed=seed, steps=steps, out=out, threads=threads)


@app.command("list")
def list_() -> None:
    """Every manifold: coordinates, invariants, exactness, whether its map is fused into a kernel, source."""
    from hyperconn.cli.manifolds import run_list

    run_list()


@app.command()
def show(
    name: _Name,
    n: Annotated[
        int | None, typer.Option(help="Streams. Default: 4, or the first example of what refuses that.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled matrix.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """One manifold or preset: what it is, its options, and a sampled matrix."""
    from hyperconn.cli.manifolds import run_show

    run_show(name, n=n, seed=seed)


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


@app.command()
def doctor() -> None:
    """Versions, devices, and which fast paths can run here."""
    from hyperconn.cli.doctor import run_doctor

    run_doctor()
