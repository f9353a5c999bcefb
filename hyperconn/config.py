"""The description of a hyper-connection: plain data and parts, validated when made, immutable afterwards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch

from hyperconn import gates, predictors
from hyperconn.ends import CollapseStreams, Ends, ExpandStreams
from hyperconn.files import read_table
from hyperconn.gates import Gate
from hyperconn.manifolds import Manifold, PluginError
from hyperconn.manifolds.core.errors import UnknownNameError, did_you_mean, shown, unknown_name
from hyperconn.manifolds.core.map import Map
from hyperconn.manifolds.core.options import require_int, require_number
from hyperconn.manifolds.core.plain_data import Options
from hyperconn.manifolds.registry import MANIFOLDS, Registry
from hyperconn.manifolds.registry.provenance import check_plugin_records, install_hints, plugin_records
from hyperconn.predictors import Layout, Predictor
from hyperconn.presets import PRESETS
from hyperconn.streams import COLLAPSES, EXPANDS, Collapse, Expand

BACKENDS = ("auto", "torch", "triton")

# Begins what is said of its plugins.
_WHAT = "the hyper-connection config"

# Of any number in a config: finite in float32, with room to multiply.
_LARGEST = 1e30

_MOST_AXES = 64  # of a tensor

_CHOICES: dict[str, tuple[str, ...]] = {
    "orientation": ("direct", "transposed"),
    "init": ("residual", "published"),
    "norm_eps_mode": ("inside", "outside"),
    "read": ("immediate", "delayed"),
    "backend": BACKENDS,
}

# field -> registry of its names, and class of its objects
_REGISTERED: dict[str, tuple[Registry[Any], type]] = {
    "manifold": (MANIFOLDS, Manifold),
    "pre_gate": (gates.GATES, Gate),
    "post_gate": (gates.GATES, Gate),
    "predictor": (predictors.PREDICTORS, Predictor),
}
_ENDS: dict[str, tuple[Mapping[str, Any], type]] = {"expand": (EXPANDS, Expand), "collapse": (COLLAPSES, Collapse)}


@dataclass(frozen=True)
class HyperConnectionConfig:
    """Everything that distinguishes one published hyper-connection from another.

    Manifold, gates, predictor, expansion and collapse are parts. A part is named, with its options beside it, or is the
    object itself. A config never runs code: names resolve through the registries alone. It is frozen and hashable; make
    variants with ``dataclasses.replace``.

    Attributes:
        streams: number n of residual streams, at least 1.
        manifold: the constraint of the residual matrix H, by name or as a ``Manifold`` of n streams.
        manifold_options: options of the manifold that is named, plain data.
        predictor: where the logits come from: ``"width_scaled"`` predicts every coefficient from all streams at once,
            and learns as fast at any width; ``"flat"`` is that of the mHC family, which does not; ``"per_stream"``
            predicts the coefficients of a stream from that stream alone (HC); ``"static"`` learns them without looking;
            or a ``Predictor``.
        predictor_options: options of the predictor that is named.
        pre_gate, post_gate: maps from logits to read and write weights, by name or as a ``Gate`` of n streams.
        pre_gate_options, post_gate_options: options of the gates that are named.
        pre_eps: added to the read weights (DeepSeek-V4: 1e-6).
        post_gain: factor of the write weights, ``post = post_gain · gate(l) + post_eps``. A schedule may change it
            afterwards, ``layer.post_gain``.
        post_eps: added to the write weights (hy_v4: 1e-6).
        orientation: ``"direct"`` applies ``H = m(theta)``, ``"transposed"`` its transpose.
        init: ``"residual"`` starts exactly as a plain residual network, if the manifold contains the identity or has
            row sums 1; ``"published"`` as the released code does.
        sharpness: how near H starts to the identity where that lies at infinity: the gap between its logit and others.
        scale_init: initial scale of the predicted part of every coordinate group.
        fn_std: standard deviation of the initial prediction weights; 0 starts exactly plain.
        norm_eps: added to the mean square (or variance) of what predicts. With 0, a token of zeros predicts nothing.
        norm_eps_mode: ``"inside"`` the root, or ``"outside"``, added to the root itself (Megatron).
        read: ``"immediate"`` reads with the weights that the sublayer predicts; ``"delayed"`` with those of the
            sublayer before (DeepSeek-V4.1), which then pass from layer to layer as ``DelayedStreams``.
        expand: ``"copies"``, or ``"fractions"`` of the hidden vector (Frac-Connections); or an ``Expand``.
        collapse: how a model of this kind ends: ``"mean"``, ``"sum"``, a learned ``"head"``, ``"concat"`` (fractions),
            ``"pre"`` (delayed reads); or a ``Collapse``.
        channel_dim: where hidden vectors and branches have their channels: -1 for ``[..., C]``, 1 for ``[B, C, H, W]``.
            The streams have them last in any case.
        backend: ``"auto"``, ``"torch"`` or ``"triton"``.

    Raises:
        UnknownNameError: a part or preset that does not exist, with the nearest names.
        ValueError, TypeError: a value outside its range or of another type, with what to pass instead.

    >>> cfg = HyperConnectionConfig(streams=4, manifold="kronecker", manifold_options={"factors": (2, 2)})
    >>> HyperConnectionConfig.from_dict(cfg.to_dict()) == cfg
    True
    >>> from hyperconn import manifolds
    >>> HyperConnectionConfig(manifold="stiefel") == HyperConnectionConfig(manifold=manifolds.Stiefel(n=4))
    True
    """

    streams: int = 4
    manifold: str | Manifold = "stiefel"
    manifold_options: Mapping[str, Any] = Options()
    predictor: str | Predictor = "width_scaled"
    predictor_options: Mapping[str, Any] = Options()
    pre_gate: str | Gate = "linear"
    pre_gate_options: Mapping[str, Any] = Options()
    post_gate: str | Gate = "linear"
    post_gate_options: Mapping[str, Any] = Options()
    pre_eps: float = 0.0
    post_gain: float = 1.0
    post_eps: float = 0.0
    orientation: str = "direct"
    init: str = "residual"
    sharpness: float = 4.0
    scale_init: float = 0.01
    fn_std: float = 0.0
    norm_eps: float = 1e-6
    norm_eps_mode: Literal["inside", "outside"] = "inside"
    read: Literal["immediate", "delayed"] = "immediate"
    expand: str | Expand = "copies"
    collapse: str | Collapse = "mean"
    channel_dim: int = -1
    backend: str = "auto"

    _plugins: ClassVar[dict[str, dict[str, str]]]

    def __new__(cls, *_: Any, **fields: Any) -> HyperConnectionConfig:
        # The generated __init__ would name the slip of a pen, but not what was meant.
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__} has no field {name!r}.{did_you_mean(name, known)} Its fields are: "
                    f"{', '.join(known)}"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        require_int(self, "streams", 1)
        require_int(self, "channel_dim", -_MOST_AXES, _MOST_AXES)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise unknown_name(f"{name} of a HyperConnectionConfig", value, choices)
        for name in ("pre_eps", "post_gain", "post_eps", "sharpness", "scale_init", "fn_std", "norm_eps"):
            require_number(self, name)
            value = float(getattr(self, name))
            if value > _LARGEST:
                raise ValueError(f"HyperConnectionConfig: {name} must be at most {_LARGEST:g}, got {value:g}")
            object.__setattr__(self, name, value)
        if self.post_gain == 0:
            raise ValueError("HyperConnectionConfig: post_gain must be above 0, or no sublayer would write; got 0.0")
        for name in _REGISTERED:
            self._settle_part(name)
        for name, (named, kind) in _ENDS.items():
            self._settle_end(name, named, kind)
        # No field: it follows from the others, and two versions of a plugin make equal configs.
        object.__setattr__(self, "_plugins", plugin_records(self._parts()))
        self._require_parts_that_fit()

    def _settle_part(self, field: str) -> None:
        """Check a part that a registry may know. An object that has a name becomes that name, with its options."""
        (registry, kind), value = _REGISTERED[field], getattr(self, field)
        options = Options(getattr(self, f"{field}_options"))
        object.__setattr__(self, f"{field}_options", options)
        if "n" in options and kind is not Predictor:
            raise TypeError(
                f"HyperConnectionConfig: {field}_options holds n, which is the number of streams; "
                f"pass streams={shown(options['n'])} instead"
            )
        if not isinstance(value, kind):
            if not isinstance(value, str):
                raise TypeError(
                    f"HyperConnectionConfig: {field} is a name, one of {', '.join(registry.available())}, or a "
                    f"{kind.__name__} object, got {shown(value)}"
                )
            self._make(field)  # refuses unknown names, bad options, too many streams
            return
        registry.check(value)
        if options:
            raise TypeError(f"HyperConnectionConfig: {field}_options go with a name; {value!r} has its own options")
        if isinstance(value, Map) and value.n != self.streams:
            raise ValueError(
                f"HyperConnectionConfig: {field}={value!r} is made for n={value.n}, streams={self.streams}"
            )
        name, own = self._as_data(registry, value)
        if name is not None:
            object.__setattr__(self, field, name)
            object.__setattr__(self, f"{field}_options", own)

    def _as_data(self, registry: Registry[Any], part: Any) -> tuple[str | None, Options]:
        """Name and options that make the part again; no name where nothing does."""
        try:
            options = Options(part.chosen_options())
            known = self._make_named(registry, part.name, options)
        except (PluginError, TypeError, ValueError, AttributeError):  # no such name, or options that are no data
            return None, Options()
        return (part.name, options) if type(known) is type(part) and known == part else (None, Options())

    def _settle_end(self, field: str, named: Mapping[str, Any], kind: type) -> None:
        value = getattr(self, field)
        if isinstance(value, kind):
            if named.get(value.name) == value:  # type: ignore[attr-defined]
                object.__setattr__(self, field, value.name)  # type: ignore[attr-defined]
        elif not isinstance(value, str) or value not in named:
            raise unknown_name(f"{field} of a HyperConnectionConfig", value, named)

    def _require_parts_that_fit(self) -> None:
        pre, post = self.make_pre_gate(), self.make_post_gate()
        if not pre.reads:
            raise _wrong_role("pre_gate", pre, "reads", "read weights that sum to 1")
        if not post.writes or post.value_shape != (self.streams,):
            raise _wrong_role("post_gate", post, "writes", "write weights of 1, one a stream")
        expand, collapse = self.make_expand(), self.make_collapse()
        undone = (expand.name, "copies") if expand.whole else (expand.name,)
        if collapse.of not in undone:
            fitting = [part.name for part in COLLAPSES.values() if part.of in undone]
            raise ValueError(
                f"HyperConnectionConfig: expand={expand.name!r} with collapse={collapse.name!r}; {expand.name} are "
                f"collapsed by {', '.join(map(repr, fitting)) or f'a Collapse with of = {expand.name!r}'}"
            )
        if not expand.whole and pre.value_shape != (self.streams, self.streams):
            raise ValueError(
                "HyperConnectionConfig: fractions are read with an n×n matrix of weights, which pre_gate='matrix' "
                f"gives; got pre_gate={pre.name!r}"
            )
        if self.read == "delayed" and (not expand.whole or pre.value_shape != (self.streams,)):
            raise ValueError(
                "HyperConnectionConfig: read='delayed' hands on one weight a stream; it goes with expand='copies' and "
                f"a gate of {self.streams} weights, got expand={expand.name!r} and pre_gate={pre!r}"
            )
        if collapse.needs == "pre" and self.read != "delayed":
            raise ValueError(
                f"HyperConnectionConfig: collapse={collapse.name!r} needs the weights that read='delayed' hands on; "
                "use 'mean', 'sum' or 'head'"
            )
        # Whether the predictor can share the groups out does not depend on the channels, unless the gate says them.
        channels = pre.value_shape[1] if len(pre.value_shape) == 2 and expand.whole else self.streams
        self.make_predictor().parameters(Layout(self.streams, channels, self.group_sizes()))

    def _make(self, field: str) -> Any:
        (registry, kind), value = _REGISTERED[field], getattr(self, field)
        if isinstance(value, kind):
            return value
        return self._make_named(registry, value, getattr(self, f"{field}_options"))

    def _make_named(self, registry: Registry[Any], name: str, options: Options) -> Any:
        size = {} if registry is predictors.PREDICTORS else {"n": self.streams}
        return registry.make(name, **size, **options)

    def make_manifold(self) -> Manifold:
        """The manifold of the residual matrix."""
        return cast(Manifold, self._make("manifold"))

    def make_pre_gate(self) -> Gate:
        """The gate of the read weights."""
        return cast(Gate, self._make("pre_gate"))

    def make_post_gate(self) -> Gate:
        """The gate of the write weights."""
        return cast(Gate, self._make("post_gate"))

    def make_predictor(self) -> Predictor:
        """Where the logits come from."""
        return cast(Predictor, self._make("predictor"))

    def make_expand(self) -> Expand:
        """How a hidden vector becomes streams: ``config.make_expand()(h, config.streams)``."""
        return EXPANDS[self.expand] if isinstance(self.expand, str) else self.expand

    def make_collapse(self) -> Collapse:
        """How streams become a hidden vector; ``make_collapse().make(dim, n)`` is what a model calls at its end."""
        return COLLAPSES[self.collapse] if isinstance(self.collapse, str) else self.collapse

    def make_ends(self, dim: int, *, device: torch.device | str | None = None) -> Ends:
        """What a model of ``dim`` channels needs before its first layer and after its last, as two modules.

        >>> import torch
        >>> expand, collapse = HyperConnectionConfig.preset("ihc", streams=2).make_ends(8)
        >>> expand(torch.ones(5, 8)).shape, collapse(torch.ones(5, 2, 8)).shape
        (torch.Size([5, 2, 8]), torch.Size([5, 8]))
        """
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"make_ends: dim must be a positive int, the channels of the model; got {dim!r}")
        part, n, where = self.make_expand(), self.streams, self.channel_dim
        back = CollapseStreams(
            self.make_collapse(), part.stream_dim(dim, n), n, channel_dim=where, norm_eps=self.norm_eps, device=device
        )
        return Ends(ExpandStreams(part, dim, n, channel_dim=where, delayed=self.read == "delayed"), back)

    def _parts(self) -> tuple[Any, ...]:
        return tuple(self._make(field) for field in _REGISTERED)

    @property
    def fractions(self) -> bool:
        """Whether the streams are fractions of the hidden vector instead of copies."""
        return not self.make_expand().whole

    def group_sizes(self) -> tuple[int, ...]:
        """Number of logits of pre, post and each residual coordinate group."""
        residual = (size for _, size in self.make_manifold().coordinate_groups)
        return (self.make_pre_gate().num_coordinates, self.make_post_gate().num_coordinates, *residual)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` turns back into an equal config; fit for TOML, YAML and JSON.

        If a plugin provides a part, or one inside it, ``plugins`` says which distribution and version did.

        Raises:
            TypeError: a part is an object that no registered name stands for.
        """
        table = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in table.items():
            if name in (*_REGISTERED, *_ENDS) and not isinstance(value, str):
                raise TypeError(
                    f"HyperConnectionConfig.to_dict: {name}={value!r} is an object that no registered name stands for, "
                    "so it cannot be written down; register its class (hyperconn.manifolds, gates and predictors have "
                    "register) and name it"
                )
            if isinstance(value, Options):
                table[name] = value.plain()
        return {**table, "plugins": copy.deepcopy(self._plugins)} if self._plugins else table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> HyperConnectionConfig:
        """A config from plain data: the fields of the class, or ``preset`` and the fields that differ from it.

        Raises, beside what the class raises:
            UnknownNameError: a plugin that ``plugins`` names is not installed, though the config uses it; the message
                says how to install it.

        Warns:
            PluginVersionWarning: what ``plugins`` names is another version, or of another distribution, here.

        >>> HyperConnectionConfig.from_dict({"preset": "shc", "streams": 2}).manifold
        'spectral_sphere'
        """
        if not isinstance(table, Mapping):
            raise TypeError(f"a hyper-connection config is a table of names and values, got {shown(table)}")
        values = dict(table)
        preset, records = values.pop("preset", None), values.pop("plugins", {})
        cls._require_known(values, ("preset", "plugins"))
        with install_hints(records, _WHAT):
            config = cls(**values) if preset is None else cls.preset(preset, **values)
        check_plugin_records(records, _WHAT, config._parts())
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> HyperConnectionConfig:
        """A config from a TOML, YAML or JSON file, at its top or below the key ``hyper_connection``."""
        table = read_table(path)
        return cls.from_dict(table.get("hyper_connection", table))

    @classmethod
    def preset(cls, name: str, streams: int | None = None, **overrides: Any) -> HyperConnectionConfig:
        """The published system called ``name``; keyword arguments replace single fields.

        ``streams`` is 4 where it is not given; 1 for ``"plain"``, the plain residual through the same layer.

        Another part comes with options of its own: where an override names one, the preset's options of that part go.

        >>> HyperConnectionConfig.preset("kromhc", streams=8).make_manifold().num_coordinates
        6
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        cls._require_known(overrides)
        values = {**PRESETS[name], **({} if streams is None else {"streams": streams})}
        for field in _REGISTERED:
            if overrides.get(field, values.get(field)) != values.get(field):
                values.pop(f"{field}_options", None)
        return cls(**{**values, **overrides})

    @classmethod
    def _require_known(cls, keys: Mapping[str, Any], also: tuple[str, ...] = ()) -> None:
        known = [*also, *(field.name for field in dataclasses.fields(cls))]
        for key in keys:
            if key not in known:
                raise unknown_name("key of a hyper-connection config", key, known)

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names of the published systems."""
        return tuple(PRESETS)


def _wrong_role(field: str, gate: Gate, role: str, start: str) -> UnknownNameError:
    known = [known.name for known in gates.BUILT_IN if getattr(known, role)]
    return unknown_name(f"{field} of a HyperConnectionConfig (it has to start at {start})", gate.name, known)
