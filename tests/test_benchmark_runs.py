"""`make bench-cpu` and `make bench-gpu` on small shapes: everything but the figures."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cpu
import gpu
import ours
import proofs
import records
from bars import Bar, judge
from benchmark_cases import CPU, SMALL, toy
from fused_cases import DEVICE
from harness import Contender, Shape, Subject, UnavailableError
from hyperconn.manifolds import Kronecker
from source_tree import ROOT

# --------------------------------------------------------------------------------------------------------- bench-cpu


def small_field(compiled: Any) -> list[Contender]:
    def missing(shape: Shape, device: torch.device) -> Subject:
        raise UnavailableError("not installed")

    return [
        ours.plain_contender(),
        cpu.ours("stiefel"),
        cpu.ours("unconstrained"),
        dataclasses.replace(
            ours.reference_contender("birkhoff", branch=ours.rms_norm_branch, compiled=False), kind="peer"
        ),
        Contender("another peer", "peer", missing),
    ]


def test_cpu_comparison(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cpu, "contenders", small_field)
    bars = cpu.compare_sublayers(SMALL, rounds=2, compiled=[])
    table = capsys.readouterr().out
    assert "plain residual" in table and "stiefel" in table and "faster" in table and "another peer" in table
    # Exact manifolds have bars, others are only shown; what could not be compared with is a bar that is missed.
    assert [bar.text.split(":")[0] for bar in bars] == ["another peer is unavailable", "stiefel", "stiefel"]
    assert bars[0].held is False and "not installed" in bars[0].text


def test_cpu_growth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cpu, "TOKENS", (8, 16))
    bars = cpu.growth(SMALL, rounds=1)
    assert len(bars) == 2 and "n = 16" in capsys.readouterr().out
    assert statistics.fmean("n = 16 costs" in bar.text or "tokens^" in bar.text for bar in bars) == 1


def test_bars_decide_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge([Bar("a", True), Bar("b", None)]) == 0
    assert judge([Bar("a", True), Bar("b", False)]) == 1
    assert "FAIL  b" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- bench-gpu


def test_floors_are_those_of_the_design() -> None:
    """n = 4: 18C and 14C forward, 28C backward; the first projection of a stack is shared out among its sublayers."""
    assert gpu.floor_elements("forward", 4, 1) == 18
    assert gpu.floor_elements("forward", 4, 4) == 14 + 1
    assert gpu.floor_elements("backward", 4, 1) == gpu.floor_elements("backward", 4, 4) == 28
    assert gpu.floor_elements("forward + backward", 4, 1) == 46


def timed(name: str, op: str, ms: float, fraction: float | None) -> dict[str, Any]:
    return {"contender": name, "op": op, "median_ms": ms, "fraction_of_copy": fraction, **records.sizes(SMALL)}


def test_gpu_bars() -> None:
    found = [
        timed("stiefel", "forward", 1.0, 0.86),
        timed("stiefel", "backward", 2.0, 0.74),
        timed("stiefel", "forward + backward", 3.0, 0.8),
        timed("birkhoff", "forward", 1.0, 0.1),
        timed("LigerMHC", "forward + backward", 7.4, 0.3),
    ]
    verdicts = [(bar.held, bar.text) for bar in gpu.bars(found, SMALL)]
    assert [held for held, _ in verdicts] == [True, False, False, None]
    assert "2.47× faster than LigerMHC" in verdicts[2][1] and "was not timed" in verdicts[3][1]
    assert [bar.held for bar in gpu.bars(found, gpu.MAIN)] == [None, None], "other shapes are not judged"


def test_without_a_gpu_nothing_happens(tmp_path: Path) -> None:
    out = tmp_path / "results"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "no GPU" in done.stdout
    assert not out.exists()


def field_of_one(compiled: bool) -> list[Contender]:
    return [
        ours.plain_contender(ours.no_branch),
        ours.layer_contender("identity", backend="triton", branch=ours.no_branch),
        toy(lambda x, w: 2 * x, "a wrong one", "peer"),
    ]


def test_gpu_run_from_proofs_to_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "contenders", field_of_one)
    monkeypatch.setenv("HYPERCONN_COMMIT", "abc")
    shape = Shape((3, 1), 2, 8, torch.float32)
    plan = gpu.Plan(
        shapes=[shape],
        main=shape,
        proofs=[
            proofs.Proof("identity", Shape((3,), 2, 8)),
            proofs.Proof("identity", Shape((3,), 2, 8), checked=False),
        ],
        pairs=[("identity", 2)],
        repetitions=2,
    )
    status = gpu.run(plan, torch.device(DEVICE), tmp_path)
    printed = capsys.readouterr().out
    assert "1 sublayers and stacks and 1 device pairs" in printed and "0 failures" in printed
    # One proof does not launch everything, and that is said.
    assert status == 1 and "no case launches" in printed and "_write_project_kernel" in printed

    (path,) = tmp_path.iterdir()
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    assert [(one["contender"], one["op"]) for one in lines] == [
        ("device-to-device copy", "copy"),
        *(("plain residual", op) for op in gpu.OPS),
        *(("identity", op) for op in gpu.OPS),
        ("a wrong one", "all"),
    ]
    assert all(one["commit"] == "abc" and one["torch"] == torch.__version__ for one in lines)
    timed = lines[4]
    assert timed["floor_bytes"] == 10 * 8 * 3 * 4 and timed["median_ms"] > 0 and timed["error"] < 1e-5
    assert timed["fraction_of_copy"] == pytest.approx(timed["gb_per_s"] / timed["copy_gb_per_s"])
    assert lines[-1]["status"] == "wrong" and "median_ms" not in lines[-1]
    described = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in described for one in lines for key in one)


def test_what_comes_too_late_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "contenders", field_of_one)
    log = records.Log(tmp_path, CPU)
    plan = gpu.Plan(shapes=[SMALL], main=SMALL, repetitions=1)
    assert gpu.time_everything(plan, CPU, log, deadline=0.0) == []
    statuses = [json.loads(text)["status"] for text in log.path.read_text(encoding="utf-8").splitlines()]
    assert statuses == ["timed", "out of time", "out of time", "out of time"]
    assert "out of time" in capsys.readouterr().out


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


def test_commits_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HYPERCONN_COMMIT", raising=False)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.commit() is None
    monkeypatch.setenv("HYPERCONN_COMMIT", "1234")
    assert records.commit() == "1234"
