"""The benchmarks: nothing wrong is timed, the formulas are right, and all but the timing works without a GPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cpu
import gpu
import harness
import ours
import peers
from benchmark_cases import CPU, SMALL, toy
from fused_cases import DEVICE
from harness import Contender, Refused, Shape, Subject, UnavailableError, Verified, prepare
from hyperconn.timing import interleaved, ratios
from source_tree import ROOT

# ------------------------------------------------------------------------------------------------------- the harness


def test_what_is_right_is_verified() -> None:
    result = prepare(toy(lambda x, w: x * w), SMALL, CPU)
    assert isinstance(result, Verified)
    assert set(result.errors) == {"output", "gradient of x", "gradient of w"}
    assert result.error < 1e-6


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 1.001 * grads[0]


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda x, w: 1.001 * x * w, "output 1.0e-03, gradient of x 1.0e-03, gradient of w 1.0e-03"),
        (lambda x, w: _WrongGradient.apply(x) * w, "gradient of x 1.0e-03"),
        (lambda x, w: x * w.detach(), "gradient of w inf"),
        (lambda x, w: x * w * torch.nan, "output nan"),
        (lambda x, w: (x * w).sum(-1, keepdim=True).expand_as(x), "output"),
    ],
)
def test_what_is_wrong_is_refused(run: Callable[[Tensor, Tensor], Tensor], named: str) -> None:
    result = prepare(toy(run), SMALL, CPU)
    assert isinstance(result, Refused)
    assert result.status == "wrong" and named in result.reason and "above 1e-04" in result.reason


def test_what_cannot_be_built_is_refused_with_its_reason() -> None:
    def missing(shape: Shape, device: torch.device) -> Subject:
        raise UnavailableError("no such package")

    def too_large(shape: Shape, device: torch.device) -> Subject:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. And so on")

    def broken(shape: Shape, device: torch.device) -> Subject:
        raise RuntimeError("a defect")

    found = [prepare(Contender("c", "peer", build), SMALL, CPU) for build in (missing, too_large)]
    assert [(one.status, one.reason) for one in found if isinstance(one, Refused)] == [
        ("unavailable", "no such package"),
        ("out of memory", "CUDA out of memory"),
    ]
    with pytest.raises(RuntimeError, match="a defect"):  # nothing else is swallowed
        prepare(Contender("c", "peer", broken), SMALL, CPU)


def test_a_gradient_that_vanishes_proves_nothing() -> None:
    def build(shape: Shape, device: torch.device) -> Subject:
        module = nn.Linear(1, 1, bias=False)
        size = (*shape.batch, shape.channels)
        return ours.subject(module, size, shape, device, lambda x, p: x + 0 * p["weight"].sum(), lambda x: x)

    with pytest.raises(ValueError, match="the gradient of weight vanishes in the formula"):
        prepare(Contender("c", "ours", build), SMALL, CPU)


def test_chunks_of_tokens_add_up() -> None:
    subject = ours.layer_contender("stiefel", backend="torch", branch=ours.rms_norm_branch).build(SMALL, CPU)
    whole, parts = harness.expectation(subject, 100), harness.expectation(subject, 4)
    assert len(whole) == 6
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-11, atol=1e-12)


# ------------------------------------------------------------------------------------- the formulas and the contenders


def everybody(branch: ours.Branch) -> list[Contender]:
    return [
        ours.plain_contender(branch),
        *(ours.layer_contender(name, backend="torch", branch=branch) for name in ours.MANIFOLDS),
        *(peers.lucidrains_contender(kind, branch) for kind in ("HC", "mHC")),
        peers.transformers_contender(branch),
        peers.liger_contender(branch),
        ours.reference_contender("birkhoff", branch=branch, compiled=False),
    ]


# LigerMHC divides zeros in the rows of a tile that it masks; the interpreter says so.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("contender", everybody(ours.rms_norm_branch), ids=lambda contender: contender.name)
def test_every_contender_is_right(contender: Contender) -> None:
    shape = SMALL if contender.name != "LigerMHC" else Shape((3,), 4, 16)
    device = torch.device(DEVICE) if contender.name == "LigerMHC" else CPU
    result = prepare(contender, shape, device)
    if isinstance(result, Refused) and result.status == "unavailable":
        assert contender.kind == "peer", "only what is not ours may be missing"
        pytest.skip(result.reason)
    assert isinstance(result, Verified), result
    # The check would notice: a formula with any one parameter a little off disagrees.
    subject = result.subject
    for name in subject.parameters:

        def other(x: Tensor, p: Mapping[str, Tensor], name: str = name) -> Tensor:
            return subject.formula(x, {**p, name: 1.05 * p[name] + 0.01})

        errors = harness.compare(dataclasses.replace(subject, formula=other))
        assert max(errors.values()) > harness.TOLERANCE[torch.float32], name


def test_a_manifold_without_a_limit_is_unavailable_where_it_says_so() -> None:
    contender = ours.layer_contender("permutation", backend="torch", branch=ours.no_branch)
    result = prepare(contender, Shape((3,), 8, 4), CPU)
    assert isinstance(result, Refused) and (result.status, "n = 6" in result.reason) == ("unavailable", True)


# ------------------------------------------------------------------------------------------------------------ timing


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(steps, rounds=3, synchronize=lambda: calls.append("|"))
    assert "".join(calls) == "".join(f"|{name}|" for name in "bca" + "cab" + "abc" + "bca" + "cab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(value > 0 for values in seconds.values() for value in values)


def test_ratios_cancel_what_slows_a_round_down() -> None:
    spread = ratios({"a": [2.0, 20.0, 4.4], "b": [1.0, 10.0, 2.0]}, "a", "b")
    assert (spread.median, spread.low, spread.high, spread.repetitions) == (2.0, 2.0, 2.2, 3)


def test_growth_exponent() -> None:
    sizes = [1024, 2048, 4096, 8192]
    assert cpu.growth_exponent(sizes, [1e-6 * s**1.3 for s in sizes]) == pytest.approx(1.3)


def test_freed_memory_can_be_kept() -> None:
    """In a process of its own, which it changes: blocks above 32 MB stop costing page faults."""
    script = (
        "import cpu, resource, torch\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def once():\n"
        "    before = faults(); torch.ones(2**24); return faults() - before\n"
        "def cost(): return min(once() for _ in range(12))\n"  # the heap grows a few times first
        "print(cost(), cpu.keep_memory(), cost())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    before, kept, after = done.stdout.split()
    if kept == "False":
        pytest.skip("not glibc")
    assert int(before) > 10 * max(int(after), 1)


@pytest.mark.parametrize(("op", "counts"), [("forward", (1, 0)), ("backward", (0, 1)), ("forward + backward", (1, 1))])
def test_what_is_timed_for_an_op(op: str, counts: tuple[int, int]) -> None:
    calls = {"forward": 0, "backward": 0}

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            calls["forward"] += 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            calls["backward"] += 1
            return grads[0].clone()

    subject = toy(lambda x, w: Counting.apply(x) * w).build(SMALL, CPU)
    timed, before = gpu.steps(subject, op)
    for _ in range(2):  # repeatable
        before()
        start = dict(calls)
        timed()
        assert (calls["forward"] - start["forward"], calls["backward"] - start["backward"]) == counts
