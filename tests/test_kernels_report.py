"""The ahead-of-time report: it covers every kernel, reads the right figures, and fails where it has to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

import kernel_cases
import kernels_report
import proofs
from hyperconn import gates, manifolds
from hyperconn.kernels.fused.launch import Launch
from kernels_report import Usage, amd_usage, nvidia_usage
from source_tree import ROOT

# ------------------------------------------------------------------------------------------------ what is covered


def launched(n: int) -> set[str]:
    cases = [case for case in kernel_cases.kernel_cases() if n <= case.largest_n]
    return {launch.name for case in cases for launch in case.launches(n, case.dtypes[0])}


def test_every_kernel_is_in_the_report() -> None:
    """Kernels are the jit functions called `…_kernel`; the others are device functions, which these call."""
    kernels = proofs.every_kernel()
    assert len(kernels) > 8
    assert launched(4) == kernels


def test_every_part_with_a_pair_is_in_the_report() -> None:
    """Any gate, and any manifold, that is registered and has device functions."""
    shown = [{"pre_gate": "sigmoid", "post_gate": "double_sigmoid", **fields} for fields, _ in kernel_cases.CONSTRAINTS]
    for part, keys in ((manifolds, ("manifold",)), (gates, ("pre_gate", "post_gate"))):
        with_pair = {name for name in part.available() if part.make(name, n=4).kernel is not None}
        assert {fields[key] for fields in shown for key in keys} == with_pair


def test_names_are_unique_and_all_sizes_launch() -> None:
    cases = kernel_cases.kernel_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        for n in kernel_cases.STREAM_COUNTS:
            assert n > case.largest_n or case.launches(n, case.dtypes[0]), (case.name, n)


# ------------------------------------------------------------------------------------------------ reading figures

NVIDIA = """
Resource usage:
 Common:
  GLOBAL:0
 Function _copy_kernel:
  REG:40 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
AMD = """
    .private_segment_fixed_size: 12
    .sgpr_count:     20
    .sgpr_spill_count: 1
    .vgpr_count:     34
    .vgpr_spill_count: 3
"""


def test_figures_are_read() -> None:
    assert nvidia_usage(NVIDIA, 512) == Usage(registers=40, shared=512, spills=24)
    assert amd_usage(AMD, 512) == Usage(registers=34, shared=512, spills=16)


def test_figures_that_are_not_there_are_no_zeros() -> None:
    with pytest.raises(ValueError, match="expected the resources of one kernel"):
        nvidia_usage("Resource usage:", 0)
    with pytest.raises(ValueError, match="vgpr_spill_count of one kernel in the assembly, found 0"):
        amd_usage(AMD.replace(".vgpr_spill_count", ".else"), 0)


# ------------------------------------------------------------------------------------------------ the command

EXAMPLES = '''
import multiprocessing, os
from dataclasses import dataclass
import torch, triton, triton.language as tl
from hyperconn.kernels.fused.launch import Launch

DTYPES, STREAM_COUNTS = {"fp32": torch.float32}, (2, 4)

@triton.jit
def copy(x_ptr, y_ptr, size, one, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < size) * one, mask=i < size)

@triton.jit
def center(x_ptr, y_ptr, size, one, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    tl.store(y_ptr + i, x - tl.sum(x, 0), mask=i < size)

@triton.jit
def nonsense(x_ptr, y_ptr, size, one, BLOCK: tl.constexpr):
    tl.store(y_ptr, undefined_name)

@dataclass
class Case:
    name: str
    kernel: object
    block: int = 128
    dtypes = ("fp32",)
    largest_n = 4
    def launches(self, n, dtype):
        if self.name == "crash" and multiprocessing.parent_process():
            os._exit(3)
        x = torch.empty(1000, device="meta")
        given = {"x_ptr": x, "y_ptr": x[1:], "size": 1000, "one": 1}
        return [Launch(self.kernel, (1,), given, {"BLOCK": self.block}, num_warps=1)]

def kernel_cases():
    return [Case("copy", copy), Case("spill", center, 32768), Case("nonsense", nonsense), Case("crash", copy)]
'''  # fmt: skip


