"""A hyper-connection under autograd, with the gradient of the streams written once.

Left to itself autograd forms three gradients of the streams, from the projection, the read and the write, and adds
them: 6nC elements of traffic a token that no kernel can save. Here the steps hand everything that the last term needs
down to the earliest step instead, whose backward runs last::

    x ──▶ project ──▶ read ──▶ write ──▶ x'
            │  raw      │  u       ▲ y
            ▼           ▼          │
       coefficients   branch ──────┘

* The streams pass from step to step as an alias that nothing else may use. The backward of ``write`` hands the
  gradient G of x' through that alias untouched, the backward of ``read`` likewise.
* What only the backward of ``project`` can use, namely du, pre and H, travels as the "gradient" of three empty outputs
  of ``project`` that ``read`` takes in and ignores: the slots. They cost no memory and no time, and since they are
  ordinary tensors of the graph, checkpointing, hooks on saved tensors and tracing work as always.
* What a step saves is never the alias, whose gradient means something else, but the streams themselves: so the second
  derivatives come out right too.

The coefficients between ``project`` and ``read`` are whatever the caller computes from ``raw``, under autograd.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperconn.kernels.autocast import without_autocast
from hyperconn.kernels.passes import streaming

Slots = tuple[Tensor, Tensor, Tensor]


class Projected(NamedTuple):
    """Streams after ``project``, good for one ``read``."""

    x: Tensor  # [T, n, C]: the streams, for any use
    alias: Tensor  # the same memory, for the next step alone
    raw: Tensor | None  # [T, P + 1]
    slots: Slots | None  # du [T, C], pre [T, n], H [T, n, n]; None without autograd


def project(x: Tensor, fn: Tensor | None, backend: str) -> Projected:
    """Start a hyper-connection with ``x [T, n, C]``, contiguous, and the prediction weights ``fn [P, n·C]``.

    ``fn`` is None if the coefficients do not come from a projection; ``backend`` is ``"torch"`` or ``"triton"``.
    """
    if not _tracked(x, fn):
        # A view, which without autograd is no part of the graph of x, whatever `write` is called under later.
        return Projected(x, x.view_as(x), None if fn is None else _passes(backend).project(x, fn), None)
    alias, raw, *slots = _Project.apply(x, fn, backend)  # type: ignore[no-untyped-call]
    return Projected(x, alias, raw, (slots[0], slots[1], slots[2]))


def read(start: Projected, pre: Tensor, H: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The streams for ``write``, and ``u = preᵀ x [T, C]``, from what ``project`` returned.

    With ``pre [T, n]``, and the ``H [T, n, n]`` that ``write`` will apply: its gradient is formed here.
    """
    if start.slots is None and not _tracked(pre, H):
        return start.alias, _passes(backend).read(start.x, pre)
    slots = start.slots or (None, None, None)
    alias, u = _Read.apply(start.alias, start.x, pre, H, *slots, backend)  # type: ignore[no-untyped-call]
    return alias, u


def write(x: Tensor, H: Tensor, post: Tensor, y: Tensor, backend: str) -> Tensor:
    """``x' = H x + post yᵀ [T, n, C]``, with x from ``read``."""
    if not _tracked(x, post, y):
        return _passes(backend).write(x, H, post, y)
    written: Tensor = _Write.apply(x, H, post, y, backend)  # type: ignore[no-untyped-call]
    return written


def write_project(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor, backend: str) -> Projected:
    """``write``, and ``project`` of the next hyper-connection in the same pass."""
    if not _tracked(x, post, y, fn):
        written, raw = _passes(backend).write_project(x, H, post, y, fn)
        return Projected(written, written, raw, None)
    written, alias, raw, *slots = _WriteProject.apply(x, H, post, y, fn, backend)  # type: ignore[no-untyped-call]
    return Projected(written, alias, raw, (slots[0], slots[1], slots[2]))


