"""The GPT: equal starts, causality, and the connection that the config asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig, HyperConnectionHead
from hyperconn.lab import GPT, ModelConfig

SIZES = ModelConfig(blocks=2, channels=16, heads=2, context=12)
KINDS: dict[str, HyperConnectionConfig | None] = {"plain": None} | {
    name: HyperConnectionConfig.preset(name, fn_std=0.1) for name in HyperConnectionConfig.presets()
}

each_kind = pytest.mark.parametrize("name", KINDS)


def tokens() -> Tensor:
    return torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(1))


def shared(model: GPT) -> dict[str, Tensor]:
    """Weights that do not belong to the connections."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("sublayers", "collapse")) or ".branch." in name
    }


@each_kind
def test_every_kind_starts_with_the_same_branches(name: str) -> None:
    """Fails if a connection draws random numbers before the branches do: fn_std is not 0 here."""
    before = torch.get_rng_state()
    plain, other = shared(GPT(SIZES, None, seed=3)), shared(GPT(SIZES, KINDS[name], seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert plain.keys() == other.keys() and len(plain) == 4 + 4 * 6
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    assert not torch.equal(plain["token.weight"], shared(GPT(SIZES, KINDS[name], seed=4))["token.weight"])


@each_kind
def test_no_token_sees_the_future(name: str) -> None:
    model = GPT(SIZES, KINDS[name], seed=0)
    changed = tokens()
    changed[:, 7] = (changed[:, 7] + 1) % 256
    before, after = model(tokens()), model(changed)
    assert before.shape == (2, 12, 256)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@each_kind
def test_every_parameter_learns(name: str) -> None:
    model = GPT(SIZES, KINDS[name], seed=0)
    model.loss(tokens(), tokens().roll(-1, 1)).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # The head predicts with weights that start at 0, so its scale moves from the second step on.
    assert set(still) <= {"collapse.hc_scale"}, still


def test_sublayers_and_collapse_are_what_the_config_says() -> None:
    model = GPT(SIZES, KINDS["kromhc"], seed=0)
    layers = [m for m in model.modules() if isinstance(m, HyperConnection)]
    assert [layer.layer_index for layer in layers] == [0, 1, 2, 3]
    assert all(layer.config == KINDS["kromhc"] and layer.dim == 16 for layer in layers)
    assert [type(layer.branch).__name__ for layer in layers] == ["Attention", "MLP", "Attention", "MLP"]
    assert model.collapse == HyperConnectionConfig(collapse="sum").make_collapse()
    head = HyperConnectionConfig.preset("ihc", streams=2, norm_eps=1e-3)
    collapse = GPT(SIZES, head, seed=0).collapse
    assert isinstance(collapse, HyperConnectionHead)
    assert (collapse.dim, collapse.streams, collapse.norm_eps) == (16, 2, 1e-3)


@each_kind
def test_connection_parameters_are_what_plain_lacks(name: str) -> None:
    plain, model = GPT(SIZES, None, seed=0), GPT(SIZES, KINDS[name], seed=0)
    assert model.num_parameters() - plain.num_parameters() == model.num_connection_parameters()
    assert (model.num_connection_parameters() > 0) == (name != "plain")
    # Output weights are the token embedding itself.
    assert plain.num_parameters() == 16 * (256 + 12) + 2 * (12 * 16 * 16 + 13 * 16) + 2 * 16


def test_dropout_acts_in_training_only() -> None:
    model = GPT(ModelConfig(blocks=2, channels=16, heads=2, context=12, dropout=0.5), None, seed=0)
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))