# case -> how its verdict at four streams starts
VERDICTS = {
    "copy": "",
    "spill": "FAILED: spills",
    "nonsense": "FAILED: CompilationError",
    "crash": "FAILED: BrokenProcessPool",
}


def test_bad_kernels_fail_and_are_named(tmp_path: Path) -> None:
    """Each by its own; a compiler that crashes does not stop the others."""
    (tmp_path / "kernel_cases.py").write_text(EXAMPLES, encoding="utf-8")
    start = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'benchmarks')!r}]\n"
    start += "import kernels_report; sys.exit(kernels_report.main(sys.argv[1:]))"
    # Triton as a compiler, not as an interpreter.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", start, "--n", "4", "--target", "cuda90", "gfx942", "--workers", "1"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 1, result.stderr
    lines = [line.split(maxsplit=9) for line in result.stdout.splitlines() if line.startswith(tuple(VERDICTS))]
    assert [(case, target) for case, _, _, _, target, *_ in lines] == [
        (case, target) for case in VERDICTS for target in ("cuda90", "gfx942")
    ]
    for case, *_, spills, _, verdict in (line if len(line) > 9 else [*line, ""] for line in lines):
        assert verdict.startswith(VERDICTS[case]) and bool(verdict) == bool(VERDICTS[case]), (case, verdict)
        assert (case == "spill") == (spills.isdigit() and int(spills) > 0), (case, spills)
    assert "undefined_name" in result.stdout
    assert "8 kernels compiled" in result.stdout and "4 errors, 2 with spills, 2 of them at n = 4" in result.stdout


@pytest.mark.parametrize(("n", "spills", "failed"), [(4, 0, False), (4, 1, True), (8, 1, False)])
def test_a_spill_fails_at_four_streams(n: int, spills: int, failed: bool) -> None:
    job = kernels_report.Job("case", n, "bf16", 0, "kernel", "cuda90")
    assert bool(kernels_report.Row(job, 1.0, Usage(32, 0, spills)).failure) is failed
    assert kernels_report.Row(job, 1.0, None, "error").failure == "error"
    limit = kernels_report.SHARED_MEMORY[job.target]
    assert kernels_report.Row(job, 1.0, Usage(32, limit, 0)).failure is None
    assert "shared memory" in str(kernels_report.Row(job, 1.0, Usage(32, limit + 1, 0)).failure)


def test_no_case_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        kernels_report.main(["--only", "nothing of this name"])
    assert "no case matches 'nothing of this name'" in capsys.readouterr().err


def test_what_the_compiler_is_told() -> None:
    """Alignment of pointers, divisible sizes and sizes of one, as in a real launch."""

    def copy(x_ptr, y_ptr, size, one, BLOCK: tl.constexpr):
        pass

    x = torch.empty(1024, dtype=torch.bfloat16, device="meta")

    def told(size: int, target: str) -> tuple[object, ...]:
        given = {"x_ptr": x, "y_ptr": x[1:], "size": size, "one": 1}
        return kernels_report.specialise(Launch(JITFunction(copy), (1,), given, {"BLOCK": 8}), target)

    types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "size": "i32", "one": "constexpr", "BLOCK": "constexpr"}
    aligned, near = ["tt.divisibility", 16], ["tt.pointer_range", 32]
    assert told(1024, "cuda90") == (types, {(3,): 1, (4,): 8}, {(0,): [aligned], (2,): [aligned]})
    assert told(1024, "gfx942")[2] == {(0,): [aligned, near], (1,): [near], (2,): [aligned]}
    assert told(1000, "cuda90")[2] == {(0,): [aligned]}
    assert told(2**33, "cuda90")[0] == {**types, "size": "i64"}
