"""From what a layer sees to what it applies: logits, gates, and the manifold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from hyperconn.manifolds.core.errors import PartError
from hyperconn.predictors import Parameters
from hyperconn.spec import LayerSpec

if TYPE_CHECKING:
    from hyperconn.kernels.fused.coefficients import CoefficientSpec


class Coefficients(NamedTuple):
    """What a hyper-connection applies to a token, in float32 or wider.

    Attributes:
        pre: read weights, ``[..., n]``, or ``[..., *value_shape]`` of a gate that has more of them.
        post: write weights, ``[..., n]``.
        H: the residual matrix, ``[..., n, n]``.
    """

    pre: Tensor
    post: Tensor
    H: Tensor


def predict(
    spec: LayerSpec,
    parameters: Parameters,
    x: Tensor,
    raw: Tensor | None,
    post_gain: float,
    fused: tuple[Any, ...] | None,
) -> Coefficients:
    """Coefficients of the flat tokens ``[T, ...]``.

    Args:
        spec: what the layer is.
        parameters: of the predictor, by name, in the dtype of the coefficients.
        x: ``[T, n, C]`` the streams.
        raw: ``[T, K + 1]`` their projection, if the predictor has one.
        post_gain: factor of the write weights.
        fused: ``arguments()`` of what the fused coefficient step has to know; None for torch.
    """
    if fused is not None and raw is not None:
        from hyperconn.kernels.fused.coefficients import CoefficientSpec, fused_coefficients  # imports triton

        base, scale = spec.predictor.affine(raw, parameters, spec.layout)
        return Coefficients(*fused_coefficients(raw, base, scale, CoefficientSpec.from_arguments(*fused), post_gain))
    logits = spec.predictor.logits(x, raw, parameters, spec.layout)
    _require_logits(spec, logits, x.shape[0])
    pre_size, post_size, *_ = spec.layout.sizes
    pre, post, theta = logits.split([pre_size, post_size, spec.manifold.num_coordinates], -1)
    read, write, H = spec.pre_gate(pre), spec.post_gate(post), spec.manifold(theta)
    read = read + spec.config.pre_eps if spec.config.pre_eps else read
    write = write * post_gain if post_gain != 1.0 else write
    write = write + spec.config.post_eps if spec.config.post_eps else write
    H = H if spec.config.orientation == "direct" else H.mT
    if logits.dim() == 1:  # computed once, the same for every token
        read, write, H = (part.expand(x.shape[0], *part.shape) for part in (read, write, H))
    return Coefficients(read, write, H)


def _require_logits(spec: LayerSpec, logits: object, tokens: int) -> None:
    # Predictors may be anybody's, and what has another shape may broadcast.
    total = spec.layout.total
    if not isinstance(logits, Tensor) or logits.shape not in ((tokens, total), (total,)):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PartError(
            f"logits of {spec.predictor!r} has to return the shape {[tokens, total]} or {[total]}, it returned {got}"
        )


def fused_spec(spec: LayerSpec) -> CoefficientSpec | None:
    """What the fused coefficient step has to know of a layer; None where a part has no device pair."""
    if unfused_part(spec) is not None:
        return None
    from hyperconn.kernels.fused.coefficients import CoefficientSpec  # imports triton

    config, pairs = spec.config, [part.kernel for part in (spec.manifold, spec.pre_gate, spec.post_gate)]
    keys = [pair.key for pair in pairs if pair is not None]
    return CoefficientSpec(
        pair_key=keys[0],
        n=spec.layout.n,
        sizes=spec.layout.sizes,
        pre_key=keys[1],
        post_key=keys[2],
        pre_eps=config.pre_eps,
        post_eps=config.post_eps,
        norm_eps=config.norm_eps,
        norm_eps_outside=config.norm_eps_mode == "outside",
        width=spec.layout.width,
        transposed=config.orientation == "transposed",
    )


def unfused_part(spec: LayerSpec) -> str | None:
    """Which part of a layer leaves its coefficients to torch on the Triton backend, and why; None if none does."""
    if not spec.predictor.fuses:
        return f"coefficients by torch: {spec.predictor.name} gives logits that no kernel computes"
    for part in (spec.manifold, spec.pre_gate, spec.post_gate):
        if part.kernel is None:
            return f"coefficients by torch: {part.name} has no device pair"
    return None
