"""Time the Sinkhorn sweeps against the exp-and-divide loop: ``python benchmarks/sinkhorn.py``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hyperconn.kernels import sinkhorn
from hyperconn.manifolds import Birkhoff
from hyperconn.timing import interleaved, ratios


def gradient(f: Callable[[Tensor], Tensor], logits: Tensor, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(f(logits), logits, cotangent)[0]


def main(tokens: int = 1024, rounds: int = 50) -> None:
    """Print medians for n = 2, 4, 8."""
    torch.manual_seed(0)
    for n in (2, 4, 8):
        logits, cotangent = torch.randn(tokens, n, n, requires_grad=True), torch.randn(tokens, n, n)
        birkhoff = Birkhoff(n=n)

        def ours(logits: Tensor) -> Tensor:
            return sinkhorn(logits, 20)

        def loop(logits: Tensor, m: Birkhoff = birkhoff) -> Tensor:
            return m.reference(logits.flatten(-2))

        worst = float((ours(logits) - loop(logits)).detach().abs().amax())
        assert worst < 1e-5, f"the two disagree by {worst}: no timing for a wrong result"
        steps = {f.__name__: partial(gradient, f, logits, cotangent) for f in (ours, loop)}
        seconds = interleaved(steps, rounds)
        took, slower = 1e3 * statistics.median(seconds["ours"]), ratios(seconds, "loop", "ours").median
        print(f"n={n} tokens={tokens} T=20 float32: {took:.2f} ms forward and backward, loop {slower:.1f}x slower")


if __name__ == "__main__":
    main()
