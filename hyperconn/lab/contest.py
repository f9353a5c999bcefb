"""The same model under different residual connections, trained side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hyperconn.config import HyperConnectionConfig
from hyperconn.lab.data import Corpus, validation_windows
from hyperconn.lab.measure import MatrixReport, measure_matrices
from hyperconn.lab.run import DivergedError, Run
from hyperconn.lab.settings import PLAIN, LabConfig
from hyperconn.lab.training import deferred_interrupt
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
    def is_plain(self) -> bool:
        """Whether this is the plain residual."""
        return self.run.config.hyper_connection is None

    def speed_over(self, other: Contestant) -> float:
        """Median over rounds of how much faster it stepped than another one did in the same round."""
        # A contestant that diverged took part in the first rounds only.
        rounds = list(zip(self.seconds, other.seconds))  # noqa: B905
        return statistics.median(theirs / ours for ours, theirs in rounds[_WARMUP_STEPS:] or rounds)


def contestants(config: LabConfig, corpus: Corpus, names: Sequence[str] = ()) -> list[Contestant]:
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
    if name == PLAIN:
        return None
    if name == "config":
        if config.hyper_connection is None:
            raise ValueError("the contestant 'config' is the [hyper_connection] section, and this config has none")
        return config.hyper_connection
    if name not in HyperConnectionConfig.presets():
        raise unknown_name("preset", name, {*HyperConnectionConfig.presets(), PLAIN, "config"})
    return HyperConnectionConfig.preset(name, **config.compare.overrides)


def train_side_by_side(field: Sequence[Contestant], *, on_round: Callable[[], None] = lambda: None) -> bool:
    """Train all contestants, one step of each in turn, and evaluate them.

    Taking turns means that whatever else the machine is doing slows all of them alike: their step times compare.

    Returns:
        True when all steps were taken; False when SIGINT came first. Evaluations and measurements are there either way.
    """
    if not field:
        raise ValueError("a comparison needs at least one contestant")
    config, step = field[0].run.config.train, 0
    with deferred_interrupt() as interrupted:
        while step < config.steps and not interrupted():
            step += 1
            for contestant in field:
                _advance(contestant, evaluate=config.eval_every > 0 and step % config.eval_every == 0)
            on_round()
        for contestant in field:
            _finish(contestant)
    return step == config.steps


def _advance(contestant: Contestant, *, evaluate: bool) -> None:
    if contestant.diverged is not None:
        return
    try:
        contestant.seconds.append(contestant.run.advance())
    except DivergedError as error:
        contestant.diverged = str(error)
        return
    if evaluate:
        contestant.run.evaluate()


def _finish(contestant: Contestant) -> None:
    run = contestant.run
    if contestant.diverged is not None:
        return
    contestant.bits_per_byte = run.evaluate()
    windows = min(_MEASURED_WINDOWS, run.config.train.eval_windows)
    tokens, _ = validation_windows(run.corpus, windows, run.config.model.context)
    contestant.matrices = measure_matrices(run.model, tokens.to(run.device))
