"""Gates: maps from logits to the weights with which the streams are read (pre) and written (post).

A gate is a map like a manifold: it says how many logits it takes for n streams, maps them to weights, and may bring a
Triton device pair. It knows where it starts, as a plain residual network: read weights that sum to 1 and lean on one
stream, write weights of 1.

>>> make("softmax", n=2)(torch.zeros(2))
tensor([0.5000, 0.5000])
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hyperconn.manifolds.core.instance_check import ask, require, require_map, require_tensor, sample_numbers
from hyperconn.manifolds.core.map import Map, attribute
from hyperconn.manifolds.registry import Registry

# Share of the preferred stream at the start: enough to break the symmetry of the streams, little enough to leave the
# others a gradient.
_PREFERRED_SHARE = 0.7


@dataclass(frozen=True)
class Gate(Map):
    """A map from ``num_coordinates`` logits to the weights of n streams.

    Subclass as a frozen dataclass; options are further fields. A subclass says ``name``, ``forward`` and ``inverse``;
    the rest has defaults.

    Attributes:
        reads, writes: what the gate can start as: the read weights, the write weights.
    """

    reads: ClassVar[bool] = True
    writes: ClassVar[bool] = True

    @attribute
    def num_coordinates(self) -> int:
        """P, the number of logits; n, one a stream."""
        return self.n

    @attribute
    def value_shape(self) -> tuple[int, ...]:
        """Shape of the weights, ``(n,)``. A gate with any other brings ``read`` and runs on torch."""
        return (self.n,)

    @abstractmethod
    def inverse(self, weights: Tensor) -> Tensor:
        """``[n]`` float64 weights to ``[P]`` logits that the gate maps to them, or as near as it reaches."""

    def read_weights(self, stream: int) -> Tensor:
        """``[n]`` float64: where the read weights start. They sum to 1 and lean on ``stream``."""
        if self.n == 1:
            return torch.ones(1, dtype=torch.float64)
        shares = torch.full((self.n,), (1 - _PREFERRED_SHARE) / (self.n - 1), dtype=torch.float64)
        shares[stream] = _PREFERRED_SHARE
        return shares

    def read_start(self, stream: int) -> Tensor:
        """``[P]`` float64 logits of the plain residual start for a read that leans on ``stream``."""
        return self.inverse(self.read_weights(stream))

    def write_start(self, weight: float = 1.0) -> Tensor:
        """``[P]`` float64 logits of the plain residual start for a write: every weight is ``weight``."""
        return self.inverse(torch.full((self.n,), weight, dtype=torch.float64))

    def published_start(self, stream: int) -> Tensor | None:
        """``[P]`` float64 logits of the released code; None where it starts as a plain residual network."""
        return None

    def read(self, x: Tensor, weights: Tensor) -> Tensor:
        """``u [T, C]`` from streams ``x [T, n, C]`` and ``weights [T, *value_shape]``: the weighted sum."""
        return (weights.unsqueeze(-2) @ x).squeeze(-2)

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Instances that the laws run on; cover sizes and options here."""
        return tuple(cls(n=n) for n in (1, 2, 3, 4, 8))


def require_gate(gate: Gate) -> None:
    """Refuse a gate that is no map, or whose ``inverse`` gives no logits; PartError says why."""
    require_map(gate)
    for role in ("reads", "writes"):
        held: object = getattr(gate, role)
        require(gate, role, type(held) is bool, "True or False", held)
    weights = torch.full((gate.n,), 1.0 if gate.writes else 1 / gate.n, dtype=torch.float64)
    with sample_numbers():
        logits = ask(gate, "inverse", lambda: gate.inverse(weights))
        require_tensor(gate, "inverse", logits, (gate.num_coordinates,), dtype=torch.float64)


GATES: Registry[Gate] = Registry("gate", Gate, require_gate)
register, unregister, get, make = GATES.register, GATES.unregister, GATES.get, GATES.make
available, aliases, provider = GATES.available, GATES.aliases, GATES.provider


def _logit(p: Tensor) -> Tensor:
    # A sigmoid only approaches the weight 1: stop one float32 rounding short of it.
    return torch.logit(p.clamp(max=1 - 2.0**-23))


@dataclass(frozen=True)
class _BuiltIn(Gate):
    pair: ClassVar[str | None] = None  # the device pair of this name

    def device_pair(self) -> Any | None:
        if self.pair is None:
            return None
        from hyperconn.kernels.fused.maps import gates  # here, not above: nothing but the fused kernels may need triton

        return getattr(gates, self.pair)


@dataclass(frozen=True)
class _SigmoidGate(_BuiltIn):
    def published_start(self, stream: int) -> Tensor | None:
        """The released code of mHC-lite, KromHC and sHC: logit +1 on one stream and −1 on the others."""
        return 2 * torch.eye(self.n, dtype=torch.float64)[stream] - 1


@register("sigmoid")
@dataclass(frozen=True)
class Sigmoid(_SigmoidGate):
    """``σ(l)``, the read weights of mHC (arXiv 2512.24880)."""

    name = "sigmoid"
    pair = "SIGMOID"

    def forward(self, theta: Tensor) -> Tensor:
        return torch.sigmoid(theta)

    def inverse(self, weights: Tensor) -> Tensor:
        return _logit(weights)


