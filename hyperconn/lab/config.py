"""The config of a training run: what to build, how to train it, and on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperconn import HyperConnectionConfig
from hyperconn.files import read_table
from hyperconn.lab.tables import from_table
from hyperconn.manifolds.core.errors import shown, unknown_name
from hyperconn.manifolds.core.plain_data import Options, require_small

PLAIN = ("plain", "none")

# Beyond any machine; a slip of the pen would start them all.
_MAX_THREADS = 1024


@dataclass(frozen=True)
class ModelConfig:
    """A byte-level pre-norm GPT.

    Attributes:
        blocks: transformer blocks, each an attention and an MLP sublayer.
        channels: width C.
        heads: attention heads; divides ``channels``.
        context: longest sequence, in bytes.
        mlp_ratio: hidden width of the MLP over C.
        dropout: probability on the output of every sublayer.
    """

    blocks: int = 6
    channels: int = 64
    heads: int = 4
    context: int = 128
    mlp_ratio: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(self, "model", "blocks", "channels", "heads", "context", "mlp_ratio")
        if self.channels % self.heads:
            raise ValueError(
                f"model.heads must divide model.channels; got {self.heads} heads for {self.channels} channels"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class TrainConfig:
    """AdamW on random windows.

    Attributes:
        steps: optimizer steps in all.
        batch: windows a step.
        learning_rate: after the warm-up.
        warmup: steps of linear warm-up.
        schedule: ``"constant"`` after the warm-up, or ``"cosine"`` down to a tenth at the last step.
        weight_decay: on matrices and embeddings; vectors and gains have none.
        beta1, beta2: of AdamW.
        clip: largest gradient norm; 0 for no clipping.
        seed: of the weights, the order of the data and dropout.
        eval_every: steps between evaluations; 0 for one at the end.
        eval_windows: held-out windows of an evaluation, always the same ones.
        checkpoint_every: steps between checkpoints; 0 for one at the end.
        device: ``"auto"`` (a GPU if there is one), or a device that torch knows.
        threads: CPU threads that the command line sets; None for torch's choice.
    """

    steps: int = 1000
    batch: int = 8
    learning_rate: float = 3e-3
    warmup: int = 50
    schedule: str = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    seed: int = 0
    eval_every: int = 100
    eval_windows: int = 64
    checkpoint_every: int = 100
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "train", "steps", "batch", "learning_rate", "eval_windows")
        for name in ("warmup", "weight_decay", "clip", "eval_every", "checkpoint_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train.{name} must not be negative, got {shown(getattr(self, name))}")
        if self.threads is not None:
            _require_positive(self, "train", "threads")
            if self.threads > _MAX_THREADS:
                raise ValueError(f"train.threads must be at most {_MAX_THREADS}, got {self.threads}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"train.seed must lie between 0 and 2^63 - 1, got {self.seed}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"train.schedule must be 'constant' or 'cosine', got {shown(self.schedule)}")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"train.{name} must lie in [0, 1), got {shown(getattr(self, name))}")


@dataclass(frozen=True)
class DataConfig:
    """The text.

    Attributes:
        path: a file or a folder; None for the sources of the Python standard library.
        max_bytes: read no more than this.
        held_out: fraction of the text, its tail, that is kept for validation.
    """

    path: str | None = None
    max_bytes: int = 4_000_000
    held_out: float = 0.1

    def __post_init__(self) -> None:
        _require_positive(self, "data", "max_bytes")
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"data.held_out must lie between 0 and 1, got {self.held_out}")


@dataclass(frozen=True)
class CompareConfig:
    """What ``hyperconn compare`` puts side by side.

    Attributes:
        presets: contestants: ``plain``, names of presets, and ``config`` for the [hyper_connection] section.
        overrides: keys of HyperConnectionConfig that replace those of every preset alike.
    """

    presets: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=Options)

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", Options(self.overrides))


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
        sections = {field.name for field in dataclasses.fields(cls)}
        for section in table:
            if section not in sections:
                raise unknown_name("config section", section, sections)
        compare = dict(_section(table, "compare"))
        overrides = _section(compare, "overrides")
        compare.pop("overrides", None)
        return cls(
            model=from_table(ModelConfig, _section(table, "model"), "model"),
            train=from_table(TrainConfig, _section(table, "train"), "train"),
            data=from_table(DataConfig, _section(table, "data"), "data"),
            compare=dataclasses.replace(from_table(CompareConfig, compare, "compare"), overrides=Options(overrides)),
            hyper_connection=hyper_connection(table.get("hyper_connection")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of plain values; ``from_dict`` reads them back."""
        table: dict[str, Any] = {name: dataclasses.asdict(getattr(self, name)) for name in ("model", "train", "data")}
        table["compare"] = {"presets": list(self.compare.presets), "overrides": Options(self.compare.overrides).plain()}
        if self.hyper_connection is not None:
            table["hyper_connection"] = self.hyper_connection.to_dict()
        return table


def hyper_connection(table: Mapping[str, Any] | None) -> HyperConnectionConfig | None:
    """The config of a ``[hyper_connection]`` section: a preset with overrides, or all its own keys.

    Returns:
        None where the section is absent or its preset is ``"plain"`` (or ``"none"``).
    """
    if table is None:
        return None
    if not isinstance(table, Mapping):
        raise ValueError(f"[hyper_connection] must be a table, got {shown(table)}")
    if table.get("preset") not in PLAIN:
        return HyperConnectionConfig.from_dict(table)
    others = sorted(set(table) - {"preset"})
    if others:
        raise ValueError(
            f"[hyper_connection] with preset {table['preset']!r} is the plain residual and takes no other key, got "
            f"{', '.join(others)}; remove them, or choose one of {', '.join(HyperConnectionConfig.presets())}"
        )
    return None


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ValueError(f"[{name}] must be a table, got {shown(section)}")
    return section


def _require_positive(config: object, section: str, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{section}.{name} must be positive, got {shown(getattr(config, name))}")
