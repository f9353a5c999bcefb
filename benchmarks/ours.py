"""The contenders of this library, the plain sublayer that all are checked against, and the plain residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from harness import Contender, Formula, Shape, Subject, UnavailableError
from hyperconn import BackendUnavailableError, HyperConnection, HyperConnectionConfig, HyperConnectionStack
from hyperconn.manifolds import Manifold

NORM_EPS = 1e-6
# Predictor and gates of mHC: what the other implementations have, whatever the constraint.
MHC: dict[str, Any] = {"predictor": "flat", "pre_gate": "sigmoid", "post_gate": "double_sigmoid"}

# table name -> manifold and options
MANIFOLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "birkhoff+round": ("birkhoff", {"finish": "round"}),
    "permutation": ("permutation", {}),
    "kronecker": ("kronecker", {}),
    "stiefel": ("stiefel", {}),
    "spectral_sphere": ("spectral_sphere", {}),
    "grassmann": ("grassmann", {}),
    "identity": ("identity", {}),
    "birkhoff": ("birkhoff", {}),
    "unconstrained": ("unconstrained", {}),
}
# Their constraint does not hold to rounding, or there is none: shown, but without bars.
ITERATIVE = ("birkhoff", "unconstrained")
EXACT = tuple(name for name in MANIFOLDS if name not in ITERATIVE)
Branch = Callable[[int, torch.device, torch.dtype], nn.Module]
Map = Callable[[Tensor], Tensor]


def rms_norm_branch(channels: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The cheapest branch that a model has: an RMSNorm."""
    norm = nn.RMSNorm(channels, eps=NORM_EPS, device=device, dtype=dtype)
    with torch.no_grad():
        norm.weight.normal_(1, 0.1, generator=generator(device, 1))
    return norm


def no_branch(channels: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """F(u) = u, which moves nothing: what is timed is the hyper-connection alone."""
    return nn.Identity()


def generator(device: torch.device, seed: int) -> torch.Generator:
    """Random numbers of this benchmark's own."""
    return torch.Generator(device).manual_seed(seed)


def subject(
    module: nn.Module,
    size: tuple[int, ...],
    shape: Shape,
    device: torch.device,
    formula: Formula,
    run: Map | None = None,
    sublayers: int = 1,
) -> Subject:
    """A module, or what ``run`` makes of it, on random streams of this size, with a random cotangent."""
    numbers = generator(device, 0)
    x, cotangent = (torch.randn(size, device=device, dtype=shape.dtype, generator=numbers) for _ in range(2))
    parameters = dict(module.named_parameters())
    return Subject(run or module, x.requires_grad_(), cotangent, parameters, formula, len(shape.batch) - 1, sublayers)


@torch.no_grad()
def randomise(layer: Any, seed: int) -> None:
    """Coefficients that differ from token to token: at the start of a training they hardly do."""
    numbers = generator(layer.base.device, seed)
    layer.fn.normal_(std=0.5 * layer.fn.shape[1] ** -0.5, generator=numbers)
    layer.base += 0.5 * torch.randn(layer.base.shape, device=layer.base.device, generator=numbers)
    layer.scale.normal_(1, 0.1, generator=numbers)


def compile_alone(run: Map) -> Map:
    """``torch.compile`` for one shape. To Dynamo every module of a class is a recompilation."""
    torch._dynamo.config.recompile_limit = 256
    return torch.compile(run, fullgraph=True, dynamic=False)


def rms_norm(u: Tensor, weight: Tensor | None) -> Tensor:
    """``u / rms(u) · weight``; u itself without a weight, where the branch is the identity."""
    if weight is None:
        return u
    return u * torch.rsqrt(u.square().mean(-1, keepdim=True) + NORM_EPS) * weight


def sublayer(
    x: Tensor,
    parameters: Mapping[str, Tensor],
    sizes: Sequence[int],
    residual: Map,
    branch: Map,
    pre_eps: float = 0.0,
) -> Tensor:
    """``H x + post F(preᵀ x)ᵀ`` with coefficients predicted from all streams at once (arXiv 2512.24880, Eq. 7–19).

    Plain on purpose. In float64 it is the truth, in float32 what a good eager implementation is.

    Args:
        x: ``[..., n, C]``.
        parameters: ``fn [P, nC]``, ``base [P]`` and ``scale [groups]``, in the dtype that coefficients have.
        sizes: of the coordinate groups pre | post | residual ….
        residual: residual coordinates ``[..., P_res]`` to ``H [..., n, n]``.
    """
    fn, base, scale = parameters["fn"], parameters["base"], parameters["scale"]
    wide = x.to(fn.dtype)
    flat = wide.flatten(-2)
    z = (flat @ fn.mT) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + NORM_EPS)
    groups = zip(z.split(list(sizes), -1), scale, base.split(list(sizes)), strict=True)
    parts = [s * part + b for part, s, b in groups]
    pre, post = parts[0].sigmoid() + pre_eps, 2 * parts[1].sigmoid()
    H = residual(torch.cat([z[..., :0], *parts[2:]], -1))
    y = branch((pre.unsqueeze(-2) @ wide).squeeze(-2).to(x.dtype)).to(fn.dtype)
    return (H @ wide + post.unsqueeze(-1) * y.unsqueeze(-2)).to(x.dtype)


