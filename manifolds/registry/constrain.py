"""Constrained static parameters through ``torch.nn.utils.parametrize``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.map import working_dtype
from hyperconn.manifolds.registry import make
from hyperconn.manifolds.registry.checkpoint_note import CheckpointNote


class OnManifold(CheckpointNote):
    """Parametrization of an ``[..., n, n]`` parameter by the coordinates of a manifold.

    Assigning a member to the parameter sets its coordinates; anything else is refused with ValueError. It is an
    ordinary module: it pickles, deep-copies, follows ``.to()``, and computes at the precision of its coordinates
    even under autocast.
    """

    kind = "constrained parameter"
    # While it is registered torch asks for the coordinates of the present weight, which is no member yet.
    _start: Tensor | None = None

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        self.manifold = manifold

    def forward(self, theta: Tensor) -> Tensor:
        return self.manifold(theta)

    def right_inverse(self, H: Tensor) -> Tensor:
        if self._start is not None:
            return self._start
        worst = float(self.manifold.violation(H).amax()) if H.numel() else 0.0
        limit = torch.finfo(H.dtype).eps ** 0.5
        if not worst <= limit:
            raise ValueError(
                f"{self.manifold!r} does not contain the matrix that was assigned: its violation is {worst:.1e}, "
                f"at most {limit:.1e} is taken for rounding"
            )
        theta = self.manifold.coordinates(H).to(H.dtype)
        # The map may reach less than the invariants describe: not every doubly stochastic matrix is a product.
        miss = float((self.manifold(theta) - H).abs().amax()) if H.numel() else 0.0
        if not miss <= limit:
            raise ValueError(
                f"{self.manifold!r} does not reach the matrix that was assigned: its nearest member is {miss:.1e} away"
            )
        return theta

    def note(self) -> dict[str, Any]:
        return {"manifold": self.manifold.name, "options": self.manifold.chosen_options()}

    def noted_parts(self) -> tuple[object, ...]:
        return (self.manifold,)

    def extra_repr(self) -> str:
        return repr(self.manifold)


def constrain(module: nn.Module, name: str, manifold: str | Manifold, **options: Any) -> nn.Module:
    """Constrain the square parameter ``module.<name>``, ``[..., n, n]``, to a manifold, and return the module.

    ``module.<name>`` is then the constrained matrix, ``module.parametrizations.<name>.original`` its coordinates. It
    starts at ``manifold.initial(4.0)``: at the identity where that is an ordinary point (stiefel), and as near to it as
    still leaves a gradient where it lies at infinity (birkhoff, permutation, kronecker, spectral_sphere). Assign a
    member to it to start elsewhere.

    Args:
        manifold: a manifold, or a name for ``make(name, n=…, **options)``.

    Raises:
        AttributeError: the module has no such parameter.
        TypeError: ``manifold`` is neither a manifold nor a name.
        ValueError: the parameter is not square, or not of the manifold's size.

    >>> import torch
    >>> layer = constrain(torch.nn.Linear(3, 3, bias=False), "weight", "stiefel")
    >>> bool(torch.equal(layer.weight, torch.eye(3)))
    True
    """
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"{type(module).__name__}.{name} is parametrized already; "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r}) sets it free"
        )
    parameter = getattr(module, name, None)
    if not isinstance(parameter, nn.Parameter):
        raise AttributeError(
            f"{type(module).__name__} has no parameter {name!r}; "
            f"its parameters are: {', '.join(n for n, _ in module.named_parameters(recurse=False)) or 'none'}"
        )
    if parameter.dim() < 2 or parameter.shape[-1] != parameter.shape[-2]:
        raise ValueError(
            f"a constrained parameter has shape [..., n, n]; {type(module).__name__}.{name} has {list(parameter.shape)}"
        )
    n = parameter.shape[-1]
    if isinstance(manifold, str):
        manifold = make(manifold, n=n, **options)
    elif not isinstance(manifold, Manifold):
        raise TypeError(
            f"constrain takes a manifold or its name, got {manifold!r}; manifolds.make(name, n={n}) makes one"
        )
    elif options:
        raise TypeError(f"options {sorted(options)} go with a manifold's name; {manifold!r} has its own")
    if manifold.n != n:
        raise ValueError(
            f"{manifold!r} holds {manifold.n}×{manifold.n} matrices; the parameter has {list(parameter.shape)}"
        )

    start = manifold.initial(4.0, dtype=working_dtype(parameter.dtype), device=parameter.device)
    onto = OnManifold(manifold)
    onto._start = start.to(parameter.dtype).expand(*parameter.shape[:-2], -1).contiguous()
    parametrize.register_parametrization(module, name, onto)
    onto._start = None
    return module
