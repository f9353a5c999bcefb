"""Graphs of steps, and their formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fused_cases import relative_error
from hyperconn.kernels import steps

T, n, C = 4, 3, 7
P = 2 * n + n * n
EXACT = 1e-10


class Layer(NamedTuple):
    """What one hyper-connection learns: predictions, logits, and the branch ``tanh(u W)``."""

    fn: Tensor  # [P, n·C]
    base: Tensor  # [P]
    weight: Tensor  # [C, C]


class Coefficients(NamedTuple):
    pre: Tensor
    post: Tensor
    H: Tensor


class Start(NamedTuple):
    x: Tensor
    raw: Tensor | None


def _project(x: Tensor, fn: Tensor | None) -> Start:
    flat = x.flatten(1)
    return Start(x, None if fn is None else torch.cat([flat @ fn.T, flat.square().sum(-1, keepdim=True)], -1))


def _read(start: Start, pre: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    return start.x, torch.einsum("ti,tic->tc", pre, start.x)


def _write(x: Tensor, H: Tensor, post: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("tij,tjc->tic", H, x) + torch.einsum("ti,tc->tic", post, y)


def _write_project(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor) -> Start:
    return _project(_write(x, H, post, y), fn)


# The steps with one operation a line, nothing shared with the library.
FORMULAS: Any = SimpleNamespace(project=_project, read=_read, write=_write, write_project=_write_project)


def on(backend: str) -> Any:
    """The steps under the signatures of the formulas."""
    return SimpleNamespace(**{name: partial(getattr(steps, name), backend=backend) for name in vars(FORMULAS)})


def coefficients(raw: Tensor | None, base: Tensor) -> Coefficients:
    """Any smooth map of everything that was projected will do."""
    z = base.expand(T, P) if raw is None else base + raw[:, :-1] * torch.rsqrt(raw[:, -1:] / (n * C) + 0.1)
    pre, post, theta = z.split([n, n, n * n], -1)
    return Coefficients(pre.sigmoid(), 2 * post.sigmoid(), theta.unflatten(-1, (n, n)).softmax(-1))


def problem(depth: int = 2, *, requires_grad: bool = True) -> tuple[Tensor, list[Layer]]:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad)

    return leaf(T, n, C), [Layer(leaf(P, n * C), leaf(P), leaf(C, C)) for _ in range(depth)]


def leaves_of(x: Tensor, layers: list[Layer]) -> list[Tensor]:
    return [x, *itertools.chain(*layers)]


# ------------------------------------------------------------------------------------------- graphs of steps


def one_by_one(s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    for fn, base, weight in layers:
        start = s.project(x, fn)
        pre, post, H = coefficients(start.raw, base)
        alias, u = s.read(start, pre, H)
        x = s.write(alias, H, post, torch.tanh(u @ weight))
    return x


def handed_over(s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    start = s.project(x, layers[0].fn)
    for k, (_, base, weight) in enumerate(layers):
        pre, post, H = coefficients(start.raw, base)
        alias, u = s.read(start, pre, H)
        y = torch.tanh(u @ weight)
        if k + 1 == len(layers):
            return s.write(alias, H, post, y)
        start = s.write_project(alias, H, post, y, layers[k + 1].fn)
    raise AssertionError("a chain has a layer")


def without_projection(s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    pre, post, H = coefficients(None, layers[0].base)
    alias, u = s.read(s.project(x, None), pre, H)
    return s.write(alias, H, post, torch.tanh(u @ layers[0].weight))


def part(name: str, s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    """Graphs in which a step or a result is left out, or a result is used twice."""
    start = s.project(x, layers[0].fn)
    pre, post, H = coefficients(start.raw, layers[0].base)
    if name == "raw only":
        return start.raw.sin()
    if name == "H, never read":
        return H.square()
    alias, u = s.read(start, pre, H)
    if name == "H, read but not written":
        return H.square()
    y = torch.tanh(u @ layers[0].weight)
    if name == "write never called":
        return y
    if name == "u unused":
        return s.write(alias, H, post, x.sum(1))
    if name == "H beside the output":
        return s.write(alias, H, post, y) + H.sin().sum(-1, keepdim=True)
    if name == "the streams beside the output":
        return s.write(alias, H, post, y) * start.x
    start = s.write_project(alias, H, post, y, layers[1].fn)
    if name == "only the streams handed over":
        return start.x.sin()
    if name == "only the projection handed over":
        return start.raw.sin()
    assert name == "the streams handed over beside the output"
    pre, post, H = coefficients(start.raw, layers[1].base)
    alias, u = s.read(start, pre, H)
    return s.write(alias, H, post, torch.tanh(u @ layers[1].weight)) * start.x.cos()


def used_elsewhere(chain: Graph, s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    inner = x * 2.0  # no leaf: its gradients are added inside autograd
    twice = chain(s, inner, layers[:1]) + chain(s, inner, layers[1:])
    return chain(s, inner, layers) * inner + inner.sin() + twice


def strided(chain: Graph, s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    """Weights and coefficients with strides."""
    turned = SimpleNamespace(**vars(s))
    turned.read = lambda start, pre, H: s.read(start, turn(pre), turn(H))
    turned.write = lambda x, H, post, y: s.write(x, turn(H), turn(post), turn(y))
    return chain(turned, x, [layer._replace(fn=turn(layer.fn)) for layer in layers])


def turn(tensor: Tensor) -> Tensor:
    turned = tensor.mT.contiguous().mT
    assert not turned.is_contiguous()
    return turned


Graph = Callable[[Any, Tensor, list[Layer]], Tensor]
CHAINS: dict[str, Graph] = {"one by one": one_by_one, "handed over": handed_over}
PARTS = (
    "raw only", "H, never read", "H, read but not written", "write never called", "u unused", "H beside the output",
    "the streams beside the output", "only the streams handed over", "only the projection handed over",
    "the streams handed over beside the output",
)  # fmt: skip
GRAPHS: dict[str, Graph] = {
    **CHAINS,
    "without projection": without_projection,
    **{name: partial(part, name) for name in PARTS},
    **{f"used elsewhere, {name}": partial(used_elsewhere, chain) for name, chain in CHAINS.items()},
    **{f"strided, {name}": partial(strided, chain) for name, chain in CHAINS.items()},
}
COTANGENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": torch.randn_like,
    "expanded from one number": lambda out: torch.randn((), dtype=out.dtype).expand(out.shape),
    "expanded from a row": lambda out: torch.randn(out.shape[-1], dtype=out.dtype).expand(out.shape),
    "with strides": lambda out: torch.randn(out.shape[::-1], dtype=out.dtype).permute(*range(out.dim())[::-1]),
}
both_backends = pytest.mark.parametrize("backend", ("torch", "triton"))
both_chains = pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))


def check(graph: Graph, backend: str, x: Tensor, layers: list[Layer], cotangent: str = "random") -> None:
    """Same output, and the same gradient of everything that needs one and has one."""
    actual, expected = graph(on(backend), x, layers), graph(FORMULAS, x, layers)
    check_gradients(actual, expected, leaves_of(x, layers), COTANGENTS[cotangent](expected.detach()))


def check_gradients(actual: Tensor, expected: Tensor, leaves: list[Tensor], cotangent: Tensor | None = None) -> None:
    assert relative_error(actual.detach(), expected.detach()) < EXACT
    cotangent = torch.randn_like(expected) if cotangent is None else cotangent
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    found, wanted = (torch.autograd.grad(out, needed, cotangent, allow_unused=True) for out in (actual, expected))
    assert [one is None for one in found] == [two is None for two in wanted]
    errors = [relative_error(one, two) for one, two in zip(found, wanted, strict=True) if one is not None]
    assert errors and max(errors) < EXACT
