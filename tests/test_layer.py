"""What a user expects of a call to the layer: arguments, dtypes, shapes, errors."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fused_cases import DEVICE, EXACT, EXACT_DTYPE, both_backends
from hyperconn import (
    DelayedStreams,
    HyperConnection,
    HyperConnectionConfig,
    HyperConnectionHead,
    HyperConnectionStack,
    collapse_streams,
    expand_streams,
)
from layer_cases import DIM, PRESETS, every_preset, gradients, make_block, make_streams, run, streams_of

BATCHES = ((), (0,), (3,), (2, 3), (2, 0, 3))


def test_extra_arguments_reach_the_branch() -> None:
    seen: list[Any] = []

    def branch(u: Tensor, mask: Tensor, *, gain: float) -> Tensor:
        seen.append((mask, gain))
        return gain * u * mask

    block = make_block(branch=branch)
    x, mask = make_streams(block, 5), torch.rand(5, 1)
    out = block(x, mask, gain=2.0)
    assert len(seen) == 1 and seen[0][0] is mask and seen[0][1] == 2.0
    pre, post, H = block.coefficients(x)
    y = 2.0 * mask * torch.einsum("bi,bic->bc", pre, x)
    assert torch.allclose(out, H @ x + post.unsqueeze(-1) * y.unsqueeze(-2), atol=1e-6)


@every_preset
def test_two_phases_equal_one(preset: str) -> None:
    block = make_block(preset)
    x = make_streams(block, 2, 3).requires_grad_()
    u, write = block.read(x)
    assert u.shape == (2, 3, DIM)
    two, one = streams_of(write(block.branch(u))), run(block, x)
    assert torch.equal(two, one)
    for a, b in zip(gradients(two, block, x), gradients(one, block, x), strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0


def test_only_two_phases_without_a_branch() -> None:
    block = HyperConnection(None, dim=DIM)
    u, write = block.read(make_streams(block, 2))
    assert write(u).shape == (2, 4, DIM)
    with pytest.raises(ValueError, match=r"no branch.*read"):
        block(make_streams(block, 2))


def test_first_of_a_tuple_is_written_and_the_rest_returned() -> None:
    cache = object()
    block = make_block(branch=lambda u: (torch.tanh(u), cache, 7))
    plain = make_block(branch=torch.tanh)
    x = make_streams(block, 3)
    out, *rest = block(x)
    assert rest == [cache, 7]
    assert torch.equal(out, plain(x))


def test_branch_of_another_shape_is_refused() -> None:
    block = make_block(branch=lambda u: u[..., :-1])
    with pytest.raises(ValueError, match=r"\[3, 8\].*\[3, 7\]"):
        block(make_streams(block, 3))


@every_preset
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_narrow_streams_have_wide_coefficients(preset: str, dtype: torch.dtype) -> None:
    block = make_block(preset, branch=nn.Identity())
    x = make_streams(block, 16, dtype=dtype)
    exact = copy.deepcopy(block).double()
    state = DelayedStreams(x, torch.rand(16, 4)) if block.config.read == "delayed" else x
    u, write = block.read(state)
    written = streams_of(write(u))
    assert u.dtype == written.dtype == run(block, x).dtype == dtype

    # The coefficients of a narrow token are those of the same numbers in float64, to float32 rounding.
    expected = exact.coefficients(x.double())
    for actual, reference in zip(block.coefficients(x), expected, strict=True):
        assert actual.dtype == torch.float32 and reference.dtype == torch.float64
        assert (actual - reference).abs().max() <= 1e-5 * reference.abs().max()

    # Reading and writing round once, at the end: half a unit in the last place, and float32's own little more.
    wide = DelayedStreams(x.double(), state.pre.double()) if isinstance(state, DelayedStreams) else x.double()
    u_exact, _ = exact.read(wide)
    assert_rounded_once(u, u_exact)
    _, write_exact = exact.read(wide)
    assert_rounded_once(written, streams_of(write_exact(u.double())))


def assert_rounded_once(actual: Tensor, exact: Tensor) -> None:
    half = torch.finfo(actual.dtype).eps / 2
    bound = half * exact.abs() + 1e-5 * exact.abs().max()
    assert ((actual.double() - exact).abs() <= bound).all()
    assert (actual.double() != exact).any(), "nothing was rounded, so nothing was tested"


@every_preset
def test_narrow_parameters_are_widened(preset: str) -> None:
    """A model cast to bfloat16 as a whole keeps its coefficients in float32."""
    block = make_block(preset).bfloat16()
    x = make_streams(block, 4, dtype=torch.bfloat16)
    assert run(block, x).dtype == torch.bfloat16
    wide = copy.deepcopy(block).float()
    for a, b in zip(block.coefficients(x), wide.coefficients(x.float()), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_wide_parameters_with_narrow_streams() -> None:
    block = make_block("mhc").double()
    x = make_streams(block, 3)
    assert block(x).dtype == torch.float32
    assert {part.dtype for part in block.coefficients(x)} == {torch.float64}


@every_preset
def test_autocast_leaves_the_coefficients_alone(preset: str) -> None:
    """Nothing but the branch computes in bfloat16, forward or (outside autocast, as torch asks) backward."""
    block = make_block(preset)
    x = make_streams(block, 3, 2).requires_grad_()
    expected, reference = run(block, x), gradients(run(block, x), block, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, coefficients = run(block, x), block.coefficients(x)
    assert out.dtype == torch.float32 and torch.equal(out, expected)
    for a, b in zip(coefficients, block.coefficients(x), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(gradients(out, block, x), reference, strict=True):
        assert torch.equal(a, b)


@both_backends
def test_autocast_reaches_the_branch(backend: str) -> None:
    block = make_block(manifold="kronecker", n=2, backend=backend, branch=nn.Linear(DIM, DIM))
    seen: list[torch.dtype] = []
    block.branch.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    x = make_streams(block, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, coefficients = block(x), block.coefficients(x)
    assert seen == [torch.bfloat16] and out.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(coefficients, block.coefficients(x), strict=True))


@both_backends
def test_a_backward_inside_autocast_is_the_same(backend: str) -> None:
    # The branch and the map have no matrix product that autocast would touch.
    block = make_block(manifold="identity", n=2, backend=backend)
    x = make_streams(block, 3).requires_grad_()
    expected = gradients(block(x), block, x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(block(x), block, x)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b) and b.abs().max() > 0


@both_backends
def test_a_branch_may_work_in_place(backend: str) -> None:
    block = make_block(manifold="kronecker", n=2, branch=nn.ReLU(inplace=True), backend=backend)
    copied = copy.deepcopy(block)
    copied.branch = nn.ReLU()
    x = make_streams(block, 3).requires_grad_()
    for a, b in zip(gradients(block(x), block, x), gradients(copied(x), copied, x), strict=True):
        assert torch.equal(a, b) and b.abs().max() > 0


@every_preset
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_batch_shapes(preset: str, batch: tuple[int, ...]) -> None:
    block = make_block(preset)
    n = block.config.streams
    x = make_streams(block, *batch).requires_grad_()
    before = x.detach().clone()
    out = run(block, x)
    assert out.shape == x.shape and torch.equal(x, before)
    pre, post, H = block.coefficients(x)
    assert pre.shape == (*batch, n, n) if block.config.fractions else (*batch, n)
    assert post.shape == (*batch, n) and H.shape == (*batch, n, n)
    # Every token by itself gives the same.
    for index in itertools.product(*map(range, batch)):
        assert torch.allclose(run(block, x[index]), out[index], rtol=1e-5, atol=1e-6)
    for gradient in gradients(out, block, x):
        assert gradient.isfinite().all()


@every_preset
def test_layout_of_the_input_does_not_matter(preset: str) -> None:
    block = make_block(preset)
    n, width = block.config.streams, block.stream_dim
    transposed = torch.randn(width, 5, n).permute(1, 2, 0)
    strided = torch.randn(5, 2 * n, width)[:, ::2]
    expanded = torch.randn(5, 1, width).expand(5, n, width)
    for x in (transposed, strided, expanded):
        assert not x.is_contiguous()
        loose, dense = x.detach().requires_grad_(), x.contiguous().detach().requires_grad_()
        assert torch.allclose(run(block, loose), run(block, dense), rtol=1e-5, atol=1e-6)
        for a, b in zip(
            gradients(run(block, loose), block, loose), gradients(run(block, dense), block, dense), strict=True
        ):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("shape", [(3, 4, 7), (3, 5, 8), (3, 8, 4), (8,), (4, 3, 8), ()], ids=str)
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    block = make_block()
    for call in (block, block.read, block.coefficients):
        with pytest.raises(ValueError, match=r"\[\.\.\., 4, 8\].*expand_streams") as caught:
            call(torch.zeros(shape))
        assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.complex64), ids=str)
def test_wrong_dtypes_are_refused(dtype: torch.dtype) -> None:
    block = make_block()
    for call in (block, block.read, block.coefficients):
        with pytest.raises(TypeError, match=f"floating point.*{dtype}"):
            call(torch.zeros(3, 4, 8, dtype=dtype))
    with pytest.raises(TypeError, match=f"floating point.*{dtype}"):
        HyperConnectionHead(DIM, 4)(torch.zeros(3, 4, 8, dtype=dtype))


@pytest.mark.parametrize("dim", (0, -8, 8.0, "8", True))
def test_wrong_dim_is_refused(dim: Any) -> None:
    with pytest.raises(ValueError, match="dim must be a positive int"):
        HyperConnection(None, dim=dim)


def test_fractions_must_divide() -> None:
    config = HyperConnectionConfig.preset("fc", streams=3)
    with pytest.raises(ValueError, match=r"8 channels.*3 equal fractions"):
        HyperConnection(None, dim=8, config=config)
    with pytest.raises(ValueError, match=r"8 channels.*3 equal fractions"):
        expand_streams(torch.zeros(2, 8), streams=3, fractions=True)


# Triton's interpreter computes with numpy, which warns of what these tests are about.
numpy_warns = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def around(block: torch.nn.Module, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the streams."""
    leaf = x.clone().requires_grad_()
    out = run(block, leaf)
    (gradient,) = torch.autograd.grad(out, leaf, cotangent)
    return out.detach(), gradient


