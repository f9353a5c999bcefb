"""The same model under different residual connections, trained side by side."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

import hyperconn
from hyperconn.lab.checkpoint import read_checkpoint, restore, state_of, write_state
from hyperconn.lab.contestants import Contestant, described
from hyperconn.lab.data import Corpus, validation_windows
from hyperconn.lab.measure import MatrixReport, kind_of, measure_matrices
from hyperconn.lab.records import (
    RECORDS,
    REPORT,
    DifferentSettingError,
    Record,
    merged,
    read_records,
    require_equal,
    write_records,
)
from hyperconn.lab.run import DivergedError, Run, resolve_device
from hyperconn.lab.settings import LabConfig
from hyperconn.lab.training import deferred_interrupt

_FORMAT = "hyperconn-compare-1"
# The first steps of a process pay for allocations and lazy initialisation.
_WARMUP_STEPS = 3
# Thousands of tokens show the worst matrices well enough; eigenvalues of more would take as long as the training.
_MEASURED_WINDOWS = 64
# What may differ between two runs that are compared: how far apart they look, and on what they run.
_FREE = ("seed", "checkpoint_every", "device", "threads")


def setting_of(config: LabConfig, corpus: Corpus) -> dict[str, Any]:
    """What all runs of a comparison share: two reports with equal settings can be merged."""
    table = config.to_dict()
    return {
        "model": table["model"],
        "train": {key: value for key, value in table["train"].items() if key not in _FREE},
        "text": {"digest": corpus.digest, "source": corpus.source.rpartition("(")[0] or corpus.source},
        "versions": {"hyperconn": hyperconn.__version__, "torch": torch.__version__.partition("+")[0]},
        "device": resolve_device(config.train.device).type,
    }


@dataclass
class _Lane:
    """A contestant in a heat: its run, the seconds of every step, and why it stopped."""

    contestant: Contestant
    run: Run
    seconds: list[float] = field(default_factory=list)
    diverged: str | None = None


class Comparison:
    """Runs of all contestants with every seed and multiplier, and what is finished of them in a folder.

    A *heat* is what trains at the same time: all contestants with one seed at one multiple of the learning rate. They
    take turns, one step each: whatever else the machine is doing slows all of them alike, and their step times compare.

    Args:
        config: the setting, seeds and multipliers.
        corpus: the text.
        field: who takes part.
        folder: where results are, and will be. Those that are there count as done.

    Raises:
        DifferentSettingError: the folder holds results of another comparison; the message names the difference.
        ValueError, OSError: it holds a report without its results, or files that cannot be read.
    """

    def __init__(self, config: LabConfig, corpus: Corpus, field: Sequence[Contestant], folder: Path) -> None:
        self.config, self.corpus, self.field, self.folder = config, corpus, tuple(field), folder
        self.setting = setting_of(config, corpus)
        self.records = read_records(folder)
        if not self.records and (folder / REPORT).exists():
            raise ValueError(f"{folder / REPORT} is a report without its {RECORDS}; choose another --out folder")
        own = {"this comparison": [self._planned(contestant) for contestant in field]}
        begun = [(path, read_checkpoint(path, _FORMAT, "compare")["heat"]) for path in folder.glob("unfinished_*.pt")]
        try:
            merged({str(folder): self.records} | own)
            for path, heat in begun:
                here = self._heat(heat["seed"], heat["multiplier"], self._missing(heat["seed"], heat["multiplier"]))
                if here["contestants"]:
                    require_equal("what is unfinished", str(path), "this comparison", heat, here)
        except DifferentSettingError as error:
            raise DifferentSettingError(
                f"{folder} holds another comparison: {error}. Choose another --out folder, or delete this one"
            ) from None

    def heats(self) -> list[tuple[int, float, tuple[Contestant, ...]]]:
        """Seed, multiplier and who has not finished, of every heat that is not finished; seed by seed."""
        first, compared = self.config.train.seed, self.config.compare
        found = []
        for seed in range(first, first + compared.seeds):
            for factor in compared.lr_multipliers:
                missing = self._missing(seed, factor)
                found += [(seed, factor, missing)] if missing else []
        return found

    def _missing(self, seed: int, multiplier: float) -> tuple[Contestant, ...]:
        done = {record.key for record in self.records}
        return tuple(c for c in self.field if (c.name, seed, multiplier) not in done)

    def steps_taken(self, seed: int, multiplier: float) -> int:
        """Steps of this heat that an interrupted process left behind."""
        path = self._path(seed, multiplier)
        return int(read_checkpoint(path, _FORMAT, "compare")["step"]) if path.exists() else 0

    def train(
        self,
        *,
        on_heat: Callable[[int, float, int], None] = lambda seed, multiplier, step: None,
        on_step: Callable[[int], None] = lambda step: None,
        on_interrupt: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train all heats, from where an interrupted process left off, and write their results to the folder.

        Args:
            on_heat: called at the start of a heat with seed, multiplier and steps taken before.
            on_step: called when all contestants have taken a step, with its number.
            on_interrupt: called at the first SIGINT.

        Returns:
            True when all are finished; False when SIGINT came first. What was trained is on the disk either way.

        Raises:
            OSError: the disk is full, say; what was written before is intact.
        """
        with only_process(self.folder), deferred_interrupt(on_interrupt) as interrupted:
            self.records = read_records(self.folder)  # another process may have finished some
            for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink()
            for seed, multiplier, field in self.heats():
                if interrupted():
                    return False
                on_heat(seed, multiplier, self.steps_taken(seed, multiplier))
                if not self._train(seed, multiplier, field, on_step, interrupted):
                    return False
        return True

    def _train(
        self,
        seed: int,
        multiplier: float,
        field: Sequence[Contestant],
        on_step: Callable[[int], None],
        interrupted: Callable[[], bool],
    ) -> bool:
        lanes = [_Lane(c, Run(self._run_config(c, seed, multiplier), self.corpus)) for c in field]
        train, step, path = self.config.train, 0, self._path(seed, multiplier)
        if path.exists():
            state = read_checkpoint(path, _FORMAT, "compare")
            step = state["step"]
            for lane in lanes:
                saved = state["lanes"][lane.contestant.name]
                restore(lane.run, saved["run"])
                lane.seconds, lane.diverged = saved["seconds"], saved["diverged"]
        while step < train.steps:
            if interrupted():
                self._save(seed, multiplier, step, lanes)
                return False
            step += 1
            due = step < train.steps and train.eval_every > 0 and step % train.eval_every == 0
            for lane in lanes:
                _advance(lane, evaluate=due)
            on_step(step)
            if train.checkpoint_every and step % train.checkpoint_every == 0 and step < train.steps:
                self._save(seed, multiplier, step, lanes)
        plain = next((lane for lane in lanes if lane.contestant.connection is None), None)
        self.records += [self._record(lane, seed, multiplier, plain) for lane in lanes]
        write_records(self.records, self.folder)
        path.unlink(missing_ok=True)
        return True

    def _run_config(self, contestant: Contestant, seed: int, multiplier: float) -> LabConfig:
        rate = self.config.train.learning_rate * multiplier
        train = dataclasses.replace(self.config.train, seed=seed, learning_rate=rate)
        return dataclasses.replace(self.config, train=train, hyper_connection=contestant.connection)

    def _path(self, seed: int, multiplier: float) -> Path:
        return self.folder / f"unfinished_{seed}_x{multiplier:g}.pt"

    def _heat(self, seed: int, multiplier: float, field: Sequence[Contestant]) -> dict[str, Any]:
        kinds = {c.name: {} if c.connection is None else c.connection.to_dict() for c in field}
        heat = {"seed": seed, "multiplier": multiplier, "contestants": sorted(kinds), "setting": self.setting}
        return cast(dict[str, Any], _json(heat | {"hyper_connection": kinds}))

    def _save(self, seed: int, multiplier: float, step: int, lanes: Sequence[_Lane]) -> None:
        states = {
            lane.contestant.name: {"run": state_of(lane.run), "seconds": lane.seconds, "diverged": lane.diverged}
            for lane in lanes
        }
        heat = self._heat(seed, multiplier, [lane.contestant for lane in lanes])
        write_state({"format": _FORMAT, "heat": heat, "step": step, "lanes": states}, self._path(seed, multiplier))

    def _planned(self, contestant: Contestant) -> Record:
        """A record of a run that did not begin, to compare with those that are there."""
        kind = None if contestant.connection is None else contestant.connection.to_dict()
        plan: dict[str, Any] = {f.name: None for f in dataclasses.fields(Record)}
        plan |= {"contestant": contestant.name, "hyper_connection": kind, "history": {"train": []}}
        return Record(**{**plan, "seed": -1, "setting": _json(self.setting)})

    def _record(self, lane: _Lane, seed: int, multiplier: float, plain: _Lane | None) -> Record:
        run, connection = lane.run, lane.contestant.connection
        base, differences = described(lane.contestant)
        bits, matrices = None, None
        if lane.diverged is None:
            bits, matrices = run.evaluate(), _matrices(run)
        return Record(
            contestant=lane.contestant.name,
            seed=seed,
            multiplier=multiplier,
            setting=_json(self.setting),
            machine={
                "platform": platform.platform(),
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
            },
            hyper_connection=None if connection is None else _json(connection.to_dict()),
            base=base,
            differences=_json(differences),
            kind="identity" if connection is None else kind_of(connection.make_manifold()),
            parameters=run.model.num_parameters(),
            parameters_added=run.model.num_connection_parameters(),
            steps=run.step,
            diverged=lane.diverged,
            bits_per_byte=bits,
            speed=None if plain is None else paired_speed(lane.seconds, plain.seconds),
            step_seconds=statistics.median(lane.seconds) if lane.seconds else None,
            history=_json(dataclasses.asdict(run.history)),
            matrices=None if matrices is None else _json(dataclasses.asdict(matrices)),
        )


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """A lock on a folder, which ends with the process however that ends; BlockingIOError where another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, "another process is training there") from None
        yield
    finally:
        os.close(descriptor)


def _json(table: Any) -> Any:
    """As it is read back from a file: with lists for tuples, and null for what is no number."""
    return json.loads(json.dumps(table), parse_constant=lambda constant: None)


def _advance(lane: _Lane, *, evaluate: bool) -> None:
    if lane.diverged is not None:
        return
    try:
        lane.seconds.append(lane.run.advance())
    except DivergedError as error:
        lane.diverged = str(error)
        return
    if evaluate:
        lane.run.evaluate()


def _matrices(run: Run) -> MatrixReport | None:
    windows = min(_MEASURED_WINDOWS, run.config.train.eval_windows)
    tokens, _ = validation_windows(run.corpus, windows, run.config.model.context)
    return measure_matrices(run.model, tokens.to(run.device))


def paired_speed(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Median over rounds of how much faster one stepped than another in the same round; None without a round.

    Noise that hits a whole round cancels:

    >>> paired_speed([2.0, 2.0, 2.0, 100.0, 6.0], [1.0, 1.0, 1.0, 50.0, 3.0])
    0.5
    """
    # What diverged took part in the first rounds only.
    rounds = list(zip(ours, theirs))  # noqa: B905
    paired = rounds[_WARMUP_STEPS:] or rounds
    return statistics.median(other / own for own, other in paired) if paired else None