@register("double_sigmoid")
@dataclass(frozen=True)
class DoubleSigmoid(_SigmoidGate):
    """``2 σ(l)``, the write weights of mHC (arXiv 2512.24880)."""

    name = "double_sigmoid"
    pair = "DOUBLE_SIGMOID"

    def forward(self, theta: Tensor) -> Tensor:
        return 2 * torch.sigmoid(theta)

    def inverse(self, weights: Tensor) -> Tensor:
        return _logit(weights / 2)


@register("softmax")
@dataclass(frozen=True)
class Softmax(_BuiltIn):
    """``softmax(l)``, for reading: the weights sum to 1."""

    name = "softmax"
    pair = "SOFTMAX"
    writes = False

    def forward(self, theta: Tensor) -> Tensor:
        return torch.softmax(theta, -1)

    def inverse(self, weights: Tensor) -> Tensor:
        return weights.log()


@register("linear")
@dataclass(frozen=True)
class Linear(_BuiltIn):
    """The logits themselves, as HC has them (arXiv 2409.19606); a read starts with all of its weight on one stream."""

    name = "linear"
    pair = "LINEAR"

    def forward(self, theta: Tensor) -> Tensor:
        return theta

    def inverse(self, weights: Tensor) -> Tensor:
        return weights

    def read_weights(self, stream: int) -> Tensor:
        return torch.eye(self.n, dtype=torch.float64)[stream]


@dataclass(frozen=True)
class _Constant(_BuiltIn):
    @property
    def num_coordinates(self) -> int:
        return 0

    def inverse(self, weights: Tensor) -> Tensor:
        """Nothing: there are no logits."""
        return weights.new_zeros(0)


@register("mean")
@dataclass(frozen=True)
class Mean(_Constant):
    """1/n for every stream, without logits: the read of a plain residual."""

    name = "mean"
    writes = False

    def forward(self, theta: Tensor) -> Tensor:
        return theta.new_full((*theta.shape[:-1], self.n), 1 / self.n)

    def read_weights(self, stream: int) -> Tensor:
        return torch.full((self.n,), 1 / self.n, dtype=torch.float64)


@register("ones")
@dataclass(frozen=True)
class Ones(_Constant):
    """1 for every stream, without logits: the write of a plain residual."""

    name = "ones"
    reads = False

    def forward(self, theta: Tensor) -> Tensor:
        return theta.new_ones((*theta.shape[:-1], self.n))


@dataclass(frozen=True)
class _SquareGate(_BuiltIn):
    @property
    def num_coordinates(self) -> int:
        return self.n**2

    def _square(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (self.n, self.n))


@register("row_softmax")
@dataclass(frozen=True)
class RowSoftmax(_SquareGate):
    """``Sᵀ 1/n`` with S the softmax of each row of n×n logits: the read of JPmHC (arXiv 2602.18308)."""

    name = "row_softmax"
    pair = "ROW_SOFTMAX"
    writes = False

    def forward(self, theta: Tensor) -> Tensor:
        return torch.softmax(self._square(theta), -1).mean(-2)

    def inverse(self, weights: Tensor) -> Tensor:
        return weights.log().expand(self.n, self.n).flatten()


@register("column_softmax")
@dataclass(frozen=True)
class ColumnSoftmax(_SquareGate):
    """``S 1`` with S the softmax of each column of n×n logits: the write of JPmHC (arXiv 2602.18308)."""

    name = "column_softmax"
    pair = "COLUMN_SOFTMAX"
    reads = False

    def forward(self, theta: Tensor) -> Tensor:
        return torch.softmax(self._square(theta), -2).sum(-1)

    def inverse(self, weights: Tensor) -> Tensor:
        return weights.log()[:, None].expand(self.n, self.n).flatten()


@register("matrix")
@dataclass(frozen=True)
class Matrix(_SquareGate):
    """n×n weights as they are: fraction k of the input is ``Σᵢ Wᵢₖ xᵢ`` (Frac-Connections, arXiv 2503.14125)."""

    name = "matrix"
    writes = False

    @property
    def value_shape(self) -> tuple[int, ...]:
        return (self.n, self.n)

    def forward(self, theta: Tensor) -> Tensor:
        return self._square(theta)

    def inverse(self, weights: Tensor) -> Tensor:
        """The weights that read every fraction with its own one: those of a diagonal matrix."""
        return torch.diag(weights).flatten()

    def read_weights(self, stream: int) -> Tensor:
        """Ones: every fraction is read where it lies."""
        return torch.ones(self.n, dtype=torch.float64)

    def read(self, x: Tensor, weights: Tensor) -> Tensor:
        return (weights.mT @ x).flatten(-2)


BUILT_IN: tuple[type[Gate], ...] = (
    Sigmoid,
    DoubleSigmoid,
    Softmax,
    Linear,
    Mean,
    Ones,
    RowSoftmax,
    ColumnSoftmax,
    Matrix,
)
