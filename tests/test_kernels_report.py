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


def test_every_kernel_is_in_the_report_and_every_size_launches() -> None:
    """Kernels are the jit functions called `…_kernel`; the others are device functions, which these call."""
    names = {}
    for n in kernel_cases.STREAM_COUNTS:
        found = list(kernel_cases.cases(n))
        assert len({(case, dtype) for case, dtype, _ in found}) == len(found)
        assert all(launches for *_, launches in found), n
        names[n] = {launch.name for *_, launches in found for launch in launches}
    assert names[4] == proofs.every_kernel() and len(names[4]) > 8


def test_every_part_with_a_pair_is_in_the_report() -> None:
    """Any gate, and any manifold, that is registered and has device functions."""
    shown = [{"pre_gate": "sigmoid", "post_gate": "double_sigmoid", **fields} for fields, _ in kernel_cases.CONSTRAINTS]
    for part, keys in ((manifolds, ("manifold",)), (gates, ("pre_gate", "post_gate"))):
        with_pair = {name for name in part.available() if part.make(name, n=4).kernel is not None}
        assert {fields[key] for fields in shown for key in keys} == with_pair


NVIDIA = """
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


def test_figures_are_read_and_none_are_made_up() -> None:
    assert nvidia_usage(NVIDIA, 512) == Usage(registers=40, shared=512, spills=24)
    assert amd_usage(AMD, 512) == Usage(registers=34, shared=512, spills=16)
    with pytest.raises(ValueError, match="expected the resources of one kernel"):
        nvidia_usage("Resource usage:", 0)
    with pytest.raises(ValueError, match="vgpr_spill_count of one kernel in the assembly, found 0"):
        amd_usage(AMD.replace(".vgpr_spill_count", ".else"), 0)


# What stands in for kernel_cases.py: one kernel that is fine, and three that are not.
EXAMPLES = '''
import multiprocessing, os
import torch, triton, triton.language as tl
from hyperconn.kernels.fused.launch import Launch

DTYPES, STREAM_COUNTS = {"fp32": torch.float32}, (2, 4)

@triton.jit
def center(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    tl.store(y_ptr + i, x - tl.sum(x, 0), mask=i < size)

@triton.jit
def nonsense(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    tl.store(y_ptr, undefined_name)

def cases(n, dtypes):
    x = torch.empty(1000, device="meta")
    for name, kernel, block in (
        ("good", center, 128), ("spill", center, 8192), ("nonsense", nonsense, 128), ("crash", center, 128)
    ):
        if name == "crash" and multiprocessing.parent_process():
            os._exit(3)
        given = {"x_ptr": x, "y_ptr": x, "size": 1000}
        yield name, "fp32", [Launch(kernel, (1,), given, {"BLOCK": block}, num_warps=1)]
'''  # fmt: skip


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
    rows = [line.split(maxsplit=8) for line in result.stdout.splitlines()[1:9]]
    assert [(row[0], row[4], row[8].split(":")[1].split()[0] if row[8:] else "") for row in rows] == [
        ("good", "cuda90", ""),
        ("good", "gfx942", ""),
        ("spill", "cuda90", "spills"),
        ("spill", "gfx942", ""),  # twice the threads, and more registers for each
        *(("nonsense", target, "CompilationError") for target in ("cuda90", "gfx942")),
        *(("crash", target, "BrokenProcessPool") for target in ("cuda90", "gfx942")),
    ]
    assert [int(row[7]) > 0 for row in rows[:4]] == [False, False, True, False]
    assert "undefined_name" in result.stdout
    assert "8 kernels compiled" in result.stdout and "4 errors, 1 with spills, 1 of them at n = 4" in result.stdout


def test_what_fails() -> None:
    """A spill at four streams, more shared memory than there is, and what does not compile."""

    def failure(n: int, usage: Usage | None, error: str | None = None) -> str | None:
        return kernels_report.Row(kernels_report.Job("case", n, "bf16", 0, "kernel", "cuda90"), usage, error).failure

    most = kernels_report.TARGETS["cuda90"][-1]
    assert [failure(4, Usage(32, most, 0)), failure(8, Usage(32, 0, 1))] == [None, None]
    assert failure(4, Usage(32, 0, 1)) == "spills" and failure(4, None, "error") == "error"
    assert "shared memory" in str(failure(4, Usage(32, most + 1, 0)))


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
