"""The layer under the machinery of training: recomputation, compilation, second derivatives, copies, checkpoints."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fused_cases import exhaustive
from hyperconn import HyperConnection, HyperConnectionConfig
from hyperconn.manifolds.core import constants
from layer_cases import (
    DIM,
    PRESETS,
    Branch,
    every_learned_preset,
    every_preset,
    gradients,
    make_block,
    make_streams,
    run,
    streams_of,
)

# Compiling takes seconds: a flat predictor, one with fractions, and reads that are delayed.
SLOW = [
    preset if preset in ("kromhc", "fc", "deepseek-v4.1") else pytest.param(preset, marks=exhaustive)
    for preset in PRESETS
]


@every_preset
def test_activation_checkpointing(preset: str) -> None:
    block = make_block(preset)
    x = make_streams(block, 3).requires_grad_()

    def gradients_of(output: Tensor) -> list[Tensor]:
        # The reentrant form supports backward() only.
        block.zero_grad()
        x.grad = None
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        return [leaf.grad.clone() for leaf in (x, *block.parameters())]

    expected = gradients_of(run(block, x))
    for use_reentrant in (False, True):
        actual = gradients_of(streams_of(checkpoint(block, x, use_reentrant=use_reentrant)))
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b) and b.abs().max() > 0


@every_preset
def test_selective_checkpoints(preset: str) -> None:
    """What an operator returned is kept for the second pass, and must still be what it was."""
    block = make_block(preset)
    x = make_streams(block, 3).requires_grad_()
    kept: set[str] = set()

    def policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept.add(str(operator))
        return CheckpointPolicy.MUST_SAVE if not operator.is_view else CheckpointPolicy.PREFER_RECOMPUTE

    context = functools.partial(create_selective_checkpoint_contexts, policy)
    found = gradients(streams_of(checkpoint(block, x, use_reentrant=False, context_fn=context)), block, x)
    expected = gradients(run(block, x), block, x)
    assert len(kept) > 5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_read_that_autograd_did_not_see_is_refused() -> None:
    """The first pass of a reentrant checkpoint runs without autograd, and what write needs would be lost."""
    block = make_block("kromhc")
    x = make_streams(block, 3).requires_grad_()
    u, write = checkpoint(block.read, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="pass use_reentrant=False"):
        write(u.sin())
    handed = checkpoint(lambda x: block(x, into=block), x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="written without autograd .* pass use_reentrant=False"):
        block(handed)
    u, write = checkpoint(block.read, x, use_reentrant=False)
    assert torch.autograd.grad(write(u.sin()).square().sum(), x)[0].abs().max() > 0
    with torch.no_grad():
        u, write = block.read(x)
        write(u)


@pytest.mark.parametrize("preset", ("mhc-lite", "kromhc", "shc"))
def test_a_use_without_numbers_leaves_nothing_behind(preset: str) -> None:
    """Constants are kept for the next layer, but not those that a mode made of its own tensors."""
    constants._cached.cache_clear()
    with FakeTensorMode():
        fake = make_block(preset)
        assert fake(make_streams(fake, 2)).shape == (2, 4, DIM)
    block = make_block(preset)
    assert block(make_streams(block, 2)).isfinite().all()


@every_learned_preset
@pytest.mark.parametrize("around", (False, True), ids=("argument", "context"))
def test_meta_device(preset: str, around: bool) -> None:
    """As large models are built: nothing is allocated while they are put together."""
    config = HyperConnectionConfig.preset(preset)
    with torch.device("meta" if around else "cpu"):
        block = HyperConnection(None, dim=DIM, config=config, layer_index=2, device=None if around else "meta")
    assert {p.device.type for p in block.parameters()} == {"meta"}
    torch.manual_seed(1)
    block.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(1)
    direct = HyperConnection(None, dim=DIM, config=config, layer_index=2)
    for a, b in zip(block.parameters(), direct.parameters(), strict=True):
        assert torch.equal(a, b)


@every_preset
def test_shapes_without_numbers(preset: str) -> None:
    block = make_block(preset).to("meta")
    x = make_streams(block, 2, 3).to("meta")
    assert run(block, x).shape == x.shape and run(block, x).device.type == "meta"


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # dynamo does
@pytest.mark.parametrize("preset", SLOW)
def test_compiles_without_graph_breaks(preset: str) -> None:
    torch._dynamo.reset()
    block = make_block(preset)
    x = make_streams(block, 3).requires_grad_()
    expected = run(block, x)
    actual = run(torch.compile(block, fullgraph=True, backend="aot_eager"), x)
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(actual, block, x), gradients(expected, block, x), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("preset", SLOW)
def test_exports_for_any_number_of_tokens(preset: str) -> None:
    block = make_block(preset)
    x, other = make_streams(block, 5), make_streams(block, 7)
    with torch.no_grad():
        exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("tokens")},)).module()
        assert torch.allclose(run(exported, other), run(block, other), rtol=1e-5, atol=1e-6)


@every_learned_preset
def test_copies_of_a_layer_compute_the_same(preset: str) -> None:
    block = make_block(preset)
    x = make_streams(block, 3)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert twin.config == block.config and twin.manifold == block.manifold
        assert torch.equal(run(twin, x), run(block, x))
        next(twin.parameters()).data.mul_(0.5)
        assert not torch.equal(run(twin, x), run(block, x))


@every_learned_preset
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


def layer(**fields: Any) -> HyperConnection:
    block = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(**{"streams": 4, **fields}))
    block.base.data.normal_()
    return block


@pytest.mark.parametrize("nested", (False, True))
@pytest.mark.parametrize("strict", (False, True))
def test_checkpoint_of_another_manifold_is_refused(nested: bool, strict: bool) -> None:
    saved, own = layer(manifold="birkhoff"), layer(manifold="unconstrained")
    assert {k: v.shape for k, v in saved.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    before = own.base.detach().clone()
    source, target = (nn.ModuleDict({"layer": m}) if nested else m for m in (saved, own))
    with pytest.raises(RuntimeError, match=r"birkhoff.*unconstrained") as caught:
        target.load_state_dict(source.state_dict(), strict=strict)
    assert ("layer: the checkpoint" in str(caught.value)) == nested
    assert torch.equal(own.base, before)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"predictor_options": {"rate": 3.0}}, r"rate.*3\.0"),
        ({"orientation": "transposed"}, "transposed"),
        ({"pre_gate": "double_sigmoid"}, "double_sigmoid"),
        ({"pre_eps": 1e-6}, "1e-06"),
        ({"streams": 2}, "streams.*4.*2"),
    ],
    ids=str,
)
def test_checkpoint_of_another_function_is_refused(override: dict[str, Any], named: str) -> None:
    """Equal shapes are not enough: anything that changes what the numbers mean is named."""
    with pytest.raises(RuntimeError, match=named):
        layer(**override).load_state_dict(layer().state_dict())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(({}, start) for start in ({"init": "published"}, {"backend": "torch"}, {"fn_std": 0.1}, {"collapse": "sum"})),
        ({"manifold": "birkhoff"}, {"manifold": "sinkhorn"}),
        ({"manifold": "birkhoff"}, {"manifold": "birkhoff", "manifold_options": {"iterations": 20}}),
        ({"manifold": "kronecker"}, {"manifold": "kronecker", "manifold_options": {"factors": [2, 2]}}),
    ],
    ids=str,
)
def test_checkpoint_of_the_same_function_loads(one: dict[str, Any], other: dict[str, Any]) -> None:
    """What only concerns the start, and two spellings of a manifold, do not matter."""
    saved, own = layer(**one), layer(**other)
    own.load_state_dict(saved.state_dict())
    assert torch.equal(own.base, saved.base)
