"""Whatever a config holds or the command line is given: a result, or an error that says what is wrong, soon."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cli_cases import run
from hyperconn import HyperConnectionConfig, manifolds
from hyperconn.files import MAX_BYTES, read_table
from hyperconn.lab.settings import LabConfig
from hyperconn.manifolds.core.plain_data import Options

NAMES = (*manifolds.available(), "mhc", "KROMHC", "mhc_lite", *HyperConnectionConfig.presets())
HOSTILE = (
    "../../etc/passwd", "/dev/zero", "os.system", "os:system", "__class__", "__init__", "__import__('os')",
    "{0.__class__}", "%s%n", "ﬁ", "İ", "naïve", "𝐛irkhoff", "n", "name", "self", "cls", "\0", "\ud800", "a" * 5000,
    "", " ", "\n",
)  # fmt: skip
KEYS = (
    "n", "streams", "manifold", "manifold_options", "factors", "preset", "plugins", "iterations", "eps", "p", "finish",
    "method", "steps", "alpha", "gamma", "isometric", "backend", "collapse", "norm_eps",
)  # fmt: skip

text = st.one_of(st.sampled_from(NAMES), st.sampled_from(HOSTILE), st.text(max_size=20))
numbers = st.one_of(
    st.integers(-4, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, -(10**4000)]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
keys = st.one_of(st.sampled_from(KEYS), text)
# Plain data as a file gives it.
data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
# What only a Python caller can pass.
objects = st.one_of(
    data,
    st.sampled_from([b"birkhoff", object(), int, len, 3j, frozenset({1}), range(3), range(10**9), ..., math]),
    st.builds(set, st.lists(st.integers(), max_size=3)),
    st.builds(bytearray, st.binary(max_size=3)),
)


def nested(kind: type) -> Any:
    """Tables or lists inside each other."""
    value: Any = 1
    for _ in range(10_000):
        value = {"a": value} if kind is dict else kind([value])
    return value


OWN_LIST: list[Any] = []
OWN_LIST.append(OWN_LIST)
OWN_TABLE: dict[str, Any] = {}
OWN_TABLE["manifold_options"] = OWN_TABLE

DEEP = {
    "deep lists": nested(list),
    "deep tuples": nested(tuple),
    "deep tables": nested(dict),
    "a list in itself": OWN_LIST,
    "a table in itself": OWN_TABLE,
    "a long list": [0] * 1_000_000,
    "a long text": "x" * 10_000_000,
    "a large table": {f"key{k}": k for k in range(200_000)},
    "a huge int": 10**100_000,
}


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the call returns; None if it refuses its input in a message that can be read. Anything else is a failure."""
    try:
        return call(*arguments, **options)
    except (ValueError, TypeError) as error:
        if not 10 < len(str(error)) < 5_000:
            raise AssertionError(f"no message to read: {len(str(error))} characters") from error
        return None


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


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
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


PIECES = (
    "a", "streams", "hyper_connection", "= ", ": ", "- ", "? ", "[", "]", "{", "}", '"', "'", '"""', "  ", "#", ",",
    ".", "&x ", "*x", "<<: ", "~", "=", "true", "nan", ".inf", "1", ".5", "1e999", "0x_", "0b", "1:59", "1979-05-27",
    "25:99", "!!python/object/apply:os.system", "!!int ", "!!float ''", "!!bool ", "!!binary ", "!!timestamp x", "!",
    "|", ">", "\n", "\t", "---\n", "...\n", "%YAML 9.9\n", "\\u0000", "\\ud800", "\ufeff", "\0", "\u2028", "9" * 5000,
)  # fmt: skip
fragments = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
contents = st.one_of(fragments.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
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
    "broken.toml": ("streams = = 4", "Invalid value"),
    "broken.yaml": ("streams: [4", "expected ',' or ']'"),
    "broken.json": ("{", "Expecting property name"),
    "empty.yaml": ("", "expected a table of names and values, got NoneType"),
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


COMMANDS = ("list", "show", "verify", "train", "compare", "report", "doctor", "", "--version", "--help")
OPTIONS = (
    "--n",
    "--seed",
    "--steps",
    "--threads",
    "--out",
    "--data",
    "--resume",
    "--contestants",
    "--examples",
    "--help",
)
VALUES = ("0", "-1", "3", "2.5", "10" * 20, "nan", "", "x", "plain,nothing", "../nowhere", "/dev/zero", "nowhere.toml")

# No colon: `verify module:Class` imports what it is told to. `train` and `compare` get no good config.
words = st.one_of(st.sampled_from((*HOSTILE, *OPTIONS, *VALUES)), st.text(max_size=12)).filter(
    lambda word: ":" not in word and word not in ("verify", "train", "compare", "--demo")
)
# A size is printed as a matrix: none between the small ones and those that are refused.
shows = st.tuples(st.just("show"), st.sampled_from(NAMES), st.just("--n"), st.sampled_from(("1", "3", "8", "1000000")))
arguments = st.tuples(st.sampled_from(COMMANDS), st.lists(words, max_size=4)).map(lambda pair: (pair[0], *pair[1]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.one_of(arguments, shows))
def test_any_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_words: tuple[str, ...]) -> None:
    """It ends with 0, 1 or 2, without a traceback, and leaves nothing behind."""
    if given_words == ("compare",):
        return  # by itself it is a comparison of minutes
    monkeypatch.chdir(tmp_path)
    result = run(*given_words)
    assert result.exit_code in (0, 1, 2), (given_words, result.exit_code, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), (given_words, result.exception)
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []  # every command here is refused, or only prints


@pytest.mark.parametrize("value", ["1" + "0" * 30, "-1", str(2**64)])
@pytest.mark.parametrize("option", ["--seed", "--threads", "--steps"])
@pytest.mark.parametrize(
    "command", ["show stiefel", "verify identity", "bench identity", "train config.toml", "compare config.toml"]
)
def test_numbers_that_do_not_fit(
    command: str, option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("[data]\npath = 'nowhere'\n", encoding="utf-8")
    result = run(*command.split(), option, value)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
