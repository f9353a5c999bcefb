"""The streaming kernels, against the same passes in torch and float64."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fused_cases import DEVICE, EXACT, EXACT_DTYPE, counting_launches, exhaustive
from hyperconn.kernels.fused.launch import recording
from hyperconn.kernels.fused.passes import streaming as fused
from hyperconn.kernels.fused.tuning import splits
from hyperconn.kernels.passes import streaming as reference
from hyperconn.kernels.poison import poisoned_memory

SHORT = (torch.bfloat16, torch.float16)
# Of sums in float32: a few hundred terms, rounded once each.
FLOAT32 = 2e-6
INTERPRETED = DEVICE == "cpu"


class Tensors(NamedTuple):
    """Everything that the passes take; the gradients are independent of the rest."""

    x: Tensor
    H: Tensor
    post: Tensor
    pre: Tensor
    y: Tensor
    G: Tensor
    du: Tensor
    fn: Tensor
    draw: Tensor

    def wide(self) -> Tensors:
        return Tensors(*(tensor.double() for tensor in self))

    def sizes(self) -> Tensors:
        """A pass over these is the sum of the sizes of its terms, to which the rounding of their sum is relative."""
        return Tensors(*(tensor.abs() for tensor in self.wide()))


def tensors(T: int, n: int, C: int, dtype: torch.dtype, P: int | None = None) -> Tensors:
    """Streams, y and their gradients in ``dtype``; coefficients and weights in float32, or float64 like the streams."""
    P, sums = P or 2 * n + n * n, torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = sums) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device=DEVICE, dtype=dtype)

    return Tensors(
        x=normal(T, n, C, dtype=dtype), H=normal(T, n, n), post=normal(T, n), pre=normal(T, n),
        y=normal(T, C, dtype=dtype), G=normal(T, n, C, dtype=dtype), du=normal(T, C, dtype=dtype),
        fn=normal(P, n * C), draw=normal(T, P + 1),
    )  # fmt: skip


def _raw(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Apart, because a sum of squares is so much larger than the products that it would hide their errors."""
    return raw[:, :-1], raw[:, -1:]


# name -> the pass of a module, as a flat list of results
PASSES: dict[str, Callable[[Any, Tensors], list[Tensor]]] = {
    "project": lambda m, t: [*_raw(m.project(t.x, t.fn))],
    "read": lambda m, t: [m.read(t.x, t.pre)],
    "write": lambda m, t: [m.write(t.x, t.H, t.post, t.y)],
    "write_backward": lambda m, t: [*m.write_backward(t.G, t.post, t.y)],
    "coefficients_backward": lambda m, t: [*m.coefficients_backward(t.x, t.G, t.du)],
    "project_backward": lambda m, t: [
        *m.project_backward(t.x, (t.H, t.G), (t.pre, t.du), (t.fn, t.draw), needs_x=True, needs_fn=True)
    ],
}


EVERY_PASS = {**PASSES, "write_project": lambda m, t: [*m.write_project(t.x, t.H, t.post, t.y, t.fn)]}


def check_written(t: Tensors) -> None:
    """write_project: the streams as ``write`` has them, and the projection of what was stored, rounded or not."""
    with poisoned_memory():
        written, raw = fused.write_project(t.x, t.H, t.post, t.y, t.fn)
    check_results([written], lambda m, t: [m.write(t.x, t.H, t.post, t.y)], t)
    assert raw.dtype == t.fn.dtype
    check_results([*_raw(raw)], PASSES["project"], t._replace(x=written))


def check_results(results: Sequence[Tensor | None], run: Callable[[Any, Tensors], Sequence[Any]], t: Tensors) -> int:
    """``results`` are those of the pass in torch, None where its are; how many there are."""
    wanted, sizes = run(reference, t.wide()), run(reference, t.sizes())
    assert [result is None for result in results] == [result is None for result in wanted]
    there = [(a, e, s) for a, e, s in zip(results, wanted, sizes, strict=True) if a is not None]
    for actual, expected, size in there:
        check(actual, expected, size)
    return len(there)


