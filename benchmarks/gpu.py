"""``make bench-gpu``: proves every kernel on the GPU, then times a sublayer against what else there is.

The branch is the identity, which moves nothing: what is timed is the hyper-connection alone. Needs torch, triton and
numpy, and hyperconn on the path. Without a GPU it says so and exits 0; nothing is estimated.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hyperconn
import proofs
from harness import Bar, Contender, Refused, Shape, Subject, Verified, judge, prepare
from hyperconn.timing import Spread
from ours import EXACT, MANIFOLDS, layer_contender, no_branch, plain_contender, reference_contender, stack_contender
from peers import liger_contender
from proofs import Proof

ROOT = Path(__file__).resolve().parents[1]
MAIN = Shape((16384,), streams=4, channels=4096, dtype=torch.bfloat16)
SHAPES = (
    MAIN,
    Shape((4096,), 4, 2048, torch.bfloat16),
    Shape((64,), 4, 4096, torch.bfloat16),
    Shape((8192,), 4, 7168, torch.bfloat16),
    *(Shape((8192,), n, 4096, torch.bfloat16) for n in (2, 8, 16)),
)
STACK = 4
STACKED = "birkhoff+round"
AHEAD_TOKENS = 2048
OPS = ("forward", "backward", "forward + backward")

FORWARD_OF_COPY, BACKWARD_OF_COPY = 0.85, 0.75
OVER_LIGER, OVER_COMPILE = 2.5, 1.5
COMPILED = "torch.compile of the reference"


def commit() -> str | None:
    """The commit of this checkout, with ``+`` if files differ from it; ``HYPERCONN_COMMIT`` where there is no git."""
    named = os.environ.get("HYPERCONN_COMMIT")
    if named:
        return named
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return None
    return found.stdout.strip() or None  # nothing where there is no repository


def version(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def sizes(shape: Shape) -> dict[str, Any]:
    """What a line says of a shape."""
    dtype = str(shape.dtype).removeprefix("torch.")
    return {"tokens": shape.tokens, "streams": shape.streams, "channels": shape.channels, "dtype": dtype}


class Log:
    """Appends lines to ``<folder>/<device>.jsonl``, each with the environment; they are on disk as soon as written."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._common = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": device_name(device),
            "torch": torch.__version__,
            "triton": version("triton"),
            "hyperconn": hyperconn.__version__,
            "liger_kernel": version("liger-kernel"),
            "commit": commit(),
        }
        name = re.sub(r"[^A-Za-z0-9]+", "-", device_name(device)).strip("-").lower()
        self.path = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, shape: Shape, contender: str, op: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """One line, which it returns."""
        written = {**self._common, "op": op, "contender": contender, **sizes(shape), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(written, ensure_ascii=False) + "\n")
        return written


@dataclass(frozen=True)
class Plan:
    """What to prove and what to time; the tests have a small one."""

    shapes: Sequence[Shape] = SHAPES  # the promises are for the first
    proofs: Sequence[Proof] = ()
    pairs: Sequence[tuple[str, int]] = ()
    repetitions: int = 20
    minutes: float = 8.0
    workers: int = 0


def contenders() -> list[Contender]:
    """Everybody, the plain residual first."""
    return [
        plain_contender(no_branch),
        *(layer_contender(name, backend="triton", branch=no_branch) for name in MANIFOLDS),
        stack_contender(STACKED, branch=no_branch, sublayers=STACK),
        liger_contender(no_branch),
        *(reference_contender("birkhoff", branch=no_branch, compiled=compiled) for compiled in (False, True)),
    ]


def default_plan(minutes: float) -> Plan:
    """The proofs, every kernel that the timings need compiled beside them, and all shapes."""
    # Kernels do not depend on the number of tokens beyond this, and the processes share the memory of the GPU.
    few = [dataclasses.replace(shape, batch=(min(shape.tokens, AHEAD_TOKENS),)) for shape in SHAPES]
    ahead = [
        Proof(name, shape, checked=False)
        for shape in dict.fromkeys(few)
        for name in MANIFOLDS
        if not (name == "permutation" and shape.streams > 6)
    ]
    ahead += [Proof(STACKED, shape, sublayers=STACK, checked=False) for shape in dict.fromkeys(few)]
    pairs = [(name, n) for name in MANIFOLDS for n in (3, 4)]
    workers = max(1, min(8, (os.cpu_count() or 1) - 1))
    return Plan(proofs=[*proofs.proofs(), *ahead], pairs=pairs, minutes=minutes, workers=workers)


