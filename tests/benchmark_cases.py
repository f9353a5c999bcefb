"""Contenders small enough to count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ours
from harness import Contender, Shape, Subject

CPU = torch.device("cpu")
SMALL = Shape((2, 6), streams=4, channels=8)


def toy(run: Callable[[Tensor, Tensor], Tensor], name: str = "toy", kind: str = "ours") -> Contender:
    """A contender that should compute ``x · w`` and computes ``run(x, w)``."""

    def build(shape: Shape, device: torch.device) -> Subject:
        module = nn.Module()
        module.w = nn.Parameter(torch.randn(shape.channels, dtype=shape.dtype))
        size = (*shape.batch, shape.channels)
        return ours.subject(module, size, shape, device, lambda x, p: x * p["w"], lambda x: run(x, module.w))

    return Contender(name, kind, build)