def plain_map(m: Manifold) -> Map:
    """The map of a manifold as its paper writes it: ``reference``, or ``forward`` where that is as plain as can be."""
    return m.forward if type(m).reference is Manifold.reference else m.reference


def formula_of(layer: HyperConnection) -> Formula:
    """The plain account of a layer with an RMSNorm branch, or with none."""
    n, residual = layer.config.streams, plain_map(layer.manifold)
    sizes = [n, n, *(size for _, size in layer.manifold.coordinate_groups)]
    return lambda x, p: sublayer(x, p, sizes, residual, lambda u: rms_norm(u, p.get("branch.weight")))


def _layer(name: str, backend: str, branch: Branch, shape: Shape, device: torch.device, seed: int) -> HyperConnection:
    manifold, options = MANIFOLDS[name]
    try:
        chosen = {"manifold": manifold, "manifold_options": options, **MHC}
        config = HyperConnectionConfig(shape.streams, norm_eps=NORM_EPS, backend=backend, **chosen)
        inside = branch(shape.channels, device, shape.dtype)
        layer = HyperConnection(inside, shape.channels, config, layer_index=seed, device=device)
    except BackendUnavailableError as error:
        raise UnavailableError(str(error)) from error
    except ValueError as error:
        if name == "permutation" and shape.streams > 6:
            raise UnavailableError("n! coordinates: refused above n = 6") from error
        raise
    randomise(layer, seed)
    return layer


def layer_contender(name: str, *, backend: str, branch: Branch, compiled: bool = False, label: str = "") -> Contender:
    """One hyper-connection of this library; ``name`` is a key of MANIFOLDS, and the name in tables without a label."""

    def build(shape: Shape, device: torch.device) -> Subject:
        layer = _layer(name, backend, branch, shape, device, 0)
        run = compile_alone(layer) if compiled else layer
        return subject(layer, shape.size, shape, device, formula_of(layer), run)

    return Contender(label or name, "ours", build, name not in ITERATIVE)


def stack_contender(name: str, *, branch: Branch, sublayers: int) -> Contender:
    """Consecutive hyper-connections whose writes are fused with the next projection."""

    def build(shape: Shape, device: torch.device) -> Subject:
        layers = [_layer(name, "triton", branch, shape, device, seed) for seed in range(sublayers)]
        stack = HyperConnectionStack(layers)
        names = {id(value): key for key, value in stack.named_parameters()}
        keys = [{key: names[id(value)] for key, value in layer.named_parameters()} for layer in layers]
        formulas = [formula_of(layer) for layer in layers]

        def formula(x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
            for one, own in zip(formulas, keys, strict=True):
                x = one(x, {key: parameters[name] for key, name in own.items()})
            return x

        return subject(stack, shape.size, shape, device, formula, sublayers=sublayers)

    return Contender(f"{name}, stack of {sublayers}", "ours", build, name not in ITERATIVE)


def reference_contender(name: str, *, branch: Branch, compiled: bool) -> Contender:
    """The plain formula itself, in float32 whatever the streams are, eager or compiled."""

    def build(shape: Shape, device: torch.device) -> Subject:
        layer = _layer(name, "torch", branch, shape, device, 0)
        formula, parameters = formula_of(layer), dict(layer.named_parameters())

        def run(x: Tensor) -> Tensor:
            return formula(x, parameters)

        return subject(layer, shape.size, shape, device, formula, compile_alone(run) if compiled else run)

    return Contender(f"{'torch.compile of the' if compiled else 'eager'} reference", "reference", build)


def plain_contender(branch: Branch = rms_norm_branch) -> Contender:
    """The plain residual sublayer ``x + F(x)``, on one stream: what every hyper-connection replaces."""

    def build(shape: Shape, device: torch.device) -> Subject:
        inside, size = branch(shape.channels, device, shape.dtype), (*shape.batch, shape.channels)

        def formula(x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
            return x + rms_norm(x, parameters.get("weight"))

        return subject(inside, size, shape, device, formula, lambda x: x + inside(x))

    return Contender("plain residual", "plain", build)
