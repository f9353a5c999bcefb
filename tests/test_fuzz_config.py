"""Whatever a config holds: a config, or an error that says what is wrong, soon."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fuzz_cases import DEEP, KEYS, attempt, data, keys, nested, objects, product_of_products, text
from hyperconn import HyperConnectionConfig
from hyperconn.files import MAX_BYTES, read_table
from hyperconn.lab.config import LabConfig
from hyperconn.manifolds.core.plain_data import MAX_DEPTH, MAX_SIZE, Options

FIELDS = [field.name for field in dataclasses.fields(HyperConnectionConfig)]
thorough = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
SECONDS = 5.0

# Tables that get past the names: known keys with any values, and the options of a manifold.
tables = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from([*FIELDS, "preset", "plugins"]), keys), data, max_size=4),
    st.fixed_dictionaries({"manifold": text, "manifold_options": st.dictionaries(keys, data, max_size=3)}),
    st.builds(lambda field, value: {field: value}, st.sampled_from(FIELDS), objects),
)


def refused_or_round_trips(table: Any) -> None:
    config = attempt(HyperConnectionConfig.from_dict, table)
    if config is not None:
        assert HyperConnectionConfig.from_dict(config.to_dict()) == config
        json.dumps(config.to_dict())
        hash(config)
        repr(config)


@thorough
@given(tables)
def test_configs_from_tables(table: Any) -> None:
    refused_or_round_trips(table)


@settings(thorough, max_examples=100)
@given(objects)
def test_configs_from_anything(value: Any) -> None:
    refused_or_round_trips(value)


@settings(thorough, max_examples=100)
@given(st.dictionaries(st.sampled_from([*(f.name for f in dataclasses.fields(LabConfig)), *KEYS]), data, max_size=3))
def test_lab_configs(table: Any) -> None:
    config = attempt(LabConfig.from_dict, table)
    if config is not None:
        assert LabConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("value", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize(
    "key", ["manifold_options", "plugins", "factors", "streams", "manifold", "backend", "surprise"]
)
def test_deep_and_large_tables_are_refused_at_once(key: str, value: Any) -> None:
    table = {"manifold": "kronecker", "manifold_options": {"factors": value}} if key == "factors" else {key: value}
    for load in (
        HyperConnectionConfig.from_dict,
        LabConfig.from_dict,
        lambda table: LabConfig.from_dict({"hyper_connection": table}),
        lambda table: LabConfig.from_dict({"compare": {"overrides": table}}),
        lambda table: HyperConnectionConfig(**table),
        Options,
    ):
        started = time.monotonic()
        assert attempt(load, table) is None
        assert time.monotonic() - started < SECONDS


def test_what_a_config_may_hold() -> None:
    Options(nested(MAX_DEPTH, dict))
    Options({"values": list(range(MAX_SIZE // 3))})
    with pytest.raises(ValueError, match=f"^a table of options is nested more than {MAX_DEPTH} tables"):
        Options(nested(MAX_DEPTH + 1, dict))
    with pytest.raises(ValueError, match=f"^a table of options has more than {MAX_SIZE} values"):
        Options({"values": list(range(MAX_SIZE))})
    with pytest.raises(ValueError, match=r"holds an int of 129 bits"):
        Options({"value": 2**128})
    assert HyperConnectionConfig(2, "kronecker", {"factors": product_of_products(10)}).make_manifold().n == 2


# ------------------------------------------------------------------------------------------------- files

PIECES = (
    "a", "streams", "hyper_connection", "= ", ": ", "- ", "? ", "[", "]", "{", "}", '"', "'", '"""', "  ", "#", ",",
    ".", "&x ", "*x", "<<: ", "~", "=", "true", "nan", ".inf", "1", ".5", "1e999", "0x_", "0b", "1:59", "1979-05-27",
    "25:99", "!!python/object/apply:os.system", "!!int ", "!!float ''", "!!bool ", "!!binary ", "!!timestamp x", "!",
    "|", ">", "\n", "\t", "---\n", "...\n", "%YAML 9.9\n", "\\u0000", "\\ud800", "\ufeff", "\0", "\u2028", "9" * 5000,
)  # fmt: skip
fragments = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
contents = st.one_of(fragments.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60))


@settings(
    thorough,
    max_examples=400,
    suppress_health_check=[*thorough.suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from([".toml", ".yaml", ".yml", ".json"]), contents)
@example(".yaml", b"a: !!int ''")
@example(".yaml", b"a: !!bool x")
@example(".yaml", b"a: !!timestamp x")
@example(".yaml", b"a: 1" + b":59" * 300 + b".5")
@example(".yaml", b"&a [*a]")
@example(".yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]")
@example(".yaml", b"a: &a {x: 1}\nb: {<<: [*a, *a]}")
@example(".json", b'{"a": NaN}')
def test_files_hold_a_table_or_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"config{suffix}"
    path.write_bytes(content)
    assert isinstance(attempt(read_table, path), (dict, NoneType))
    for load in (HyperConnectionConfig.from_file, LabConfig.from_file):
        attempt(load, path)


SLOW = {
    "deep.json": "[" * 900_000,
    "tables.json": '{"a":' * 180_000,
    "deep.toml": "a = " + "[" * 900_000,
    "inline.toml": "a = " + "{a=" * 300_000,
    "dotted.toml": "a." * 450_000 + "a = 1",
    "header.toml": "[" + "a." * 450_000 + "a]",
    "quoted.toml": '"a".' * 240_000 + "a = 1",
    "word.toml": "f" * 900_000,
    "deep.yaml": "[" * 900_000,
    "blocks.yaml": "- " * 450_000,
    "keys.yaml": "? " * 450_000,
    "base60.yaml": "a: 1" + ":59" * 300_000,
    "base60float.yaml": "a: 1" + ":59" * 300_000 + ".5",
    "laughs.yaml": "a0: &a0 [x, x, x, x]\n" + "".join(f"a{k}: &a{k} [{f'*a{k - 1}, ' * 9}]\n" for k in range(1, 12)),
    "merges.yaml": "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{f'*a{k - 1}, ' * 9}]}}\n" for k in range(1, 12)),
    "many.yaml": "a: [" + "1, " * 300_000 + "1]",
}


@pytest.mark.parametrize("name", SLOW)
def test_files_that_would_keep_a_parser_busy(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(SLOW[name], encoding="utf-8")
    assert path.stat().st_size <= MAX_BYTES
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"{name}: .{{10,500}}$"):
        read_table(path)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
def test_a_large_file_is_refused_before_it_is_parsed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"large{suffix}"
    path.write_bytes(b"\xff" * 10_000_000)  # no parser would get past the first byte
    with pytest.raises(
        ValueError, match=rf"large{suffix}: a config file has at most 1000000 bytes, this one has 10000000"
    ):
        HyperConnectionConfig.from_file(path)


@pytest.mark.parametrize(
    "name", ["\0.toml", "a" * 5000 + ".toml", "../../nowhere.yaml", "\ud800.json", "https://x.org/a.toml"]
)
def test_paths_to_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        read_table(tmp_path / name)