@numpy_warns
@pytest.mark.parametrize(
    ("preset", "backend", "value"),
    [
        *((preset, "torch", value) for preset in PRESETS for value in (math.nan, math.inf, -math.inf)),
        ("hc", "triton", math.nan),
    ],
)
def test_a_bad_token_contaminates_only_itself(preset: str, backend: str, value: float) -> None:
    block = make_block(preset, backend=backend).to(DEVICE, EXACT_DTYPE)
    check_isolation(block, block.config.streams, block.stream_dim, value)


@numpy_warns
@both_backends
def test_a_bad_token_in_a_stack(backend: str) -> None:
    """Streams are handed over from layer to layer, and the products with the next layer's weights with them."""
    blocks = [make_block("kromhc", n=2, backend=backend) for _ in range(2)]
    check_isolation(HyperConnectionStack(blocks).to(DEVICE, EXACT_DTYPE), 2, DIM, math.nan)


def check_isolation(block: torch.nn.Module, n: int, channels: int, value: float) -> None:
    tokens, bad = 4, 1
    others = [token for token in range(tokens) if token != bad]
    clean = torch.randn(tokens, n, channels, dtype=EXACT_DTYPE, device=DEVICE)
    dirty = clean.clone()
    dirty[bad, n - 1, 2 % channels] = value
    cotangent = torch.randn_like(clean)
    (out, gradient), (dirty_out, dirty_gradient) = around(block, clean, cotangent), around(block, dirty, cotangent)
    assert not dirty_out[bad].isfinite().all(), "a NaN is passed on"
    for here, there in ((out, dirty_out), (gradient, dirty_gradient)):
        assert here.isfinite().all() and here.abs().max() > 0
        assert (here - there)[others].abs().max() <= EXACT * here.abs().max()


