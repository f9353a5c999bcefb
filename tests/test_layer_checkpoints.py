"""Copies of a layer, and checkpoints that fit another one."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig
from layer_cases import DIM, Branch, every_preset, make_block, make_streams, run


@every_preset
def test_copies_of_a_layer_compute_the_same(preset: str) -> None:
    block = make_block(preset)
    x = make_streams(block, 3)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert twin.config == block.config and twin.manifold == block.manifold
        assert torch.equal(run(twin, x), run(block, x))
        next(twin.parameters()).data.mul_(0.5)
        assert not torch.equal(run(twin, x), run(block, x))


@every_preset
def test_state_dict_round_trip(preset: str) -> None:
    block = make_block(preset)
    file = io.BytesIO()
    torch.save(nn.Sequential(block).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    fresh = HyperConnection(Branch(), dim=DIM, config=block.config, layer_index=block.layer_index)
    x = make_streams(block, 3)
    assert not torch.equal(run(fresh, x), run(block, x))
    result = nn.Sequential(fresh).load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(run(fresh, x), run(block, x))


def test_plain_tensors_load() -> None:
    """Weights of the same names from elsewhere carry no description; their shapes are all there is to check."""
    block = make_block("deepseek-v4")
    fresh = HyperConnection(None, dim=DIM, config=block.config)
    fresh.load_state_dict({name: tensor.clone() for name, tensor in block.state_dict().items()})
    assert torch.equal(fresh.fn, block.fn)


@pytest.mark.parametrize("nested", (False, True))
@pytest.mark.parametrize("strict", (False, True))
def test_checkpoint_of_another_manifold_is_refused(nested: bool, strict: bool) -> None:
    saved, own = (
        HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4, m)) for m in ("birkhoff", "unconstrained")
    )
    assert {k: v.shape for k, v in saved.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    before = own.base.detach().clone()
    source, target = (nn.ModuleDict({"layer": m}) if nested else m for m in (saved, own))
    with pytest.raises(RuntimeError, match=r"birkhoff.*unconstrained") as caught:
        target.load_state_dict(source.state_dict(), strict=strict)
    assert ("layer: the checkpoint" in str(caught.value)) == nested
    assert torch.equal(own.base, before)


@pytest.mark.parametrize(
    "override",
    [
        {"manifold_options": {"first_axis": "rows"}},
        {"orientation": "transposed"},
        {"pre_gate": "double_sigmoid"},
        {"pre_eps": 1e-6},
    ],
    ids=str,
)
def test_checkpoint_of_another_function_is_refused(override: dict[str, Any]) -> None:
    """Equal shapes are not enough: anything that changes what the numbers mean is named."""
    saved = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4))
    own = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4, **override))
    (value,) = override.values()
    wanted = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises(RuntimeError, match=str(wanted)):
        own.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    "override", [{"init": "published"}, {"backend": "torch"}, {"fn_std": 0.1}, {"collapse": "sum"}], ids=str
)
def test_what_only_concerns_the_start_does_not_matter_to_a_checkpoint(override: dict[str, Any]) -> None:
    saved = make_block(None)
    own = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4, **override))
    own.load_state_dict(saved.state_dict())
    assert torch.equal(own.base, saved.base)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"manifold": "birkhoff"}, {"manifold": "sinkhorn"}),
        ({"manifold": "birkhoff"}, {"manifold": "birkhoff", "manifold_options": {"iterations": 20}}),
        ({"manifold": "kronecker"}, {"manifold": "kronecker", "manifold_options": {"factors": [2, 2]}}),
    ],
    ids=("alias", "default option", "default factors"),
)
def test_two_spellings_of_a_manifold_share_checkpoints(one: dict[str, Any], other: dict[str, Any]) -> None:
    saved = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4, **one))
    saved.base.data.normal_()
    own = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4, **other))
    own.load_state_dict(saved.state_dict())
    assert torch.equal(own.base, saved.base)


def test_checkpoint_of_another_number_of_streams_is_refused() -> None:
    saved, own = (HyperConnection(None, dim=DIM, config=HyperConnectionConfig(n)) for n in (2, 4))
    with pytest.raises(RuntimeError, match=r"streams.*2.*4"):
        own.load_state_dict(saved.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch"):
        own.load_state_dict(dict(saved.state_dict()))
