"""The hyper-connection layer: one module for every constraint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperconn.backends import choose_backend, require_backend
from hyperconn.checks import check_output, check_streams
from hyperconn.coefficients import Coefficients, fused_spec, predict
from hyperconn.compatibility import differences, signature
from hyperconn.config import HyperConnectionConfig
from hyperconn.gates import gate
from hyperconn.initialization import start_logits
from hyperconn.kernels import read_streams, steps, write_streams
from hyperconn.kernels.autocast import without_autocast
from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.manifold import working_dtype
from hyperconn.manifolds.registry.provenance import note_plugins, plugin_errors
from hyperconn.stream_state import Entered, Handover, recomputing

if TYPE_CHECKING:
    from hyperconn.kernels.fused.coefficients import CoefficientSpec


class HyperConnection(nn.Module):
    r"""A residual connection over n streams: :math:`x' = H x + \mathrm{post}\; F(\mathrm{pre}^\top x)^\top`.

    Args:
        branch: the wrapped function F (attention, MLP, …) from ``[..., C]`` to ``[..., C]``; None for code that uses
            ``read`` only. If it returns a tuple, the first element is written and the rest is passed on.
        dim: channels C that the branch sees.
        config: what kind of hyper-connection; the default constrains H to the Birkhoff polytope.
        layer_index: position in the stack of sublayers; the start leans on stream ``layer_index % n``.
        device: where the parameters are made.

    Shapes: ``x [..., n, C] -> [..., n, C]`` (``[..., n, C/n]`` with fractions), any floating dtype, kept.
    Coefficients and the mixing are computed in float32, or float64 if x or the parameters are; autocast is off there.

    Attributes:
        manifold: the constraint of H.
        fn: prediction weights, ``[P_total, n·C]`` flat, rows pre | post | residual; ``[P_total/n, C]`` per stream;
            absent when static.
        base: ``[P_total]`` logits at zero prediction.
        scale: one factor for pre, one for post and one for each residual coordinate group (flat); ``[2]``, for pre
            and residual, and for post (per stream); absent when static.
        norm: the LayerNorm of a stream (per stream).

    Raises:
        ValueError: shapes that do not fit, naming the layer's own.
        TypeError: a stream tensor that is not floating point.
        BackendUnavailableError: ``backend="triton"`` where it cannot run.

    Source: HC arXiv 2409.19606, mHC arXiv 2512.24880; each preset names its own.

    >>> import torch
    >>> from hyperconn import expand_streams, collapse_streams
    >>> block = HyperConnection(torch.nn.Linear(8, 8), dim=8, config=HyperConnectionConfig.preset("kromhc"))
    >>> collapse_streams(block(expand_streams(torch.randn(2, 8), streams=4)), "mean").shape
    torch.Size([2, 8])
    """

    fn: nn.Parameter
    base: nn.Parameter
    scale: nn.Parameter

    def __init__(
        self,
        branch: Callable[..., Any] | None,
        dim: int,
        config: HyperConnectionConfig | None = None,
        *,
        layer_index: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        config = HyperConnectionConfig() if config is None else config
        if not isinstance(config, HyperConnectionConfig):
            raise TypeError(
                f"HyperConnection: config must be a HyperConnectionConfig, got {config!r}; "
                "make one with HyperConnectionConfig.from_dict or HyperConnectionConfig.preset"
            )
        n = config.streams
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"HyperConnection: dim must be a positive int, the channels of the branch; got {dim!r}")
        if isinstance(layer_index, bool) or not isinstance(layer_index, int):
            raise TypeError(f"HyperConnection: layer_index must be an int, got {layer_index!r}")
        if branch is not None and not callable(branch):
            raise TypeError(f"HyperConnection: branch must be a module or function, or None; got {branch!r}")
        if config.fractions and dim % n:
            raise ValueError(f"HyperConnection: dim={dim} cannot be cut into {n} equal fractions")
        self.branch = branch
        self.dim = dim
        self.config = config
        self.layer_index = layer_index
        self.manifold: Manifold = config.make_manifold()
        require_backend(config)
        # Not known yet. A functools.cached_property has a lock in older Pythons, which torch.compile does not take.
        self._fused_spec: CoefficientSpec | EllipsisType | None = ...
        # Called with the coefficients of every read; see hyperconn.diagnostics.
        self.observers: list[Callable[[Coefficients], None]] = []
        # Coordinate groups in the order pre | post | residual groups.
        pre = n * n if config.fractions else gate(config.pre_gate).num_coordinates(n)
        post = gate(config.post_gate).num_coordinates(n)
        self.sizes = [pre, post, *(size for _, size in self.manifold.coordinate_groups)]
        total = sum(self.sizes)

        self.base = nn.Parameter(torch.empty(total, device=device))
        if config.predictor == "flat":
            self.fn = nn.Parameter(torch.empty(total, n * self.stream_dim, device=device))
            self.scale = nn.Parameter(torch.empty(len(self.sizes), device=device))
        elif config.predictor == "per_stream":
            self.fn = nn.Parameter(torch.empty(total // n, self.stream_dim, device=device))
            self.scale = nn.Parameter(torch.empty(2, device=device))
            self.norm = nn.LayerNorm(self.stream_dim, eps=config.norm_eps, device=device)
        self.reset_parameters()

    @property
    def fused_spec(self) -> CoefficientSpec | None:
        """What the fused coefficient step has to know of this layer; None if its manifold has no device pair."""
        if self._fused_spec is ...:
            self._fused_spec = fused_spec(self)
        return self._fused_spec

    @property
    def stream_dim(self) -> int:
        """How many channels a stream has, ``dim``, or ``dim / n`` with fractions."""
        return self.dim // self.config.streams if self.config.fractions else self.dim

    @property
    def stream_shape(self) -> tuple[int, int]:
        """Shape of a token's streams, ``(n, stream_dim)``."""
        return self.config.streams, self.stream_dim

    def working_dtype(self, streams: torch.dtype) -> torch.dtype:
        """What coefficients of streams of that dtype are computed in: float32, or float64 if either is."""
        return working_dtype(torch.promote_types(streams, self.base.dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as the config says: exactly as a plain residual network, or as the published code."""
        self.base.copy_(start_logits(self.config, self.manifold, self.layer_index))
        if self.config.predictor == "static":
            return
        self.fn.zero_() if self.config.fn_std == 0 else self.fn.normal_(std=self.config.fn_std)
        self.scale.fill_(self.config.scale_init)
        if self.config.predictor == "per_stream":
            self.norm.reset_parameters()

    # ------------------------------------------------------------------ the forward pass

    def forward(self, x: Tensor | Handover, *args: Any, into: HyperConnection | None = None, **kwargs: Any) -> Any:
        """Read, run the branch, write: ``[..., n, C] -> [..., n, C]``; extra arguments reach the branch.

        With ``into=layer`` the result is a ``Handover`` to that layer, see ``read``.
        """
        if self.branch is None:
            raise ValueError("this HyperConnection has no branch: use `u, write = layer.read(x)` and `write(y)`")
        u, write = self.read(x)
        y = self.branch(u, *args, **kwargs)
        if isinstance(y, tuple) and y:
            return (write(y[0], into), *y[1:])
        return write(y, into)

    def read(self, x: Tensor | Handover) -> tuple[Tensor, Callable[..., Any]]:
        """The branch's input, and the function that writes its output back.

        Args:
            x: ``[..., n, C]``, or what another layer handed over to this one.

        Returns:
            ``u [..., C]`` in the dtype of x, and ``write: [..., C] -> [..., n, C]``, to be called once, or never if the
            layer is dropped. ``write(y, into=layer)`` returns a ``Handover`` instead: the streams together with
            what ``layer`` predicts its coefficients from, computed in the same pass over them.
        """
        entered = self._enter(x)
        if isinstance(x, Handover):
            x.take()
        with without_autocast(entered.projected.x.device):
            coefficients = predict(self, entered)
            if self.config.fractions:
                streams, u = entered.projected.x, read_streams(entered.projected.x, coefficients.pre).flatten(-2)
            else:
                streams, u = steps.read(entered.projected, coefficients.pre, coefficients.H, entered.backend)
        for observe in self.observers:
            observe(Coefficients(*map(entered.batched, coefficients)))
        u = entered.batched(u).to(entered.dtype)
        written = False

        def write(y: Tensor, into: HyperConnection | None = None) -> Tensor | Handover:
            nonlocal written
            check_output(self, y, u)
            if not (into is None or isinstance(into, HyperConnection)):
                raise TypeError(f"{self.summary()}: into takes the HyperConnection that reads next, got {into!r}")
            if written and not recomputing():
                raise RuntimeError(
                    f"{self.summary()}: write was called twice after one read; the gradients of the two would be "
                    "mixed up: call read again, or add the two outputs and write once"
                )
            written = True
            return self._write(entered, streams, coefficients, y, into)

        return u, write

    def coefficients(self, x: Tensor | Handover) -> Coefficients:
        """The coefficients that the layer applies to ``x [..., n, C]``: ``pre``, ``post`` and ``H``."""
        entered = self._enter(x)
        with without_autocast(entered.projected.x.device):
            return Coefficients(*map(entered.batched, predict(self, entered)))

    def _enter(self, x: Tensor | Handover) -> Entered:
        if isinstance(x, Handover):
            if x.layer is not self:
                raise ValueError(
                    f"{self.summary()} was given streams that were handed over to another layer, "
                    f"{x.layer.summary()}; pass `handover.streams`, or write with `into=` this layer"
                )
            return x.entered
        check_streams(self, x)
        backend = choose_backend(self.config, x.device, x.dtype, self.base.dtype)
        flat = x.reshape(-1, *x.shape[-2:]).contiguous()
        flat = flat.to(self.working_dtype(x.dtype)) if backend == "torch" else flat
        with without_autocast(x.device):
            projected = steps.project(flat, self._weights(flat, backend), backend)
        return Entered(projected, x.shape[:-2], x.dtype, backend)

    def _weights(self, x: Tensor, backend: str) -> Tensor | None:
        if self.config.predictor != "flat":
            return None
        return self.fn.to(x.dtype) if backend == "torch" else self.fn.contiguous()

    def _write(
        self, entered: Entered, streams: Tensor, coefficients: Coefficients, y: Tensor, into: HyperConnection | None
    ) -> Tensor | Handover:
        _, post, H = coefficients
        with without_autocast(streams.device):
            y = y.to(streams.dtype) if entered.backend == "torch" else y
            if self.config.fractions:
                written = write_streams(streams, H, post, y.reshape(streams.shape))
            else:
                y = y.reshape(-1, self.dim).contiguous()
                fn = into._weights(streams, entered.backend) if into is not None and into._continues(entered) else None
                if into is not None and fn is not None:
                    projected = steps.write_project(streams, H, post, y, fn, entered.backend)
                    return Handover(into, dataclasses.replace(entered, projected=projected))
                written = steps.write(streams, H, post, y, entered.backend)
        written = entered.batched(written).to(entered.dtype)
        return written if into is None else Handover(into, into._enter(written))

    def _continues(self, entered: Entered) -> bool:
        """Whether streams as they left another layer are what this layer would work on."""
        x = entered.projected.x
        backend = choose_backend(self.config, x.device, entered.dtype, self.base.dtype)
        return (
            x.shape[1:] == self.stream_shape
            and x.device == self.base.device
            and x.dtype == entered.dtype
            and backend == entered.backend
            and (backend == "triton" or x.dtype == self.working_dtype(x.dtype))
        )

    # ------------------------------------------------------------------ checkpoints

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Beside torch's own version number, so that plain tensors stay all that a checkpoint holds.
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["hyperconn"] = signature(self.config, self.manifold)
        note_plugins(self.manifold, destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        # Many manifolds share their coordinate count, so shapes alone would let a foreign checkpoint in.
        differs = differences(local_metadata.get("hyperconn"), signature(self.config, self.manifold))
        problems = plugin_errors(local_metadata)
        if differs is not None:
            problems.append(f"{prefix.rstrip('.') or 'HyperConnection'}: {differs}")
        if problems:
            error_msgs += problems
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def summary(self) -> str:
        """The layer in a few words, for messages."""
        return f"HyperConnection({self.manifold.name}, streams={self.config.streams}, dim={self.dim})"

    def extra_repr(self) -> str:
        return f"dim={self.dim}, layer_index={self.layer_index}, {self.manifold!r}, predictor={self.config.predictor}"