def test_the_check_can_fail() -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.0 * x.sum(0)

    with pytest.raises(AssertionError):
        check_isolation(Mixed(), 4, DIM, math.nan)


def test_expand_copies() -> None:
    h = torch.randn(2, 3, DIM)
    x = expand_streams(h, streams=4)
    assert x.shape == (2, 3, 4, DIM) and all(torch.equal(x[:, :, i], h) for i in range(4))
    x[0, 0, 0, 0] = 100.0  # copies in memory too: writing to one stream changes neither h nor the others
    assert x[0, 0, 1, 0] == h[0, 0, 0] != 100.0
    assert expand_streams(h[0, 0], streams=1).shape == (1, DIM)


@pytest.mark.parametrize("n", (1, 2, 4, 8))
def test_fractions_are_reshapes(n: int) -> None:
    h = torch.randn(2, 3, DIM)
    x = expand_streams(h, streams=n, fractions=True)
    assert x.shape == (2, 3, n, DIM // n)
    assert torch.equal(x[..., -1, :], h[..., -(DIM // n) :])
    assert torch.equal(collapse_streams(x, "concat"), h)


def test_collapse() -> None:
    x = torch.randn(3, 4, DIM)
    assert torch.allclose(collapse_streams(x), x.mean(1)) and torch.equal(
        collapse_streams(x), collapse_streams(x, "mean")
    )
    assert torch.allclose(collapse_streams(x, "sum"), x.sum(1))
    assert torch.equal(collapse_streams(x, lambda streams: streams[..., 0, :]), x[:, 0])
    with pytest.raises(ValueError, match=r"'avg'.*mean"):
        collapse_streams(x, "avg")


def test_expand_refuses_no_streams() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        expand_streams(torch.zeros(DIM), streams=0)


def test_learned_head_starts_as_the_mean() -> None:
    x = torch.randn(3, 4, DIM)
    head = HyperConnectionHead(DIM, 4)
    assert torch.allclose(collapse_streams(x, head), x.mean(1), atol=1e-4)
    assert head(x.bfloat16()).dtype == torch.bfloat16
    assert head(x[:0]).shape == (0, DIM) and head(x[0]).shape == (DIM,)
    with pytest.raises(ValueError, match=r"\[\.\.\., 4, 8\].*\[3, 5, 8\]"):
        head(torch.zeros(3, 5, DIM))
