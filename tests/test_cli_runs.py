"""The commands that train: what they write, where they stop, and how they go on."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli_cases import refused, run, words, write_config
from hyperconn.cli import compare as cli_compare
from hyperconn.cli import train as cli_train
from hyperconn.lab import Contestant, LabConfig, Run, contestants
from hyperconn.lab.checkpoint import read_checkpoint
from hyperconn.lab.records import read_records
from hyperconn.lab.training import CHECKPOINT


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_train, "SAMPLED", 5)


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


def test_train_leaves_metrics_a_curve_and_a_sample(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run("train", config, "--out", out)
    assert result.exit_code == 0 and "metrics.jsonl, curve.png and sample.txt" in result.stdout
    assert {file.name for file in out.iterdir()} == {CHECKPOINT, "metrics.jsonl", "curve.png", "sample.txt"}
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "text.txt").read_bytes()
    assert (out / "sample.txt").read_bytes()[:16] in text and len((out / "sample.txt").read_bytes()) == 16 + 5


NAMES = ("--contestants", "plain, hc,config")


def test_compare_reports_and_goes_on(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in its second seed, taken up by the same command, extended, and merged with what ran elsewhere."""
    out, elsewhere = tmp_path / "report", tmp_path / "elsewhere"
    compared = ("compare", config, *NAMES, "--out", out, "--steps", "2", "--seeds", "2")
    advance, taken = Run.advance, 0

    def press_ctrl_c(self: Run) -> float:
        nonlocal taken
        taken += 1
        if taken == 3 * 2 + 2:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", press_ctrl_c)
        patch.setattr(cli_compare, "write_folder", lambda records, folder: None)  # pictures take their time
        stopped = run(*compared)
    assert stopped.exit_code == 130 and "stopping after this step" in stopped.stdout
    assert "stopped; 3 runs are left" in words(stopped) and "the same command goes on" in words(stopped)
    assert "train.steps is 2 in" in refused(*compared[:5], out, "--steps", "3")
    result = run(*compared)
    assert result.exit_code == 0, result.output
    assert "holds 3 finished runs of this comparison; 3 runs are left" in words(result)
    assert "1 of 1: seed 1, going on after step 1" in words(result)
    shown = result.stdout[result.stdout.index("contestants\n") :]
    for name, kind, variant in (
        ("plain", "identity", "plain"),
        ("hc", "free", "preset hc"),
        ("config", "doubly stochastic", r"preset kromhc, fn_std = 0\.05"),
    ):
        assert re.search(rf"^{name} +{kind} +{variant} +[\d,]+ +[\d.]+ *$", shown, flags=re.MULTILINE)
    assert max(map(len, shown[: shown.index("report: ")].splitlines())) <= 80
    assert {file.name for file in out.iterdir()} >= {"runs.jsonl", "report.md", "composite_gain.png"}

    monkeypatch.setattr(cli_compare, "write_folder", lambda records, folder: None)
    again = run(*compared[:-1], "3", "--out", elsewhere, "--seed", "2", "--lr-multipliers", "1", "4.5")
    assert again.exit_code == 0, again.output
    assert len(read_records(elsewhere)) == 3 * 3 * 2
    monkeypatch.undo()
    merged = run("report", out, elsewhere, "--out", tmp_path / "both")
    assert merged.exit_code == 0 and "seeds 0, 1, 2, 3, 4" in words(merged)
    assert re.search(r"^hc +5 +\d", merged.stdout, flags=re.MULTILINE)
    assert "loss at learning rate 0.0135 (×4.5), 3 seeds" in merged.stdout
    assert len(read_records(tmp_path / "both")) == 6 + 18 and (tmp_path / "both" / "learning_rates.png").exists()
    assert "both exists" in refused("report", out, "--out", tmp_path / "both")
    assert "holds no results of 'hyperconn compare'" in refused("report", out, tmp_path)


def test_bad_comparisons(config: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "report")
    assert "got none" in refused("compare", config, "--contestants", " , ", *out)
    assert "--demo has its own config" in refused("compare", config, "--demo", *out)
    assert "is a list of numbers, for example 1 4 10; got 'x'" in refused(
        "compare", config, "--lr-multipliers", "x", *out
    )
    assert not (tmp_path / "report").exists()


def test_demo_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo` runs it; here only what it would run is looked at."""
    asked: list[LabConfig] = []

    def look(config: LabConfig, names: Sequence[str] = ()) -> tuple[Contestant, ...]:
        asked.append(config)
        assert not names and config.data.path is None
        raise ValueError("seen enough")

    monkeypatch.setattr(cli_compare, "contestants", look)
    assert refused("compare", "--demo", "--seed", "5") == "seen enough"
    assert asked[0].compare.contestants[0]["name"] == "plain" and asked[0].train.seed == 5


def test_init_writes_configs_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote start.toml" in run("init").stdout
    assert "start.toml exists; pass another name" in refused("init")
    assert "Did you mean 'orthogonal'" in refused("init", "--example", "ortogonal")
    assert "is written in .yaml, got the file name 'a.toml'" in refused("init", "a.toml", "--example", "orthogonal")
    assert run("init", "a.yaml", "--example", "orthogonal").exit_code == 0
    assert {file.name for file in tmp_path.iterdir()} == {"start.toml", "a.yaml"}
    taken = [contestants(LabConfig.from_file(tmp_path / name)) for name in ("start.toml", "a.yaml")]
    assert [[c.name for c in field] for field in taken] == [
        ["plain", "config", "rotations"], ["plain", "config", "jpmhc", "kromhc"],
    ]  # fmt: skip