def check(actual: Tensor, expected: Tensor, size: Tensor) -> None:
    """``actual`` is ``expected`` up to the rounding of sums of that size and, where it is short, of the result."""
    assert actual.shape == expected.shape == size.shape
    if not actual.numel():
        return
    assert float(expected.abs().amax()) > 0, "a reference that vanishes proves nothing"
    bound = (EXACT if actual.dtype == torch.float64 else FLOAT32) * size
    if actual.dtype in SHORT:
        # The interpreter cuts bfloat16 off, everything else rounds to nearest.
        ulps = 1.0 if INTERPRETED and actual.dtype == torch.bfloat16 else 0.5
        limits = torch.finfo(actual.dtype)
        bound = bound + ulps * limits.eps * expected.abs().clamp(min=limits.smallest_normal)
    assert ((actual.double() - expected).abs() <= bound).all()  # false of NaN


def check_all(t: Tensors) -> None:
    for name, run in PASSES.items():
        with poisoned_memory():
            results = run(fused, t)
        check_results(results, run, t)
        assert {result.dtype for result in results} <= ({t.x.dtype, t.fn.dtype} if name != "project" else {t.fn.dtype})
    check_written(t)


def test_every_pass_is_here() -> None:
    public = {name for name, value in vars(reference).items() if getattr(value, "__module__", "") == reference.__name__}
    assert {name for name in public if not name.startswith("_")} == {*PASSES, "write_project"}
    assert all(callable(getattr(fused, name)) for name in (*PASSES, "write_project"))


MATRIX = (
    *((EXACT_DTYPE, n, T, C) for n, T, C in ((1, 3, 37), (2, 1, 1), (3, 3, 37), (4, 2, 130), (5, 3, 37))),
    (torch.float32, 3, 3, 20),
    *((dtype, n, 3, 20) for dtype, n in zip(SHORT, (4, 1), strict=True)),
    *(
        pytest.param(dtype, n, 17, 20, marks=exhaustive)
        for dtype in dict.fromkeys((EXACT_DTYPE, torch.float32, *SHORT))
        for n in (*range(1, 9), *[16] * (dtype == EXACT_DTYPE))
    ),
)


@pytest.mark.parametrize(("dtype", "n", "T", "C"), MATRIX)
def test_every_pass(dtype: torch.dtype, n: int, T: int, C: int) -> None:
    check_all(tensors(T, n, C, dtype))


MODULES = ("project", "read", "write", "write_backward", "mixing_backward", "project_backward")


def narrow(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    """Tiles of 16 channels, and as many splits as make about so many programs, however little each has to do."""
    monkeypatch.setattr("hyperconn.kernels.fused.tuning._ENOUGH_PROGRAMS", programs)
    modules = [importlib.import_module(f"hyperconn.kernels.fused.passes.{name}") for name in MODULES]
    small: dict[str, Any] = {
        "channel_tile": lambda C, widest: 16,
        "splits": lambda tiles, length, step, **least: splits(tiles, length, step),
    }
    patched = 0
    for module, name in itertools.product(modules, small):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, small[name])
            patched += 1
    assert patched == 10  # project has no tile of channels, read sums over nothing


@pytest.mark.parametrize("fewest", (1, 2, 16))
def test_splits_cover_everything(fewest: int) -> None:
    for tiles, length, step in itertools.product((0, 1, 7, 511, 512, 10**6), (0, 1, 63, 64, 65, 10**4), (16, 64)):
        count, each = splits(tiles, length, step, fewest)
        assert each % step == 0 and count >= 1 and (count - 1) * each < max(length, 1) <= count * each
        assert count == 1 or (count <= 32 and each >= fewest * step)