def floor_elements(op: str, n: int, sublayers: int) -> float:
    """Elements of C that one sublayer has to move for one token.

    A sublayer by itself reads the streams for the projection, for the read and for the write, and writes them once;
    u and y pass through memory too: (4n + 2)C. In a stack the write forms the next projection from what it holds,
    (3n + 2)C, and only the first projection reads the streams on its own. The backward takes three passes, (6n + 4)C.
    """
    forward = 4 * n + 2 if sublayers == 1 else 3 * n + 2 + n / sublayers
    backward = 6 * n + 4
    return {"forward": forward, "backward": backward, "forward + backward": forward + backward}[op]


def copy_rate(shape: Shape, device: torch.device, repetitions: int) -> Spread:
    """GB/s of a device-to-device copy of the streams, reading and writing."""
    source = torch.ones(shape.tokens, shape.streams, shape.channels, dtype=shape.dtype, device=device)
    target = torch.empty_like(source)
    times = milliseconds(device, lambda: target.copy_(source), lambda: None, repetitions)
    moved = 2 * source.numel() * shape.dtype.itemsize
    return Spread.of([moved / (1e6 * t) for t in times])


def milliseconds(
    device: torch.device, timed: Callable[[], object], before: Callable[[], object], repetitions: int
) -> list[float]:
    """Times of ``timed``, each after an untimed ``before``, and after three that do not count.

    On a GPU: CUDA events, and before each repetition a buffer larger than the L2 cache is overwritten. Elsewhere the
    wall clock, to test everything but the figures.
    """
    times = []
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        flush = torch.empty(max(4 * cache, 256 * 2**20), dtype=torch.int8, device=device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions + 3)]
        for start, end in events:
            before()
            flush.zero_()
            start.record()
            timed()
            end.record()
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) for start, end in events]
    else:
        for _ in range(repetitions + 3):
            before()
            begun = time.perf_counter()
            timed()
            times.append(1e3 * (time.perf_counter() - begun))
    return times[3:]


