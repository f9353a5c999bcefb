"""The commands that train: what they write, where they stop, and how they go on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli_cases import refused, run, words, write_config
from hyperconn.cli import compare as cli_compare
from hyperconn.lab import Contestant, Corpus, LabConfig, Run
from hyperconn.lab.checkpoint import read_checkpoint
from hyperconn.lab.training import CHECKPOINT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_train_in_two_halves_is_train(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")  # as torchrun sets it
    result = run("train", config, "--out", tmp_path / "a", "--seed", "7")
    assert result.exit_code == 0, result.output
    shown = words(result)
    assert "Kronecker(n=4" in shown and "text.txt" in shown
    assert "step 3: training" in shown and "done after step 6" in shown and "bits per byte on held-out text" in shown
    assert run("train", config, "--out", tmp_path / "b", "--seed", "7", "--steps", "2").exit_code == 0
    resumed = run("train", config, "--out", tmp_path / "b", "--seed", "7", "--resume")
    assert "resuming after step 2 of 6" in resumed.stdout
    run("train", config, "--out", tmp_path / "c", "--seed", "8")
    one, two, other = (read_checkpoint(tmp_path / name / CHECKPOINT)["history"]["train"] for name in "abc")
    assert one == two != other and len(one) == 6
    # Resuming a finished run changes nothing.
    before = (tmp_path / "a" / CHECKPOINT).read_bytes()
    result = run("train", config, "--out", tmp_path / "a", "--seed", "7", "--resume")
    assert result.exit_code == 0 and "done after step 6" in result.stdout
    assert (tmp_path / "a" / CHECKPOINT).read_bytes() == before


def test_bad_training_input(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of every kind; test_config and test_lab_data have the others."""
    (tmp_path / "typo.toml").write_text("[train]\nstep = 3\n")
    (tmp_path / "file").write_text("in the way")
    out = ("--out", tmp_path / "run")
    assert "does not exist" in refused("train", tmp_path / "missing.toml", *out)
    assert "Did you mean 'train.steps'" in refused("train", tmp_path / "typo.toml", *out)
    assert "does not exist; pass a text file" in refused("train", config, "--data", tmp_path / "nowhere", *out)
    assert "too little text" in refused("train", config, "--data", tmp_path / "file", *out)
    assert "there is no checkpoint at" in refused("train", config, *out, "--resume")
    assert "File exists" in refused("train", config, "--out", tmp_path / "file")
    monkeypatch.setenv("WORLD_SIZE", "2")  # two processes would overwrite each other's checkpoint
    assert "a run is one process, got WORLD_SIZE=2" in refused("train", config, *out)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT while it trains, then the command that it printed."""
    config, folder = write_config(tmp_path, checkpoint_every=0), tmp_path / "run"
    advance = Run.advance

    def press_ctrl_c(self: Run) -> float:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Run, "advance", press_ctrl_c)
    stopped = run("train", config, "--out", folder, "--threads", "1")
    assert stopped.exit_code == 130, stopped.output
    assert "stopped after step 3;" in words(stopped) and read_checkpoint(folder / CHECKPOINT)["step"] == 3
    assert "exists; go on from it with --resume" in refused("train", config, "--out", folder)
    (again,) = (line for line in stopped.stdout.splitlines() if "--resume" in line)
    assert shlex.split(again) == ["hyperconn", "train", str(config), "--out", str(folder), "--resume", "--threads", "1"]
    result = run(*shlex.split(again)[1:], "--steps", "5")
    assert result.exit_code == 0 and "resuming after step 3 of 5" in words(result)
    assert read_checkpoint(folder / CHECKPOINT)["step"] == 5


def test_full_disk_is_reported(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train", config, "--out", tmp_path / "run", "--steps", "3")

    def full(source: str | Path, target: str | Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run("train", config, "--out", tmp_path / "run", "--resume")
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1
    assert "No space left on device; the one of step 3 is intact, go on with --resume" in said


def test_compare_writes_a_report(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.md").write_text("of an earlier run")  # the demo can be run again
    result = run("compare", config, "--presets", "plain, hc,config", "--out", out, "--steps", "2")
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} >= {"report.md", "report.json", "composite_gain.png"}
    contestants = json.loads((out / "report.json").read_text())["contestants"]
    assert {name: contestant["steps"] for name, contestant in contestants.items()} == {"plain": 2, "hc": 2, "config": 2}
    for name, kind in (("plain", "identity"), ("hc", "free"), ("config", "doubly stochastic")):
        assert re.search(rf"^ *{name} +{kind} +[\d.]+ ", result.stdout, flags=re.MULTILINE)


def test_bad_comparisons(config: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "report")
    assert "got none" in refused("compare", config, "--presets", " , ", *out)
    assert "--demo has its own config" in refused("compare", config, "--demo", *out)
    assert not (tmp_path / "report").exists()


def test_demo_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo` runs it; here only what it would run is looked at."""
    asked: list[LabConfig] = []

    def look(config: LabConfig, corpus: Corpus, names: Sequence[str] = ()) -> list[Contestant]:
        asked.append(config)
        assert not names and "Python standard library" in corpus.source
        raise ValueError("seen enough")

    monkeypatch.setattr(cli_compare, "contestants", look)
    assert refused("compare", "--demo", "--seed", "5") == "seen enough"
    assert asked[0].compare.presets == ("plain", "hc", "mhc", "mhc-lite", "kromhc", "jpmhc", "shc")
    assert asked[0].model.blocks == 12 and asked[0].train.seed == 5
