"""Compile every kernel ahead of time, no GPU needed, and print what it takes: ``make kernels-report``.

Registers and spills are those that the assembler of the target allots; a kernel spills where it keeps registers in
memory. Exit status 1 if a kernel does not compile, spills at four streams, or takes more shared memory than there is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # An interpreted kernel cannot be compiled; the workers inherit this.
    os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from hyperconn.kernels.fused.launch import Launch
from kernel_cases import DTYPES, STREAM_COUNTS, cases

# name -> backend, architecture, threads of a warp, and the bytes of shared memory that a program can get
# (CUDA C++ programming guide, compute capabilities; CDNA 3 ISA, LDS)
TARGETS: dict[str, tuple[str, Any, int, int]] = {
    "cuda80": ("cuda", 80, 32, 163 * 1024),
    "cuda90": ("cuda", 90, 32, 227 * 1024),
    "cuda100": ("cuda", 100, 32, 227 * 1024),
    "gfx942": ("hip", "gfx942", 64, 64 * 1024),
}
STRICT_N = 4  # the number of streams at which nothing may spill


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes: registers of a thread, bytes of shared memory of a program, and spills.

    Those are bytes of stack and local memory of a thread for NVIDIA, spilled registers and bytes of scratch for AMD.
    """

    registers: int
    shared: int
    spills: int


@dataclass(frozen=True)
class Job:
    """One kernel that a launcher runs at one n and stream dtype, and one target; plain data for another process."""

    case: str
    n: int
    dtype: str
    position: int  # among the launches of the case
    kernel: str
    target: str


@dataclass(frozen=True)
class Row:
    """What came of a job: the usage, or why it did not compile."""

    job: Job
    usage: Usage | None
    error: str | None = None

    @property
    def failure(self) -> str | None:
        """What is wrong with the kernel; None if nothing is."""
        if self.usage is None:
            return str(self.error).splitlines()[0]
        if self.usage.shared > (most := TARGETS[self.job.target][-1]):
            return f"takes more shared memory than the {most} bytes of {self.job.target}"
        return "spills" if self.job.n == STRICT_N and self.usage.spills > 0 else None


def specialise(
    launch: Launch, target: str
) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], list[list[Any]]]]:
    """Types ``{name: type}``, values ``{(position,): value}`` and known facts ``{(position,): [[fact, value]]}``.

    A kernel launched for real is compiled for what Triton sees in its arguments: which addresses and sizes divide by
    16, which sizes are 1, and on AMD which tensors lie within 2 GiB.
    """
    given = {**launch.arguments, **launch.constants}
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    names = [parameter.name for parameter in launch.kernel.params]
    if sorted(names) != sorted(given):
        raise TypeError(f"{launch.name} takes {names}, the launch gives {sorted(given)}")
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, given[parameter.name]
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (free and type(value) is int and value == 1):
            signature[name], constants[(position,)] = "constexpr", value
            continue
        signature[name] = mangle_type(value)
        aligned = value.data_ptr() if isinstance(value, torch.Tensor) else value
        facts: list[list[Any]] = []
        if free and type(aligned) is int and aligned % 16 == 0:
            facts.append(["tt.divisibility", 16])
        if isinstance(value, torch.Tensor) and target.startswith("gfx") and value.nbytes < 2**31:
            facts.append(["tt.pointer_range", 32])
        if facts:
            attributes[(position,)] = facts
    return signature, constants, attributes


def usage_of(compiled: Any) -> Usage:
    """Read registers and spills off the machine code."""
    if "cubin" not in compiled.asm:
        return amd_usage(compiled.asm["amdgcn"], compiled.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return nvidia_usage(dump, compiled.metadata.shared)


def nvidia_usage(dump: str, shared: int) -> Usage:
    """From the text of ``cuobjdump -res-usage``, which names one kernel."""
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump)
    if len(found) != 1:
        raise ValueError(f"expected the resources of one kernel, cuobjdump printed {dump!r}")
    registers, stack, local = map(int, found[0])
    return Usage(registers, shared, stack + local)


def amd_usage(assembly: str, shared: int) -> Usage:
    """From the metadata at the end of AMD assembly, which names one kernel."""

    def value(key: str) -> int:
        found = re.findall(rf"^\s*\.{key}:\s*(\d+)$", assembly, re.MULTILINE)
        if len(found) != 1:
            raise ValueError(f"expected .{key} of one kernel in the assembly, found {len(found)}")
        return int(found[0])

    spills = value("vgpr_spill_count") + value("sgpr_spill_count") + value("private_segment_fixed_size")
    return Usage(value("vgpr_count"), shared, spills)


def jobs(ns: Sequence[int], dtypes: Sequence[str], targets: Sequence[str]) -> list[Job]:
    """The matrix."""
    return [
        Job(case, n, dtype, position, launch.name, target)
        for n in ns
        for case, dtype, launches in cases(n, dtypes)
        for position, launch in enumerate(launches)
        for target in targets
    ]


def compile_job(job: Job) -> Row:
    """Compile one kernel as Triton itself would for these arguments, and read what it takes."""
    launch = next(launches for case, _, launches in cases(job.n, [job.dtype]) if case == job.case)[job.position]
    signature, constants, attributes = specialise(launch, job.target)
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)
    target = GPUTarget(*TARGETS[job.target][:-1])
    options = {"num_warps": launch.warps(target.warp_size), "num_stages": launch.num_stages}
    return Row(job, usage_of(triton.compile(source, target=target, options=options)))


_LOCAL = threading.local()


def compile_apart(job: Job) -> Row:
    """The row of a job. Each thread has a process to compile in, so that a compiler that crashes takes one job along.

    The processes are started afresh rather than forked, which would share the state of the compilers.
    """
    if not hasattr(_LOCAL, "pool"):
        _LOCAL.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    future = _LOCAL.pool.submit(compile_job, job)
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        del _LOCAL.pool
    return Row(job, None, f"{type(error).__name__}: {error}")


COLUMNS = "{:<56}{:<32}{:>3} {:<6}{:<8}{:>5}{:>8}{:>8}  {}"


def line(row: Row) -> str:
    """A line of the table."""
    job, usage = row.job, row.usage
    numbers = ("-", "-", "-") if usage is None else (usage.registers, usage.shared, usage.spills)
    note = f"FAILED: {row.failure}" if row.failure else ""
    cells = (job.case, job.kernel, job.n, job.dtype, job.target, *numbers, note)
    return COLUMNS.format(*cells).rstrip()


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if a kernel fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=list(STREAM_COUNTS), help="numbers of streams")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="dtypes of the streams")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="what to compile for")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    work = jobs(arguments.n, arguments.dtype, arguments.target)
    start, rows = time.perf_counter(), []
    print(COLUMNS.format("case", "kernel", "n", "dtype", "target", "regs", "shared", "spills", "").rstrip())
    with ThreadPoolExecutor(arguments.workers) as threads:
        for row in threads.map(compile_apart, work):
            rows.append(row)
            print(line(row), flush=True)
    for row in rows:
        if row.error:
            print(f"\n{row.job}\n{row.error}")
    errors = sum(row.error is not None for row in rows)
    spilling = [row for row in rows if row.usage is not None and row.usage.spills]
    strict = sum(row.job.n == STRICT_N for row in spilling)
    print(
        f"\n{len(rows)} kernels compiled in {time.perf_counter() - start:.0f} s: {errors} errors, "
        f"{len(spilling)} with spills, {strict} of them at n = {STRICT_N}"
    )
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
