"""Bytes that a hyper-connection moves, in units of C stream elements a token: ``make bench-traffic``.

Kernels run in Triton's interpreter on the CPU, so the figures are exact and the same on every machine. A kernel is
charged, per instruction, for the distinct addresses that its mask lets through; nothing is assumed to stay in a cache.
A torch operator that is no view is charged for the memory behind its inputs and results, sums of autograd included.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

from harness import Bar, Contender, Refused, Shape, judge, prepare
from ours import layer_contender, no_branch, stack_contender
from peers import liger_contender


class Traffic(TorchDispatchMode):
    """Bytes by (``"kernel"`` or ``"torch"``, role of the tensor, ``"read"`` or ``"written"``).

    Streams hold a multiple of C numbers a token, coefficients any other number, weights none that grows with tokens.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        T, n, self.tokens, self.channels = shape.tokens, shape.streams, shape.tokens, shape.channels
        if n * (n + 2) >= T or not all(T % k for k in range(2, T)):
            raise ValueError(f"only a prime of tokens above n(n + 2) tells what grows with them, got {shape}")
        self.bytes: Counter[tuple[str, str, str]] = Counter()
        self.kernel, self.tensors, self.only_counts = "", list[Tensor](), True  # what runs, on what, unchanged by this

    def total(self, *labels: str) -> int:
        """Bytes of all that has these labels."""
        return sum(value for key, value in self.bytes.items() if {*labels} <= {*key})

    def charge(self, by: str, tensor: Tensor, numbers: int, *done: str) -> None:
        role = "coefficients" if tensor.numel() % (self.tokens * self.channels) else "streams"
        for one in done:
            self.bytes[by, "weights" if tensor.numel() % self.tokens else role, one] += numbers * tensor.itemsize

    def instruction(self, run: Callable[..., Any], pointer: int, mask: int, done: Sequence[str], *args: Any) -> Any:
        """Charge what an instruction of a kernel touches, given which arguments are the pointers and the mask."""
        # A mask may be of integers, which would index instead of select.
        chosen = True if args[mask] is None else args[mask].data.astype(bool)
        addresses = np.unique(args[pointer].data[np.broadcast_to(chosen, args[pointer].data.shape)])
        for tensor in self.tensors:
            inside = (addresses >= tensor.data_ptr()) & (addresses < tensor.data_ptr() + _extent(tensor))
            self.charge("kernel", tensor, int(inside.sum()), *done)
            addresses = addresses[~inside]
        if addresses.size:
            raise RuntimeError(f"{self.kernel} touches {addresses.size} addresses outside of its tensors: mask them")
        return run(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims", "profiler"):
            with self:  # an operator of a library is charged for what it does inside
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        given, made = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), out))
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        written = [t for t in made if func._schema.is_mutable or t.untyped_storage().data_ptr() not in known]
        # Only views come back, or what nobody has written yet: no memory is touched.
        if self.tensors or name.startswith(("empty", "new_empty")) or (made and not written):
            return out
        read = [] if name.startswith("new_") or name.endswith("_like") else given
        read = read[1:] if name in ("copy_", "fill_", "zero_") else read  # what was there is overwritten
        for done, tensors in (("read", read), ("written", written)):
            for tensor in {(t.data_ptr(), t.shape, t.stride()): t for t in tensors}.values():
                once = tensor[tuple(slice(None if stride else 1) for stride in tensor.stride())]  # of what is expanded
                self.charge("torch", once, once.numel(), done)
        return out


def _extent(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize if tensor.numel() else 0


@contextmanager
def counted(traffic: Traffic) -> Iterator[None]:
    """Count what runs in this context."""
    builder, call = interpreter.interpreter_builder, interpreter.GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        # Of two views of the same memory, the smaller says better what is meant.
        given = sorted((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), key=_extent)
        traffic.kernel, traffic.tensors = self.fn.__name__, given
        call(self, *args, **kwargs)
        traffic.tensors = []

    def counting(name: str, pointer: int, mask: int, *done: str) -> Any:
        run = getattr(builder, name)
        return mock.patch.object(builder, name, partial(traffic.instruction, run, pointer, mask, done))

    # Plain loads and stores, and those of descriptors, end in the masked ones.
    loads, stores = counting("create_masked_load", 0, 1, "read"), counting("create_masked_store", 0, 2, "written")
    atomics = counting("create_atomic_rmw", 1, 3, "read", "written")
    with mock.patch.object(interpreter.GridExecutor, "__call__", launch), loads, stores, atomics, traffic:
        yield


SINGLE = layer_contender("birkhoff", backend="triton", branch=no_branch, label="triton, one layer")
TORCH = layer_contender("birkhoff", backend="torch", branch=no_branch, label="torch, one layer")
STACK, LIGER = stack_contender("birkhoff", branch=no_branch, sublayers=2), liger_contender(no_branch)
# The most that the streams may take at n = 4, forward and backward.
BARS = {SINGLE: (18.5, 29.0), STACK: (14.5, 29.0), TORCH: (None, None), LIGER: (None, None)}
LABELS = (("streams",), ("streams", "torch"), ("coefficients",), ("weights", "read"), ("weights", "written"))


@cache
def measure(contender: Contender, shape: Shape) -> tuple[Traffic, Traffic]:
    """What a forward and a backward pass move; a wrong or missing contender ends the program."""
    passes = Traffic(shape), Traffic(shape)
    with np.errstate(invalid="ignore"):  # lanes beyond the last token divide 0 by 0
        result = prepare(contender, shape, torch.device("cpu"), contexts=(counted(passes[0]), counted(passes[1])))
    if isinstance(result, Refused):
        raise SystemExit(f"{contender.name}, {shape}: {result.status}: {result.reason}; no figure for a wrong result")
    return passes


def report(shape: Shape, contenders: Sequence[Contender] = tuple(BARS)) -> Iterator[tuple[list[float], Bar]]:
    """For each pass the figures in the order of LABELS, and the row of the table, with the bar on the streams."""
    for contender, k in product(contenders, (0, 1)):
        moved, unit = measure(contender, shape)[k], shape.tokens * shape.channels * shape.dtype.itemsize
        # Of a stack, what one more sublayer costs: the first has nobody who hands over to it.
        first = measure(SINGLE, shape)[k] if contender is STACK else Traffic(shape)
        figures = [(moved.total(*label) - first.total(*label)) / unit for label in LABELS]
        cells = ", ".join(f"{' '.join(label)} {value:.2f}" for label, value in zip(LABELS, figures, strict=True))
        most = BARS[contender][k] if shape.streams == 4 else None
        text = f"{contender.name}, {shape}, {('forward', 'backward')[k]}: {cells}"
        yield figures, Bar(f"{text}; streams <= {most}", figures[0] <= most) if most else Bar(text, None)


if __name__ == "__main__":
    rows = [*report(Shape((31,), 4, 512))]
    rows += report(Shape((31,), 4, 1024, torch.bfloat16), (SINGLE, STACK, TORCH))  # LIGER's tl.dot: float32 only
    sys.exit(judge([bar for _, bar in rows]))
