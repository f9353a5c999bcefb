"""Bytes that a hyper-connection moves, in units of C stream elements a token: ``make bench-traffic``.

Kernels run in Triton's interpreter on the CPU, so the figures are exact and the same on every machine. A kernel is
charged, per instruction, for the distinct addresses that its mask lets through; nothing is assumed to stay in a cache.
A torch operator that is no view is charged for the memory behind its inputs and its results, what autograd adds up by
itself included. An output or gradient that differs from its formula in float64 stops the command.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

from bars import Bar, judge
from harness import Contender, Refused, Shape, prepare
from ours import layer_contender, no_branch, stack_contender
from peers import liger_contender


class Traffic(TorchDispatchMode):
    """Bytes by (``"kernel"`` or ``"torch"``, role of the tensor, ``"read"`` or ``"written"``).

    The role is told by the number of elements: streams hold a multiple of C for each token, coefficients any other
    number for each token, weights a number that does not grow with single tokens.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        T, n, self.tokens, self.channels = shape.tokens, shape.streams, shape.tokens, shape.channels
        if n * (n + 2) >= T or not all(T % k for k in range(2, T)):
            raise ValueError(f"only a prime of tokens above n(n + 2) tells what grows with them, got {shape}")
        self.bytes: Counter[tuple[str, str, str]] = Counter()
        self.tensors: list[Tensor] = []  # of the kernel that runs

    def charge(self, by: str, tensor: Tensor, numbers: int, done: str) -> None:
        role = "coefficients" if tensor.numel() % (self.tokens * self.channels) else "streams"
        self.bytes[by, "weights" if tensor.numel() % self.tokens else role, done] += numbers * tensor.itemsize

    def instruction(self, pointers: Any, mask: Any, done: str) -> None:
        # A mask may be of integers, which would index instead of select.
        chosen = True if mask is None else mask.data.astype(bool)
        addresses = np.unique(pointers.data[np.broadcast_to(chosen, pointers.data.shape)])
        for tensor in self.tensors:
            start = tensor.data_ptr()
            inside = (addresses >= start) & (addresses < start + _extent(tensor))
            self.charge("kernel", tensor, int(inside.sum()), done)
            addresses = addresses[~inside]
        if addresses.size:
            raise RuntimeError(f"a kernel touches {addresses.size} addresses outside of its tensors: a mask is wrong")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims", "profiler"):
            with self:  # an operator of a library is charged for what it does inside
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        given, made = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), out))
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        changed = func._schema.is_mutable
        written = [t for t in made if changed or t.untyped_storage().data_ptr() not in known]
        # Only views come back, or what nobody has written yet: no memory is touched.
        if self.tensors or name.startswith(("empty", "new_empty")) or (made and not written):
            return out
        read = [] if name.startswith("new_") or name.endswith("_like") else given
        for done, tensors in (("read", read), ("written", written)):
            for tensor in {(t.data_ptr(), t.shape, t.stride()): t for t in tensors}.values():
                for dim, stride in enumerate(tensor.stride()):  # without what `expand` repeats
                    tensor = tensor if stride or not tensor.shape[dim] else tensor.narrow(dim, 0, 1)
                self.charge("torch", tensor, tensor.numel(), done)
        return out


def total(count: Counter[tuple[str, str, str]], *labels: str) -> int:
    """Bytes of all that has these labels."""
    return sum(value for key, value in count.items() if {*labels} <= {*key})


def _extent(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize if tensor.numel() else 0


@contextmanager
def counted(traffic: Traffic) -> Iterator[None]:
    """Count what runs in this context."""
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    call = executor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(self.fn).bind_partial(*args).arguments | kwargs
        # Of two views of the same memory, the smaller says better what is meant.
        traffic.tensors = sorted((t for t in tree_leaves(given) if isinstance(t, Tensor)), key=_extent)
        call(self, *args, **kwargs)
        traffic.tensors = []

    def counting(name: str, pointer: int, mask: int, done: str) -> Any:
        original = getattr(builder, name)

        def instruction(*args: Any) -> Any:
            traffic.instruction(args[pointer], args[mask], done)
            return original(*args)

        return mock.patch.object(builder, name, instruction)

    # Plain loads and stores, and those of descriptors, end in the masked ones.
    with (
        mock.patch.object(executor, "__call__", launch),
        counting("create_masked_load", 0, 1, "read"),
        counting("create_masked_store", 0, 2, "written"),
        counting("create_atomic_rmw", 1, 3, "read"),
        counting("create_atomic_rmw", 1, 3, "written"),
        traffic,
    ):
        yield


SINGLE = layer_contender("birkhoff", backend="triton", branch=no_branch, label="triton, one layer")
STACK = stack_contender("birkhoff", branch=no_branch, sublayers=2)
TORCH = layer_contender("birkhoff", backend="torch", branch=no_branch, label="torch, one layer")
LIGER = liger_contender(no_branch)
# The most that the streams may take at n = 4, forward and backward.
BARS = {SINGLE: (18.5, 29.0), STACK: (14.5, 29.0), TORCH: (None, None), LIGER: (None, None)}
LABELS = (("streams",), ("streams", "torch"), ("coefficients",), ("weights", "read"), ("weights", "written"))


@cache
def measure(contender: Contender, shape: Shape) -> tuple[Traffic, Traffic]:
    """What a forward and a backward pass move; a wrong or missing contender ends the program."""
    forward, backward = Traffic(shape), Traffic(shape)
    with warnings.catch_warnings():  # lanes beyond the last token divide 0 by 0
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
        result = prepare(contender, shape, torch.device("cpu"), contexts=(counted(forward), counted(backward)))
    if isinstance(result, Refused):
        raise SystemExit(f"{contender.name}, {shape}: {result.status}: {result.reason}; no figure for a wrong result")
    return forward, backward


def report(shape: Shape, contenders: Sequence[Contender] = tuple(BARS)) -> Iterator[tuple[list[float], Bar]]:
    """For each pass the figures in the order of LABELS, and the row of the table, with the bar on the streams."""
    unit = shape.tokens * shape.channels * shape.dtype.itemsize
    for contender in contenders:
        for k, direction in enumerate(("forward", "backward")):
            moved = measure(contender, shape)[k].bytes.copy()
            if contender is STACK:  # what one more sublayer costs: the first has nobody who hands over to it
                moved.subtract(measure(SINGLE, shape)[k].bytes)
            figures = [total(moved, *label) / unit for label in LABELS]
            most = BARS[contender][k] if shape.streams == 4 else None
            cells = ", ".join(f"{' '.join(label)} {value:.2f}" for label, value in zip(LABELS, figures, strict=True))
            text = f"{contender.name}, {shape}, {direction}: {cells}" + (f"; streams <= {most}" if most else "")
            yield figures, Bar(text, figures[0] <= most if most else None)


if __name__ == "__main__":
    narrow = [contender for contender in BARS if contender is not LIGER]  # its tl.dot is wrong in the interpreter
    rows = [*report(Shape((31,), 4, 512)), *report(Shape((31,), 4, 1024, torch.bfloat16), narrow)]
    sys.exit(judge([bar for _, bar in rows]))
