"""The default start: exactly a plain residual network, from which every coefficient learns.

No manifold is named here; whatever is registered is held to it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fused_cases import exhaustive
from hyperconn import HyperConnection, HyperConnectionConfig, collapse_streams, expand_streams, manifolds
from hyperconn.manifolds import Manifold, invariants

DIM, TOKENS, LAYERS = 16, 8, 4
LR, STEPS = 1e-3, 6


def starts_plain(manifold: Manifold) -> bool:
    return manifold.contains_identity or invariants.row_sums in manifold.invariants


def cases() -> Iterator[Manifold]:
    for name in manifolds.available():
        fit = [m for m in manifolds.get(name).examples() if starts_plain(m)]
        yield from (m for m in fit if m.n in (1, 2, 4))
        # An odd size and a large one: a stack of these takes longer, so one each is enough.
        yield from (m for n in (3, 8) for m in [m for m in fit if m.n == n][:1])
    # A product whose rows do not sum to 1 and whose identity lies at infinity: two reasons to start elsewhere.
    yield manifolds.make("kronecker", n=4, factors=({"manifold": "stiefel", "n": 2}, 2))


CASES = tuple(cases())
# Fractions of a hidden vector differ from each other, so there H itself has to be the identity.
FRACTIONS = tuple(m for m in CASES if m.contains_identity and DIM % m.n == 0)
every_branch = pytest.mark.parametrize("normed", (True, False), ids=("pre-normed", "un-normed"))


def test_cases_cover_the_registry() -> None:
    """Left out is only what neither reaches the identity nor keeps the sum of a row; every size is there."""
    for name in manifolds.available():
        examples = manifolds.get(name).examples()
        assert (name in {m.name for m in CASES}) == any(starts_plain(m) for m in examples)
        if any(m.contains_identity and m.n == 4 for m in examples):
            assert name in {m.name for m in FRACTIONS if m.n == 4}
    assert {m.n for m in CASES} == {1, 2, 3, 4, 8} and len(CASES) >= 40


class MLP(nn.Module):
    """A branch with enough gain that the states really change."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM) if normed else nn.Identity()
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=1.3 / layer.in_features**0.5)
            nn.init.normal_(layer.bias, std=0.1)

    def forward(self, u: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(u))))


def make_stack(manifold: Manifold, normed: bool, **keys: Any) -> nn.ModuleList:
    torch.manual_seed(7)
    config = HyperConnectionConfig(streams=manifold.n, manifold=manifold, **keys)
    return nn.ModuleList(HyperConnection(MLP(normed), dim=DIM, config=config, layer_index=i) for i in range(LAYERS))


def run(stack: nn.ModuleList, h: Tensor) -> Tensor:
    config = stack[0].config
    x = expand_streams(h, streams=config.streams, fractions=config.fractions)
    for block in stack:
        x = block(x)
    return collapse_streams(x, config.collapse)


def distance_to_plain(stack: nn.ModuleList) -> float:
    """The largest relative difference of a token's hidden vector to that of the residual network of the branches."""
    start = h = torch.randn(TOKENS, DIM)
    with torch.no_grad():
        for block in stack:
            y = block.branch(h)
            assert y.norm() > 0.1 * h.norm(), "a branch that adds nothing would make any start look plain"
            h = h + y
        return float(((run(stack, start) - h).norm(dim=-1) / h.norm(dim=-1)).max())


@every_branch
@pytest.mark.parametrize("manifold", CASES, ids=repr)
def test_starts_as_the_plain_residual_network(manifold: Manifold, normed: bool) -> None:
    miss = 0.0
    if invariants.row_sums in manifold.invariants and invariants.row_sums not in manifold.exact_invariants:
        # An eps in the denominators, and nothing else.
        H = manifold(manifold.initial(HyperConnectionConfig().sharpness, dtype=torch.float64))
        miss = float((H.sum(-1) - 1).abs().max())
        assert miss < 2e-6
    assert distance_to_plain(make_stack(manifold, normed)) <= 1e-5 + 2 * LAYERS * miss


@pytest.mark.parametrize("manifold", FRACTIONS, ids=repr)
def test_fractions_start_as_the_plain_residual_network(manifold: Manifold) -> None:
    stack = make_stack(manifold, True, expand="fractions", collapse="concat", pre_gate="matrix")
    H = stack[0].coefficients(torch.randn(TOKENS, *stack[0].stream_shape)).H.detach()
    # Where the identity lies at infinity it is missed by e^-16 for every entry of a softmax, of which there are n!.
    miss = float((H - torch.eye(manifold.n)).abs().sum(-1).max())
    assert miss < 1e-5
    assert distance_to_plain(stack) <= 1e-5 + LAYERS * miss


