"""A stack of layers whose matrices are non-expansive is non-expansive, through the real layer and not only on paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, HyperConnectionStack, manifolds
from hyperconn.manifolds import Manifold, invariants

DEPTH, DIM = 8, 6

# One of each class and number of streams: how well each keeps its bound is the business of the laws.
EXAMPLES = [m for name in manifolds.available() for m in manifolds.get(name).examples()]
NON_EXPANSIVE = {(m.name, m.n): m for m in EXAMPLES if m.norm_bound is not None and m.norm_bound <= 1.0 and m.n < 5}


class Silent(nn.Module):
    """A branch that has nothing to say: what is left is the residual path."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def layers_of(manifold: Manifold, **overrides: str) -> list[HyperConnection]:
    """``DEPTH`` layers with other random coefficients each, which depend on the token."""
    config = HyperConnectionConfig(manifold.n, manifold=manifold, scale_init=1.0, **overrides)
    layers = [HyperConnection(Silent(), DIM, config, layer_index=k).double() for k in range(DEPTH)]
    generator = torch.Generator().manual_seed(7)
    for parameter in nn.ModuleList(layers).parameters():
        parameter.data += torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return layers


def norms(x: Tensor) -> Tensor:
    """Frobenius norm of the streams of each token."""
    return x.flatten(-2).norm(dim=-1)


@pytest.mark.parametrize("orientation", ("direct", "transposed"))
@pytest.mark.parametrize("manifold", NON_EXPANSIVE.values(), ids=repr)
def test_no_layer_makes_streams_or_gradients_longer(manifold: Manifold, orientation: str) -> None:
    layers, slack = layers_of(manifold, orientation=orientation), 1 + 4 * manifold.tolerance(torch.float64)
    start = x = torch.randn(16, manifold.n, DIM, dtype=torch.float64)
    for layer in layers:
        before, x = x, layer(x).detach()
        assert (norms(x) <= norms(before) * slack).all()
        if invariants.column_sums in manifold.invariants and invariants.row_sums in manifold.invariants:
            torch.testing.assert_close(x.mean(-2), start.mean(-2))
        if invariants.orthogonal in manifold.invariants:
            torch.testing.assert_close(norms(x), norms(before))
    # With coefficients that do not look at the token; those that do have gradients of their own.
    static = HyperConnectionStack(layers_of(manifold, orientation=orientation, predictor="static"))
    cotangent = torch.randn_like(start)
    (gradient,) = torch.autograd.grad(static(start.requires_grad_()), start, cotangent)
    assert (norms(gradient) <= norms(cotangent) * slack**DEPTH).all()


def test_the_bound_is_not_kept_by_accident() -> None:
    """The control grows beyond any bound, and the others do mix."""
    assert {m.name for m in EXAMPLES} - {name for name, _ in NON_EXPANSIVE} == {"unconstrained"}
    x = torch.randn(16, 4, DIM, dtype=torch.float64)
    assert (norms(HyperConnectionStack(layers_of(manifolds.make("unconstrained", n=4)))(x)) > 100 * norms(x)).all()
    for m in NON_EXPANSIVE.values():
        if m.n == 4 and m.num_coordinates:
            assert (HyperConnectionStack(layers_of(m))(x) - x).abs().max() > 0.1
