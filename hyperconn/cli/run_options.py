"""The options of the commands that train, and what they make of a config."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import MofNCompleteColumn, Progress

from hyperconn.cli.console import output, say
from hyperconn.lab import LabConfig

Data = Annotated[Path | None, typer.Option(help="Text file or folder. Default: the standard library's sources.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, data order and dropout; replaces train.seed.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps; replaces train.steps.", min=1)]
Threads = Annotated[int | None, typer.Option(help="CPU threads; replaces train.threads.", min=1)]


def with_options(
    config: LabConfig, *, data: Path | None, seed: int | None, steps: int | None, threads: int | None
) -> LabConfig:
    """The config with what the command line replaces; torch is limited to its threads from here on.

    Raises:
        ValueError: an option out of range, or several processes that would train the same model.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ValueError(f"a run is one process, got WORLD_SIZE={world}; use torchrun --nproc-per-node 1")
    given = {"seed": seed, "steps": steps, "threads": threads}
    train = dataclasses.replace(config.train, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    text = config.data if data is None else dataclasses.replace(config.data, path=str(data))
    return dataclasses.replace(config, train=train, data=text)


def require_plots() -> None:
    """Say now, and not after minutes of training, that there would be no pictures."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("the pictures of a run need matplotlib: pip install 'hyperconn[cli]'")


def training_progress() -> Progress:
    """A bar of optimizer steps, with the time that they take."""
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=output)


def say_stopping() -> None:
    """What the first Ctrl-C is answered with."""
    say("stopping after this step; Ctrl-C again stops at once, and loses what was trained since the last checkpoint")