@pytest.mark.parametrize(("n", "programs"), ((1, 512), (2, 1)))
def test_many_programs_and_split_sums(n: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From programs that walk over all channels, or all tokens, to sums in as many parts as there can be."""
    narrow(monkeypatch, programs)
    check_all(tensors(17, n, 33, EXACT_DTYPE, 17))


def test_two_runs_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, 512)
    t = tensors(17, 1, 33, torch.float32, 17)
    for run in EVERY_PASS.values():
        with poisoned_memory():
            one, two = run(fused, t), run(fused, t)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_sums_are_split_above(monkeypatch: pytest.MonkeyPatch) -> None:
    t, step = tensors(17, 4, 40, torch.float32, 24), {"project": "BK", "project_backward": "BT"}
    for programs, name in itertools.product((1, 512), sorted(set(PASSES) - {"read", "write"})):
        with monkeypatch.context() as patch, recording() as launches:
            narrow(patch, programs)
            PASSES[name](fused, t)
        (launch,) = launches
        assert launch.grid[0] > 1 and (launch.grid[1] > 1) == (programs > 1), (launch.name, launch.grid)
        assert programs > 1 or launch.arguments["LENGTH"] > launch.constants[step.get(name, "BC")]


def test_large_batches_have_other_tiles() -> None:
    for name, n in {"project": 2, "read": 2, "write": 2, "write_backward": 2, "coefficients_backward": 1}.items():
        t = tensors(1030, n, 5, EXACT_DTYPE)
        check_results(PASSES[name](fused, t), PASSES[name], t)


@pytest.mark.parametrize(
    ("T", "n", "P", "together"), ((5, 2, 1, True), (19, 2, 40, True), (35, 6, 24, False), (5, 2, 130, False))
)
def test_any_number_of_projections(T: int, n: int, P: int, together: bool) -> None:
    """Below and above what a program can accumulate while it writes, and beside the gradient of the streams."""
    t = tensors(T, n, 21, EXACT_DTYPE, P)
    for name in ("project", "project_backward"):
        with poisoned_memory(), counting_launches() as launched:
            results = PASSES[name](fused, t)
        check_results(results, PASSES[name], t)
    assert ("_weights_backward_kernel" in launched) == (not together)
    with counting_launches() as launched:
        check_written(t)
    assert ("_write_project_kernel" in launched) == (P < 130)


@pytest.mark.parametrize(("P", "dtype"), ((15, torch.bfloat16), (40, EXACT_DTYPE)), ids=str)
def test_every_combination_of_gradients(P: int, dtype: torch.dtype) -> None:
    """Where the gradient of the weights comes with that of the streams, and where it has a kernel of its own."""
    t = tensors(5, 3, 7, dtype, P)
    runs: list[Callable[[Any, Tensors], Sequence[Tensor | None]]] = [
        lambda m, t, G=G, du=du: m.coefficients_backward(t.x, t.G if G else None, t.du if du else None)
        for G, du in itertools.product((True, False), repeat=2)
    ]
    runs += [
        lambda m, t, used=used, needs=needs: m.project_backward(t.x, *terms(t, used), *needs)
        for *used, needs in itertools.product((True, False), (True, False), (True, False), BOTH)
    ]
    seen = 0
    for run in runs:
        with poisoned_memory():
            results = run(fused, t)
        seen += check_results(results, run, t)
    # Two of coefficients_backward twice each; 16 with needs_x, two of them without any term; 16 with needs_fn, half of
    # them without a projection.
    assert seen == 4 + 14 + 8


BOTH = tuple(itertools.product((True, False), repeat=2))


def terms(t: Tensors, used: list[bool]) -> list[tuple[Tensor, Tensor] | None]:
    pairs = ((t.H, t.G), (t.pre, t.du), (t.fn, t.draw))
    return [pair if use else None for pair, use in zip(pairs, used, strict=True)]


def test_no_tokens() -> None:
    t = tensors(0, 3, 7, torch.bfloat16)
    with poisoned_memory():
        for run in EVERY_PASS.values():
            assert [result.shape for result in run(fused, t)] == [result.shape for result in run(reference, t.wide())]
        alone = fused.project_backward(t.x, None, None, (t.fn, t.draw), needs_x=False)[1]
        for dfn in (alone, PASSES["project_backward"](fused, t)[1]):
            assert torch.equal(dfn, torch.zeros_like(t.fn))


def test_other_dtypes_and_layouts_of_the_arguments() -> None:
    """Weights and y may be of another dtype than the streams, and anything may have strides."""
    t = tensors(5, 3, 37, torch.bfloat16)
    mixed = t._replace(fn=t.fn.bfloat16(), y=t.y.float(), du=t.du.float(), G=t.G.float())
    wanted = {
        "project": [torch.float32] * 2,
        "write": [torch.bfloat16],
        "write_backward": [mixed.y.dtype, torch.float32],
        "project_backward": [torch.bfloat16] * 2,
    }
    for name, dtypes in wanted.items():
        results = PASSES[name](fused, mixed)
        assert [result.dtype for result in results] == dtypes
        check_results(results, PASSES[name], mixed)

    strided = Tensors(*(torch.stack([tensor, tensor], -1)[..., 0] for tensor in tensors(5, 3, 37, EXACT_DTYPE)))
    assert not any(tensor.is_contiguous() for tensor in strided)
    check_all(strided)


TAKES = {
    "H": ("write", "write_project", "project_backward"), "post": ("write", "write_project", "write_backward"),
    "y": ("write", "write_project", "write_backward"), "fn": ("project", "write_project", "project_backward"),
    "pre": ("read", "project_backward"), "du": ("coefficients_backward", "project_backward"),
    "G": ("coefficients_backward", "project_backward"), "draw": ("project_backward",),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES)
def test_shapes_that_do_not_fit_are_named(name: str) -> None:
    """A kernel would read on behind the end of a tensor that is too small."""
    t = tensors(5, 3, 37, torch.float32)
    tensor = getattr(t, name)
    for short in (tensor[:, :-1].contiguous(), tensor.to("meta")):
        message = (
            f"{name} has to have shape {list(tensor.shape)} on that device; got {list(short.shape)} on {short.device}"
        )
        for step in TAKES[name]:
            with pytest.raises(ValueError, match=f"{step}: beside streams .*{re.escape(message)}"):
                EVERY_PASS[step](fused, t._replace(**{name: short}))


def operator_calls(t: Tensors) -> dict[str, list[tuple[Any, ...]]]:
    everything = (t.x, t.H, t.G, t.pre, t.du, t.fn, t.draw)
    return {
        "project": [(t.x, t.fn)],
        "read": [(t.x, t.pre)],
        "write": [(t.x, t.H, t.post, t.y)],
        "write_project": [(t.x, t.H, t.post, t.y, t.fn)],
        "write_backward": [(t.G, t.post, t.y)],
        "mixing_backward": [(t.x, t.G, t.du), (t.x, None, t.du), (t.x, t.G, None)],
        "project_backward": [
            (*everything, True, True),
            (*everything, True, False),
            (*everything, False, True),
            (t.x, t.H, t.G, t.pre, t.du, None, None, True, False),
        ],
    }


def test_operators() -> None:
    """Schema, fake results with the real shapes, dtypes and strides, no aliases, no autograd by accident."""
    calls = operator_calls(tensors(2, 2, 5, torch.bfloat16))
    registered = {str(op).split(".")[1] for op in vars(fused).values() if isinstance(op, torch._ops.OpOverload)}
    assert set(calls) == registered
    for name, arguments in calls.items():
        for call in arguments:
            torch.library.opcheck(getattr(torch.ops.hyperconn, name).default, call)


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the interpreter multiply as tensor cores do: operands cut to ten bits behind the leading one."""
    from triton.runtime.interpreter import InterpreterBuilder

    plain, calls = InterpreterBuilder.create_dot, []

    def cut(handle: Any) -> Any:
        assert handle.data.dtype == np.float32
        calls.append(handle.data.size)
        return type(handle)((handle.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), handle.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda self, a, b, *rest: plain(self, cut(a), cut(b), *rest))
    return calls


@pytest.mark.skipif(not INTERPRETED, reason="a GPU has tensor cores of its own")
@pytest.mark.parametrize(("n", "dtype"), ((2, torch.float32), (6, torch.bfloat16), (6, torch.float16)), ids=str)
def test_products_keep_float32(n: int, dtype: torch.dtype, tensor_cores: list[int]) -> None:
    t = tensors(16, n, 40, dtype, 24)
    for name in ("project", "project_backward"):
        check_results(PASSES[name](fused, t), PASSES[name], t)
    check_written(t)
    assert tensor_cores
