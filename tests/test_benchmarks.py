"""The benchmarks: nothing wrong is timed, and all but the figures works without a GPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cpu
import gpu
import harness
import ours
import peers
import proofs
from fused_cases import DEVICE
from harness import Bar, Contender, Refused, Shape, Subject, UnavailableError, Verified, judge, prepare
from hyperconn.manifolds import Kronecker
from hyperconn.timing import interleaved, ratios
from source_tree import ROOT

CPU = torch.device("cpu")
SMALL = Shape((2, 6), streams=4, channels=8)


def toy(run: Callable[[Tensor, Tensor], Tensor], name: str = "toy", kind: str = "ours") -> Contender:
    """A contender that should compute ``x · w`` and computes ``run(x, w)``."""

    def build(shape: Shape, device: torch.device) -> Subject:
        module = nn.Module()
        module.w = nn.Parameter(torch.randn(shape.channels, dtype=shape.dtype))
        size = (*shape.batch, shape.channels)
        return ours.subject(module, size, shape, device, lambda x, p: x * p["w"], lambda x: run(x, module.w))

    return Contender(name, kind, build)


def raising(error: Exception) -> Contender:
    def build(shape: Shape, device: torch.device) -> Subject:
        raise error

    return Contender("another peer", "peer", build)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda x, w: 1.001 * x * w, "output 1.0e-03, gradient of x 1.0e-03, gradient of w 1.0e-03"),
        (lambda x, w: (x + 0.001 * (x - x.detach())) * w, "gradient of x 1.0e-03"),
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
    for error, status, reason in (
        (UnavailableError("no such package"), "unavailable", "no such package"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory", "CUDA out of memory"),
    ):
        result = prepare(raising(error), SMALL, CPU)
        assert isinstance(result, Refused) and (result.status, result.reason) == (status, reason)
    with pytest.raises(RuntimeError, match="a defect"):  # nothing else is swallowed
        prepare(raising(RuntimeError("a defect")), SMALL, CPU)


def test_a_gradient_that_vanishes_proves_nothing() -> None:
    nothing = dataclasses.replace(toy(lambda x, w: x).build(SMALL, CPU), formula=lambda x, p: x + 0 * p["w"])
    with pytest.raises(ValueError, match="the gradient of w vanishes in the formula"):
        harness.compare(nothing)


def test_chunks_of_tokens_add_up() -> None:
    subject = ours.layer_contender("stiefel", backend="torch", branch=ours.rms_norm_branch).build(SMALL, CPU)
    whole, parts = harness.expectation(subject, 100), harness.expectation(subject, 4)
    assert len(whole) == 6
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-11, atol=1e-12)


CONTENDERS = [  # test_traffic.py checks LigerMHC, which takes seconds in the interpreter
    ours.plain_contender(),
    *(ours.layer_contender(name, backend="torch", branch=ours.rms_norm_branch) for name in ours.MANIFOLDS),
    *(peers.lucidrains_contender(kind, ours.rms_norm_branch) for kind in ("HC", "mHC")),
    peers.transformers_contender(ours.rms_norm_branch),
    ours.reference_contender("birkhoff", branch=ours.rms_norm_branch, compiled=False),
]


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_every_contender_is_right(contender: Contender) -> None:
    result = prepare(contender, SMALL, CPU)
    if isinstance(result, Refused) and result.status == "unavailable":
        assert contender.kind == "peer", "only what is not ours may be missing"
        pytest.skip(result.reason)
    assert isinstance(result, Verified), result
    assert set(result.errors) == {"output", *(f"gradient of {name}" for name in ("x", *result.subject.parameters))}


def test_a_manifold_without_a_limit_is_unavailable_where_it_says_so() -> None:
    contender = ours.layer_contender("permutation", backend="torch", branch=ours.no_branch)
    result = prepare(contender, Shape((3,), 8, 4), CPU)
    assert isinstance(result, Refused) and (result.status, "n = 6" in result.reason) == ("unavailable", True)


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


@pytest.mark.parametrize("op", gpu.OPS)
def test_what_is_timed_for_an_op(op: str) -> None:
    calls: list[str] = []
    subject = toy(lambda x, w: (calls.append("forward"), x * w)[1]).build(SMALL, CPU)
    subject.x.register_hook(lambda grad: calls.append("backward"))
    timed, before = gpu.steps(subject, op)
    for _ in range(2):  # repeatable
        before()
        calls.clear()
        timed()
        assert calls == op.split(" + ")


def test_cpu_comparison(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rival = dataclasses.replace(CONTENDERS[-1], kind="peer")
    missing = raising(UnavailableError("not installed"))
    field = [CONTENDERS[0], cpu.ours("stiefel"), cpu.ours("unconstrained"), rival, missing]
    monkeypatch.setattr(cpu, "contenders", lambda compiled: field)
    bars = cpu.compare_sublayers(SMALL, rounds=2, compiled=[])
    table = capsys.readouterr().out
    assert "plain residual" in table and "stiefel" in table and "faster" in table and "another peer" in table
    # Exact manifolds have bars, others are only shown; what could not be compared with is a bar that is missed.
    assert [bar.text.split(":")[0] for bar in bars] == ["another peer is unavailable", "stiefel", "stiefel"]
    assert bars[0].held is False and "not installed" in bars[0].text


def test_cpu_growth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [1024, 2048, 4096, 8192]
    assert cpu.growth_exponent(sizes, [1e-6 * s**1.3 for s in sizes]) == pytest.approx(1.3)
    monkeypatch.setattr(cpu, "TOKENS", (8, 16))
    streams, tokens = cpu.growth(SMALL, rounds=1)
    assert "n = 16 costs" in streams.text and "tokens^" in tokens.text and "n = 16" in capsys.readouterr().out


def test_bars_decide_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge([Bar("a", True), Bar("b", None)]) == 0
    assert judge([Bar("a", True), Bar("b", False)]) == 1
    assert "FAIL  b" in capsys.readouterr().out


def test_floors_are_those_of_the_design() -> None:
    """n = 4: 18C and 14C forward, 28C backward; the first projection of a stack is shared out among its sublayers."""
    assert [gpu.floor_elements("forward", 4, sublayers) for sublayers in (1, 4)] == [18, 14 + 1]
    assert gpu.floor_elements("backward", 4, 1) == gpu.floor_elements("backward", 4, 4) == 28
    assert gpu.floor_elements("forward + backward", 4, 1) == 46


def test_gpu_bars() -> None:
    found = [
        {"contender": name, "op": op, "median_ms": ms, "fraction_of_copy": fraction, **gpu.sizes(SMALL)}
        for name, op, ms, fraction in (
            ("stiefel", "forward", 1.0, 0.86),
            ("stiefel", "backward", 2.0, 0.74),
            ("stiefel", "forward + backward", 3.0, 0.8),
            ("birkhoff", "forward", 1.0, 0.1),
            ("LigerMHC", "forward + backward", 7.4, 0.3),
        )
    ]
    verdicts = [(bar.held, bar.text) for bar in gpu.bars(found, SMALL)]
    assert [held for held, _ in verdicts] == [True, False, False, None]
    assert "2.47× faster than LigerMHC" in verdicts[2][1] and "was not timed" in verdicts[3][1]
    assert [bar.held for bar in gpu.bars(found, gpu.MAIN)] == [None, None], "other shapes are not judged"


def test_without_a_gpu_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no GPU" in said and not (tmp_path / "results").exists()


FIELD = [
    ours.plain_contender(ours.no_branch),
    ours.layer_contender("identity", backend="triton", branch=ours.no_branch),
    toy(lambda x, w: 2 * x, "a wrong one", "peer"),
]


def test_gpu_run_from_proofs_to_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "contenders", lambda: FIELD)
    monkeypatch.setenv("HYPERCONN_COMMIT", "abc")
    shape, proof = Shape((3, 1), 2, 8), proofs.Proof("identity", Shape((3,), 2, 8))
    cases = [proof, dataclasses.replace(proof, checked=False)]
    plan = gpu.Plan(shapes=[shape], proofs=cases, pairs=[("identity", 2)], repetitions=1)
    status = gpu.run(plan, torch.device(DEVICE), tmp_path)
    printed = capsys.readouterr().out
    assert "1 sublayers and stacks and 1 device pairs" in printed and "0 failures" in printed
    # One proof does not launch everything, and that is said.
    assert status == 1 and "no case launches" in printed and "_write_project_kernel" in printed

    (path,) = tmp_path.iterdir()
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    assert [(one["contender"], one["op"]) for one in lines] == [
        ("device-to-device copy", "copy"),
        *((name, op) for name in ("plain residual", "identity") for op in gpu.OPS),
        ("a wrong one", "all"),
    ]
    assert all(one["commit"] == "abc" and one["torch"] == torch.__version__ for one in lines)
    timed = lines[4]
    assert timed["floor_bytes"] == 10 * 8 * 3 * 4 and timed["median_ms"] > 0 and timed["error"] < 1e-5
    assert timed["fraction_of_copy"] == pytest.approx(timed["gb_per_s"] / timed["copy_gb_per_s"])
    assert lines[-1]["status"] == "wrong" and "median_ms" not in lines[-1]
    described = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in described for one in lines for key in one)


def test_what_comes_too_late_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "contenders", lambda: FIELD)
    log = gpu.Log(tmp_path, CPU)
    assert gpu.time_everything(gpu.Plan(shapes=[SMALL], repetitions=1), CPU, log, deadline=0.0) == []
    statuses = [json.loads(text)["status"] for text in log.path.read_text(encoding="utf-8").splitlines()]
    assert statuses == ["timed", "out of time", "out of time", "out of time"]


def test_the_default_plan_proves_every_kernel() -> None:
    plan = gpu.default_plan(8.0)
    checked = [case for case in plan.proofs if case.checked]
    assert len(checked) > 40 and len(plan.pairs) == 2 * len(ours.MANIFOLDS)
    assert {case.manifold for case in checked} == set(ours.MANIFOLDS)
    assert {case.shape.streams for case in checked} >= {1, 2, 3, 4, 5, 8, 16}
    names = proofs.launched(checked, torch.device(DEVICE))
    assert proofs.every_kernel() - names == {"_constrain_forward_kernel", "_constrain_backward_kernel"}
    assert len(names) > 8


def test_a_proof_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    case = proofs.Proof("kronecker", Shape((5,), 2, 8))
    assert proofs.prove(case, DEVICE) is None
    assert proofs.prove_pair("kronecker", 2, torch.device(DEVICE)) is None
    monkeypatch.setattr(Kronecker, "reference", lambda m, theta: 1.01 * m.forward(theta).mT)
    failure = proofs.prove(case, DEVICE)
    assert failure is not None and failure.startswith("kronecker, 5 tokens") and "output" in failure
    assert "is off by" in (proofs.prove_pair("kronecker", 2, torch.device(DEVICE)) or "")