@functools.lru_cache(None)
def sum_sensitivities(manifold: Manifold) -> tuple[tuple[float, float], ...]:
    """Largest derivative of a row sum and of a column sum of H, at the start and near it.

    It decides where H can learn at all. Streams that are equal, ``x = 1 cᵀ``, see H through ``H 1`` alone, so the
    gradient of the first layer is that of its row sums. A mean over the streams sees the last H through ``Hᵀ 1``
    alone, so the gradient of the last layer is that of its column sums.
    """
    start = manifold.initial(HyperConnectionConfig().sharpness, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    near = start + 0.1 * torch.randn(start.shape, generator=generator, dtype=torch.float64)
    jacobians = [torch.autograd.functional.jacobian(manifold, theta) for theta in (start, near)]
    return tuple((float(J.sum(1).abs().max()), float(J.sum(0).abs().max())) for J in jacobians)


STILL, FREE, UNCLEAR = "still", "free", "unclear"


def expectation(manifold: Manifold, normed: bool, layer: int, group: str) -> str:
    """Whether a coefficient group has a gradient.

    Unclear, and exempt, is what lies between: sums kept up to an eps, and a map that is not differentiable at the
    start itself (rounding onto the polytope has a kink on it).
    """
    if group == "post":
        return FREE
    if group == "pre":
        # A norm takes the scale of its input away, and with a single stream scale is all that pre has.
        return UNCLEAR if manifold.n == 1 and normed else FREE
    sensitivities = [
        min(rows if layer == 0 or manifold.n == 1 else 1.0, columns if layer == LAYERS - 1 else 1.0)
        for rows, columns in sum_sensitivities(manifold)
    ]
    if max(sensitivities) < 1e-12:
        return STILL
    return FREE if min(sensitivities) > 1e-5 else UNCLEAR


@pytest.mark.parametrize(
    ("normed", "dtype"),
    (
        (True, torch.float64),
        (False, torch.float32),
        pytest.param(False, torch.float64, marks=exhaustive),
        pytest.param(True, torch.float32, marks=exhaustive),
    ),
    ids=str,
)
@pytest.mark.parametrize("manifold", CASES, ids=repr)
def test_every_coefficient_group_learns(manifold: Manifold, normed: bool, dtype: torch.dtype) -> None:
    # One predictor has scales that learn, the other none.
    stack = make_stack(manifold, normed, predictor="flat" if normed else "width_scaled").to(dtype)
    h, target = torch.randn(TOKENS, DIM, dtype=dtype), torch.randn(TOKENS, DIM, dtype=dtype)
    before = {name: p.detach().clone() for name, p in stack.named_parameters()}
    moved, largest = (dict.fromkeys(before, torch.zeros((), dtype=dtype)) for _ in range(2))
    optimizer = torch.optim.AdamW(stack.parameters(), lr=LR, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (run(stack, h) - target).square().sum(-1).mean().backward()
        optimizer.step()
        for name, p in stack.named_parameters():
            moved[name] = torch.maximum(moved[name], (p.detach() - before[name]).abs() / LR)
            largest[name] = torch.maximum(largest[name], p.grad.abs())
    for layer, block in enumerate(stack):
        usual, start = float(largest[f"{layer}.base"].max()), 0
        assert usual > 1e-3
        groups = (("pre", manifold.n), ("post", manifold.n), *manifold.coordinate_groups)
        for position, (group, size) in enumerate(groups):
            entries, start = slice(start, start + size), start + size
            expected = expectation(manifold, normed, layer, group)
            places = {"fn": entries, "base": entries, "scale": position}
            for key in block.predictor_parameters():
                name, where = f"{layer}.{key}", places[key]
                what = f"{group} {key} of layer {layer} moved by {moved[name][where].max():.1e} learning rates"
                if expected == FREE:
                    # Rounding noise in float64 moves a parameter by 1e-5 of this at most.
                    assert moved[name][where].max() > 1e-3, what
                elif expected == STILL and dtype == torch.float64:
                    assert largest[name][where].max() <= 1e-12 * usual, what
        assert start == block.base.numel() and hasattr(block, "scale") == normed


def test_both_expectations_occur_and_few_are_exempt() -> None:
    """Doubly stochastic H is still at both ends, rotations at neither, and between the ends everything is free."""
    of_four = {m.name: m for m in CASES if m.n == 4 and m.exact and m.num_coordinates}
    ends = {
        name: {expectation(m, True, layer, m.coordinate_groups[-1][0]) for layer in (0, LAYERS - 1)}
        for name, m in of_four.items()
    }
    assert ends["permutation"] == {STILL} and ends["stiefel"] == {FREE}
    assert {expectation(m, True, 1, group) for m in of_four.values() for group, _ in m.coordinate_groups} == {FREE}
    everywhere = [
        (layer, expectation(m, False, layer, group))
        for m in CASES
        for group, _ in m.coordinate_groups
        for layer in (0, 1, LAYERS - 1)
    ]
    unclear = [layer for layer, expected in everywhere if expected == UNCLEAR]
    assert 1 not in unclear and len(unclear) <= len(everywhere) // 8
