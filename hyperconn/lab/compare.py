"""The same model under different residual connections, trained side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hyperconn.config import HyperConnectionConfig
from hyperconn.lab.config import PLAIN, LabConfig
from hyperconn.lab.data import Corpus, validation_windows
from hyperconn.lab.interrupt import deferred_interrupt
from hyperconn.lab.measure import MatrixReport, measure_matrices
from hyperconn.lab.run import DivergedError, Run
from hyperconn.manifolds.core.errors import unknown_name

DEFAULT_PRESETS = ("plain", "hc", "mhc", "mhc-lite", "kromhc", "jpmhc", "shc")
# The first steps of a process pay for allocations and lazy initialisation.
_WARMUP_STEPS = 3
# Thousands of tokens show the worst matrices well enough; eigenvalues of more would take as long as the training.
_MEASURED_WINDOWS = 64


@dataclass
class Contestant:
    """One model of a comparison.

    Attributes:
        name: ``plain``, a preset, or ``config`` for the file's own section.
        run: its model and history.
        seconds: of every step.
        diverged: why it stopped early, if it did.
        bits_per_byte: on the held-out text at the end; nan if it diverged.
        matrices: its residual matrices on held-out text; None for the plain residual.
    """

    name: str
    run: Run
    seconds: list[float] = field(default_factory=list)
    diverged: str | None = None
    bits_per_byte: float = float("nan")
    matrices: MatrixReport | None = None

    @property
    def steady_seconds(self) -> list[float]:
        """Seconds of the steps after the first few."""
        return self.seconds[_WARMUP_STEPS:] or self.seconds

    @property
    def tokens_per_second(self) -> float:
        """At the median step; nan if none was taken."""
        seconds = self.steady_seconds
        return self.run.tokens_per_step / statistics.median(seconds) if seconds else float("nan")


def contestants(config: LabConfig, corpus: Corpus, names: Sequence[str]) -> list[Contestant]:
    """Models that differ in their residual connection only: equal seeds, data and weights of the branches.

    Args:
        config: the run; its ``compare.overrides`` go to every preset alike.
        corpus: the text.
        names: contestants; empty for those of the config, or else all of ``DEFAULT_PRESETS``.

    Raises:
        UnknownNameError: no such preset, or an override that is no key.
        ValueError: a name twice, or ``config`` without a [hyper_connection] section.
    """
    chosen = tuple(names) or config.compare.presets
    if not chosen:
        chosen = DEFAULT_PRESETS + (("config",) if config.hyper_connection is not None else ())
    repeated = sorted({name for name in chosen if chosen.count(name) > 1})
    if repeated:
        raise ValueError(f"every preset can be compared once only, got {', '.join(repeated)} twice")
    configs = {name: dataclasses.replace(config, hyper_connection=_kind(name, config)) for name in chosen}
    return [Contestant(name, Run(own, corpus)) for name, own in configs.items()]


def _kind(name: str, config: LabConfig) -> HyperConnectionConfig | None:
    if name in PLAIN:
        return None
    if name == "config":
        if config.hyper_connection is None:
            raise ValueError("the contestant 'config' is the [hyper_connection] section, and this config has none")
        return config.hyper_connection
    if name not in HyperConnectionConfig.presets():
        raise unknown_name("preset", name, {*HyperConnectionConfig.presets(), "plain", "config"})
    return HyperConnectionConfig.preset(name, **config.compare.overrides)


def train_side_by_side(field: Sequence[Contestant], *, on_round: Callable[[], None] = lambda: None) -> bool:
    """Train all contestants, one step of each in turn, and evaluate them.

    Taking turns means that whatever else the machine is doing slows all of them alike: their step times compare.

    Returns:
        True when all steps were taken; False when SIGINT came first. Evaluations and measurements are there either way.
    """
    if not field:
        raise ValueError("a comparison needs at least one contestant")
    config = field[0].run.config.train
    with deferred_interrupt() as interrupted:
        for step in range(config.steps):
            for contestant in field:
                _advance(contestant)
            due = config.eval_every > 0 and (step + 1) % config.eval_every == 0
            if due and step + 1 < config.steps:
                for contestant in field:
                    if contestant.diverged is None:
                        contestant.run.evaluate()
            on_round()
            if interrupted:
                break
        for contestant in field:
            _finish(contestant)
        return field[0].run.step == config.steps or not interrupted


def _advance(contestant: Contestant) -> None:
    if contestant.diverged is not None:
        return
    try:
        contestant.seconds.append(contestant.run.advance())
    except DivergedError as error:
        contestant.diverged = str(error)


def _finish(contestant: Contestant) -> None:
    run = contestant.run
    if contestant.diverged is not None:
        return
    contestant.bits_per_byte = run.evaluate()
    windows = min(_MEASURED_WINDOWS, run.config.train.eval_windows)
    tokens, _ = validation_windows(run.corpus, windows, run.config.model.context)
    contestant.matrices = measure_matrices(run.model, tokens.to(run.device))
