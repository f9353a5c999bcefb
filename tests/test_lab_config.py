"""The config of a run: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hyperconn import HyperConnectionConfig
from hyperconn.lab import LabConfig
from hyperconn.lab.settings import CompareConfig, DataConfig, ModelConfig, TrainConfig, hyper_connection
from source_tree import ROOT

CONFIGS = sorted((ROOT / "hyperconn" / "lab" / "configs").iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load_and_round_trip(path: Path) -> None:
    config = LabConfig.from_file(path)
    assert config != LabConfig()
    assert LabConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert {path.suffix for path in CONFIGS} >= {".toml", ".yaml"}


def test_the_first_config_names_every_key_with_its_default() -> None:
    start = next(path for path in CONFIGS if path.name == "start.toml")
    text = start.read_text(encoding="utf-8")
    own, count = LabConfig.from_file(start), 0
    for section, defaults in (("model", ModelConfig()), ("train", TrainConfig()), ("data", DataConfig())):
        lines = text.split(f"[{section}]")[1].split("\n[")[0]
        for field in dataclasses.fields(defaults):
            assert re.search(rf"^(# )?{field.name} = \S+ +# \w|^{field.name} = \S+$", lines, flags=re.MULTILINE), (
                field.name
            )
            count += 1
        assert getattr(own, section) == defaults
    assert count == 22
    for field in dataclasses.fields(CompareConfig):
        assert f"{field.name} = " in text or f"compare.{field.name}]" in text


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
        ({"train": {"schedule": "cosin"}}, "unknown train.schedule 'cosin'. Did you mean 'cosine'"),
        ({"train": {"dtype": "float16"}}, "unknown train.dtype 'float16'"),
        ({"compare": {"contestants": "hc"}}, "compare.contestants must be a list of names and tables, got 'hc'"),
        (
            {"compare": {"contestants": [{"manifold": "stiefel"}]}},
            "a name and keys of a [hyper_connection] section",
        ),
        ({"compare": {"contestants": ["plain,hc"]}}, "neither comma nor bar; got 'plain,hc'"),
        ({"compare": {"seeds": 0}}, "compare.seeds must lie between 1 and 1000, got 0"),
        ({"compare": {"lr_multipliers": [1, 1]}}, "compare.lr_multipliers must be positive numbers, each of them once"),
        ({"compare": {"lr_multipliers": []}}, "compare.lr_multipliers must be positive numbers"),
        ({"compare": {"lr_multipliers": ["4"]}}, "compare.lr_multipliers must be a list of numbers, got ['4']"),
        ({"compare": {"overrides": 3}}, "options are a table of names and values, got 3"),
    ],
)
def test_bad_config_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        LabConfig.from_dict(table)
    assert says in str(caught.value)
