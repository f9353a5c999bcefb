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

from fuzz_cases import DEEP, KEYS, attempt, data, keys, objects, text
from hyperconn import HyperConnectionConfig
from hyperconn.files import MAX_BYTES, read_table
from hyperconn.lab.settings import LabConfig
from hyperconn.manifolds.core.plain_data import Options

FIELDS = [field.name for field in dataclasses.fields(HyperConnectionConfig)]
SECTIONS = [field.name for field in dataclasses.fields(LabConfig)]
SECONDS = 5.0

# Tables that get past the names: known keys with any values, and the options of a manifold.
tables = st.one_of(
    objects,
    st.dictionaries(st.one_of(st.sampled_from([*FIELDS, "preset", "plugins"]), keys), data, max_size=4),
    st.fixed_dictionaries({"manifold": text, "manifold_options": st.dictionaries(keys, data, max_size=3)}),
    st.builds(lambda field, value: {field: value}, st.sampled_from(FIELDS), objects),
)
sections = st.dictionaries(st.sampled_from([*SECTIONS, *KEYS]), data, max_size=3)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(tables, sections)
def test_configs_from_anything(table: Any, lab_table: Any) -> None:
    config = attempt(HyperConnectionConfig.from_dict, table)
    if config is not None:
        assert HyperConnectionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        hash(config)
        repr(config)
    lab = attempt(LabConfig.from_dict, lab_table)
    if lab is not None:
        assert LabConfig.from_dict(lab.to_dict()).to_dict() == lab.to_dict()


@pytest.mark.parametrize("value", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("key", ["manifold_options", "plugins", "streams", "manifold", "surprise"])
def test_deep_and_large_tables_are_refused_at_once(key: str, value: Any) -> None:
    table = {key: value}
    for load in (
        HyperConnectionConfig.from_dict,
        lambda table: LabConfig.from_dict({"hyper_connection": table}),
        lambda table: LabConfig.from_dict({"compare": {"overrides": table}}),
        Options,
    ):
        started = time.monotonic()
        assert attempt(load, table) is None
        assert time.monotonic() - started < SECONDS


# ------------------------------------------------------------------------------------------------- files

PIECES = (
    "a", "streams", "hyper_connection", "= ", ": ", "- ", "? ", "[", "]", "{", "}", '"', "'", '"""', "  ", "#", ",",
    ".", "&x ", "*x", "<<: ", "~", "=", "true", "nan", ".inf", "1", ".5", "1e999", "0x_", "0b", "1:59", "1979-05-27",
    "25:99", "!!python/object/apply:os.system", "!!int ", "!!float ''", "!!bool ", "!!binary ", "!!timestamp x", "!",
    "|", ">", "\n", "\t", "---\n", "...\n", "%YAML 9.9\n", "\\u0000", "\\ud800", "\ufeff", "\0", "\u2028", "9" * 5000,
)  # fmt: skip
fragments = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
contents = st.one_of(fragments.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".toml", ".yaml", ".yml", ".json"]), contents)
@example(".yaml", b"a: !!bool x")
@example(".yaml", b"a: 1" + b":59" * 300 + b".5")
@example(".json", b'{"a": NaN}')
def test_files_hold_a_table_or_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"config{suffix}"
    path.write_bytes(content)
    assert isinstance(attempt(read_table, path), (dict, NoneType))
    for load in (HyperConnectionConfig.from_file, LabConfig.from_file):
        attempt(load, path)


REFUSED = {
    "deep.json": ("[" * 19_000, "nested too deep"),
    "deep.toml": ("a = " + "[" * 19_000, "nested too deep"),
    "dotted.toml": ("a." * 9_000 + "a = 1", "nested more than"),
    "deep.yaml": ("[" * 19_000, "nested too deep"),
    "blocks.yaml": ("- " * 9_000, "nested too deep"),
    "base60.yaml": ("a: 1" + ":59" * 6_000 + ".5", "too large"),
    "laughs.yaml": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases are not taken, *a: write the value out"),
    "merges.yaml": ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "aliases are not taken"),
    "code.yaml": ("!!python/object/apply:os.system [touch owned]", "tags are not taken"),
    "list.yaml": ("[1]", "expected a table of names and values, got list"),
    "large.toml": ("a" * (MAX_BYTES + 1), f"a config file has at most {MAX_BYTES} bytes, this one has {MAX_BYTES + 1}"),
    "config.ini": ("[train]", "a config file ends in .toml, .yaml, .yml, .json, got '.ini'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused_at_once(name: str, tmp_path: Path) -> None:
    content, says = REFUSED[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"{name}: .{{10,500}}") as caught:
        read_table(tmp_path / name)
    assert says in str(caught.value)
    assert time.monotonic() - started < SECONDS
