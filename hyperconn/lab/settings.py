"""The config of a training run: what to build, how to train it, and on what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hyperconn.config import HyperConnectionConfig
from hyperconn.files import read_table
from hyperconn.manifolds.core.errors import shown, unknown_name
from hyperconn.manifolds.core.plain_data import Options, require_small

PLAIN = "plain"
# Beyond any machine; a slip of the pen would start them all.
_MAX_THREADS = 1024
_MAX_SEEDS = 1000
_LONGEST = 40

SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """A byte-level pre-norm GPT."""

    blocks: int = 6  # transformer blocks, each an attention and an MLP sublayer
    channels: int = 64  # width C
    heads: int = 4  # attention heads; divides channels
    context: int = 128  # longest sequence, in bytes
    dropout: float = 0.0  # probability on the output of every sublayer

    def __post_init__(self) -> None:
        _require_positive(self, "model", "blocks", "channels", "heads", "context")
        if self.channels % self.heads:
            raise ValueError(
                f"model.heads must divide model.channels; got {self.heads} heads for {self.channels} channels"
            )
        _require(0.0 <= self.dropout < 1.0, "model.dropout must lie in [0, 1)", self.dropout)


@dataclass(frozen=True)
class TrainConfig:
    """AdamW on random windows."""

    steps: int = 1000  # optimizer steps in all
    batch: int = 8  # windows a step
    learning_rate: float = 3e-3  # after the warm-up
    schedule: str = "constant"  # after the warm-up; "cosine" falls to a tenth at the last step
    warmup: int = 50  # steps of linear warm-up
    weight_decay: float = 0.0  # on matrices and embeddings; vectors and gains have none
    clip: float = 1.0  # largest gradient norm; 0 for no clipping
    seed: int = 0  # of the weights, the order of the data and dropout
    eval_every: int = 100  # steps between evaluations; 0 for one at the end
    eval_windows: int = 64  # held-out windows of an evaluation, always the same ones
    checkpoint_every: int = 100  # steps between checkpoints; 0 for one at the end
    device: str = "auto"  # "auto" (a GPU if there is one), or a device that torch knows
    dtype: str = "float32"  # of the computation; "bfloat16" is autocast, weights stay float32
    threads: int | None = None  # CPU threads that the command line sets; None for torch's choice

    def __post_init__(self) -> None:
        _require_positive(self, "train", "steps", "batch", "learning_rate", "eval_windows")
        for name in ("warmup", "weight_decay", "clip", "eval_every", "checkpoint_every"):
            _require(getattr(self, name) >= 0, f"train.{name} must not be negative", getattr(self, name))
        _require(0 <= self.seed < 2**63, "train.seed must lie between 0 and 2^63 - 1", self.seed)
        for name, choices in (("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise unknown_name(f"train.{name}", getattr(self, name), choices)
        in_range = self.threads is None or 1 <= self.threads <= _MAX_THREADS
        _require(in_range, f"train.threads must lie between 1 and {_MAX_THREADS}", self.threads)


@dataclass(frozen=True)
class DataConfig:
    """The text."""

    path: str | None = None  # a file or a folder; None for the sources of the Python standard library
    max_bytes: int = 4_000_000  # read no more than this
    held_out: float = 0.1  # fraction of the text, its tail, that is kept for validation

    def __post_init__(self) -> None:
        _require_positive(self, "data", "max_bytes")
        _require(0.0 < self.held_out < 1.0, "data.held_out must lie between 0 and 1", self.held_out)


@dataclass(frozen=True)
class CompareConfig:
    """What ``hyperconn compare`` puts side by side.

    Attributes:
        contestants: names (``plain``, presets, manifolds, ``config`` for the [hyper_connection] section), and tables of
            a ``name`` and the keys of a [hyper_connection] section of its own.
        overrides: keys of HyperConnectionConfig that replace those of every preset and manifold that is only named.
        seeds: runs of each contestant, with ``train.seed`` and the seeds that follow it.
        lr_multipliers: every run is made with each of these factors of ``train.learning_rate``.
    """

    contestants: tuple[Mapping[str, Any], ...] = ()
    overrides: Mapping[str, Any] = Options()
    seeds: int = 1
    lr_multipliers: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contestants", tuple(_contestant(entry) for entry in self.contestants))
        object.__setattr__(self, "overrides", Options(self.overrides))
        object.__setattr__(self, "lr_multipliers", tuple(float(factor) for factor in self.lr_multipliers))
        _require(1 <= self.seeds <= _MAX_SEEDS, f"compare.seeds must lie between 1 and {_MAX_SEEDS}", self.seeds)
        factors = self.lr_multipliers
        good = len(set(factors)) == len(factors) > 0 and all(0 < factor < math.inf for factor in factors)
        _require(good, "compare.lr_multipliers must be positive numbers, each of them once", list(factors))


def _contestant(entry: Any) -> Options:
    """The table of a contestant: of one that is only named, the name alone."""
    table = Options({"name": entry} if isinstance(entry, str) else entry)
    name = table.get("name")
    good = isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST and not set(name) & set(",|")
    if not good or name != name.strip():
        raise ValueError(
            "compare.contestants holds names, and tables with a name and keys of a [hyper_connection] section; a "
            f"name has at most {_LONGEST} letters, and neither comma nor bar; got {shown(entry)}"
        )
    return table


_SECTIONS: dict[str, Any] = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig, "compare": CompareConfig}


@dataclass(frozen=True)
class LabConfig:
    """A whole config file.

    Attributes:
        hyper_connection: None for the plain residual.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    hyper_connection: HyperConnectionConfig | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> LabConfig:
        """Read a TOML or YAML file; see ``docs/training.md`` for its sections.

        Raises:
            OSError, ValueError, TypeError, ModuleNotFoundError: a message that says what to change.
        """
        return cls.from_dict(read_table(path))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> LabConfig:
        """Build from nested tables; a section that is absent has its defaults."""
        if not isinstance(table, Mapping):
            raise TypeError(f"a config is a table of sections, got {shown(table)}")
        require_small(table, "the config")
        known = {*_SECTIONS, "hyper_connection"}
        for section in table:
            if section not in known:
                raise unknown_name("config section", section, known)
        return cls(
            **{name: _from_table(section, name, table.get(name)) for name, section in _SECTIONS.items()},
            hyper_connection=hyper_connection(table.get("hyper_connection")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of plain values; ``from_dict`` reads them back."""
        table: dict[str, Any] = {name: dict(vars(getattr(self, name))) for name in _SECTIONS}
        table["compare"] |= {
            "contestants": [Options(entry).plain() for entry in self.compare.contestants],
            "overrides": Options(self.compare.overrides).plain(),
            "lr_multipliers": list(self.compare.lr_multipliers),
        }
        if self.hyper_connection is not None:
            table["hyper_connection"] = self.hyper_connection.to_dict()
        return table


def hyper_connection(table: Mapping[str, Any] | None) -> HyperConnectionConfig | None:
    """The config of a ``[hyper_connection]`` section: a preset with overrides, or all its own keys.

    Returns:
        None where the section is absent or its preset is ``"plain"``.
    """
    if table is None:
        return None
    if not isinstance(table, Mapping):
        raise ValueError(f"[hyper_connection] must be a table, got {shown(table)}")
    if table.get("preset") != PLAIN:
        return HyperConnectionConfig.from_dict(table)
    others = sorted(set(table) - {"preset"})
    if others:
        raise ValueError(
            f"[hyper_connection] with preset {PLAIN!r} is the plain residual and takes no other key, got "
            f"{', '.join(others)}; remove them, or choose one of {', '.join(HyperConnectionConfig.presets())}"
        )
    return None


def _from_table(cls: type[T], section: str, table: Any) -> T:
    """A flat dataclass from a section; unknown keys and values of the wrong type are refused."""
    table = {} if table is None else table
    if not isinstance(table, Mapping):
        raise ValueError(f"[{section}] must be a table, got {shown(table)}")
    hints = get_type_hints(cls)
    for key in table:
        if key not in hints:
            raise unknown_name("config key", f"{section}.{key}", {f"{section}.{name}" for name in hints})
    return cls(**{key: _typed(f"{section}.{key}", value, hints[key]) for key, value in table.items()})


def _typed(key: str, value: Any, hint: Any) -> Any:
    """The value as the hint wants it: a number, text, None, a tuple of strings or a table."""
    if hint == Mapping[str, Any]:
        return value  # Options checks it
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        kinds, words = ((int, float), "numbers") if item is float else ((str, Mapping), "names and tables")
        good = isinstance(value, (list, tuple)) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value)
        _require(good, f"{key} must be a list of {words}", value)
        return tuple(value)
    expected = get_args(hint) or (hint,)
    if float in expected and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or isinstance(value, bool):
        names = " or ".join(kind.__name__ for kind in expected if kind is not type(None))
        hint = "; YAML takes 1e-3 for text, write 1.0e-3" if float in expected and isinstance(value, str) else ""
        raise ValueError(f"{key} must be of type {names}, got {shown(value)}{hint}")
    return value


def _require(held: bool, rule: str, value: object) -> None:
    if not held:
        raise ValueError(f"{rule}, got {shown(value)}")


def _require_positive(config: object, section: str, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) > 0, f"{section}.{name} must be positive", getattr(config, name))
