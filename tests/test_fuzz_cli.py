"""Whatever the command line is given: it ends with 0, 1 or 2, without a traceback, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_cases import run
from fuzz_cases import HOSTILE, NAMES

COMMANDS = ("list", "show", "verify", "train", "compare", "doctor", "", "--version", "--help")
OPTIONS = ("--n", "--seed", "--steps", "--threads", "--out", "--data", "--resume", "--presets", "--examples", "--help")
VALUES = ("0", "-1", "3", "2.5", "10" * 20, "nan", "", "x", "plain,nothing", "../nowhere", "/dev/zero", "nowhere.toml")

# No colon: `verify module:Class` imports what it is told to. `train` and `compare` get no good config.
words = st.one_of(st.sampled_from((*HOSTILE, *OPTIONS, *VALUES)), st.text(max_size=12)).filter(
    lambda word: ":" not in word and word not in ("verify", "train", "compare", "--demo")
)
# A size is printed as a matrix: none between the small ones and those that are refused.
shows = st.tuples(st.just("show"), st.sampled_from(NAMES), st.just("--n"), st.sampled_from(("1", "3", "8", "1000000")))
arguments = st.tuples(st.sampled_from(COMMANDS), st.lists(words, max_size=4)).map(lambda pair: (pair[0], *pair[1]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.one_of(arguments, shows))
def test_any_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_words: tuple[str, ...]) -> None:
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
