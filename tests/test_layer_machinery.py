"""The layer under the machinery of training: recomputation, sharding, compilation, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hyperconn import HyperConnection, HyperConnectionConfig, HyperConnectionHead
from layer_cases import DIM, every_preset, gradients, make_block, make_streams, run, streams_of


@every_preset
@pytest.mark.parametrize("use_reentrant", (False, True))
def test_activation_checkpointing(preset: str, use_reentrant: bool) -> None:
    block = make_block(preset)
    x = make_streams(block, 3).requires_grad_()

    def gradients_of(output: Tensor) -> list[Tensor]:
        # The reentrant form supports backward() only.
        block.zero_grad()
        x.grad = None
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        return [leaf.grad.clone() for leaf in (x, *block.parameters())]

    expected = gradients_of(run(block, x))
    actual = gradients_of(streams_of(checkpoint(block, x, use_reentrant=use_reentrant)))
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b) and b.abs().max() > 0


@every_preset
def test_no_parameter_is_zero_dimensional(preset: str) -> None:
    """FSDP and several optimizers refuse parameters without dimensions."""
    for options in ({}, {"predictor": "static"}):
        block = make_block(preset, **options)
        assert [p.dim() for p in block.parameters()] and all(p.dim() >= 1 for p in block.parameters())
    assert all(p.dim() >= 1 for p in HyperConnectionHead(DIM, 4).parameters())


@every_preset
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
@every_preset
@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
def test_compiles_without_graph_breaks(preset: str, backend: str) -> None:
    torch._dynamo.reset()
    block = make_block(preset)
    x = make_streams(block, 3).requires_grad_()
    expected = run(block, x)
    actual = run(torch.compile(block, fullgraph=True, backend=backend), x)
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(actual, block, x), gradients(expected, block, x), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@every_preset
def test_exports_for_any_number_of_tokens(preset: str) -> None:
    block = make_block(preset)
    x, other = make_streams(block, 5), make_streams(block, 7)
    with torch.no_grad():
        exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("tokens")},)).module()
        assert torch.allclose(run(exported, other), run(block, other), rtol=1e-5, atol=1e-6)


@every_preset
def test_gradcheck(preset: str) -> None:
    block = make_block(preset, n=2).double()
    x = make_streams(block, 2, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in block.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return streams_of(torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,)))

    leaves = (x, *(p.detach().requires_grad_() for p in block.parameters()))
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
