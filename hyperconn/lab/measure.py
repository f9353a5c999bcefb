"""What the residual matrices of a trained model are like on held-out text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.config import HyperConnectionConfig
from hyperconn.diagnostics import backward_gain, collect_coefficients, composite, forward_gain, spectral_norm
from hyperconn.lab.model import GPT
from hyperconn.manifolds import Manifold, invariants


@dataclass(frozen=True)
class MatrixReport:
    """Worst cases over all measured tokens, of L sublayers.

    Attributes:
        violation: largest violation of the manifold's invariants by any H; None if it promises none.
        tolerance: what rounding alone explains.
        forward, backward, spectral: ``[L]`` largest gains and spectral norm of the product of the first l + 1 matrices.
        mean: ``[L, n, n]`` every matrix, averaged over the tokens.
        learns: ``[L]`` see ``learning_layers``.
    """

    violation: float | None
    tolerance: float
    forward: list[float]
    backward: list[float]
    spectral: list[float]
    mean: list[list[list[float]]]
    learns: list[bool]


@torch.no_grad()
def measure_matrices(model: GPT, tokens: Tensor, *, chunk: int = 8) -> MatrixReport | None:
    """Collect every H on ``tokens [B, T]`` and compose them over depth; None for a model with plain residuals."""
    if model.hyper_connection is None:
        return None
    model.eval()
    transposed = model.hyper_connection.orientation == "transposed"
    manifold = model.hyper_connection.make_manifold()
    violations, gains, sums = [], [], []
    for part in tokens.split(chunk):
        Hs = [found.coefficients.H for found in collect_coefficients(model, part)]
        # The invariants are promised for what the manifold makes; a transposed layer applies the transpose of that.
        violations += [manifold.violation(H.mT if transposed else H).amax() for H in Hs]
        sums.append(torch.stack([H.flatten(0, -3).sum(0, dtype=torch.float64) for H in Hs]))
        products = composite(Hs).flatten(1, -3)  # [L, tokens, n, n]
        gains.append(torch.stack([f(products).amax(1) for f in (forward_gain, backward_gain, spectral_norm)]))
    forward, backward, spectral = torch.stack(gains).amax(0).tolist()
    violation = float(torch.stack(violations).amax()) if manifold.invariants else None
    mean = torch.stack(sums).sum(0) / tokens.numel()  # [L, n, n]
    learns = learning_layers(model.hyper_connection, len(Hs))
    return MatrixReport(violation, manifold.tolerance(Hs[0].dtype), forward, backward, spectral, mean.tolist(), learns)


def learning_layers(config: HyperConnectionConfig, layers: int) -> list[bool]:
    """Which of the layers of a stack have an H that makes a difference, so that it can learn anything.

    A first H whose rows sum to 1 leaves copies of one vector as they are, and a mean or a sum of the streams does not
    see a last H whose columns do.
    """
    manifold = config.make_manifold()
    rows, columns = (sums in manifold.invariants for sums in (invariants.row_sums, invariants.column_sums))
    if config.orientation == "transposed":
        rows, columns = columns, rows
    learns = [manifold.num_coordinates > 0] * layers
    if config.expand == "copies" and rows:
        learns[0] = False
    if config.collapse in ("mean", "sum") and columns:
        learns[-1] = False
    return learns


def kind_of(manifold: Manifold) -> str:
    """What a residual matrix is, in words that follow from its invariants.

    >>> from hyperconn.manifolds import make
    >>> kind_of(make("kronecker", n=4)), kind_of(make("stiefel", n=4))
    ('doubly stochastic', 'orthogonal')
    """
    held = set(manifold.invariants)
    kinds = {
        "identity": {invariants.is_identity},
        "doubly stochastic": {invariants.row_sums, invariants.column_sums, invariants.nonnegative},
        "projection": {invariants.idempotent},
        "orthogonal": {invariants.orthogonal},
        "spectral norm 1": {invariants.spectral_norm},
    }
    by_name = ", ".join(invariant.name for invariant in manifold.invariants) or "free"
    return next((kind for kind, conditions in kinds.items() if conditions <= held), by_name)
