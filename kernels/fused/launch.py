"""Running a kernel, or only noting that it would run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

_MOST_THREADS = 256


@dataclass(frozen=True)
class Launch:
    """One kernel launch, complete: a ``@triton.jit`` function, and what it runs on, and how.

    Attributes:
        grid: number of programs along up to three axes; no program, no launch.
        arguments: run-time arguments by name: tensors, ints and floats.
        constants: ``constexpr`` arguments by name.
        num_warps: warps of a program where a warp has 32 lanes, at most 8.
        num_stages: depth of the software pipeline.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def name(self) -> str:
        """What the kernel is called."""
        return getattr(self.kernel, "__name__", str(self.kernel))

    def run(self) -> None:
        """Launch, or hand over to whoever records."""
        if _RECORDERS:
            _RECORDERS[-1].append(self)
        elif all(self.grid):
            with _on_device_of(self.arguments):
                warps = self.warps(64 if torch.version.hip else 32)
                self.kernel[self.grid](**self.arguments, **self.constants, num_warps=warps, num_stages=self.num_stages)

    def warps(self, lanes: int) -> int:
        """Warps of a program on hardware whose warps have that many lanes: AMD's 64 make half as many at most."""
        return min(self.num_warps, _MOST_THREADS // lanes)


def _on_device_of(arguments: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the one that the tensors are on."""
    device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any
) -> None:
    """Run a kernel, whose ``constexpr`` parameters come last: ``kernel[grid](*arguments, **constants)``."""
    named = dict(zip(kernel.arg_names, arguments, strict=False))
    Launch(kernel, grid, named, constants, num_warps, num_stages).run()


_RECORDERS: list[list[Launch]] = []


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within this context launches are collected instead of run: their outputs stay uninitialised."""
    launches: list[Launch] = []
    _RECORDERS.append(launches)
    try:
        yield launches
    finally:
        _RECORDERS.pop()
