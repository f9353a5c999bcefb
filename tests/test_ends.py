"""Whole models: their ends, the plain residual as a preset, channels that do not come last, branches of two outputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyperconn import (
    HyperConnection,
    HyperConnectionConfig,
    HyperConnectionHead,
    HyperConnectionStack,
    collapse_streams,
)
from hyperconn.config import Collapse, Expand
from layer_cases import every_preset, make_block

DIM = 8


class Model(nn.Module):
    """Written once for every preset, as somebody would who reads its name from a file."""

    def __init__(self, config: HyperConnectionConfig, branches: list[nn.Module], first: int = 0) -> None:
        super().__init__()
        self.expand, self.collapse = config.make_ends(DIM)
        self.layers = nn.ModuleList(
            HyperConnection(branch, DIM, config, layer_index=first + k) for k, branch in enumerate(branches)
        )

    def forward(self, h: Tensor) -> Tensor:
        x = self.expand(h)
        for layer in self.layers:
            x = layer(x)
        return self.collapse(x)


def plain(h: Tensor, branches: list[nn.Module]) -> Tensor:
    for branch in branches:
        h = h + branch(h)
    return h


def scrambled(model: nn.Module) -> nn.Module:
    """All coefficients in general position."""
    for layer in model.modules():
        if isinstance(layer, HyperConnection):
            for name, parameter in layer.predictor_parameters().items():
                parameter.data += torch.randn_like(parameter) * (0.1 if name == "fn" else 0.5)
        if isinstance(layer, HyperConnectionHead):
            layer.hc_fn.data += torch.randn_like(layer.hc_fn)
    return model


@every_preset
def test_ends_of_every_preset(preset: str) -> None:
    """No if or else: what goes in comes out with its shape, and gradients reach the input and every head."""
    torch.manual_seed(0)
    config = HyperConnectionConfig.from_dict({"preset": preset})
    model = scrambled(Model(config, [nn.Linear(DIM, DIM) for _ in range(3)]))
    h = torch.randn(2, 5, DIM, requires_grad=True)
    out = model(h)
    assert out.shape == h.shape and out.dtype == h.dtype
    (out * torch.randn_like(out)).sum().backward()
    assert h.grad.abs().max() > 0
    head = list(model.collapse.parameters())
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in head)
    assert bool(head) == (config.collapse == "head")
    later = Model(config, [nn.Linear(DIM, DIM)], first=2)  # a second stage: its first layer is not the model's
    assert later(out.detach()).shape == h.shape
    if config.collapse not in ("head", "pre"):
        assert torch.equal(Model(config, [])(h), collapse_streams(model.expand(h), config.collapse))


def test_ends_of_parts_of_ones_own() -> None:
    class Signed(Expand):
        name = "signed"

        def stream_dim(self, dim: int, n: int) -> int:
            return dim

        def __call__(self, h: Tensor, n: int) -> Tensor:
            return torch.stack([h, -h], -2)

    class First(Collapse):
        name = "first"

        def __call__(self, x: Any) -> Tensor:
            return x[..., 0, :].clone()

    h = torch.randn(3, DIM)
    expand, collapse = HyperConnectionConfig(streams=2, expand=Signed(), collapse=First()).make_ends(DIM)
    assert torch.equal(expand(h)[:, 1], -h) and torch.equal(collapse(expand(h)), h)


@pytest.mark.parametrize(
    ("streams", "dtype"),
    [(1, torch.float32), (1, torch.bfloat16), (1, torch.float64), (3, torch.float32), (3, torch.float64)],
    ids=str,
)
def test_plain_is_the_plain_residual(streams: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    branches: list[nn.Module] = [nn.Linear(DIM, DIM).to(dtype) for _ in range(3)]
    model = Model(HyperConnectionConfig.preset("plain", streams=streams), branches)
    assert not [name for name in model.state_dict() if "branch" not in name]
    h = torch.randn(4, DIM, dtype=dtype, requires_grad=True)
    out, expected = model(h), plain(h, branches)
    cotangent = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, [h, *model.parameters()], cotangent) for y in (out, expected))
    assert torch.equal(out, expected) or streams > 1
    for a, b in zip((out, *ours), (expected, *theirs), strict=True):
        assert (a - b).abs().max() <= 8 * torch.finfo(dtype).eps * b.abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # dynamo does
def test_plain_in_a_stack_compiled_checkpointed_and_saved() -> None:
    config = HyperConnectionConfig.preset("plain")
    assert config.streams == 1 and HyperConnectionConfig.from_dict(config.to_dict()) == config
    branches: list[nn.Module] = [nn.Linear(DIM, DIM) for _ in range(2)]
    model = Model(config, branches)
    h = torch.randn(4, DIM)
    x, expected = model.expand(h), plain(h, branches)
    assert torch.equal(model.collapse(HyperConnectionStack(model.layers)(x)), expected)
    assert torch.equal(checkpoint(model, h.clone().requires_grad_(), use_reentrant=False), expected)
    assert torch.allclose(torch.compile(model, backend="aot_eager")(h), expected)
    twin = Model(config, [nn.Linear(DIM, DIM) for _ in range(2)])
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(h), expected)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("rank", CONVOLUTIONS)
@pytest.mark.parametrize("preset", ("hc", "kromhc", "fc", "deepseek-v4.1", "plain"))
def test_channels_first(preset: str, rank: int) -> None:
    """Equal to the same model with its channels last; what comes first in a branch may work in place."""
    torch.manual_seed(rank)
    convolutions = [CONVOLUTIONS[rank](DIM, DIM, 3, padding=1, padding_mode="circular") for _ in range(2)]

    class Last(nn.Module):
        def __init__(self, convolution: nn.Module) -> None:
            super().__init__()
            self.convolution = convolution

        def forward(self, u: Tensor) -> Tensor:
            return self.convolution(torch.relu(u).movedim(-1, 1)).movedim(1, -1)

    config = HyperConnectionConfig.preset(preset)
    channels_first = dataclasses.replace(config, channel_dim=1)
    first = Model(channels_first, [nn.Sequential(nn.ReLU(inplace=True), c) for c in convolutions])
    last = Model(config, [Last(c) for c in convolutions])
    scrambled(first)
    for ours, theirs in zip(first.layers, last.layers, strict=True):
        theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "branch" not in k}, strict=False)
    h = torch.randn(2, DIM, *(5, 4, 3)[:rank], requires_grad=True)
    kept = h.detach().clone()
    out, expected = first(h), last(h.movedim(1, -1)).movedim(-1, 1)
    cotangent = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((y * cotangent).sum(), h)[0] for y in (out, expected))
    assert out.shape == h.shape and torch.equal(h.detach(), kept)
    assert torch.allclose(out, expected, atol=1e-5) and torch.allclose(ours, theirs, atol=1e-4)
    assert ours.abs().max() > 0 and not torch.allclose(out, h, atol=0.1)


def test_convolutions_get_their_favourite_layout() -> None:
    seen = []
    branch = nn.Conv2d(DIM, DIM, 1)
    branch.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    Model(HyperConnectionConfig(channel_dim=1), [branch])(torch.randn(2, DIM, 4, 5))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_wrong_layouts_say_what_to_pass() -> None:
    last, first = HyperConnectionConfig(), HyperConnectionConfig(channel_dim=1)
    with pytest.raises(ValueError, match=r"8 channels at channel_dim=-1.*\[2, 8, 4, 5\].*config needs channel_dim=1"):
        last.make_ends(DIM).expand(torch.randn(2, DIM, 4, 5))
    with pytest.raises(ValueError, match=r"channel_dim=1, got the shape \[2, 4, 5, 8\].*for \[..., C\] -1"):
        first.make_ends(DIM).expand(torch.randn(2, 4, 5, DIM))
    with pytest.raises(ValueError, match="channel_dim=1 in the config"):
        HyperConnection(nn.Identity(), DIM, last)(torch.randn(2, DIM, 4, 5))
    with pytest.raises(IndexError, match=r"channel_dim=1 is no axis of the branch's input \[8\]"):
        HyperConnection(nn.Identity(), DIM, first)(torch.randn(4, DIM))
    for begin in (nn.Conv1d(DIM, 4, 1), nn.BatchNorm2d(DIM), nn.Sequential(nn.Sequential(nn.Conv2d(DIM, DIM, 1)))):
        with pytest.raises(ValueError, match=r"the branch begins with \w+\(8.*make the config with channel_dim=1"):
            HyperConnection(begin, DIM, last)
        HyperConnection(begin, DIM, first)
    with pytest.raises(TypeError, match="channel_dim must be an int, got 1.0"):
        HyperConnectionConfig(channel_dim=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim must be a positive int"):
        last.make_ends(0)


class SelfAttention(nn.MultiheadAttention):
    """Returns its output and None or the weights."""

    def __init__(self) -> None:
        super().__init__(DIM, 2, batch_first=True)

    def forward(self, u: Tensor) -> Any:  # type: ignore[override]
        return super().forward(u, u, u)


def test_the_first_of_several_outputs() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(), torch.randn(2, 3, 4, DIM)
    several = make_block(branch=attention)
    single = make_block(branch=lambda u: attention(u)[0])
    config = several.config
    layers = [HyperConnection(attention, DIM, config, layer_index=k, output="first") for k in range(2)]
    for layer in layers:
        layer.load_state_dict(several.state_dict())
    expected = single(single(x))
    assert torch.allclose(layers[1](layers[0](x)), expected, atol=1e-6)
    assert torch.allclose(HyperConnectionStack(layers)(x), expected, atol=1e-6)
    assert several(x)[1].shape == (2, 3, 3)  # by default the rest is passed on
    with pytest.raises(TypeError, match="returned 2 values.*output='first'"):
        HyperConnectionStack([several, several])(x)
    with pytest.raises(ValueError, match="Did you mean 'first'"):
        HyperConnection(attention, DIM, config, output="fist")  # type: ignore[arg-type]