def steps(subject: Subject, op: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """What is timed for an op, and what has to happen before it."""
    if op == "forward":
        return lambda: subject.run(subject.x), subject.clear
    if op == "forward + backward":
        return lambda: subject.run(subject.x).backward(subject.cotangent), subject.clear
    held: list[torch.Tensor] = []

    def before() -> None:
        subject.clear()
        held[:] = [subject.run(subject.x)]

    return lambda: held.pop().backward(subject.cotangent), before


def figures(verified: Verified, op: str, copy: float, repetitions: int) -> dict[str, Any]:
    """What is written down of an op of a contender that is right, by the keys of results/README.md."""
    subject, shape = verified.subject, verified.shape
    timed, before = steps(subject, op)
    times = milliseconds(subject.x.device, timed, before, repetitions)
    subject.clear()
    spread = Spread.of([t / subject.sublayers for t in times])
    elements = floor_elements(op, shape.streams, subject.sublayers)
    floor = elements * shape.channels * shape.tokens * shape.dtype.itemsize
    rate = None if verified.contender.kind == "plain" else floor / (1e6 * spread.median)
    return {
        "status": "timed",
        "sublayers": subject.sublayers,
        "median_ms": spread.median,
        "p10_ms": spread.low,
        "p90_ms": spread.high,
        "repetitions": spread.repetitions,
        "floor_bytes": floor,
        "gb_per_s": rate,
        "copy_gb_per_s": copy,
        "fraction_of_copy": None if rate is None else rate / copy,
        "error": verified.error,
    }


def time_everything(plan: Plan, device: torch.device, log: Log, deadline: float) -> list[dict[str, Any]]:
    """The tables, and their lines; what is refused or comes too late is named in its place."""
    found: list[dict[str, Any]] = []
    for shape in plan.shapes:
        copy = copy_rate(shape, device, plan.repetitions)
        print(f"\n{shape}; a copy moves {copy.median:.0f} GB/s")
        print(f"  {'':<32}" + "".join(f"{op + ' ms':>22} {'of copy':>8}" for op in OPS))
        rate = {"gb_per_s": copy.median, "repetitions": copy.repetitions, "status": "timed"}
        log.write(shape, "device-to-device copy", "copy", rate)
        for contender in contenders():
            result: Verified | Refused
            if time.monotonic() > deadline:
                result = Refused(contender, shape, "out of time", f"{plan.minutes:g} minutes are over")
            else:
                result = prepare(contender, shape, device)
            if isinstance(result, Refused):
                print(f"  {contender.name:<32}  {result.status}: {result.reason}", flush=True)
                log.write(shape, contender.name, "all", {"status": result.status, "reason": result.reason})
                continue
            cells = ""
            for op in OPS:
                values = figures(result, op, copy.median, plan.repetitions)
                found.append(log.write(shape, contender.name, op, values))
                share = values["fraction_of_copy"]
                cells += f"{values['median_ms']:>22.4f} {'' if share is None else f'{100 * share:.0f} %':>8}"
            print(f"  {contender.name:<32}{cells}", flush=True)
            del result
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def bars(found: Sequence[Mapping[str, Any]], main: Shape) -> list[Bar]:
    """The promises, at one shape; not judged where a figure is missing."""
    here = {(one["contender"], one["op"]): one for one in found if one.items() >= sizes(main).items()}
    ours = [name for name, op in here if op == "forward" and name.split(",")[0] in EXACT]
    judged = []
    for op, least in (("forward", FORWARD_OF_COPY), ("backward", BACKWARD_OF_COPY)):
        for name in ours:
            fraction = here[name, op]["fraction_of_copy"]
            judged.append(Bar(f"{name}: {op} at {fraction:.0%} of the copy, at least {least:.0%}", fraction >= least))
    for other, least in (("LigerMHC", OVER_LIGER), (COMPILED, OVER_COMPILE)):
        theirs = here.get((other, OPS[2]))
        if theirs is None or not ours:
            judged.append(Bar(f"at least {least}× faster than {other}: one of the two was not timed", None))
            continue
        for name in ours:
            faster = theirs["median_ms"] / here[name, OPS[2]]["median_ms"]
            judged.append(Bar(f"{name}: {faster:.2f}× faster than {other}, at least {least}", faster >= least))
    return judged


def prove_everything(plan: Plan, device: torch.device) -> list[Bar]:
    """Proofs first: what is wrong is not worth timing."""
    start = time.monotonic()
    failures = proofs.run(plan.proofs, device, plan.workers)
    failures += [failure for name, n in plan.pairs if (failure := proofs.prove_pair(name, n, device))]
    checked = [case for case in plan.proofs if case.checked]
    names = proofs.launched(checked, device)
    if plan.pairs:
        names |= {"_constrain_forward_kernel", "_constrain_backward_kernel"}
    missing = proofs.every_kernel() - names
    print(
        f"{len(checked)} sublayers and stacks and {len(plan.pairs)} device pairs against the formulas in float64: "
        f"{len(failures)} failures, {len(names)} kernels, {time.monotonic() - start:.0f} s",
        flush=True,
    )
    for failure in failures:
        print(f"  {failure}")
    found = [Bar(f"proofs: {len(failures)} failures", not failures)]
    if missing:
        found.append(Bar(f"proofs: no case launches {', '.join(sorted(missing))}", False))
    return found


def run(plan: Plan, device: torch.device, folder: Path) -> int:
    """Everything; returns the exit status."""
    deadline = time.monotonic() + 60 * plan.minutes
    print(f"{device_name(device)}, torch {torch.__version__}")
    proven = prove_everything(plan, device)
    log = Log(folder, device)
    found = time_everything(plan, device, log, deadline)
    print(f"\nwritten to {log.path}")
    return judge([*proven, *bars(found, plan.shapes[0])])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="start nothing new after this long (default 8)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench-gpu: no GPU here (torch.cuda.is_available() is False): nothing was timed, nothing was written")
        return 0
    return run(default_plan(options.minutes), torch.device("cuda"), options.out)


if __name__ == "__main__":
    sys.exit(main())
