"""The description of a hyper-connection: plain data, validated when made, immutable afterwards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hyperconn import manifolds
from hyperconn.files import read_table
from hyperconn.gates import READ_GATES, WRITE_GATES
from hyperconn.manifolds.core.errors import UnknownNameError, shown, unknown_name
from hyperconn.manifolds.registry.provenance import check_plugin_records, plugin_records, with_install_hint
from hyperconn.options import Options

BACKENDS = ("auto", "torch", "triton")

# Begins what is said of its plugins.
_WHAT = "the hyper-connection config"

# Of any number in a config: finite in float32, with room to multiply.
_LARGEST = 1e30

_CHOICES: dict[str, tuple[str, ...]] = {
    "predictor": ("flat", "per_stream", "static"),
    "pre_gate": READ_GATES,
    "post_gate": WRITE_GATES,
    "orientation": ("direct", "transposed"),
    "init": ("residual", "published"),
    "collapse": ("mean", "sum", "head", "concat"),
    "backend": BACKENDS,
}


@dataclass(frozen=True)
class HyperConnectionConfig:
    """Everything that distinguishes one published hyper-connection from another.

    A config never runs code: names resolve through the registries alone. It is frozen and hashable; make variants with
    ``dataclasses.replace``.

    Attributes:
        streams: number n of residual streams, at least 1.
        manifold: name of the constraint of the residual matrix H.
        manifold_options: options of that manifold, plain data.
        predictor: ``"flat"`` predicts every coefficient from all streams at once (mHC family); ``"per_stream"``
            predicts the coefficients of a stream from that stream alone (HC); ``"static"`` learns them without looking.
        pre_gate, post_gate: maps from logits to read and write weights.
        pre_eps: added to the read weights (DeepSeek-V4: 1e-6).
        orientation: ``"direct"`` applies ``H = m(theta)``, ``"transposed"`` its transpose.
        init: ``"residual"`` starts exactly as a plain residual network, if the manifold contains the identity or has
            row sums 1; ``"published"`` as the released code does.
        sharpness: how near H starts to the identity where that lies at infinity: the gap between its logit and others.
        scale_init: initial scale of the predicted part of every coordinate group.
        fn_std: standard deviation of the initial prediction weights; 0 starts exactly plain.
        norm_eps: added to the mean square (flat) or the variance (per_stream) of what predicts.
        fractions: the streams are n fractions of the hidden vector instead of n copies (Frac-Connections).
        collapse: how a model of this kind ends: ``"mean"``, ``"sum"``, a learned ``"head"``, ``"concat"`` (fractions).
        backend: ``"auto"``, ``"torch"`` or ``"triton"``.

    Raises:
        UnknownNameError: a manifold, gate or preset that does not exist, with the nearest names.
        ValueError, TypeError: a value outside its range or of another type, with what to pass instead.

    >>> cfg = HyperConnectionConfig(streams=4, manifold="kronecker", manifold_options={"factors": (2, 2)})
    >>> HyperConnectionConfig.from_dict(cfg.to_dict()) == cfg
    True
    """

    streams: int = 4
    manifold: str = "birkhoff"
    manifold_options: Mapping[str, Any] = Options()
    predictor: str = "flat"
    pre_gate: str = "sigmoid"
    post_gate: str = "double_sigmoid"
    pre_eps: float = 0.0
    orientation: str = "direct"
    init: str = "residual"
    sharpness: float = 4.0
    scale_init: float = 0.01
    fn_std: float = 0.0
    norm_eps: float = 1e-6
    fractions: bool = False
    collapse: str = "mean"
    backend: str = "auto"

    _plugins: ClassVar[dict[str, dict[str, str]]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "manifold_options", Options(self.manifold_options))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise unknown_name(f"{name} of a HyperConnectionConfig", value, choices)
        for name in ("pre_eps", "sharpness", "scale_init", "fn_std", "norm_eps"):
            self._require_number(name)
        if not isinstance(self.fractions, bool):
            raise TypeError(f"HyperConnectionConfig: fractions must be true or false, got {shown(self.fractions)}")
        if self.fractions != (self.collapse == "concat"):
            raise ValueError(
                f"HyperConnectionConfig: fractions={self.fractions} with collapse={self.collapse!r}; fractions are "
                "collapsed by 'concat', copies by 'mean', 'sum' or 'head'"
            )
        if self.fractions and self.pre_gate != "linear":
            raise ValueError(
                "HyperConnectionConfig: fractions are read with an n×n matrix of weights, which only pre_gate='linear' "
                f"gives; got pre_gate={self.pre_gate!r}"
            )
        self._require_manifold()

    def _require_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = "; YAML reads 1e-6 as text, write 1.0e-6" if isinstance(value, str) else ""
            raise TypeError(f"HyperConnectionConfig: {name} must be a number, got {shown(value)}{hint}")
        if not 0 <= value <= _LARGEST:
            raise ValueError(f"HyperConnectionConfig: {name} must be finite and not negative, got {shown(value)}")
        object.__setattr__(self, name, float(value))

    def _require_manifold(self) -> None:
        if isinstance(self.streams, bool) or not isinstance(self.streams, int):
            raise TypeError(f"HyperConnectionConfig: streams must be an int, got {shown(self.streams)}")
        if self.streams < 1:
            raise ValueError(f"HyperConnectionConfig: streams must be at least 1, got {shown(self.streams)}")
        if "n" in self.manifold_options:
            raise TypeError(
                "HyperConnectionConfig: manifold_options holds n, which is the number of streams; "
                f"pass streams={shown(self.manifold_options['n'])} instead"
            )
        manifold = self.make_manifold()  # refuses unknown names, bad options, too many streams
        # No field: it follows from the others, and two versions of a plugin make equal configs.
        object.__setattr__(self, "_plugins", plugin_records(manifold))
        groups = dict(manifold.coordinate_groups)
        if self.predictor == "per_stream" and any(size % self.streams for size in groups.values()):
            raise ValueError(
                f"predictor='per_stream' gives every stream an equal share of each group of coordinates, but those of "
                f"{manifold!r}, {groups}, do not divide by {self.streams} streams; use predictor='flat' or 'static'"
            )

    def make_manifold(self) -> manifolds.Manifold:
        """The manifold of the residual matrix."""
        return manifolds.make(self.manifold, n=self.streams, **self.manifold_options)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` turns back into an equal config; fit for TOML, YAML and JSON.

        If a plugin provides the manifold, or one inside it, ``plugins`` says which distribution and version did.
        """
        table = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        table["manifold_options"] = Options(self.manifold_options).plain()
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
        known = [field.name for field in dataclasses.fields(cls)]
        values = dict(table)
        preset, records = values.pop("preset", None), values.pop("plugins", {})
        for key in values:
            if key not in known:
                raise unknown_name("key of a hyper-connection config", key, ["preset", "plugins", *known])
        try:
            config = cls(**values) if preset is None else cls.preset(preset, **values)
        except UnknownNameError as error:
            hint = with_install_hint(error, records, _WHAT)
            if hint is error:
                raise
            raise hint from error
        check_plugin_records(records, _WHAT, config.make_manifold())
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> HyperConnectionConfig:
        """A config from a TOML, YAML or JSON file, at its top or below the key ``hyper_connection``."""
        table = read_table(path)
        return cls.from_dict(table.get("hyper_connection", table))

    @classmethod
    def preset(cls, name: str, streams: int = 4, **overrides: Any) -> HyperConnectionConfig:
        """The published system called ``name``; keyword arguments replace single fields.

        >>> HyperConnectionConfig.preset("kromhc", streams=8).make_manifold().num_coordinates
        6
        """
        from hyperconn.presets import PRESETS  # the presets are configs themselves

        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        known = [field.name for field in dataclasses.fields(cls)]
        for key in overrides:
            if key not in known:
                raise unknown_name("key of a hyper-connection config", key, known)
        return cls(**{**PRESETS[name], "streams": streams, **overrides})

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names of the published systems."""
        from hyperconn.presets import PRESETS

        return tuple(PRESETS)