def _tracked(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _passes(backend: str) -> Any:
    if backend == "torch":
        return streaming
    from hyperconn.kernels.fused.passes import streaming as fused  # imports triton

    return fused


def _slots(x: Tensor) -> Slots:
    T, n, C = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)  # of the coefficients
    return (
        x.new_empty(()).expand(T, C),
        x.new_empty((), dtype=dtype).expand(T, n),
        x.new_empty((), dtype=dtype).expand(T, n, n),
    )


class _Project(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, fn: Tensor | None, backend: str) -> tuple[Any, ...]:
        raw = None if fn is None else _passes(backend).project(x, fn)
        return (x.view_as(x), raw, *_slots(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, fn, ctx.backend = inputs
        ctx.save_for_backward(x, fn)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, fn = ctx.saved_tensors
        needs_x, needs_fn = ctx.needs_input_grad[:2]
        with without_autocast(x.device):
            return (*_project_backward(ctx.backend, x, fn, grads, needs_x, needs_fn), None)


def _project_backward(
    backend: str, x: Tensor, fn: Tensor | None, grads: tuple[Tensor | None, ...], needs_x: bool, needs_fn: bool
) -> tuple[Tensor | None, Tensor | None]:
    G, draw, du, pre, H = grads
    mixing = None if G is None or H is None else (H, G)
    reading = None if du is None or pre is None else (pre, du)
    projection = None if draw is None or fn is None else (fn, draw)
    dx, dfn = _passes(backend).project_backward(x, mixing, reading, projection, needs_x, needs_fn)
    return dx, dfn


class _Read(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(alias: Tensor, x: Tensor, pre: Tensor, H: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *_slots, backend = rest
        return alias.view_as(alias), _passes(backend).read(x, pre)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, x, pre, H, *_, ctx.backend = inputs
        ctx.save_for_backward(x, pre, H)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        G, du = grads
        x, pre, H = ctx.saved_tensors
        du = None if du is None else du.contiguous()  # products walk expanded gradients matrix by matrix
        _, _, needs_pre, needs_H, needs_slots = ctx.needs_input_grad[:5]
        with without_autocast(x.device):
            dH, dpre = _passes(ctx.backend).coefficients_backward(x, G if needs_H else None, du if needs_pre else None)
        handed = (du, None if du is None else pre, None if G is None else H) if needs_slots else (None, None, None)
        return (G, None, dpre, dH, *handed, None)


class _Write(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, H: Tensor, post: Tensor, y: Tensor, backend: str) -> Tensor:
        written: Tensor = _passes(backend).write(x, H, post, y)
        return written

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, post, y, ctx.backend = inputs
        ctx.save_for_backward(post, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        post, y = ctx.saved_tensors
        _, _, needs_post, needs_y = ctx.needs_input_grad[:4]
        G = grads[0].contiguous()
        dy = dpost = None
        if needs_post or needs_y:
            with without_autocast(G.device):
                dy, dpost = _passes(ctx.backend).write_backward(G, post, y)
        # The gradient of H is formed by read, which has the streams at hand.
        return G, None, dpost, dy, None


class _WriteProject(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor, backend: str) -> tuple[Tensor, ...]:
        written, raw = _passes(backend).write_project(x, H, post, y, fn)
        return (written, written.view_as(written), raw, *_slots(written))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, post, y, fn, ctx.backend = inputs
        ctx.save_for_backward(output[0], post, y, fn)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        written, post, y, fn = ctx.saved_tensors
        _, _, needs_post, needs_y, needs_fn = ctx.needs_input_grad[:5]
        direct, *handed = grads
        dy = dpost = None
        with without_autocast(written.device):
            G, dfn = _project_backward(ctx.backend, written, fn, tuple(handed), True, needs_fn)
            if direct is not None:
                G = direct.contiguous() if G is None else G + direct
            if G is not None and (needs_post or needs_y):
                dy, dpost = _passes(ctx.backend).write_backward(G, post, y)
        return G, None, dpost, dy, dfn, None
