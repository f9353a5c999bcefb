"""What a benchmark compares, the rule that nothing wrong is timed, and promises with what was measured.

A contender is built for a shape and gives a subject: a module, its input, a random cotangent, and the same formula
written plainly. ``prepare`` holds the output and every gradient of the subject against that formula in float64, and
only what comes back as ``Verified`` can be timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

Formula = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of one comparison: ``batch`` tokens (any number of axes), n streams, C channels, dtype of the streams."""

    batch: tuple[int, ...]
    streams: int
    channels: int
    dtype: torch.dtype = torch.float32

    @property
    def tokens(self) -> int:
        return math.prod(self.batch)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the streams, ``[..., n, C]``."""
        return (*self.batch, self.streams, self.channels)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.tokens} tokens × {self.channels} channels, n = {self.streams}, {kind}"


class UnavailableError(RuntimeError):
    """A contender cannot be built here; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A contender built for one shape.

    Attributes:
        run: one sublayer (or ``sublayers`` of them, one after the other), ``x`` to an output of its own layout.
        x, cotangent: the input, a leaf that requires a gradient, and random numbers in the shape of the output.
        parameters: every tensor that gets a gradient besides x, by name.
        formula: ``(x, parameters) -> output``, differentiable, plain, for any floating dtype.
        token_axis: axis of x and of the output along which tokens are independent of each other.
    """

    run: Callable[[Tensor], Tensor]
    x: Tensor
    cotangent: Tensor
    parameters: Mapping[str, Tensor]
    formula: Formula
    token_axis: int
    sublayers: int = 1

    def clear(self) -> None:
        """Drop all gradients, as an optimiser does between steps."""
        self.x.grad = None
        for parameter in self.parameters.values():
            parameter.grad = None

    def forward_backward(self) -> None:
        """One training step without its optimiser: output, and the gradients of x and of every parameter."""
        self.clear()
        self.run(self.x).backward(self.cotangent)


@dataclass(frozen=True)
class Contender:
    """Something to compare.

    Attributes:
        kind: ``"plain"``, ``"reference"``, ``"ours"`` or ``"peer"``.
        build: makes the subject for a shape on a device; raises UnavailableError where it cannot.
        exact: ours only: the constraint holds to rounding, so the bars apply.
    """

    name: str
    kind: str
    build: Callable[[Shape, torch.device], Subject]
    exact: bool = False


@dataclass(frozen=True)
class Verified:
    """A subject whose output and gradients are right; what the timing functions take."""

    contender: Contender
    shape: Shape
    subject: Subject
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        return max(self.errors.values())


@dataclass(frozen=True)
class Refused:
    """A contender that is not timed, and why: ``"unavailable"``, ``"wrong"`` or ``"out of memory"``."""

    contender: Contender
    shape: Shape
    status: str
    reason: str


# Largest error over the largest entry of each tensor. Narrow streams round at every step of the sublayer: what the
# branch reads, what it returns, the output, and their gradients.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]
_PLAIN: Contexts = (nullcontext(), nullcontext())


def prepare(
    contender: Contender, shape: Shape, device: torch.device, contexts: Contexts = _PLAIN
) -> Verified | Refused:
    """Build a contender and check it; ``contexts`` are around both passes."""
    try:
        subject = contender.build(shape, device)
        errors = compare(subject, contexts)
    except UnavailableError as error:
        return Refused(contender, shape, "unavailable", str(error))
    except torch.OutOfMemoryError as error:
        return Refused(contender, shape, "out of memory", str(error).split(".")[0])
    limit = TOLERANCE[shape.dtype]
    bad = {name: error for name, error in errors.items() if not error <= limit}  # NaN is bad too
    if bad:
        listed = ", ".join(f"{name} {error:.1e}" for name, error in bad.items())
        return Refused(contender, shape, "wrong", f"relative errors above {limit:.0e}: {listed}")
    return Verified(contender, shape, subject, errors)


def results(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    cotangent: Tensor,
    parameters: Mapping[str, Tensor],
    contexts: Contexts = _PLAIN,
) -> dict[str, Tensor | None]:
    """The output and the gradients of x and of every parameter; None for what the output does not depend on."""
    with contexts[0]:
        output = run(x)
    with contexts[1]:
        gradients = torch.autograd.grad(output, [x, *parameters.values()], cotangent, allow_unused=True)
    names = ["x", *parameters]
    named = {f"gradient of {name}": value for name, value in zip(names, gradients, strict=True)}
    return {"output": output.detach(), **named}


def compare(subject: Subject, contexts: Contexts = _PLAIN) -> dict[str, float]:
    """Relative errors of the output and of the gradients of x and of every parameter, against the formula in float64.

    Raises:
        ValueError: a gradient of the formula vanishes, so that agreeing with it would prove nothing.
    """
    actual = results(subject.run, subject.x, subject.cotangent, subject.parameters, contexts)
    errors = {}
    for name, value in expectation(subject).items():
        largest = float(value.abs().amax()) if value.numel() else 1.0
        if largest == 0.0 and subject.x.numel():
            raise ValueError(f"the {name} vanishes in the formula: choose parameters and a cotangent that move it")
        found = actual[name]
        if found is None or found.shape != value.shape:
            errors[name] = math.inf
        elif value.numel():
            errors[name] = float((found - value).abs().amax()) / (largest or 1.0)
    return errors


def expectation(subject: Subject, chunk: int = 2048) -> dict[str, Tensor]:
    """The same quantities by the formula in float64: x in chunks of tokens, so that memory stays bounded."""
    axis = subject.token_axis
    parameters = {name: value.detach().double().requires_grad_() for name, value in subject.parameters.items()}
    total = {f"gradient of {name}": torch.zeros_like(value) for name, value in parameters.items()}
    outputs, gradients = [], []
    pieces = zip(subject.x.detach().split(chunk, axis), subject.cotangent.split(chunk, axis), strict=True)
    for x, cotangent in pieces:
        wide = x.double().requires_grad_()
        found = results(lambda x: subject.formula(x, parameters), wide, cotangent.double(), parameters)
        outputs.append(found["output"])
        gradients.append(found["gradient of x"])
        for name, value in total.items():
            part = found[name]
            value += 0.0 if part is None else part
    return {"output": torch.cat(outputs, axis), "gradient of x": torch.cat(gradients, axis), **total}


@dataclass(frozen=True)
class Bar:
    """A promise with the figure that was measured; ``held`` is None where there was nothing to measure."""

    text: str
    held: bool | None

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "n/a "}[self.held]
        return f"{verdict}  {self.text}"


def judge(bars: Sequence[Bar]) -> int:
    """Print the bars; the exit status: 1 if one of them is missed."""
    missed = sum(bar.held is False for bar in bars)
    measured = sum(bar.held is not None for bar in bars)
    print("\n" + "\n".join(str(bar) for bar in bars))
    print(f"\n{measured - missed} of {measured} bars hold", flush=True)
    return 1 if missed else 0
