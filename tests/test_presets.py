"""Every preset, and every option of a published system, against the naive account of its formulas; counts, starts."""

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
from preset_systems import LAYERS, SYSTEMS, Branch, C, System, every_size, every_system


def test_every_preset_has_a_transcription() -> None:
    """The plain residual has its own test, with the ends of models."""
    assert {system.preset for system in SYSTEMS.values()} == {*HyperConnectionConfig.presets()} - {"plain"}


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
@pytest.mark.parametrize(("shape", "layer_index"), [((), 0), ((2, 2), 6)], ids=str)
def test_values_and_gradients(system: System, n: int, shape: tuple[int, ...], layer_index: int) -> None:
    delayed = system.preset == "deepseek-v4.1"
    block, x = make_case(system, n, shape, 0 if delayed else layer_index)
    x.requires_grad_()
    expected = reference(system, block, x)
    out = block(x)
    actual = (out.streams if delayed else out, *block.coefficients(x))
    for what, ours, theirs in zip(("x'", "pre", "post", "H"), actual, expected, strict=True):
        assert_relative(ours, theirs, 1e-10, what)
    # Of the coefficients too, by themselves: what a regulariser on them needs.
    pairs = [(ours, theirs) for ours, theirs in zip(actual, expected, strict=True) if theirs.requires_grad]
    assert_gradients(*map(list, zip(*pairs, strict=True)), {"x": x, **dict(block.named_parameters())})
    if block.config.manifold != "identity":
        *_, H = actual
        assert H.flatten().std() > 1e-2
    if shape and block.config.predictor != "static":
        # A transcription and a layer that both ignored x would agree: the coefficients must differ by token.
        assert actual[1].flatten(0, len(shape) - 1).std(0).max() > 1e-3


@every_size
@pytest.mark.parametrize("shape", ((), (2, 2)), ids=str)
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


def test_the_gain_of_the_write_weights_can_be_scheduled() -> None:
    """Motif 3 anneals it from 2 to 1; two sigmoids of gain 2 are what mHC writes with."""
    config = HyperConnectionConfig(manifold="kronecker", post_gate="sigmoid", post_gain=2.0)
    block = HyperConnection(Branch(), C, config, layer_index=1).double()
    randomise(block)
    twin = HyperConnection(
        Branch(), C, HyperConnectionConfig(manifold="kronecker", post_gate="double_sigmoid"), layer_index=1
    ).double()
    twin.load_state_dict(dict(block.state_dict()))
    x = torch.randn(3, 4, C, dtype=torch.float64)
    assert_relative(block(x), twin(x), 1e-14, "x' at gain 2")
    for gain in (1.5, 1.0, 0.25):
        block.post_gain = gain
        assert_relative(block.coefficients(x).post, twin.coefficients(x).post * gain / 2, 1e-14, f"post at {gain}")
    assert set(block.state_dict()) == set(twin.state_dict())
    with pytest.raises(ValueError, match="post_gain is a finite number, got nan"):
        block.post_gain = math.nan


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


WEIGHTED = {"predictor_options": {"norm_weight": "weight"}}


@pytest.mark.parametrize(
    ("preset", "overrides", "dim", "sublayers", "published"),
    [
        # OLMo-1B of the HC paper: 32 sublayers of width 2048
        ("hc", {}, 2048, 32, 394_048),
        ("hc", {"predictor": "static"}, 2048, 32, 768),
        # Frac-Connections: the same, in four fractions of 512
        ("fc", {}, 2048, 32, 165_056),
        ("fc", {"predictor": "static"}, 2048, 32, 1_152),
        # JPmHC: n·C = 2048
        ("jpmhc", {}, 512, 1, 102_400),
        # The table of the KromHC paper: 24 sublayers of width 768; all its models keep a weight in the norm
        ("mhc", WEIGHTED, 768, 24, 1_843_848),
        ("mhc-lite", {}, 768, 24, 2_433_864),
        ("kromhc", {}, 768, 24, 958_824),
    ],
)
def test_published_parameter_counts(
    preset: str, overrides: dict[str, Any], dim: int, sublayers: int, published: int
) -> None:
    config = HyperConnectionConfig.preset(preset, streams=4, **overrides)
    assert sublayers * count(HyperConnection(None, dim=dim, config=config)) == published


def one_hot(index: int, n: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index % n), n).float()


def residual_of_the_released_code(preset: str, n: int) -> Tensor:
    """0 at the identity and −8 elsewhere, for every permutation mixture and for mHC's matrix; s = 4 on the sphere."""
    if preset == "mhc":
        return -8.0 * (1 - torch.eye(n).reshape(-1))
    if preset == "shc":
        return torch.cat([torch.zeros((n - 1) * (n - 2)), torch.full((n - 1,), 4.0)])
    sizes = {2: [2], 3: [6], 4: [2, 2]}[n] if preset == "kromhc" else [math.factorial(n)]
    return torch.cat([torch.tensor([0.0] + [-8.0] * (size - 1)) for size in sizes])


@pytest.mark.parametrize("preset", ["mhc", "mhc-lite", "kromhc", "shc"])
@every_size
@pytest.mark.parametrize("layer_index", LAYERS)
def test_start_of_the_released_code(preset: str, n: int, layer_index: int) -> None:
    """+1 at stream ``layer_index mod n`` and −1 elsewhere, for both gates; nothing dynamic yet."""
    block = SYSTEMS[preset].block(n, layer_index)
    gate = 2 * one_hot(layer_index, n) - 1
    assert torch.equal(block.base, torch.cat([gate, gate, residual_of_the_released_code(preset, n)]))
    assert not block.fn.any() and torch.equal(block.scale, torch.full_like(block.scale, 0.01))
    if preset == "shc":
        *_, H = block.coefficients(torch.randn(n, C))
        target = math.tanh(4.0) * torch.eye(n) + (1 - math.tanh(4.0)) / n
        assert (H - target).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["hc", "hc-static", "fc", "fc-static"])
@every_size
@pytest.mark.parametrize("layer_index", LAYERS)
def test_start_of_the_papers_of_hc(name: str, n: int, layer_index: int) -> None:
    """Read one stream, or each fraction where it lies; write 1; keep everything."""
    block = SYSTEMS[name].block(n, layer_index)
    read = torch.eye(n).flatten() if name.startswith("fc") else one_hot(layer_index, n)
    assert torch.equal(block.base, torch.cat([read, torch.ones(n), torch.eye(n).flatten()]))
    if "static" not in name:
        assert not block.fn.any() and torch.equal(block.scale, torch.full((2,), 0.01))


@every_size
def test_jpmhc_starts_at_random(n: int) -> None:
    """Without a bias, streams that start alike would stay alike: the prediction weights break the symmetry."""
    torch.manual_seed(1)
    block = SYSTEMS["jpmhc"].block(n)
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "fn": (3 * n * n, n * C),
        "norm.weight": (n * C,),
        "norm.bias": (n * C,),
    }
    assert 0.015 < float(block.fn.detach().std()) < 0.025
    coefficients = block.coefficients(torch.randn(5, n, C))
    near = (torch.full((5, n), 1 / n), torch.ones(5, n), torch.eye(n).expand(5, n, n))
    for part, plain in zip(coefficients, near, strict=True):
        assert 0 < float((part - plain).detach().abs().max()) < 0.6
