"""Gates: the maps from logits to the read (pre) and write (post) vectors.

A gate is named in a config. It says how many logits it takes for n streams, maps them to n weights, and knows two
starting points: the one of a plain residual network (read weights that sum to 1 and lean on one stream, write weights
of 1) and the published one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.manifolds.core.errors import unknown_name

# Share of the preferred stream at the start: enough to break the symmetry of the streams, little enough to leave the
# others a gradient.
_PREFERRED_SHARE = 0.7


@dataclass(frozen=True)
class Gate:
    """A map from logits to weights.

    Attributes:
        name: what a config says.
        statement: the formula.
        forward: ``[..., n]`` logits (``[..., n, n]`` for a matrix gate) to ``[..., n]`` weights.
        matrix: takes n×n logits, row by row, instead of n.
        start_read: ``(n, stream) -> logits`` whose weights sum to 1 and lean on ``stream``; None for a write-only gate.
        start_write: ``(n) -> logits`` whose weights are all 1; None for a read-only gate.
        published: ``(n, stream) -> logits`` of the released code, where it differs from the plain residual start.
    """

    name: str
    statement: str
    forward: Callable[[Tensor], Tensor]
    matrix: bool = False
    start_read: Callable[[int, int], Tensor] | None = None
    start_write: Callable[[int], Tensor] | None = None
    published: Callable[[int, int], Tensor] | None = None

    def num_coordinates(self, n: int) -> int:
        """Number of logits for n streams."""
        return n * n if self.matrix else n

    def __call__(self, logits: Tensor, n: int) -> Tensor:
        """``[..., num_coordinates(n)]`` logits to ``[..., n]`` weights."""
        return self.forward(logits.unflatten(-1, (n, n)) if self.matrix else logits)


def _shares(n: int, stream: int) -> Tensor:
    """``[n]`` weights that sum to 1 and lean on ``stream``."""
    if n == 1:
        return torch.ones(1, dtype=torch.float64)
    shares = torch.full((n,), (1 - _PREFERRED_SHARE) / (n - 1), dtype=torch.float64)
    shares[stream] = _PREFERRED_SHARE
    return shares


def _logit(p: Tensor) -> Tensor:
    # A single stream needs the weight 1, which a sigmoid only approaches: stop one float32 rounding short of it.
    return torch.logit(p.clamp(max=1 - 2.0**-23))


def _one_hot(n: int, stream: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[stream]


def _plus_minus_one(n: int, stream: int) -> Tensor:
    """The released code of mHC-lite, KromHC and sHC: logit +1 on one stream and −1 on the others."""
    return 2 * _one_hot(n, stream) - 1


_ALL = (
    Gate(
        "sigmoid", "σ(l)", torch.sigmoid,
        start_read=lambda n, k: _logit(_shares(n, k)),
        start_write=lambda n: _logit(torch.ones(n, dtype=torch.float64)),
        published=_plus_minus_one,
    ),
    Gate(
        "double_sigmoid", "2 σ(l)", lambda logits: 2 * torch.sigmoid(logits),
        start_read=lambda n, k: _logit(_shares(n, k) / 2),
        start_write=lambda n: torch.zeros(n, dtype=torch.float64),
        published=_plus_minus_one,
    ),
    Gate(
        "softmax", "softmax(l)", lambda logits: torch.softmax(logits, -1),
        start_read=lambda n, k: _shares(n, k).log(),
    ),
    Gate(
        "linear", "l", lambda logits: logits,
        start_read=_one_hot,
        start_write=lambda n: torch.ones(n, dtype=torch.float64),
    ),
    Gate(
        "row_softmax", "softmax over rows of n×n logits, transposed, times 1/n",
        lambda logits: torch.softmax(logits, -1).mean(-2), matrix=True,
        start_read=lambda n, k: _shares(n, k).log().expand(n, n).flatten(),
    ),
    Gate(
        "column_softmax", "softmax over columns of n×n logits, times 1",
        lambda logits: torch.softmax(logits, -2).sum(-1), matrix=True,
        start_write=lambda n: torch.zeros(n * n, dtype=torch.float64),
    ),
)  # fmt: skip

GATES: dict[str, Gate] = {gate.name: gate for gate in _ALL}
READ_GATES = tuple(gate.name for gate in _ALL if gate.start_read is not None)
WRITE_GATES = tuple(gate.name for gate in _ALL if gate.start_write is not None)


def gate(name: str) -> Gate:
    """The gate of that name; raises UnknownNameError with the nearest names."""
    try:
        return GATES[name]
    except (KeyError, TypeError):
        raise unknown_name("gate", name, GATES) from None
