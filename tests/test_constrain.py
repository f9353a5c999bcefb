"""Static constrained parameters."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hyperconn import manifolds
from hyperconn.manifolds import Birkhoff, Stiefel, constrain
from hyperconn.manifolds.registry.constrain import OnManifold


def linear(n: int = 4, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return nn.Linear(n, n, bias=False, dtype=dtype)


def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (module(x) - x.roll(1, -1)).square().mean()


WITH_COORDINATES = [name for name in manifolds.available() if manifolds.make(name, n=4).num_coordinates]


@pytest.mark.parametrize("name", WITH_COORDINATES)
def test_training_moves_it_along_the_manifold(name: str) -> None:
    """From where `constrain` itself puts it: at the start of a layer."""
    module, m = constrain(linear(), "weight", name), manifolds.make(name, n=4)
    (parameter,) = module.parameters()
    assert parameter is module.parametrizations.weight.original and torch.equal(parameter, m.initial(4.0))
    before, x = module.weight.detach().clone(), torch.randn(16, 4)
    start = loss(module, x).detach()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        loss(module, x).backward()
        optimizer.step()
    assert (module.weight - before).abs().max() > 1e-2
    assert loss(module, x) < start
    promised = [float(invariant.residual(module.weight)) for invariant in m.exact_invariants]
    assert max(promised, default=0.0) <= m.tolerance(torch.float32)


def test_options_objects_and_batches() -> None:
    module = constrain(linear(), "weight", "kronecker", factors=(2, 2))
    assert module.parametrizations.weight.original.shape == (4,)
    module = constrain(linear(3), "weight", Stiefel(n=3))
    assert module.parametrizations.weight[0].manifold == Stiefel(n=3) and "Stiefel(n=3" in repr(module)
    holder = nn.Module()
    holder.W = nn.Parameter(torch.randn(2, 5, 3, 3))
    constrain(holder, "W", "stiefel")
    assert holder.parametrizations.W.original.shape == (2, 5, 3)
    assert torch.equal(holder.W, torch.eye(3).expand(2, 5, 3, 3))


def test_members_can_be_assigned_and_others_cannot() -> None:
    module = constrain(linear(3), "weight", "stiefel")
    turn = Stiefel(n=3)(torch.tensor([0.5, -1.0, 2.0]))
    module.weight = turn
    torch.testing.assert_close(module.weight, turn)
    for stranger in (2 * torch.eye(3), torch.full((3, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"Stiefel\(n=3.*does not contain the matrix that was assigned"):
            module.weight = stranger
    torch.testing.assert_close(module.weight, turn)
    with pytest.raises(ValueError, match="eigenvalue"):
        module.weight = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))


def test_a_state_dict_of_another_manifold_is_refused() -> None:
    """Birkhoff and unconstrained share their shapes, so nothing else would notice."""
    ours, theirs = constrain(linear(), "weight", "unconstrained"), constrain(linear(), "weight", "birkhoff")
    with pytest.raises(RuntimeError, match=r"kind of constrained parameter, manifold='birkhoff'.*'unconstrained'"):
        ours.load_state_dict(theirs.state_dict())
    rounded = constrain(linear(), "weight", "birkhoff", finish="round")
    with pytest.raises(RuntimeError, match=r"options=\{\} where this one has \{'finish': 'round'\}"):
        nn.Sequential(rounded).load_state_dict(nn.Sequential(theirs).state_dict())
    # Plain tensors, which say nothing of themselves, and the same manifold under another name are taken.
    ours.load_state_dict(dict(theirs.state_dict()))
    constrain(linear(), "weight", "mhc", iterations=20).load_state_dict(theirs.state_dict())


def test_copies_and_state_dicts() -> None:
    module = constrain(linear(), "weight", "birkhoff", finish="round")
    with torch.no_grad():
        module.parametrizations.weight.original.normal_()
    other = copy.deepcopy(module)
    assert torch.equal(other.weight, module.weight)
    with torch.no_grad():
        other.parametrizations.weight.original.add_(torch.randn(16))
    assert not torch.equal(other.weight, module.weight)
    assert list(module.state_dict()) == ["parametrizations.weight.original"]
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, module.weight)
    onto = pickle.loads(pickle.dumps(module.parametrizations.weight[0]))
    assert type(onto) is OnManifold and onto.manifold == Birkhoff(n=4, finish="round")
    assert torch.equal(onto(module.parametrizations.weight.original), module.weight)


@pytest.mark.parametrize("name", manifolds.available())
def test_bfloat16_members_can_be_assigned(name: str) -> None:
    module = constrain(linear(dtype=torch.bfloat16), "weight", name)
    assert module.weight.dtype == torch.bfloat16 == module.parametrizations.weight.original.dtype
    m = manifolds.make(name, n=4)
    H = m(torch.randn(m.num_coordinates)).to(torch.bfloat16)
    module.weight = H
    assert (module.weight.float() - H.float()).abs().max() < 0.03
    moved = constrain(linear(), "weight", name).to(torch.bfloat16)
    assert moved.weight.dtype == torch.bfloat16


def test_wrong_targets_are_refused_and_left_alone() -> None:
    module = nn.Linear(3, 4)
    with pytest.raises(AttributeError, match="Linear has no parameter 'wieght'; its parameters are: weight, bias"):
        constrain(module, "wieght", "stiefel")
    with pytest.raises(AttributeError, match="its parameters are: none"):
        constrain(nn.ReLU(), "weight", "stiefel")
    with pytest.raises(ValueError, match=r"has shape \[..., n, n\]; Linear.weight has \[4, 3\]"):
        constrain(module, "weight", "stiefel")
    with pytest.raises(ValueError, match=r"Linear.bias has \[4\]"):
        constrain(module, "bias", "stiefel")
    with pytest.raises(ValueError, match=r"Stiefel\(n=3.* holds 3×3 matrices; the parameter has \[4, 4\]"):
        constrain(linear(), "weight", Stiefel(n=3))
    with pytest.raises(TypeError, match=r"options \['p'\] go with a manifold's name; Stiefel"):
        constrain(linear(), "weight", Stiefel(n=4), p=2)
    with pytest.raises(ValueError, match="Did you mean 'stiefel'"):
        constrain(linear(), "weight", "stieffel")
    assert not hasattr(module, "parametrizations")
