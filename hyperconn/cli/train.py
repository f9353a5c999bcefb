"""``hyperconn train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hyperconn.cli.console import FAILED, INTERRUPTED, bad_input, fail, say
from hyperconn.cli.run_options import (
    Data,
    Seed,
    Steps,
    Threads,
    require_plots,
    say_stopping,
    training_progress,
    with_options,
)
from hyperconn.files import write_atomically
from hyperconn.lab import LabConfig, Run, load_corpus
from hyperconn.lab.checkpoint import FORMAT, CheckpointNotWrittenError, load_checkpoint, read_checkpoint
from hyperconn.lab.run import DivergedError
from hyperconn.lab.training import CHECKPOINT, METRICS, sample, write_metrics
from hyperconn.lab.training import train as run_to_the_end
from hyperconn.manifolds.registry.provenance import install_hints

CURVE, SAMPLE = "curve.png", "sample.txt"
PROMPT, SAMPLED = 64, 256  # bytes


def train(
    config: Annotated[Path, typer.Argument(help="TOML or YAML file; see docs/training.md.")],
    data: Data = None,
    seed: Seed = None,
    steps: Steps = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint. Default: runs/CONFIG.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    threads: Threads = None,
) -> None:
    """Train a small GPT on real text, with the residual connection that the config names."""
    folder = Path("runs") / config.stem if out is None else out
    checkpoint = folder / CHECKPOINT
    with bad_input():
        require_plots()
        # The config names a part, the checkpoint says who provides it: where it is gone, what to install.
        written = read_checkpoint(checkpoint, FORMAT, "train")["config"].get("hyper_connection", {}) if resume else {}
        with install_hints(written.get("plugins", {}), f"the run in {folder}"):
            settings = with_options(LabConfig.from_file(config), data=data, seed=seed, steps=steps, threads=threads)
        if checkpoint.exists() and not resume:
            raise ValueError(f"{checkpoint} exists; go on from it with --resume, or choose another --out folder")
        run = Run(settings, load_corpus(settings.data, settings.model.context))
        if resume:
            load_checkpoint(run, checkpoint)
        folder.mkdir(parents=True, exist_ok=True)

    kind = settings.hyper_connection
    connection = "plain residual" if kind is None else f"{kind.make_manifold()!r}"
    say(f"{run.model.num_parameters():,} parameters, {connection}, on {run.device}")
    say(f"text: {run.corpus.source}")
    if run.step:
        say(f"resuming after step {run.step} of {settings.train.steps}")
    try:
        finished = _with_progress(run, folder)
    except (DivergedError, CheckpointNotWrittenError) as error:
        if isinstance(error, DivergedError) and run.step:
            _write_artifacts(run, folder)
        fail(str(error), FAILED)
    _write_artifacts(run, folder)
    if not finished:
        again = ["hyperconn", "train", str(config), "--out", str(folder), "--resume"]
        for option, value in (("--data", data), ("--seed", seed), ("--steps", steps), ("--threads", threads)):
            again += [] if value is None else [option, str(value)]
        say(f"stopped after step {run.step}; {checkpoint} is complete. Go on with:")
        say(f"  {shlex.join(again)}")
        raise typer.Exit(INTERRUPTED)
    say(f"done after step {run.step}: {run.evaluate():.4f} bits per byte on held-out text")
    say(f"{checkpoint}: weights and optimizer; beside it {METRICS}, {CURVE} and {SAMPLE}")


def _write_artifacts(run: Run, folder: Path) -> None:
    """Metrics, the curve, and text that the model writes after the first bytes of the held-out part."""
    from hyperconn.lab.plots import draw_curve

    prompt = bytes(run.corpus.valid[: min(PROMPT, run.config.model.context)].tolist())
    try:
        write_metrics(run, folder)
        draw_curve(run.history, folder / CURVE)
        write_atomically(folder / SAMPLE, sample(run, prompt, SAMPLED))
    except OSError as error:
        fail(f"cannot write to {folder}: {error.strerror or error}; {CHECKPOINT} is intact", FAILED)


def _with_progress(run: Run, folder: Path) -> bool:
    with training_progress() as progress:
        task = progress.add_task("training", total=run.config.train.steps, completed=run.step)

        def on_step(seconds: float) -> None:
            progress.update(task, completed=run.step, description=f"{run.history.train[-1]:.3f} bits per byte")

        def on_evaluation(bits: float) -> None:
            loss = run.history.train[-1]
            say(f"step {run.step}: training {loss:.4f}, held-out {bits:.4f} bits per byte")

        return run_to_the_end(run, folder, on_step=on_step, on_evaluation=on_evaluation, on_interrupt=say_stopping)
