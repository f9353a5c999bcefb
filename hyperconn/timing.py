"""How contenders are timed against each other: in turns, and by ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_WARMUPS = 2


@dataclass(frozen=True)
class Spread:
    """Median and the tenth and ninetieth percentile of repeated measurements."""

    median: float
    low: float
    high: float
    repetitions: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return Spread(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    synchronize: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds by name, one a round: in a round everybody runs once, so that a slow moment is everybody's.

    A round starts one place further on than the round before, so that nobody always follows the same neighbour.

    Args:
        steps: what to time, by name.
        rounds: how many count; two before those do not.
        synchronize: waits until the device has done what it was asked for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(-_WARMUPS, rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            synchronize()
            start = time.perf_counter()
            steps[name]()
            synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> Spread:
    """Spread of ``name`` over ``to``, each ratio from one round: what slows a whole round down cancels."""
    return Spread.of([mine / other for mine, other in zip(seconds[name], seconds[to], strict=True)])
