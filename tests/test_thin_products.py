"""Products with the prediction weights on the CPU, in every way that they are formed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fused_cases import relative_error
from hyperconn.kernels.passes import streaming, thin_products

K, P = 96, 24
TOKENS = (0, 1, 255, 256, 512, 513, 1100)


@pytest.fixture(params=(1, 2))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def operands(T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Streams, weights and gradients of the products, the last with strides, as they come out of a split."""
    flat, fn, draw = (torch.randn(*shape, dtype=torch.float64) for shape in ((T, K), (P, K), (T, P + 1)))
    return flat, fn, draw[:, :P]


@pytest.mark.parametrize("T", TOKENS)
@pytest.mark.parametrize(("dtype", "bound"), ((torch.float64, 1e-13), (torch.float32, 1e-5)), ids=("double", "single"))
def test_products(T: int, dtype: torch.dtype, bound: float, threads: int) -> None:
    flat, fn, dz = operands(T)
    short = flat.to(dtype), fn.to(dtype), dz.to(dtype)
    z, dfn = thin_products.weigh(*short[:2]), thin_products.sum_of_products(short[2], short[0])
    assert z.shape == (T, P) and dfn.shape == (P, K) and z.dtype == dfn.dtype == dtype
    if T:
        assert relative_error(z, flat @ fn.mT) < bound
        assert relative_error(dfn, dz.mT @ flat) < bound
    else:
        assert torch.equal(dfn, torch.zeros(P, K, dtype=dtype))


def test_convolutions_serve_float32_on_several_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And images have a largest size."""
    called = []
    forward, backward = torch.nn.functional.conv2d, torch.nn.grad.conv2d_weight
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a: called.append("weigh") or forward(*a))
    monkeypatch.setattr(thin_products.grad, "conv2d_weight", lambda *a: called.append("sum") or backward(*a))
    monkeypatch.setattr(thin_products, "_LARGEST", 1101 * K)
    for T, dtype in ((1100, torch.float32), (1101, torch.float32), (1100, torch.float64), (255, torch.float32)):
        flat, fn, dz = (tensor.to(dtype) for tensor in operands(T))
        thin_products.weigh(flat, fn)
        thin_products.sum_of_products(dz, flat)
    assert called == (["weigh", "sum"] if threads > 1 else [])


@pytest.mark.parametrize("T", (300, 1100))
def test_second_derivatives(T: int, threads: int) -> None:
    """Both ways of forming them are differentiated again when someone asks for the gradient of a gradient."""

    def derivatives(dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in values]
        flat, fn, dz = leaves
        z, dfn = thin_products.weigh(flat, fn), thin_products.sum_of_products(dz, flat)
        first = torch.autograd.grad((z.square().sum() + dfn.square().sum()) / T, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    torch.manual_seed(T)
    values = operands(T)
    for actual, expected in zip(derivatives(torch.float32), derivatives(torch.float64), strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("T", (255, 256, 257, 700))
def test_products_that_share_blocks(T: int) -> None:
    x, G, du = (torch.randn(T, *shape, dtype=torch.float64) for shape in ((3, 5), (3, 5), (5,)))
    dH, dpre = streaming.coefficients_backward(x, G, du)
    assert dH is not None and dpre is not None
    assert relative_error(dH, torch.einsum("tic,tjc->tij", G, x)) < 1e-13
    assert relative_error(dpre, torch.einsum("tc,tjc->tj", du, x)) < 1e-13


def test_vmap() -> None:
    flat, fn, dz = (torch.stack([one, two]) for one, two in zip(operands(600), operands(600), strict=True))
    assert relative_error(torch.vmap(thin_products.weigh)(flat, fn), flat @ fn.mT) < 1e-13
    assert relative_error(torch.vmap(thin_products.sum_of_products)(dz, flat), dz.mT @ flat) < 1e-13
