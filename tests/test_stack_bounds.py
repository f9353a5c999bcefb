"""A stack of layers whose matrices are non-expansive is non-expansive, through the real layer and not only on paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, HyperConnectionStack, manifolds
from hyperconn.manifolds import Manifold, invariants

DEPTH, DIM = 24, 6

INSTANCES = [instance for name in manifolds.available() for instance in manifolds.get(name).examples()]
NON_EXPANSIVE = [m for m in INSTANCES if m.norm_bound is not None and m.norm_bound <= 1.0]


class Silent(nn.Module):
    """A branch that has nothing to say: what is left is the residual path."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def layers_of(manifold: Manifold, **overrides: str) -> list[HyperConnection]:
    """``DEPTH`` layers with other random coefficients each, which depend on the token."""
    config = HyperConnectionConfig(manifold.n, manifold=manifold, scale_init=1.0, **overrides)
    assert config.make_manifold() == manifold
    layers = [HyperConnection(Silent(), DIM, config, layer_index=k).double() for k in range(DEPTH)]
    generator = torch.Generator().manual_seed(7)
    for parameter in nn.ModuleList(layers).parameters():
        parameter.data += torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return layers


def norms(x: Tensor) -> Tensor:
    """Frobenius norm of the streams of each token."""
    return x.flatten(-2).norm(dim=-1)


@pytest.mark.parametrize("orientation", ("direct", "transposed"))
@pytest.mark.parametrize("manifold", NON_EXPANSIVE, ids=repr)
def test_no_layer_makes_the_streams_longer(manifold: Manifold, orientation: str) -> None:
    layers = layers_of(manifold, orientation=orientation)
    slack = 1 + 4 * manifold.tolerance(torch.float64)
    start = x = torch.randn(16, manifold.n, DIM, dtype=torch.float64)
    for layer in layers:
        before, x = x, layer(x).detach()
        assert (norms(x) <= norms(before) * slack).all()
        if invariants.column_sums in manifold.invariants and invariants.row_sums in manifold.invariants:
            torch.testing.assert_close(x.mean(-2), start.mean(-2))
        if invariants.orthogonal in manifold.invariants:
            torch.testing.assert_close(norms(x), norms(before))
    torch.testing.assert_close(HyperConnectionStack(layers)(start), x)


@pytest.mark.parametrize("manifold", NON_EXPANSIVE, ids=repr)
def test_nor_is_a_gradient_longer_on_its_way_back(manifold: Manifold) -> None:
    """With coefficients that do not look at the token; those that do have gradients of their own."""
    stack = HyperConnectionStack(layers_of(manifold, predictor="static"))
    x = torch.randn(16, manifold.n, DIM, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(stack(x), x, cotangent)
    assert (norms(gradient) <= norms(cotangent) * (1 + 4 * DEPTH * manifold.tolerance(torch.float64))).all()


def test_the_bound_is_not_kept_by_accident() -> None:
    """The control grows beyond any bound, most others do mix, and there are enough of them."""
    assert len(NON_EXPANSIVE) > 40 and {m.name for m in NON_EXPANSIVE} >= {"birkhoff", "kronecker", "stiefel"}
    x = torch.randn(16, 4, DIM, dtype=torch.float64)
    assert (norms(HyperConnectionStack(layers_of(manifolds.make("unconstrained", n=4)))(x)) > 100 * norms(x)).all()
    for m in NON_EXPANSIVE:
        if m.n == 4 and m.num_coordinates:
            assert (HyperConnectionStack(layers_of(m))(x) - x).abs().max() > 0.1
