"""The config of a run: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperconn import HyperConnectionConfig
from hyperconn.lab import LabConfig
from hyperconn.lab.settings import hyper_connection
from source_tree import ROOT

CONFIGS = [*sorted((ROOT / "docs" / "configs").iterdir()), ROOT / "hyperconn" / "lab" / "demo.toml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load_and_round_trip(path: Path) -> None:
    config = LabConfig.from_file(path)
    assert config != LabConfig()
    assert LabConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert {path.suffix for path in CONFIGS} >= {".toml", ".yaml"}


def test_the_section_of_the_connection() -> None:
    assert LabConfig.from_dict({}) == LabConfig() and LabConfig().hyper_connection is None
    assert hyper_connection({"preset": "plain"}) is None
    assert hyper_connection({"preset": "shc", "streams": 2, "fn_std": 0.1}) == HyperConnectionConfig.preset(
        "shc", streams=2, fn_std=0.1
    )
    assert hyper_connection({"manifold": "stiefel", "streams": 3}) == HyperConnectionConfig(3, "stiefel")


def test_numbers_convert_where_nothing_is_lost() -> None:
    assert type(LabConfig.from_dict({"train": {"learning_rate": 1}}).train.learning_rate) is float
    assert LabConfig.from_dict({"data": {"path": None}, "model": None}) == LabConfig()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"modle": {}}, "unknown config section 'modle'. Did you mean 'model'"),
        ({"train": {"learning-rate": 1}}, "'train.learning-rate'. Did you mean 'train.learning_rate'"),
        ({"hyper_connection": 3}, "[hyper_connection] must be a table, got 3"),
        (
            {"hyper_connection": {"preset": "plain", "fn_std": 0.1}},
            "preset 'plain' is the plain residual and takes no other key, got fn_std",
        ),
        ({"model": 3}, "[model] must be a table, got 3"),
        ({"model": {"blocks": True}}, "model.blocks must be of type int, got True"),
        ({"model": {"blocks": 0}}, "model.blocks must be positive, got 0"),
        ({"model": {"channels": 10, "heads": 4}}, "heads must divide model.channels; got 4 heads for 10 channels"),
        ({"model": {"dropout": 1.0}}, "model.dropout must lie in [0, 1), got 1.0"),
        ({"train": {"learning_rate": "4e-3"}}, "got '4e-3'; YAML takes 1e-3 for text, write 1.0e-3"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate must be positive, got nan"),
        ({"train": {"seed": -1}}, "train.seed must lie between 0 and 2^63 - 1, got -1"),
        ({"train": {"warmup": -1}}, "train.warmup must not be negative, got -1"),
        ({"train": {"threads": 10**9}}, "train.threads must lie between 1 and 1024, got 1000000000"),
        ({"data": {"held_out": 0.0}}, "data.held_out must lie between 0 and 1, got 0.0"),
        ({"data": {"path": 3}}, "data.path must be of type str, got 3"),
        ({"compare": {"presets": "hc"}}, "compare.presets must be a list of strings, got 'hc'"),
        ({"compare": {"overrides": 3}}, "options are a table of names and values, got 3"),
    ],
)
def test_bad_config_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        LabConfig.from_dict(table)
    assert says in str(caught.value)
