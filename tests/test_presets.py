"""Every preset, and every option that a published system needs, against the naive account of its formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import (
    DelayedStreams,
    HyperConnection,
    HyperConnectionConfig,
    HyperConnectionHead,
    HyperConnectionStack,
    collapse_streams,
)
from hyperconn.testing import formulas
from preset_systems import SHAPES, SYSTEMS, Branch, C, System, every_size, every_system


def test_every_preset_has_a_transcription() -> None:
    assert {system.preset for system in SYSTEMS.values()} == set(HyperConnectionConfig.presets())


# ------------------------------------------------------------------------------------------- values and gradients


def randomise(block: HyperConnection) -> None:
    """Every parameter of the layer random, with logits that vary by order one between tokens."""
    for name, parameter in block.named_parameters():
        if name.startswith("branch."):
            continue
        noise = torch.randn_like(parameter)
        if name == "fn":
            parameter.data = noise / parameter.shape[1] ** 0.5
        elif name == "scale":
            parameter.data = noise.sign() * (0.6 + noise.abs())
        elif name in ("base", "norm.weight", "norm.bias"):
            parameter.data = noise
        else:
            raise AssertionError(f"a parameter that no paper has: {name}")


def make_case(system: System, n: int, shape: tuple[int, ...], layer_index: int) -> tuple[HyperConnection, Tensor]:
    torch.manual_seed(1000 * n + 100 * len(shape) + layer_index)
    block = system.block(n, layer_index, branch=Branch()).double()
    randomise(block)
    return block, 1.7 * torch.randn(*shape, *block.stream_shape, dtype=torch.float64) + 0.3


def reference(system: System, block: HyperConnection, x: Tensor) -> tuple[Tensor, ...]:
    """The transcription, token after token, stacked to the batch shape of ``x``."""
    tokens = [system.formula(block, token, block.branch) for token in x.reshape(-1, *x.shape[-2:])]
    stacked = (torch.stack(parts) for parts in zip(*tokens, strict=True))
    return tuple(part.reshape(*x.shape[:-2], *part.shape[1:]) for part in stacked)


def assert_relative(actual: Tensor, expected: Tensor, bound: float, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} against {tuple(expected.shape)}"
    assert actual.dtype == torch.float64, what
    size = float(expected.detach().abs().max())
    assert size > 0, f"{what}: the reference vanishes, so the comparison would say nothing"
    error = float((actual - expected).detach().abs().max()) / size
    assert error <= bound, f"{what}: relative difference {error:.1e}"


def assert_gradients(actual: list[Tensor], expected: list[Tensor], leaves: dict[str, Tensor]) -> None:
    """Under random cotangents, for all results together."""
    cotangents = [torch.randn_like(part) for part in expected]
    ours = torch.autograd.grad(actual, list(leaves.values()), cotangents)
    theirs = torch.autograd.grad(expected, list(leaves.values()), cotangents)
    for what, a, b in zip(leaves, ours, theirs, strict=True):
        assert_relative(a, b, 1e-9, f"gradient of {what}")


@every_system
@every_size
@pytest.mark.parametrize(("shape", "layer_index"), [((), 0), ((3,), 0), ((2, 2), 6)], ids=str)
def test_values_and_gradients(system: System, n: int, shape: tuple[int, ...], layer_index: int) -> None:
    delayed = system.preset == "deepseek-v4.1"
    block, x = make_case(system, n, shape, 0 if delayed else layer_index)
    x.requires_grad_()
    expected = reference(system, block, x)
    out = block(x)
    actual = (out.streams if delayed else out, *block.coefficients(x))
    for what, ours, theirs in zip(("x'", "pre", "post", "H"), actual, expected, strict=True):
        assert_relative(ours, theirs, 1e-10, what)
    # With a delayed read the parameters of pre show in the next sublayer only.
    both = ([*out], [*expected[:2]]) if delayed else ([actual[0]], [expected[0]])
    assert_gradients(*both, {"x": x, **dict(block.named_parameters())})
    if block.config.manifold != "identity":
        *_, H = actual
        assert H.flatten().std() > 1e-2
    if shape and block.config.predictor != "static":
        # A transcription and a layer that both ignored x would agree: the coefficients must differ by token.
        assert actual[1].flatten(0, len(shape) - 1).std(0).max() > 1e-3


@every_system
def test_gradients_through_the_coefficients(system: System) -> None:
    """pre, post and H are differentiable by themselves: what a regulariser on them needs."""
    block, x = make_case(system, 4, (3,), 0)
    expected, actual = reference(system, block, x)[1:], block.coefficients(x)
    learns = [k for k, part in enumerate(expected) if part.requires_grad]
    parameters = {name: p for name, p in block.named_parameters() if not name.startswith("branch.")}
    assert_gradients([actual[k] for k in learns], [expected[k] for k in learns], parameters)


@every_size
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_learned_head(n: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(n)
    head = HyperConnectionHead(C, n).double()
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {"hc_fn": (n, n * C), "hc_base": (n,), "hc_scale": (1,)}
    for parameter in head.parameters():
        parameter.data.normal_()
    head.hc_fn.data /= (n * C) ** 0.5
    x = torch.randn(*shape, n, C, dtype=torch.float64, requires_grad=True)
    learned = (head.hc_fn, head.hc_base, head.hc_scale)
    tokens = [formulas.deepseek_v4_head(t, *learned, eps=1e-6, hc_eps=1e-6) for t in x.reshape(-1, n, C)]
    expected, actual = torch.stack(tokens).reshape(*shape, C), collapse_streams(x, head)
    assert_relative(actual, expected, 1e-10, "collapsed streams")
    assert_gradients([actual], [expected], {"x": x, **dict(head.named_parameters())})


# ------------------------------------------------------------------------------------------- delayed reads


@every_size
@pytest.mark.parametrize("way", ("layers", "stack", "hand-overs"))
def test_delayed_reads_over_depth(n: int, way: str) -> None:
    """Each sublayer reads with the weights that the one before predicted; the last ones collapse the streams."""
    torch.manual_seed(n)
    config = HyperConnectionConfig.preset("deepseek-v4.1", streams=n)
    layers = [HyperConnection(Branch(), C, config, layer_index=i).double() for i in range(4)]
    for layer in layers:
        randomise(layer)
    x = torch.randn(3, n, C, dtype=torch.float64, requires_grad=True)

    tokens = []
    for token in x:
        carried = torch.eye(n, dtype=torch.float64)[0]
        for layer in layers:
            learned = (layer.fn, layer.base, layer.scale, layer.branch)
            token, carried, *_ = formulas.deepseek_v41(token, carried, *learned, eps=1e-6)
        tokens.append(sum(carried[i] * token[i] for i in range(n)))
    expected = torch.stack(tokens)

    state: Any = x
    if way == "stack":
        state = HyperConnectionStack(layers)(x)
    else:
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            state = layer(state, into=following) if way == "hand-overs" else layer(state)
    assert isinstance(state, DelayedStreams) and state.pre.shape == (3, n)
    actual = collapse_streams(state, config.collapse)
    assert_relative(actual, expected, 1e-10, "hidden vector")
    leaves = {"x": x} | {f"{i}.{name}": p for i, layer in enumerate(layers) for name, p in layer.named_parameters()}
    assert_gradients([actual], [expected], leaves)


def test_delayed_reads_are_not_begun_by_accident() -> None:
    config = HyperConnectionConfig.preset("deepseek-v4.1")
    first, second = (HyperConnection(nn.Identity(), C, config, layer_index=i) for i in range(2))
    x = torch.randn(2, 4, C)
    with pytest.raises(TypeError, match=r"layer_index=1.*DelayedStreams\.seed"):
        second(x)
    assert torch.equal(second(DelayedStreams.seed(x)).pre, second(DelayedStreams.seed(x))[1])
    with pytest.raises(ValueError, match=r"weights of shape \[2, 4\].*got \[2, 3\]"):
        second(first(x)._replace(pre=torch.ones(2, 3)))
    with pytest.raises(TypeError, match=r"weights of its own.*state\.streams"):
        HyperConnection(nn.Identity(), C)(first(x))
    with pytest.raises(TypeError, match=r"'pre'.*read='delayed'"):
        collapse_streams(x, "pre")


# ------------------------------------------------------------------------------------------- a scheduled gain


def test_the_gain_of_the_write_weights_can_be_scheduled() -> None:
    """Motif 3 anneals it from 2 to 1; two sigmoids of gain 2 are what mHC writes with."""
    config = HyperConnectionConfig(manifold="kronecker", post_gate="sigmoid", post_gain=2.0)
    block = HyperConnection(Branch(), C, config, layer_index=1).double()
    randomise(block)
    twin = HyperConnection(Branch(), C, HyperConnectionConfig(manifold="kronecker"), layer_index=1).double()
    twin.load_state_dict(dict(block.state_dict()))
    x = torch.randn(3, 4, C, dtype=torch.float64)
    assert_relative(block(x), twin(x), 1e-14, "x' at gain 2")
    for gain in (1.5, 1.0, 0.25):
        block.post_gain = gain
        assert_relative(block.coefficients(x).post, twin.coefficients(x).post * gain / 2, 1e-14, f"post at {gain}")
    assert set(block.state_dict()) == set(twin.state_dict())
    with pytest.raises(ValueError, match="post_gain is a finite number, got nan"):
        block.post_gain = math.nan
