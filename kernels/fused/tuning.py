"""Tile sizes: small functions of the number of streams and of what a program has to hold.

Nothing here depends on the exact number of tokens, so that a new batch size compiles nothing, and nothing is tuned by
timing, so that two runs are the same program.
"""

from __future__ import annotations

import torch
import triton

# Programs that fill any GPU; where tokens alone do not make so many, channels are split too.
_ENOUGH_PROGRAMS = 512


def power_of_two(value: int) -> int:
    """The next power of two, at least 1."""
    return int(triton.next_power_of_2(max(value, 1)))


def channel_tile(C: int, widest: int) -> int:
    """Channels a tile spans: at most ``widest``, no more than there are."""
    return min(widest, max(16, power_of_two(C)))


def splits(tiles: int, length: int, step: int, fewest_steps: int = 1) -> tuple[int, int]:
    """How often to split a loop over ``length`` in strides of ``step``; and the length of a part, whole strides.

    Without a split ``tiles`` programs would run. A split has at least ``fewest_steps`` strides, so that writing its
    partial sum is a small part of its work.
    """
    steps = max(1, triton.cdiv(length, step))
    wanted = min(max(1, steps // fewest_steps), power_of_two(_ENOUGH_PROGRAMS // max(tiles, 1)), 32)
    each = triton.cdiv(steps, wanted) * step
    return max(1, triton.cdiv(length, each)), each


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over values of ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def is_short(dtype: torch.dtype) -> bool:
    """Whether tensor cores read a number of this dtype without loss."""
    return dtype in (torch.bfloat16, torch.float16)
