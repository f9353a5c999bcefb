"""More than 2³¹ elements: the addresses that kernels compute for the last of so many tokens.

No machine that runs tests has the memory. A kernel is interpreted for the very last program of its grid, on pointers
that point nowhere, and every address that it asks for is held against the tensor that it should lie in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import kernel_cases
import proofs
from fused_cases import DEVICE
from hyperconn.kernels.fused.launch import Launch

# No power of two, so that the last tile is cut; a product with any other size is beyond 32 bits.
TOKENS, CHANNELS, n = 2**30 + 5, 24, 2

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="addresses are looked at in the interpreter")


@dataclass(frozen=True)
class Nowhere:
    """A tensor as the interpreter sees it: an address and a dtype."""

    base: int
    dtype: torch.dtype
    nbytes: int

    def data_ptr(self) -> int:
        return self.base


class Addresses:
    """What a program loads and stores: by tensor, the lowest and the highest byte."""

    def __init__(self, tensors: dict[str, Nowhere]) -> None:
        self.tensors = tensors
        self.touched: defaultdict[str, list[int]] = defaultdict(list)

    def note(self, pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        if not addresses.size:
            return
        low, high = int(addresses.min()), int(addresses.max())
        # Tensors lie so far apart that the nearest base below tells them apart, however wrong the offset is.
        name = min(self.tensors, key=lambda name: abs(low - self.tensors[name].base))
        tensor = self.tensors[name]
        size = pointers.get_element_ty().primitive_bitwidth // 8
        assert tensor.base <= low and high + size <= tensor.base + tensor.nbytes, (
            f"{name}: bytes {low - tensor.base} to {high + size - tensor.base} of {tensor.nbytes}"
        )
        self.touched[name] += [low - tensor.base, high + size - tensor.base]


@contextmanager
def last_program(launch: Launch, addresses: Addresses) -> Iterator[None]:
    from triton.runtime import interpreter as triton_interpreter

    builder, executor = triton_interpreter.InterpreterBuilder, triton_interpreter.GridExecutor
    zeros = triton_interpreter.TensorHandle
    last = [size - 1 for size in (*launch.grid, 1, 1)]

    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        addresses.note(pointers, mask)
        element = pointers.get_element_ty()
        return zeros(np.zeros(pointers.data.shape, triton_interpreter._get_np_dtype(element)), element)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
        addresses.note(pointers, mask)

    def program(self: Any, axis: int) -> Any:
        return zeros(np.array([last[axis]], dtype=np.int32), triton_interpreter.tl.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", load)
        patch.setattr(builder, "create_masked_store", store)
        patch.setattr(builder, "create_get_program_id", program)
        patch.setattr(executor, "_init_args_hst", lambda self, arguments, named: (arguments, named))
        patch.setattr(executor, "_restore_args_dev", lambda *arguments: None)
        yield


def launches() -> list[tuple[str, Launch]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_cases, "TOKENS", TOKENS)
        patch.setattr(kernel_cases, "CHANNELS", CHANNELS)
        # Device pairs see registers, no addresses.
        patch.setattr(kernel_cases, "CONSTRAINTS", [({"manifold": "unconstrained"}, 16)])
        return [(name, launch) for name, _, launches in kernel_cases.cases(n, ["bf16"]) for launch in launches]


def per_token(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 0 and value.numel() % TOKENS == 0


EVERY = launches()
LAUNCHES = [(name, launch) for name, launch in EVERY if any(map(per_token, launch.arguments.values()))]


def test_every_kernel_over_tokens_is_here() -> None:
    every, here = ({launch.name for _, launch in found} for found in (EVERY, LAUNCHES))
    assert every - here == {"_parameter_sums_kernel"} and every == proofs.every_kernel()


@pytest.mark.parametrize(("name", "launch"), LAUNCHES, ids=[f"{name} {launch.name}" for name, launch in LAUNCHES])
def test_the_last_tokens(name: str, launch: Launch) -> None:
    arguments, constants, grid = dict(launch.arguments), launch.constants, list(launch.grid)
    # Loops over tokens are cut into as many programs as they have steps: the last one has the last step.
    if "tiles" in arguments:
        arguments["tiles"], grid[0] = 1, -(-TOKENS // constants["BT"])
    elif name.startswith("project_backward"):
        arguments["LENGTH"], grid[1] = constants["BT"], -(-TOKENS // constants["BT"])
    cut = grid != list(launch.grid)
    # The sums that so many programs leave behind are more than the launcher made room for.
    tensors = {
        key: Nowhere(position << 48, value.dtype, 1 << 47 if cut and not per_token(value) else value.nbytes)
        for position, (key, value) in enumerate(arguments.items(), 1)
        if isinstance(value, torch.Tensor)
    }
    addresses = Addresses(tensors)
    launch = replace(launch, grid=tuple(grid), arguments={**arguments, **tensors})
    with last_program(launch, addresses):
        launch.kernel[(1,)](**launch.arguments, **launch.constants)
    checked = 0
    for key, value in arguments.items():
        if per_token(value) and addresses.touched[key]:
            one = value.nbytes // TOKENS
            assert value.nbytes - one < max(addresses.touched[key]), f"{key}: the last token is not reached"
            assert min(addresses.touched[key]) >= value.nbytes - one * constants["BT"]
            checked += value.numel() > 2**31
    assert checked, "nothing here has that many elements"
