"""Where the cases of a law come from: a fixed grid, and a hypothesis strategy."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import strategies
from hypothesis.extra.numpy import arrays

from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.law import Law

_SEEDS = strategies.integers(0, 2**32 - 1)


def grid(law: Law, subject: Map, seed: int = 0, device: str = "cpu") -> list[Case]:
    """Cases that meet every scale of a law in every dtype and every batch shape at least once, simple ones first."""
    cells = list(itertools.product(law.dtypes, law.scales))
    total = max(len(cells), len(law.batches))
    kinds = itertools.islice(zip(itertools.cycle(cells), itertools.cycle(law.batches), strict=False), total)
    return [Case.of(subject, seed, scale, batch, dtype, device, smooth=law.smooth) for (dtype, scale), batch in kinds]


@strategies.composite
def cases(draw: strategies.DrawFn, law: Law, subject: Map, device: str = "cpu") -> Case:
    """The cases that a law may meet: coordinates in general position, awkward ones, and any floats at all.

    The last are arrays of a few values, subnormal ones and zeros of both signs among them, beside a value that fills
    the rest: one-hots and ties.
    """
    dtype = draw(strategies.sampled_from(law.dtypes))
    scale = draw(strategies.sampled_from(law.scales))
    batch = draw(strategies.sampled_from(law.batches))
    seed = draw(_SEEDS)
    if law.smooth or draw(strategies.booleans()):
        return Case.of(subject, seed, scale, batch, dtype, device, smooth=law.smooth)
    largest = float(np.float32(4 * scale))
    values = strategies.floats(-largest, largest, width=64 if dtype == torch.float64 else 32)
    shape = (*batch, subject.num_coordinates)
    numbers = draw(arrays(np.float64, shape, elements=values, fill=values))
    return Case(torch.from_numpy(numbers).to(dtype=dtype, device=device), seed, scale)
