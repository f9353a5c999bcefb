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

from hyperconn import HyperConnection, HyperConnectionConfig, collapse_streams, expand_streams, manifolds
from hyperconn.manifolds import Manifold, invariants

torch.set_num_threads(1)

DIM, TOKENS, LAYERS = 16, 24, 12
LR, STEPS = 1e-3, 3


# ------------------------------------------------------------------------------------------- the cases


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
every_manifold = pytest.mark.parametrize("manifold", CASES, ids=repr)
every_branch = pytest.mark.parametrize("normed", (True, False), ids=("pre-normed", "un-normed"))


def test_cases_cover_the_registry() -> None:
    """Left out is only what neither reaches the identity nor keeps the sum of a row; every size is there."""
    names = {m.name for m in CASES}
    for name in manifolds.available():
        if name not in names:
            assert not any(starts_plain(m) for m in manifolds.get(name).examples())
    assert {m.n for m in CASES} == {1, 2, 3, 4, 8}
    assert len(names) >= 7 and len(CASES) >= 40


# ------------------------------------------------------------------------------------------- the two networks


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
    blocks = [HyperConnection(MLP(normed), dim=DIM, config=config, layer_index=i) for i in range(LAYERS)]
    assert blocks[0].manifold == manifold
    return nn.ModuleList(blocks)


def run(stack: nn.ModuleList, h: Tensor) -> Tensor:
    config = stack[0].config
    x = expand_streams(h, streams=config.streams, fractions=config.fractions)
    for block in stack:
        x = block(x)
    return collapse_streams(x, config.collapse)


def run_plain(stack: nn.ModuleList, h: Tensor) -> Tensor:
    for block in stack:
        y = block.branch(h)
        assert y.norm() > 0.1 * h.norm(), "a branch that adds nothing would make any start look plain"
        h = h + y
    return h


@every_manifold
@every_branch
def test_starts_as_the_plain_residual_network(manifold: Manifold, normed: bool) -> None:
    stack = make_stack(manifold, normed)
    h = torch.randn(TOKENS, DIM)
    with torch.no_grad():
        actual, expected = run(stack, h), run_plain(stack, h)
    assert actual.dtype == torch.float32
    error = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
    assert error <= 1e-5 + 2 * LAYERS * row_error(manifold)


# Fractions of a hidden vector differ from each other, so there H itself has to be the identity.
FRACTIONS = tuple(m for m in CASES if m.contains_identity and DIM % m.n == 0)


@pytest.mark.parametrize("manifold", FRACTIONS, ids=repr)
def test_fractions_start_as_the_plain_residual_network(manifold: Manifold) -> None:
    stack = make_stack(manifold, True, expand="fractions", collapse="concat", pre_gate="matrix")
    h = torch.randn(TOKENS, DIM)
    with torch.no_grad():
        actual, expected = run(stack, h), run_plain(stack, h)
        H = stack[0].coefficients(expand_streams(h, manifold.n, fractions=True)).H
    # Where the identity lies at infinity it is missed by e^-16 for every entry of a softmax, of which there are n!.
    miss = float((H - torch.eye(manifold.n)).abs().sum(-1).max())
    assert miss < 1e-5
    error = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
    assert error <= 1e-5 + LAYERS * miss


def test_fractions_cover_the_registry() -> None:
    for name in manifolds.available():
        if any(m.contains_identity and m.n == 4 for m in manifolds.get(name).examples()):
            assert name in {m.name for m in FRACTIONS if m.n == 4}
    assert len({m.name for m in FRACTIONS}) >= 7


def row_error(manifold: Manifold) -> float:
    """What the manifold itself lacks to row sums of 1 at the start: an eps in its denominators, and nothing else."""
    if invariants.row_sums in manifold.exact_invariants or not starts_with_unit_rows(manifold):
        return 0.0
    H = manifold(manifold.initial(HyperConnectionConfig().sharpness, dtype=torch.float64))
    error = float((H.sum(-1) - 1).abs().max())
    assert error < 2e-6
    return error


