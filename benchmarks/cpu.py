"""``make bench-cpu``: a sublayer against the plain residual and against other people's, forward and backward.

One process; contenders take turns round by round, and every figure is the median of ratios within a round. The branch
is an RMSNorm, so that hardly anything but the hyper-connection is measured. Exit status 1 if a bar is missed or
something is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from harness import Bar, Contender, Refused, Shape, Verified, judge, prepare
from hyperconn.timing import interleaved, ratios
from ours import EXACT, MANIFOLDS, layer_contender, plain_contender, rms_norm_branch
from peers import lucidrains_contender, transformers_contender

SHAPE = Shape((4, 1024), streams=4, channels=768)
CPU = torch.device("cpu")

LARGEST_RATIO = 5.5  # times the plain residual sublayer, for every exact manifold
FASTER_THAN_PEERS = 2.0
LARGEST_EXPONENT = 1.15  # of the time in the number of tokens; 1 is linear, the rest is for caches and noise
WIDE_OVER_NARROW = 5.0  # kronecker at n = 16 over n = 4
BUSY = 0.5  # other processes that wait for a core
STREAMS = (2, 4, 8, 16)
TOKENS = (1024, 2048, 4096, 8192)


def keep_memory() -> bool:
    """Let the process keep what it frees; False where the C library has no such switch.

    glibc hands every block above 32 MB back to the system when it is freed, and the next one is paid for page by page.
    The streams of four or more are such blocks, those of the plain residual are not: without this, page faults are half
    of what is measured, and they weigh on whoever makes more tensors, not on whoever computes more.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4  # <malloc.h>
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, -1))


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The k of ``seconds ~ sizes^k``, by least squares of the logarithms."""
    slope, _ = statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds])
    return slope


def take_turns(contenders: Sequence[Verified], rounds: int) -> dict[str, list[float]]:
    """Seconds of a forward and backward by contender."""
    return interleaved({one.contender.name: one.subject.forward_backward for one in contenders}, rounds)


def ours(name: str, compiled: bool = False) -> Contender:
    label = f"{name}, compiled" if compiled else name
    return layer_contender(name, backend="torch", branch=rms_norm_branch, compiled=compiled, label=label)


def contenders(compiled: Sequence[str]) -> list[Contender]:
    """Everybody, the plain residual first."""
    return [
        plain_contender(),
        *(ours(name) for name in MANIFOLDS),
        *(ours(name, compiled=True) for name in compiled),
        *(lucidrains_contender(kind, rms_norm_branch) for kind in ("HC", "mHC")),
        transformers_contender(rms_norm_branch),
    ]


def admitted(entries: Sequence[Contender], shape: Shape) -> tuple[list[Verified], list[Refused]]:
    """Build and check everybody, saying so."""
    right: list[Verified] = []
    refused: list[Refused] = []
    for entry in entries:
        start = time.perf_counter()
        result = prepare(entry, shape, CPU)
        took = time.perf_counter() - start
        if isinstance(result, Verified):
            right.append(result)
            verdict = f"right: output and {len(result.errors) - 1} gradients within {result.error:.0e}"
        else:
            refused.append(result)
            verdict = f"{result.status}: {result.reason}"
        print(f"  {entry.name:<28} {verdict} ({took:.1f} s)", flush=True)
    return right, refused


def compare_sublayers(shape: Shape, rounds: int, compiled: Sequence[str]) -> list[Bar]:
    print(f"\nForward and backward of one sublayer, {shape}, {torch.get_num_threads()} threads")
    print("checked against their formulas in float64, relative to the largest entry of each tensor:")
    right, refused = admitted(contenders(compiled), shape)
    seconds = take_turns(right, rounds)
    peers = [one.contender.name for one in right if one.contender.kind == "peer"]
    print(f"\n  {'':<28} {'ms':>8} {'× plain':>8}  {'10–90 %':>13}" + "".join(f"  {name:>22}" for name in peers))
    bars = [Bar(f"{one.contender.name} is {one.status}: {one.reason}", False) for one in refused]
    for one in right:
        name = one.contender.name
        ratio = ratios(seconds, name, "plain residual")
        faster = {peer: ratios(seconds, peer, name).median for peer in peers}
        print(
            f"  {name:<28} {1e3 * statistics.median(seconds[name]):8.1f} {ratio.median:8.2f}"
            f"  {ratio.low:5.2f} – {ratio.high:5.2f}"
            + "".join(f"  {f'{value:.2f}× faster':>22}" for value in faster.values())
        )
        if one.contender.exact and name in MANIFOLDS:
            text = f"{name}: {ratio.median:.2f}× the plain residual, at most {LARGEST_RATIO}"
            bars.append(Bar(text, ratio.median <= LARGEST_RATIO))
            least = min(faster, key=lambda peer: faster[peer], default=None)
            if least is not None:
                text = f"{name}: {faster[least]:.2f}× faster than {least}, at least {FASTER_THAN_PEERS:.0f}"
                bars.append(Bar(text, faster[least] >= FASTER_THAN_PEERS))
    return bars


def growth(shape: Shape, rounds: int) -> list[Bar]:
    """How the time of a kronecker sublayer grows with the streams, and that of birkhoff+round with the tokens."""
    print("\nGrowth with n, kronecker (the plain residual does not grow)")
    wide = [_right("kronecker", replace(shape, streams=n), f"n = {n}") for n in STREAMS]
    seconds = take_turns(wide, rounds)
    for n in STREAMS:
        over = ratios(seconds, f"n = {n}", "n = 4")
        print(f"  n = {n:<3} {1e3 * statistics.median(seconds[f'n = {n}']):8.1f} ms  {over.median:6.2f} × n = 4")
    over = ratios(seconds, "n = 16", "n = 4").median
    text = f"kronecker: n = 16 costs {over:.2f}× n = 4, at most {WIDE_OVER_NARROW:.0f}"
    bars = [Bar(text, over <= WIDE_OVER_NARROW)]

    print("\nGrowth with tokens, birkhoff+round, n = 4")
    long = [_right("birkhoff+round", replace(shape, batch=(1, tokens)), str(tokens)) for tokens in TOKENS]
    seconds = take_turns(long, rounds)
    medians = [statistics.median(seconds[str(tokens)]) for tokens in TOKENS]
    for tokens, median in zip(TOKENS, medians, strict=True):
        print(f"  {tokens:>6} tokens {1e3 * median:8.1f} ms  {1e6 * median / tokens:6.2f} µs a token")
    exponent = growth_exponent(TOKENS, medians)
    bars.append(Bar(f"time grows as tokens^{exponent:.2f}, at most {LARGEST_EXPONENT}", exponent <= LARGEST_EXPONENT))
    return bars


def _right(name: str, shape: Shape, label: str) -> Verified:
    prepared = prepare(replace(ours(name), name=label), shape, CPU)
    if isinstance(prepared, Refused):
        raise SystemExit(f"{name}, {shape}: {prepared.status}: {prepared.reason}; nothing wrong is timed")
    return prepared


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="rounds of the comparison (default 21)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no compiled layers, no growth")
    parser.add_argument("--system-malloc", action="store_true", help="do not keep freed memory, see docs/benchmarks.md")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    kept = False if options.system_malloc else keep_memory()
    others = os.getloadavg()[0]
    if others > BUSY:
        print(f"the machine is busy (load {others:.1f}): threads wait for each other, and the figures will scatter")
    print(f"torch {torch.__version__}; freed memory {'stays with the process' if kept else 'goes back to the system'}")
    rounds = min(options.rounds, 7) if options.quick else options.rounds
    bars = compare_sublayers(SHAPE, rounds, () if options.quick else EXACT)
    if not options.quick:
        bars += growth(SHAPE, max(3, rounds // 3))
    return judge(bars)


if __name__ == "__main__":
    sys.exit(main())
