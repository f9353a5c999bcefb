"""The hyper-connection layer: one module for every constraint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from hyperconn.backends import choose_backend, require_backend
from hyperconn.checks import channels_moved, check_branch, check_carried, check_output, check_streams
from hyperconn.coefficients import Coefficients, fused_spec, predict
from hyperconn.config import HyperConnectionConfig
from hyperconn.initialization import start_logits
from hyperconn.kernels import steps
from hyperconn.kernels.autocast import without_autocast
from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.map import working_dtype
from hyperconn.manifolds.registry.checkpoint_note import CheckpointNote
from hyperconn.predictors import Start
from hyperconn.spec import LayerSpec
from hyperconn.stream_state import Entered, Handover, Write, recomputing
from hyperconn.streams import DelayedStreams


class HyperConnection(CheckpointNote):
    """A residual connection over n streams: ``x' = H x + post F(preᵀ x)ᵀ``.

    Args:
        branch: the wrapped function F (attention, MLP, …) from ``[..., C]`` to ``[..., C]``, or with its channels where
            the config's ``channel_dim`` says; a convolution then gets what it likes best, ``channels_last``. None for
            code that uses ``read`` only.
        dim: channels C that the branch sees.
        config: what kind of hyper-connection; by default H is a rotation.
        layer_index: position in the stack of sublayers; the start leans on stream ``layer_index % n``.
        output: of a branch that returns a tuple, ``"first"`` writes the first element and drops the rest, ``"all"``
            passes the rest on.
        device: where the parameters are made.

    Shapes: ``x [..., n, C] -> [..., n, C]`` (``[..., n, C/n]`` with fractions), any floating dtype, kept. With
    ``read="delayed"`` it is ``DelayedStreams -> DelayedStreams``; the first layer also takes streams alone.
    Coefficients and the mixing are computed in float32, or float64 if x or the parameters are; autocast is off there.

    Attributes:
        spec: what the layer is, without its tensors: parts, sizes, shapes.
        manifold: the constraint of H.
        post_gain: factor of the write weights; a number that a schedule may set at any step. It starts at
            ``config.post_gain`` and is no part of a checkpoint.
        fn: prediction weights, ``[P_total, n·C]`` flat, rows pre | post | residual; ``[P_total/n, C]`` per stream;
            absent when static.
        base: ``[P_total]`` logits at zero prediction.
        scale: one factor for pre, one for post and one for each residual coordinate group (flat); ``[2]``, for pre
            and residual, and for post (per stream); absent in the default predictor and when static.
        norm: what the norm before the prediction learns, ``norm.weight`` and ``norm.bias``, where it does.

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
        output: Literal["all", "first"] = "all",
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.spec = LayerSpec.of(HyperConnectionConfig() if config is None else config, dim, layer_index)
        require_backend(self.spec)
        check_branch(self.spec, branch, output)
        self.branch = branch
        self.output = output
        self.post_gain = self.config.post_gain
        # Not known yet. A functools.cached_property has a lock in older Pythons, which torch.compile does not take.
        self._fused_arguments: Any = ...
        # Called with the coefficients of every read; see hyperconn.diagnostics.
        self.observers: list[Callable[[Coefficients], None]] = []
        shapes = self.spec.predictor.parameters(self.spec.layout)
        self._learned = tuple(shapes)
        for name, shape in shapes.items():
            self._register(name, nn.Parameter(torch.empty(shape, device=device)))
        self.reset_parameters()

    def _register(self, name: str, parameter: nn.Parameter) -> None:
        """``"norm.weight"`` becomes the parameter ``weight`` of a submodule ``norm``."""
        owner, _, own = name.rpartition(".")
        if not hasattr(self, owner or own):
            if not owner:
                self.register_parameter(own, parameter)
                return
            self.add_module(owner, nn.Module())
        module = getattr(self, owner) if owner else self
        if type(module) is not nn.Module or hasattr(module, own):
            raise ValueError(
                f"{self.spec.predictor!r} calls a parameter {name!r}, which a HyperConnection has already for "
                "something else; call it differently"
            )
        module.register_parameter(own, parameter)

    @property
    def config(self) -> HyperConnectionConfig:
        """What the layer is made from; another one may be set, as long as the parameters stay what they are."""
        return self.spec.config

    @config.setter
    def config(self, config: HyperConnectionConfig) -> None:
        spec = LayerSpec.of(config, self.dim, self.layer_index)
        own, other = (s.predictor.parameters(s.layout) for s in (self.spec, spec))
        if own != other:
            raise ValueError(
                f"{self.summary()} has parameters {own}, the new config asks for {other}; make a new layer"
            )
        require_backend(spec)
        self.spec, self._fused_arguments = spec, ...

    @property
    def dim(self) -> int:
        """Channels that the branch sees."""
        return self.spec.dim

    @property
    def layer_index(self) -> int:
        """Position in the stack of sublayers."""
        return self.spec.layer_index

    @property
    def manifold(self) -> Manifold:
        """The constraint of H."""
        return self.spec.manifold

    @property
    def stream_dim(self) -> int:
        """How many channels a stream has, ``dim``, or ``dim / n`` with fractions."""
        return self.spec.layout.channels

    @property
    def stream_shape(self) -> tuple[int, int]:
        """Shape of a token's streams, ``(n, stream_dim)``."""
        return self.spec.stream_shape

    @property
    def post_gain(self) -> float:
        """What the write weights are multiplied by, as in ``post = post_gain · gate(l) + post_eps``."""
        return self._post_gain

    @post_gain.setter
    def post_gain(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{self.spec.summary()}: post_gain is a finite number, got {value!r}")
        self._post_gain = float(value)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as the config says: exactly as a plain residual network, or as the published code."""
        self.spec.predictor.reset(self.predictor_parameters(), self.spec.layout, self._start())

    def learning_rates(self) -> dict[str, float]:
        """Factors of the learning rates of the layer's own parameters, by name; see ``hyperconn.parameter_groups``."""
        return self.spec.predictor.learning_rates(self.spec.layout, self._start())

    def _start(self) -> Start:
        return Start(start_logits(self.spec), self.config.scale_init, self.config.fn_std)

    def predictor_parameters(self) -> dict[str, nn.Parameter]:
        """What the layer learns besides its branch, by the predictor's names."""
        found: dict[str, nn.Parameter] = {}
        for name in self._learned:
            owner, _, own = name.rpartition(".")
            found[name] = getattr(getattr(self, owner) if owner else self, own)
        return found

    def forward(
        self, x: Tensor | DelayedStreams | Handover, *args: Any, into: HyperConnection | None = None, **kwargs: Any
    ) -> Any:
        """Read, run the branch, write: ``[..., n, C] -> [..., n, C]``; extra arguments reach the branch.

        With ``into=layer`` the result is a ``Handover`` to that layer, see ``read``.
        """
        if self.branch is None:
            raise ValueError("this HyperConnection has no branch: use `u, write = layer.read(x)` and `write(y)`")
        u, write = self.read(x)
        y = self.branch(u, *args, **kwargs)
        if isinstance(y, tuple) and y:
            if self.output == "first":
                return write(y[0], into)
            return (write(y[0], into), *y[1:])
        return write(y, into)

    # What a layer that reads delayed makes of streams alone only its config knows: types are right for seeded ones.
    @overload
    def read(self, x: Tensor) -> tuple[Tensor, Write[Tensor]]: ...
    @overload
    def read(self, x: DelayedStreams) -> tuple[Tensor, Write[DelayedStreams]]: ...
    @overload
    def read(self, x: Handover) -> tuple[Tensor, Write[Any]]: ...
    def read(self, x: Tensor | DelayedStreams | Handover) -> tuple[Tensor, Write[Any]]:
        """The branch's input, and the function that writes its output back.

        Args:
            x: ``[..., n, C]``, or what another layer handed over to this one.

        Returns:
            ``u [..., C]`` in the dtype of x, and ``write: [..., C] -> [..., n, C]``, to be called once, or never if the
            layer is dropped. ``write(y, into=layer)`` returns a ``Handover`` instead: the streams together with
            what ``layer`` predicts its coefficients from, computed in the same pass over them.
        """
        entered, recorded = self._enter(x), torch.is_grad_enabled()
        if isinstance(x, Handover):
            x.take()
        projected = entered.projected
        with without_autocast(projected.x.device):
            coefficients = self._predict(entered)
            pre = coefficients.pre if entered.carried is None else entered.carried.to(coefficients.H.dtype)
            if self.spec.one_weight_a_stream:
                streams, u = steps.read(projected, pre, coefficients.H, entered.backend)
            else:
                streams, u = projected.x, self.spec.pre_gate.read(projected.x, pre)
        for observe in self.observers:
            observe(Coefficients(*map(entered.batched, coefficients)))
        u = entered.batched(u).to(entered.dtype)
        u = channels_moved(self.spec, u)
        written = False

        def write(y: Tensor, into: HyperConnection | None = None) -> Tensor | DelayedStreams | Handover:
            nonlocal written
            check_output(self.spec, y, u)
            if not (into is None or isinstance(into, HyperConnection)):
                raise TypeError(f"{self.summary()}: into takes the HyperConnection that reads next, got {into!r}")
            if written and not recomputing():
                raise RuntimeError(
                    f"{self.summary()}: write was called twice after one read; the gradients of the two would be "
                    "mixed up: call read again, or add the two outputs and write once"
                )
            if y.requires_grad and torch.is_grad_enabled() and not recorded:
                raise RuntimeError(
                    f"{self.summary()}: read ran without autograd and write runs with it, so that no gradient would "
                    "reach the streams; under torch.utils.checkpoint pass use_reentrant=False, or checkpoint the layer"
                )
            written = True
            return self._write(entered, streams, coefficients, y.movedim(self.config.channel_dim, -1), into)

        overloaded: Any = write  # checkers take no plain function for one
        return u, overloaded

    def coefficients(self, x: Tensor | DelayedStreams | Handover) -> Coefficients:
        """The coefficients that the layer predicts from ``x [..., n, C]``: ``pre``, ``post`` and ``H``.

        It applies all three, but with ``read="delayed"``, where ``pre`` is what the next layer reads with.
        """
        entered = self._enter(x)
        with without_autocast(entered.projected.x.device):
            return Coefficients(*map(entered.batched, self._predict(entered)))

    def _predict(self, entered: Entered) -> Coefficients:
        x, raw = entered.projected.x, entered.projected.raw
        dtype = self._working_dtype(x) if raw is None else raw.dtype
        parameters = {name: parameter.to(dtype) for name, parameter in self.predictor_parameters().items()}
        fused = self._fused() if entered.backend == "triton" else None
        return predict(self.spec, parameters, x if raw is not None else x.to(dtype), raw, self.post_gain, fused)

    def _fused(self) -> tuple[Any, ...] | None:
        """What the fused coefficient step has to know of this layer; None if one of its parts has no device pair."""
        if self._fused_arguments is ...:
            self._fused_arguments = self._make_fused_arguments()
        arguments: tuple[Any, ...] | None = self._fused_arguments
        return arguments

    def _make_fused_arguments(self) -> tuple[Any, ...] | None:
        fused = fused_spec(self.spec)
        return None if fused is None else fused.arguments()

    # A compiler must not look into parts and pairs, which anybody may write. torch.compiler.assume_constant_result sets
    # this too, but imports the whole compiler for it, and triton with that.
    _make_fused_arguments._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _anchor(self, x: Tensor) -> Tensor:
        """A parameter, with dtype and device of all of them; the streams where a predictor has none."""
        return next(iter(self.predictor_parameters().values()), x)

    def _working_dtype(self, x: Tensor) -> torch.dtype:
        """What coefficients of the streams x are computed in: float32, or float64 if either is."""
        return working_dtype(torch.promote_types(x.dtype, self._anchor(x).dtype))

    def _enter(self, x: Tensor | DelayedStreams | Handover) -> Entered:
        if isinstance(x, Handover):
            if x.layer is not self:
                raise ValueError(
                    f"{self.summary()} was given streams that were handed over to another layer, "
                    f"{x.spec.summary()}; pass `handover.streams`, or write with `into=` this layer"
                )
            return x.entered
        streams, carried = self._carried(x)
        anchor = self._anchor(streams)
        check_streams(self.spec, streams, anchor)
        if carried is not None:
            check_carried(self.spec, carried, streams)
            carried = carried.reshape(-1, carried.shape[-1])
        backend = choose_backend(self.spec, streams.device, streams.dtype, anchor.dtype)
        flat = streams.reshape(-1, *streams.shape[-2:]).contiguous()
        flat = flat.to(self._working_dtype(streams)) if backend == "torch" else flat
        with without_autocast(streams.device):
            projected = steps.project(flat, self._projection(flat, backend), backend)
        return Entered(projected, streams.shape[:-2], streams.dtype, backend, carried)

    def _carried(self, x: Tensor | DelayedStreams) -> tuple[Tensor, Tensor | None]:
        """The streams, and the read weights that came with them where reads are delayed."""
        if self.config.read == "immediate":
            if isinstance(x, DelayedStreams):
                raise TypeError(f"{self.summary()} reads with weights of its own: pass `state.streams`, got {type(x)}")
            return x, None
        if isinstance(x, Tensor):
            if self.layer_index != 0:
                raise TypeError(
                    f"{self.summary()} reads with the weights of the sublayer before, but got streams alone at "
                    f"layer_index={self.layer_index}; pass what the layer before returned, or DelayedStreams.seed(x) "
                    "to begin here"
                )
            check_streams(self.spec, x, x)
            return DelayedStreams.seed(x)
        streams, pre = x  # a checkpoint hands the named tuple on as a plain one
        return streams, pre

    def _projection(self, x: Tensor, backend: str) -> Tensor | None:
        parameters: dict[str, Tensor] = {**self.predictor_parameters()}
        if backend == "torch":
            parameters = {name: parameter.to(x.dtype) for name, parameter in parameters.items()}
        weights = self.spec.predictor.projection(parameters, self.spec.layout)
        return weights if weights is None or backend == "torch" else weights.contiguous()

    def _write(
        self, entered: Entered, streams: Tensor, coefficients: Coefficients, y: Tensor, into: HyperConnection | None
    ) -> Tensor | DelayedStreams | Handover:
        pre, post, H = coefficients
        carried = pre if self.config.read == "delayed" else None
        with without_autocast(streams.device):
            y = y.to(streams.dtype) if entered.backend == "torch" else y
            if self.spec.one_weight_a_stream:
                y = y.reshape(-1, self.dim).contiguous()
                if into is not None and into._continues(entered, carried):
                    fn = into._projection(streams, entered.backend)
                    if fn is not None:
                        projected = steps.write_project(streams, H, post, y, fn, entered.backend)
                        handed = dataclasses.replace(entered, projected=projected, carried=carried)
                        return Handover(into, into.spec, handed)
                written = steps.write(streams, H, post, y, entered.backend)
            else:
                y = y.reshape(-1, 1, self.dim) if self.spec.expand.whole else y.reshape(streams.shape)
                written = torch.addcmul(H @ streams, post.unsqueeze(-1), y)
        batched = entered.batched(written).to(entered.dtype)
        out = batched if carried is None else DelayedStreams(batched, entered.batched(carried))
        return out if into is None else Handover(into, into.spec, into._enter(out))

    def _continues(self, entered: Entered, carried: Tensor | None) -> bool:
        """Whether streams as they left another layer are what this layer would work on."""
        x = entered.projected.x
        anchor = self._anchor(x)
        backend = choose_backend(self.spec, x.device, entered.dtype, anchor.dtype)
        return (
            x.shape[1:] == self.stream_shape
            and x.device == anchor.device
            and x.dtype == entered.dtype
            and backend == entered.backend
            and (backend == "triton" or x.dtype == self._working_dtype(x))
            and (carried is not None) == (self.config.read == "delayed")
        )

    def note(self) -> dict[str, Any]:
        return self.spec.signature()

    def noted_parts(self) -> tuple[object, ...]:
        return self.spec.parts

    def summary(self) -> str:
        """The layer in a few words, for messages."""
        return self.spec.summary()

    def extra_repr(self) -> str:
        predictor = self.spec.predictor.name
        return f"dim={self.dim}, layer_index={self.layer_index}, {self.manifold!r}, predictor={predictor}"