def starts_with_unit_rows(manifold: Manifold) -> bool:
    return invariants.row_sums in manifold.invariants


# ------------------------------------------------------------------------------------------- what learns


def coefficient_groups(block: HyperConnection) -> dict[str, slice]:
    """The rows of fn and entries of base of each group."""
    groups, start = {}, 0
    n = block.config.streams
    for name, size in (("pre", n), ("post", n), *block.manifold.coordinate_groups):
        groups[name] = slice(start, start + size)
        start += size
    assert start == block.base.numel() and len(groups) == block.scale.numel()
    return groups


def train(stack: nn.ModuleList, h: Tensor, target: Tensor) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """A few optimizer steps; the gradients of every step and the parameters after it, by name."""
    optimizer = torch.optim.AdamW(stack.parameters(), lr=LR, weight_decay=0.0)
    gradients, parameters = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        (run(stack, h) - target).square().sum(-1).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in stack.named_parameters()})
        optimizer.step()
        parameters.append({name: p.detach().clone() for name, p in stack.named_parameters()})
    return gradients, parameters


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


@every_manifold
@every_branch
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_every_coefficient_group_learns(manifold: Manifold, normed: bool, dtype: torch.dtype) -> None:
    stack = make_stack(manifold, normed).to(dtype)
    h, target = torch.randn(TOKENS, DIM, dtype=dtype), torch.randn(TOKENS, DIM, dtype=dtype)
    before = {name: p.detach().clone() for name, p in stack.named_parameters()}
    gradients, after = train(stack, h, target)
    for layer, block in enumerate(stack):
        usual = max(float(step[f"{layer}.base"].abs().max()) for step in gradients)
        assert usual > 1e-3
        for position, (group, entries) in enumerate(coefficient_groups(block).items()):
            for name, where in (("fn", entries), ("base", entries), ("scale", position)):
                key = f"{layer}.{name}"
                moved = max(float((step[key] - before[key])[where].abs().max()) for step in after) / LR
                expected = expectation(manifold, normed, layer, group)
                if expected == FREE:
                    # Rounding noise in float64 moves a parameter by 1e-5 of this at most.
                    assert moved > 1e-3, f"{group} {name} of layer {layer} moved {moved:.1e} learning rates"
                elif expected == STILL and dtype == torch.float64:
                    largest = max(float(step[key][where].abs().max()) for step in gradients)
                    assert largest <= 1e-12 * usual, f"{group} {name} of layer {layer}: gradient {largest:.1e}"


def test_both_expectations_occur() -> None:
    """Doubly stochastic H is still at both ends, rotations at neither, and between the ends everything is free."""
    by_name = {m.name: m for m in CASES if m.n == 4 and m.exact}
    ends = {
        name: {expectation(m, True, layer, m.coordinate_groups[-1][0]) for layer in (0, LAYERS - 1)}
        for name, m in by_name.items()
        if m.num_coordinates
    }
    assert ends["permutation"] == {STILL} and ends["stiefel"] == {FREE}
    assert all(expectation(m, True, 1, "post") == FREE for m in CASES)
    inner = [expectation(m, True, 1, m.coordinate_groups[-1][0]) for m in by_name.values() if m.num_coordinates]
    assert inner and set(inner) == {FREE}


def test_few_are_exempt() -> None:
    """Only the ends of a stack, and a single stream, may escape a definite expectation, and most do not."""
    ends = [
        (m, layer, expectation(m, False, layer, group))
        for m in CASES
        for group, _ in m.coordinate_groups
        for layer in (0, 1, LAYERS - 1)
    ]
    unclear = [(m, layer) for m, layer, expected in ends if expected == UNCLEAR]
    assert all(layer != 1 for _, layer in unclear)
    assert len(unclear) <= len(ends) // 8
