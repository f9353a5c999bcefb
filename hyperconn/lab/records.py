"""Results of a comparison, one line of JSON a run: all that tables, plots and reports are made of."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperconn.files import write_atomically
from hyperconn.manifolds.core.errors import shown

RECORDS = "runs.jsonl"
REPORT = "report.md"
_SHOWN = 3  # differences that a message names
PLAIN, FREE = "plain", "free"


@dataclass(frozen=True)
class Record:
    """One finished run: a contestant, with a seed, at a multiple of the learning rate.

    Attributes:
        contestant: its name.
        seed: of weights, data and dropout.
        multiplier: of the learning rate.
        setting: what it shares with every run that it may be compared with: model, training, text, versions.
        machine: where it ran; speeds of two machines do not compare, losses do.
        hyper_connection: the config of its connections; None for the plain residual.
        base: what that config is a variant of, ``"preset hc"`` or ``"defaults"``.
        differences: the keys in which it differs from that.
        kind: what its residual matrices are, in words; ``FREE`` without a constraint.
        parameters, parameters_added: learned numbers of the model, and of its connections.
        steps: optimizer steps taken.
        diverged: why it stopped early; None if it did not.
        bits_per_byte: on held-out text at the end; None if it diverged.
        speed: steps per second over those of the plain residual, which stepped in turn with it: the median of pairs.
            None where that took no part.
        step_seconds: median.
        history: ``train`` and ``gradient``, one number a step, and ``valid``, pairs of a step and the loss after it.
        matrices: what ``measure_matrices`` found; None for plain and diverged runs.
    """

    contestant: str
    seed: int
    multiplier: float
    setting: Mapping[str, Any]
    machine: Mapping[str, Any]
    hyper_connection: Mapping[str, Any] | None
    base: str
    differences: Mapping[str, Any]
    kind: str
    parameters: int
    parameters_added: int
    steps: int
    diverged: str | None
    bits_per_byte: float | None
    speed: float | None
    step_seconds: float | None
    history: Mapping[str, Any]
    matrices: Mapping[str, Any] | None

    @property
    def plain(self) -> bool:
        """Whether this is what the others are compared with."""
        return self.base == PLAIN

    @property
    def key(self) -> tuple[str, int, float]:
        """Contestant, seed and multiplier: what a comparison holds once."""
        return self.contestant, self.seed, self.multiplier

    def at_equal_time(self) -> float | None:
        """Held-out loss at the step that it reaches in the time that plain takes for all steps.

        Between two evaluations the loss is interpolated. None where that is unknown: plain took no part, the run
        diverged, no evaluation came before, or the learning rate decays: a run in its middle is then no finished one.
        """
        decays = self.setting["train"]["schedule"] != "constant"
        if self.speed is None or self.bits_per_byte is None or (decays and self.speed < 1):
            return None
        step, points = min(1.0, self.speed) * self.steps, self.history["valid"]
        for (before, high), (after, low) in itertools.pairwise(points):
            if before <= step <= after:
                return float(high + (low - high) * (step - before) / (after - before))
        return self.bits_per_byte if step >= self.steps else None


class DifferentSettingError(ValueError):
    """Results that cannot be averaged or compared, with the difference."""


def read_records(folder: Path) -> list[Record]:
    """The results in a folder, none if it holds no report.

    Raises:
        ValueError: lines that are no results.
        OSError: the file cannot be read.
    """
    path = folder / RECORDS
    if not path.exists():
        return []
    names = [field.name for field in dataclasses.fields(Record)]
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            table = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(table, dict) or sorted(table) != sorted(names):
            found = sorted(table) if isinstance(table, dict) else table
            raise ValueError(
                f"{path}, line {number}: not a result of this version of 'hyperconn compare', got {shown(found)}"
            )
        records.append(Record(**table))
    return records


def write_records(records: Iterable[Record], folder: Path) -> None:
    """Replace the results in a folder, all or nothing."""
    lines = [json.dumps(dataclasses.asdict(record), allow_nan=False, ensure_ascii=False) for record in records]
    write_atomically(folder / RECORDS, "".join(line + "\n" for line in lines).encode())


def merged(groups: Mapping[str, Sequence[Record]]) -> list[Record]:
    """The results of several reports, ``groups`` of them by the name that messages call them.

    Raises:
        DifferentSettingError: two of them differ in something else than contestant, seed and multiplier, or in the
            result of one run.
    """
    seen: dict[tuple[str, int, float], tuple[str, Record]] = {}
    kinds: dict[str, tuple[str, Record]] = {}
    first: tuple[str, Record] | None = None
    for where, records in groups.items():
        for record in records:
            first = first or (where, record)
            require_equal("the setting", first[0], where, first[1].setting, record.setting)
            name, other = kinds.setdefault(record.contestant, (where, record))
            require_equal(f"contestant {record.contestant!r}", name, where, _kind(other), _kind(record))
            name, other = seen.setdefault(record.key, (where, record))
            if other.history["train"] != record.history["train"]:
                raise DifferentSettingError(
                    f"{record.contestant}, seed {record.seed}, learning rate ×{record.multiplier:g} is in {name} and "
                    f"in {where}, with other losses: another machine or number of threads"
                )
    return [record for _, record in seen.values()]


def _kind(record: Record) -> Mapping[str, Any]:
    return record.hyper_connection or {"residual": PLAIN}


def require_equal(what: str, first: str, second: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse two tables that differ, with the keys in which they do, under the names of both."""
    a, b = flat(own), flat(other)
    differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    if differing:
        more = f"; {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        sides = (
            f"{key} is {shown(a.get(key))} in {first} and {shown(b.get(key))} in {second}" for key in differing[:_SHOWN]
        )
        raise DifferentSettingError(f"{what} differs: {'; '.join(sides)}{more}")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its standard error.

    >>> Mean.of([1.0, 2.0, 3.0])
    Mean(value=2.0, error=0.5773502691896257, count=3)
    """

    value: float
    error: float | None  # None for one value, which has no spread
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """None for no values."""
        count = len(values)
        if not count:
            return None
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, None, 1)
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean, math.sqrt(variance / count), count)

    def significant(self) -> bool:
        """Whether it is further than two standard errors from 0, of at least three seeds: two say too little of it."""
        return self.error is not None and self.count >= MIN_SEEDS and abs(self.value) > 2 * self.error


MIN_SEEDS = 3


@dataclass(frozen=True)
class Summary:
    """The runs of a contestant at one multiple of the learning rate.

    Attributes:
        runs: one a seed.
        loss: held-out bits per byte.
        gap: the same minus that of plain with the same seed.
        gap_at_equal_time: the same at the step that it reaches in the time of plain.

    All are None if a run diverged: a mean of the others would flatter it.
    """

    runs: tuple[Record, ...]
    loss: Mean | None
    gap: Mean | None
    gap_at_equal_time: Mean | None

    @property
    def diverged(self) -> int:
        """How many of the runs."""
        return sum(run.diverged is not None for run in self.runs)


def summaries(records: Sequence[Record]) -> dict[tuple[str, float], Summary]:
    """By contestant and multiplier, contestants in the order in which they come, multipliers ascending."""
    plain = {(r.seed, r.multiplier): r for r in records if r.plain and r.bits_per_byte is not None}
    found: dict[tuple[str, float], Summary] = {}
    for name in dict.fromkeys(record.contestant for record in records):
        for multiplier in sorted({record.multiplier for record in records}):
            runs = [r for r in records if (r.contestant, r.multiplier) == (name, multiplier)]
            if runs:
                found[name, multiplier] = _summary(sorted(runs, key=lambda run: run.seed), plain)
    return found


def _summary(runs: list[Record], plain: Mapping[tuple[int, float], Record]) -> Summary:
    losses = [run.bits_per_byte for run in runs if run.bits_per_byte is not None]
    if len(losses) < len(runs):
        return Summary(tuple(runs), None, None, None)
    others = [] if runs[0].plain else runs
    pairs = [(run, plain[run.seed, run.multiplier]) for run in others if (run.seed, run.multiplier) in plain]
    timed = [(run.at_equal_time(), base.bits_per_byte) for run, base in pairs]
    known = [then - base for then, base in timed if then is not None and base is not None]
    return Summary(
        tuple(runs),
        Mean.of(losses),
        gap([run for run, _ in pairs], [base for _, base in pairs]),
        Mean.of(known) if len(known) == len(pairs) else None,
    )


def gap(runs: Sequence[Record], others: Sequence[Record]) -> Mean | None:
    """Loss of the runs minus that of others, seed by seed; None without a seed that both finished."""
    base = {other.seed: other.bits_per_byte for other in others if other.bits_per_byte is not None}
    losses = {run.seed: run.bits_per_byte for run in runs if run.bits_per_byte is not None}
    return Mean.of([loss - base[seed] for seed, loss in losses.items() if seed in base])


def spikes(gradient: Sequence[float]) -> int:
    """Steps with a gradient norm above ten times the median.

    >>> spikes([1.0, 1.2, 0.9, 30.0, 1.0])
    1
    """
    ordered = sorted(gradient)
    return sum(norm > 10 * ordered[len(ordered) // 2] for norm in gradient)
