"""``hyperconn init``: configs to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hyperconn.lab
from hyperconn.cli.console import bad_input, say
from hyperconn.files import write_atomically
from hyperconn.manifolds.core.errors import unknown_name

CONFIGS = Path(hyperconn.lab.__file__).parent / "configs"


def init(
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="File to write. Default: NAME.toml.")] = None,
    name: Annotated[
        str, typer.Option("--example", metavar="NAME", help="start (all keys, explained), kromhc, orthogonal, demo.")
    ] = "start",
) -> None:
    """Write a config that `train` and `compare` take as it is."""
    with bad_input():
        source = example(name)
        target = Path(source.name) if path is None else path
        if target.suffix != source.suffix:
            raise ValueError(f"the example {name!r} is written in {source.suffix}, got the file name {str(target)!r}")
        if target.exists():
            raise FileExistsError(
                f"{target} exists; pass another name, for example: hyperconn init mine{target.suffix}"
            )
        write_atomically(target, source.read_bytes())
    say(f"wrote {target}; try: hyperconn train {target}, or hyperconn compare {target}")


def example(name: str) -> Path:
    """The shipped config of this name; raises UnknownNameError where there is none."""
    known = {file.stem: file for file in CONFIGS.iterdir()}
    if name not in known:
        raise unknown_name("example", name, known)
    return known[name]
