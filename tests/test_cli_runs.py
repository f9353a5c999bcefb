"""The commands that train: what they write, where they stop, and how they go on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cli_cases import refused, run, words, write_config
from hyperconn.cli import compare as cli_compare
from hyperconn.lab import Contestant, Corpus, LabConfig
from hyperconn.lab.checkpoint import read_checkpoint
from hyperconn.lab.training import CHECKPOINT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


# --------------------------------------------------------------------------------------------------------- train


def test_train_in_two_halves_is_train(config: Path, tmp_path: Path) -> None:
    result = run("train", config, "--out", tmp_path / "a", "--seed", "7")
    assert result.exit_code == 0, result.output
    shown = words(result)
    assert "Kronecker(n=4" in shown and "text.txt" in shown
    assert "step 3: training" in shown and "done after step 6" in shown and "bits per byte on held-out text" in shown
    assert run("train", config, "--out", tmp_path / "b", "--seed", "7", "--steps", "2").exit_code == 0
    resumed = run("train", config, "--out", tmp_path / "b", "--seed", "7", "--resume")
    assert "resuming after step 2 of 6" in resumed.stdout
    run("train", config, "--out", tmp_path / "c", "--seed", "8")
    one, two, other = (read_checkpoint(tmp_path / name / CHECKPOINT) for name in "abc")
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    assert one["history"]["train"] == two["history"]["train"] and len(one["history"]["train"]) == 6
    assert one["history"]["train"] != other["history"]["train"]
    # Resuming a finished run changes nothing.
    before = (tmp_path / "a" / CHECKPOINT).read_bytes()
    result = run("train", config, "--out", tmp_path / "a", "--seed", "7", "--resume")
    assert result.exit_code == 0 and "done after step 6" in result.stdout
    assert (tmp_path / "a" / CHECKPOINT).read_bytes() == before


def test_bad_training_input(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "typo.toml").write_text("[train]\nstep = 3\n")
    (tmp_path / "broken.toml").write_text("[train\n")
    (tmp_path / "broken.yaml").write_text("train: {\n")
    (tmp_path / "config.ini").write_text("[train]\n")
    (tmp_path / "file").write_text("in the way")
    out = ("--out", tmp_path / "run")
    assert "does not exist" in refused("train", tmp_path / "missing.toml", *out)
    assert "Did you mean 'train.steps'" in refused("train", tmp_path / "typo.toml", *out)
    assert "broken.toml" in refused("train", tmp_path / "broken.toml", *out)
    assert "broken.yaml" in refused("train", tmp_path / "broken.yaml", *out)
    assert "got '.ini'" in refused("train", tmp_path / "config.ini", *out)
    assert "does not exist; pass a text file" in refused("train", config, "--data", tmp_path / "nowhere", *out)
    assert "is empty" in refused("train", config, "--data", tmp_path / "empty.txt", *out)
    assert "holds no text files" in refused("train", config, "--data", tmp_path / "empty", *out)
    assert "too little text" in refused("train", config, "--data", tmp_path / "short.txt", *out)
    assert "there is no checkpoint at" in refused("train", config, *out, "--resume")
    assert "File exists" in refused("train", config, "--out", tmp_path / "file")
    assert not (tmp_path / "run").exists()


def test_checkpoints_are_not_overwritten_or_taken_for_others(config: Path, tmp_path: Path) -> None:
    run("train", config, "--out", tmp_path / "run")
    assert "exists; go on from it with --resume" in refused("train", config, "--out", tmp_path / "run")
    other = tmp_path / "other.toml"
    data = json.dumps(str(tmp_path / "text.txt"))
    other.write_text(f'data.path = {data}\nhyper_connection.preset = "shc"\nmodel = {{channels = 8, heads = 2}}\n')
    message = refused("train", other, "--out", tmp_path / "run", "--resume")
    assert "Kronecker(n=4" in message and "SpectralSphere(n=4" in message


@pytest.mark.parametrize("world", ["1", "2"])
def test_torchrun(world: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is what torchrun adds; two processes would overwrite each other's checkpoint."""
    monkeypatch.setenv("WORLD_SIZE", world)
    arguments = ("train", config, "--out", tmp_path / "run")
    if world == "1":
        assert run(*arguments).exit_code == 0
    else:
        assert "a run is one process, got WORLD_SIZE=2" in refused(*arguments)


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    """In a process of its own: SIGINT while it trains, then the command that it printed."""
    config = write_config(tmp_path, steps=100_000, checkpoint_every=0)
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "hyperconn", "train", str(config), "--out", str(folder), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3:"):
            break
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (printed, errors)
    assert "Traceback" not in errors
    stopped = re.search(r"stopped after step (\d+); .* is complete", printed)
    assert stopped is not None
    step = int(stopped[1])
    assert step >= 3 and read_checkpoint(folder / CHECKPOINT)["step"] == step
    (again,) = (line for line in printed.splitlines() if "--resume" in line)
    assert shlex.split(again) == ["hyperconn", "train", str(config), "--out", str(folder), "--resume", "--threads", "1"]
    result = run(*shlex.split(again)[1:], "--steps", str(step + 2))
    assert result.exit_code == 0 and f"resuming after step {step} of {step + 2}" in words(result)
    assert read_checkpoint(folder / CHECKPOINT)["step"] == step + 2


def test_full_disk_is_reported(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train", config, "--out", tmp_path / "run", "--steps", "3")

    def full(source: str | Path, target: str | Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run("train", config, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 1
    assert "No space left on device; the one of step 3 is intact, go on with --resume" in " ".join(
        result.stderr.split()
    )
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["step"] == 3


# ------------------------------------------------------------------------------------------------------- compare


def test_compare_writes_a_report(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.md").write_text("of an earlier run")  # the demo can be run again
    result = run("compare", config, "--presets", "plain, hc,kromhc,config", "--out", out, "--steps", "3")
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} >= {"report.md", "report.json", "composite_gain.png"}
    saved = json.loads((out / "report.json").read_text())
    assert list(saved["contestants"]) == ["plain", "hc", "kromhc", "config"]
    assert [contestant["steps"] for contestant in saved["contestants"].values()] == [3] * 4
    for name, kind in (("plain", "identity"), ("hc", "free"), ("kromhc", "doubly stochastic")):
        assert re.search(rf"^ *{name} +{kind} +[\d.]+ ", result.stdout, flags=re.MULTILINE)


def test_bad_comparisons(config: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "report")
    assert "unknown preset 'kromch'" in refused("compare", config, "--presets", "plain,kromch", *out)
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
