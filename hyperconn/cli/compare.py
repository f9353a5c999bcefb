"""``hyperconn compare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hyperconn.cli.console import FAILED, INTERRUPTED, bad_input, fail, output, say
from hyperconn.cli.init import example
from hyperconn.cli.report import show_records, write_folder
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
from hyperconn.lab import Comparison, Contestant, LabConfig, contestants, load_corpus


class CompareCommand(TyperCommand):
    """Takes several numbers: ``--lr-multipliers 1 4 10``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, joined(args, "--lr-multipliers"))


def joined(arguments: Sequence[str], option: str) -> list[str]:
    """The numbers that follow an option, as the one value that the parser takes.

    >>> joined(["--lr-multipliers", "1", "4", "10", "mine.toml"], "--lr-multipliers")
    ['--lr-multipliers', '1,4,10', 'mine.toml']
    """
    result: list[str] = []
    for word in arguments:
        number = word.replace(".", "", 1).isdecimal()
        if (
            number
            and len(result) > 1
            and result[-2] == option
            and result[-1].replace(".", "").replace(",", "").isdecimal()
        ):
            result[-1] += f",{word}"
        else:
            result.append(word)
    return result


def compare(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="TOML or YAML file.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The shipped comparison, sized for two cores.")] = False,
    names: Annotated[
        str | None,
        typer.Option(
            "--contestants",
            help="Comma-separated: plain, presets, manifolds, config (the file's own section), names of the file.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each, with seeds that follow each other.", min=1)] = None,
    lr_multipliers: Annotated[
        str | None,
        typer.Option(metavar="NUMBER ...", help="Factors of train.learning_rate, all of which are run: 1 4 10."),
    ] = None,
    data: Data = None,
    seed: Seed = None,
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/compare"),
    threads: Threads = None,
) -> None:
    """Train the same model with each residual connection and report what the constraint buys.

    What is finished stays in the folder. The same command goes on from there, after Ctrl-C and worse; with more seeds,
    contestants or multipliers it adds those.
    """
    with bad_input():
        require_plots()
        settings = with_options(_read(config, demo), data=data, seed=seed, steps=steps, threads=threads)
        given: dict[str, Any] = {}
        if seeds is not None:
            given["seeds"] = seeds
        if lr_multipliers is not None:
            given["lr_multipliers"] = tuple(
                _number(word) for word in _words("--lr-multipliers", lr_multipliers, "1 4 10")
            )
        settings = dataclasses.replace(settings, compare=dataclasses.replace(settings.compare, **given))
        chosen = [] if names is None else _words("--contestants", names, "plain,hc,kromhc")
        field = contestants(settings, chosen)
        comparison = Comparison(settings, load_corpus(settings.data, settings.model.context), field, out)
        heats = comparison.heats()
        out.mkdir(parents=True, exist_ok=True)

    say(f"{', '.join(c.name for c in field)}: {settings.train.steps} steps each, in turns")
    say(f"text: {comparison.corpus.source}")
    if comparison.records:
        say(f"{out} holds {len(comparison.records)} finished runs of this comparison; {_left(heats)}")
    try:
        finished = _with_progress(comparison, len(heats))
    except OSError as error:
        fail(f"cannot write to {out}: {error.strerror or error}; what was finished before is intact", FAILED)
    if comparison.records:
        show_records(comparison.records)  # before the report is written: it survives a full disk on the screen
        try:
            write_folder(comparison.records, out)
        except OSError as error:
            fail(f"cannot write the report to {out}: {error.strerror or error}", FAILED)
        say(f"\nreport: {out / 'report.md'}")
    if not finished:
        say(f"\nstopped; {_left(comparison.heats())}. All that was trained is in {out}: the same command goes on")
        raise typer.Exit(INTERRUPTED)


def _words(option: str, value: str, example: str) -> list[str]:
    words = [word.strip() for word in value.split(",") if word.strip()]
    if not words:
        raise ValueError(f"{option} is a list, for example {example}; got none")
    return words


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"--lr-multipliers is a list of numbers, for example 1 4 10; got {word!r}") from None


def _left(heats: Sequence[tuple[int, float, tuple[Contestant, ...]]]) -> str:
    runs = sum(len(missing) for *_, missing in heats)
    return f"{runs} runs are left" if runs else "none is left"


def _read(path: Path | None, demo: bool) -> LabConfig:
    if demo and path is not None:
        raise ValueError(f"--demo has its own config; pass it or {path}, not both")
    if demo:
        return LabConfig.from_file(example("demo"))
    return LabConfig() if path is None else LabConfig.from_file(path)


def _with_progress(comparison: Comparison, heats: int) -> bool:
    steps, begun = comparison.config.train.steps, 0
    with training_progress() as progress:
        task = progress.add_task("training", total=steps)

        def on_heat(seed: int, factor: float, step: int) -> None:
            nonlocal begun
            begun += 1
            what = f"{begun} of {heats}: seed {seed}" + ("" if factor == 1 else f", learning rate ×{factor:g}")
            say(what + (f", going on after step {step}" if step else ""))
            progress.reset(task, completed=step, description=what)

        def on_step(step: int) -> None:
            progress.update(task, completed=step)
            # A log has no moving bar: a line now and then says that the work goes on.
            if not output.is_terminal and step % max(1, steps // 3) == 0:
                say(f"{step} of {steps} steps")

        return comparison.train(on_heat=on_heat, on_step=on_step, on_interrupt=say_stopping)
