"""Every kernel against the plain formulas in float64, at sizes that fit nothing, before any of them is timed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from harness import TOLERANCE, Contender, Refused, Shape, prepare, results
from hyperconn import manifolds
from hyperconn.kernels.poison import poisoned_memory
from ours import MANIFOLDS, generator, layer_contender, no_branch, plain_map, rms_norm_branch, stack_contender


@dataclass(frozen=True)
class Proof:
    """One comparison, as plain data that can be sent to another process.

    Attributes:
        manifold: a key of ``ours.MANIFOLDS``.
        checked: False to only run it, so that its kernels are compiled.
    """

    manifold: str
    shape: Shape
    sublayers: int = 1
    checked: bool = True

    def contender(self) -> Contender:
        """What is checked. A proof has an RMSNorm inside, so that what is read and what is written differ."""
        branch = rms_norm_branch if self.checked else no_branch
        if self.sublayers == 1:
            return layer_contender(self.manifold, backend="triton", branch=branch)
        return stack_contender(self.manifold, branch=branch, sublayers=self.sublayers)

    def __str__(self) -> str:
        stack = f", stack of {self.sublayers}" if self.sublayers > 1 else ""
        return f"{self.manifold}{stack}, {self.shape}"


STREAMS = (1, 2, 3, 4, 5, 8, 16)
# (tokens, channels): one of each, sizes that fill no tile, several programs along both.
SIZES = ((1, 1), (3, 40), (257, 130))


def proofs() -> list[Proof]:
    """Every constraint at n = 3 and 4, every n with one of them, every dtype, stacks, and no tokens at all."""
    narrow, wide = torch.bfloat16, torch.float32
    cases = [Proof("birkhoff+round", Shape((T,), n, C, wide)) for n in STREAMS for T, C in SIZES]
    cases += [Proof(name, Shape((257,), n, 130, wide)) for name in MANIFOLDS for n in (3, 4)]
    cases += [Proof("birkhoff", Shape((257,), 4, 130, dtype)) for dtype in (narrow, torch.float16)]
    cases += [Proof("kronecker", Shape((257,), n, 130, narrow)) for n in STREAMS]
    cases += [Proof("stiefel", Shape((T,), n, C, wide), sublayers=3) for n in (3, 4) for T, C in SIZES]
    cases += [Proof("permutation", Shape((65,), 4, 512, narrow), sublayers=3)]
    cases += [Proof("birkhoff", Shape((0,), 4, 40, wide))]
    return list(dict.fromkeys(cases))


def prove(proof: Proof, device_type: str) -> str | None:
    """Why the proof fails, or None; also runs twice and compares bits."""
    device = torch.device(device_type)
    contender = proof.contender()
    if not proof.checked:
        contender.build(proof.shape, device).forward_backward()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # other processes want it
        return None
    with poisoned_memory():
        result = prepare(contender, proof.shape, device)
        if isinstance(result, Refused):
            return f"{proof}: {result.status}: {result.reason}"
        subject = result.subject
        first, second = (results(subject.run, subject.x, subject.cotangent, subject.parameters) for _ in range(2))
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    return f"{proof}: two runs differ in {', '.join(differing)}" if differing else None


def prove_pair(manifold: str, n: int, device: torch.device) -> str | None:
    """Why the kernels that run a device pair by itself are wrong, or None."""
    from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward

    name, options = MANIFOLDS[manifold]
    made = manifolds.make(name, n=n, **options)
    numbers = generator(device, 0)
    theta = torch.randn(67, made.num_coordinates, device=device, generator=numbers)
    cotangent = torch.randn(67, n, n, device=device, generator=numbers)
    wide = theta.double().requires_grad_()
    expected = plain_map(made)(wide)
    gradient = torch.autograd.grad(expected, wide, cotangent.double())[0] if expected.requires_grad else wide
    with poisoned_memory():
        found = constrain_forward(theta, made.kernel, n), constrain_backward(theta, cotangent, made.kernel, n)
    for what, actual, truth in (("H", found[0], expected.detach()), ("dtheta", found[1], gradient)):
        error = float((actual - truth).abs().amax() / truth.abs().amax()) if truth.numel() else 0.0
        if not error <= TOLERANCE[torch.float32]:
            return f"device pair of {manifold}, n = {n}: {what} is off by {error:.1e}"
    return None


def run(cases: Sequence[Proof], device: torch.device, workers: int) -> list[str]:
    """The failures. Most of the time goes into compiling kernels, so processes share the cases: 0 for none."""
    if workers == 0:
        return [failure for case in cases if (failure := prove(case, device.type))]
    # Deterministic matrix products, which the poisoning asks for, need a workspace that cuBLAS wants to be told of.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [failure for failure in pool.map(prove, cases, [device.type] * len(cases)) if failure]


def launched(cases: Sequence[Proof], device: torch.device) -> set[str]:
    """Names of the kernels that the cases launch, noted without running them."""
    from hyperconn.kernels.fused.launch import recording

    with recording() as launches:
        for case in cases:
            case.contender().build(case.shape, device).forward_backward()
    return {launch.name for launch in launches}


def every_kernel() -> set[str]:
    """Names of all kernels of the library."""
    from hyperconn.kernels import fused

    modules = map(
        importlib.import_module, (found.name for found in pkgutil.walk_packages(fused.__path__, f"{fused.__name__}."))
    )
    return {name for module in modules for name in vars(module) if name.endswith("_kernel")}
