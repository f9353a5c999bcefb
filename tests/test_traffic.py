"""The byte counter, on kernels and operators whose traffic can be told by hand, and on the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

import harness
import traffic
from harness import Shape, Subject
from traffic import Traffic, counted

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bytes are counted in the interpreter, on the CPU")

TOKENS, CHANNELS = 11, 8
SHAPE = Shape((TOKENS,), 2, CHANNELS)
X = torch.randn(TOKENS, CHANNELS)  # 352 bytes


def traffic_of(run: Callable[[], object]) -> Traffic:
    """What it moves; the counter leaves nothing behind."""
    found = Traffic(SHAPE)
    with counted(found):
        run()
    assert "create_masked_load" not in vars(triton.runtime.interpreter.interpreter_builder)
    return found


@pytest.mark.parametrize("tokens", [1, 7, 9, 64, 121])
def test_sizes_that_tell_no_roles_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="only a prime of tokens above"):
        Traffic(Shape((tokens,), 2, 8))


@triton.jit
def _copy(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < size), mask=i < size)


@triton.jit
def _broadcast(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i * 0) + tl.load(x_ptr))


@triton.jit
def _add_atomically(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr + i // 2, tl.load(x_ptr + i), mask=i < size)


@triton.jit
def _copy_in_first_programs(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < size) & (tl.program_id(0) + 0 < 2)  # integers, to the interpreter
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=inside, other=0.0), mask=inside)


@pytest.mark.parametrize(
    ("kernel", "programs", "size", "dtype", "read", "written"),
    [
        (_copy, 6, 88, torch.float32, 352, 352),  # a masked tail
        (_copy, 6, 88, torch.bfloat16, 176, 176),
        (_broadcast, 1, 0, torch.float32, 4 + 4, 64),
        (_add_atomically, 1, 6, torch.float32, 64 + 12, 12),
        (_copy_in_first_programs, 3, 30, torch.float32, 120, 120),
    ],
)
def test_kernels(
    kernel: Callable[..., object], programs: int, size: int, dtype: torch.dtype, read: int, written: int
) -> None:
    x, y = X.to(dtype), torch.zeros(TOKENS, CHANNELS, dtype=dtype)
    found = traffic_of(lambda: kernel[(programs,)](x, y, size, BLOCK=16))
    assert found.bytes == {("kernel", "streams", "read"): read, ("kernel", "streams", "written"): written}
    assert found.total() == found.total("streams") == read + written and found.total("torch") == 0


@triton.jit
def _of_two(x_ptr, z_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(tl.where(i < 2, x_ptr + i, z_ptr + i)))


def test_an_instruction_on_two_tensors_is_split() -> None:
    """Each part in its role: streams, weights, and a number for every token."""
    z, y = torch.randn(8), torch.zeros(11)
    found = traffic_of(lambda: _of_two[(1,)](X, z, y, BLOCK=8))
    assert [found.total(role) for role in ("streams", "weights", "coefficients")] == [8, 24, 32]


def test_memory_of_nobody_is_refused() -> None:
    x, y = torch.randn(16), torch.zeros(16)
    with pytest.raises(triton.runtime.errors.InterpreterError, match="_copy touches 8 addresses outside"):
        traffic_of(lambda: _copy[(2,)](x[:8], y, 32, BLOCK=16))


@pytest.mark.parametrize(
    ("run", "read", "written"),
    [
        (lambda: X + 1, 352, 352),
        (lambda: X * X, 352, 352),
        (lambda: X + X.clone(), 352 + 704, 352 + 352),
        (lambda: X.view(88).unflatten(0, (11, 8)).mT.expand(2, 8, 11)[0], 0, 0),
        (lambda: X[:, :1].expand(11, 8) + X, 44 + 352, 352),
        (lambda: X.sum(0), 352, 32),
        (lambda: X.contiguous(), 0, 0),
        (lambda: X.to(torch.bfloat16), 352, 176),
        (lambda: torch.empty_like(X), 0, 0),
        (lambda: torch.zeros_like(X), 0, 352),
        (lambda: X.new_zeros(3), 0, 12),
        (lambda: torch.zeros(11, 8).add_(X), 704, 704),
        (lambda: torch.cat([X, X[:1]]), 352 + 32, 384),
        (lambda: X @ X.mT, 704, 484),
        (lambda: X[0, 0].item(), 4, 0),
        (lambda: torch.empty(11, 8).copy_(X).fill_(2.0).zero_(), 352, 3 * 352),  # nobody reads what is overwritten
    ],
)
def test_torch_operators(run: Callable[[], object], read: int, written: int) -> None:
    found = traffic_of(run)
    assert (found.total("torch", "read"), found.total("written")) == (read, written)


def test_sums_of_autograd_are_counted() -> None:
    """A tensor used twice gets two gradients, whose sum is written anew."""
    x = X.clone().requires_grad_()
    first, second = x * 2.0, x * 3.0
    found = traffic_of(lambda: torch.autograd.grad((first, second), x, (X, X)))
    assert found.total("streams", "torch") == found.total() == 7 * 352


def figures(
    n: int, tokens: int, channels: int, contender: object, dtype: torch.dtype = torch.float32
) -> list[list[float]]:
    return [row for row, _ in traffic.report(Shape((tokens,), n, channels, dtype), [contender])]


def test_layers_move_what_the_formulas_say() -> None:
    n = 2
    layer, stack = (figures(n, 11, 19, one, torch.bfloat16) for one in (traffic.SINGLE, traffic.STACK))
    assert [row[:2] for row in layer] == [[4 * n + 2, 0], [6 * n + 4, 0]], "streams, and torch's share of them"
    assert [row[:2] for row in stack] == [[3 * n + 2, 0], [6 * n + 4, 0]]
    assert all(row[2] > 0 < row[3] for row in (*layer, *stack)), "coefficients and weights are seen"


@pytest.mark.exhaustive  # ten seconds, and not ours
def test_liger_is_right_and_counted_as_before() -> None:
    """18C forward and 55C backward, 24C of them sums that autograd adds; the rest are coefficients."""
    pytest.importorskip("liger_kernel", reason="it is in the extra `bench`")
    assert [row[:2] for row in figures(4, 29, 31, traffic.LIGER)] == [[18, 0], [55, 24]]


def test_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They are set for four streams; what is above fails."""
    assert list(traffic.BARS.values()) == [(18.5, 29.0), (14.5, 29.0), (None, None), (None, None)]
    monkeypatch.setitem(traffic.BARS, traffic.TORCH, (1000.0, 27.9))
    four = [bar for _, bar in traffic.report(Shape((29,), 4, 5), [traffic.TORCH])]
    assert [bar.held for bar in four] == [True, False] and "streams <= 27.9" in str(four[1])
    assert harness.judge(four) == 1 and "1 of 2 bars hold" in capsys.readouterr().out
    assert [bar.held for _, bar in traffic.report(Shape((29,), 3, 5), [traffic.TORCH])] == [None, None]


def test_no_figure_for_a_wrong_result() -> None:
    def build(shape: Shape, device: torch.device) -> Subject:
        right = traffic.TORCH.build(shape, device)
        return dataclasses.replace(right, run=lambda x: 1.001 * right.run(x))

    with pytest.raises(SystemExit, match=r"wrong one, .*wrong: .*output 1.0e-03"):
        traffic.measure(dataclasses.replace(traffic.TORCH, name="wrong one", build=build), Shape((29,), 4, 8))
