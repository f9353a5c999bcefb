"""Training: it learns, it resumes bit for bit, and it says when it cannot go on."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperconn.lab import Corpus, LabConfig, Run, train
from hyperconn.lab.checkpoint import (
    CheckpointError,
    CheckpointNotWrittenError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from hyperconn.lab.run import DivergedError
from hyperconn.lab.training import CHECKPOINT, METRICS, sample
from lab_cases import start, write_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


def content(folder: Path) -> str:
    """Every number and word of a checkpoint but for its settings, to the last digit."""
    state = read_checkpoint(folder / CHECKPOINT)
    del state["config"]
    return json.dumps(state, default=torch.Tensor.tolist)


def test_it_learns(text: Path) -> None:
    run = start(text, train={"steps": 60, "batch": 8, "learning_rate": 0.01})
    before = run.evaluate()
    while run.step < 60:
        run.advance()
    assert 8.0 < before < 9.0  # 256 bytes, no idea which
    assert run.evaluate() < 4.6
    assert run.history.train[-1] < run.history.train[0] - 3
    assert run.history.valid == [(0, before), (60, run.evaluate())]


@pytest.mark.parametrize("preset", ["plain", "hc", "kromhc", "deepseek-v4.1"])
def test_resume_is_bit_exact(text: Path, tmp_path: Path, preset: str) -> None:
    """4 steps straight are 2 steps and 2 more from the checkpoint, dropout included."""
    folders = [tmp_path / name for name in ("straight", "halves", "other seed")]
    kind = {"preset": preset} if preset == "plain" else {"preset": preset, "fn_std": 0.05}
    sections = {"model": {"dropout": 0.2}, "hyper_connection": kind}
    for folder in folders:
        folder.mkdir()
    whole, half = {"steps": 4, "eval_every": 1}, {"steps": 2, "eval_every": 1}
    assert train(start(text, train=whole, **sections), folders[0])
    assert train(start(text, train=half, **sections), folders[1])
    torch.manual_seed(12345)  # a resumed process has drawn other numbers
    second = start(text, train=whole, **sections)
    load_checkpoint(second, folders[1] / CHECKPOINT)
    assert second.step == 2 and len(second.history.train) == 2
    assert train(second, folders[1])
    assert content(folders[0]) == content(folders[1]) and len(content(folders[0])) > 50_000
    saved = read_checkpoint(folders[1] / CHECKPOINT)
    assert len(saved["history"]["valid"]) == 4 and LabConfig.from_dict(saved["config"]) == second.config
    assert train(start(text, train={**whole, "seed": 1}, **sections), folders[2])
    assert content(folders[0]) != content(folders[2])  # the comparison can fail


def test_checkpoints_and_evaluations_come_when_due(text: Path, tmp_path: Path) -> None:
    run = start(text, train={"steps": 7, "eval_every": 2, "checkpoint_every": 3})
    seen: list[int] = []
    evaluated: list[int] = []

    def on_step(seconds: float) -> None:
        assert seconds > 0
        path = tmp_path / CHECKPOINT
        seen.append(read_checkpoint(path)["step"] if path.exists() else 0)

    assert train(run, tmp_path, on_step=on_step, on_evaluation=lambda bits: evaluated.append(run.step))
    assert seen == [0, 0, 0, 3, 3, 3, 6]
    assert evaluated == [2, 4, 6, 7]
    assert read_checkpoint(tmp_path / CHECKPOINT)["step"] == 7
    assert {file.name for file in tmp_path.iterdir()} == {"text.txt", CHECKPOINT, METRICS}


def test_metrics_of_every_step(text: Path, tmp_path: Path) -> None:
    run = start(text, train={"steps": 7, "eval_every": 3, "warmup": 2, "schedule": "cosine", "learning_rate": 0.1})
    train(run, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in lines if "held_out" in line] == [3, 6, 7]
    assert [line["loss"] for line in lines] == run.history.train and lines[-1]["held_out"] == run.history.valid[-1][1]
    # Before clipping: with this clip of 1 the steps were smaller.
    assert [line["gradient_norm"] for line in lines] == run.history.gradient and max(run.history.gradient) > 1
    rates = [0.05, 0.1, *(0.1 * (0.55 + 0.45 * math.cos(math.pi * k / 4)) for k in range(5))]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    assert [group["lr"] for group in run.optimizer.param_groups] == [pytest.approx(0.01)] * 2


def test_text_goes_on_with_what_was_learned(text: Path) -> None:
    run = start(text, train={"steps": 60, "batch": 8, "learning_rate": 0.01})
    before = sample(run, b"the ", 30)
    while run.step < 60:
        run.advance()
    after = sample(run, b"the ", 30)
    assert after == sample(run, b"the ", 30) and len(after) == 34 and after.startswith(b"the ")
    letters = set(text.read_bytes())
    assert set(after) <= letters and not set(before) <= letters


def test_bfloat16_is_autocast(text: Path) -> None:
    run, full = start(text, train={"dtype": "bfloat16"}), start(text)
    run.advance()
    full.advance()
    assert run.model.token.weight.dtype == torch.float32
    assert run.history.train != full.history.train and run.history.train == pytest.approx(full.history.train, rel=0.01)


def test_a_decay_depends_on_its_last_step(text: Path, tmp_path: Path) -> None:
    cosine = {"schedule": "cosine", "steps": 3}
    train(start(text, train=cosine), tmp_path)
    with pytest.raises(CheckpointError, match="train.steps is 3 in the checkpoint and 9 in the config"):
        load_checkpoint(start(text, train=cosine | {"steps": 9}), tmp_path / CHECKPOINT)


def test_the_optimizer_is_what_the_config_says(text: Path) -> None:
    run = start(text, train={"learning_rate": 0.5, "warmup": 4, "clip": 0.0, "weight_decay": 0.5})
    for expected in (0.125, 0.25, 0.375, 0.5, 0.5):
        run.advance()
        assert {group["lr"] for group in run.optimizer.param_groups} == {expected}
    decayed, spared = run.optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and spared["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(run.model.parameters()))
    for name in ("cuda:99", "tpu9000"):
        with pytest.raises(ValueError, match=f"train.device '{name}' cannot be used here"):
            start(text, train={"device": name})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"hyper_connection": {"preset": "shc"}}, ["hyper_connection.manifold is Kronecker(n=4", "SpectralSphere(n=4"]),
        ({"hyper_connection": None}, ["checkpoint has Kronecker(n=4", "config has plain residual"]),
        ({"model": {"channels": 16}}, ["model.channels is 8 in the checkpoint and 16 in the config"]),
        ({"train": {"seed": 5}}, ["train.seed is 0 in the checkpoint and 5 in the config"]),
        ({"text": "other.txt"}, ["trained on other text: ", "text.txt", "this run reads ", "other.txt"]),
    ],
)
def test_checkpoint_of_another_setup_is_refused(
    text: Path, tmp_path: Path, other: dict[str, Any], says: list[str]
) -> None:
    train(start(text), tmp_path)
    own = write_text(tmp_path / other.pop("text"), seed=1) if "text" in other else text
    run = start(own, **other)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run, tmp_path / CHECKPOINT)
    for part in (*says, str(tmp_path / CHECKPOINT), "another --out folder"):
        assert part in str(caught.value)
    assert run.step == 0 and all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "there is no checkpoint at"),
        (b"", "is not a readable checkpoint"),
        (b"not a checkpoint at all", "is not a readable checkpoint"),
        ("half of one", "is not a readable checkpoint"),
        ({"model": torch.zeros(3)}, "is not a checkpoint of 'hyperconn train'"),
        ({"format": Corpus}, "is not a readable checkpoint"),  # a class is a pickled import: code never runs
    ],
)
def test_unusable_checkpoint_is_refused(text: Path, tmp_path: Path, found: Any, says: str) -> None:
    path = tmp_path / CHECKPOINT
    if isinstance(found, dict):
        torch.save(found, path)
    elif found == "half of one":
        save_checkpoint(start(text), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif found is not None:
        path.write_bytes(found)
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(start(text), path)


@pytest.fixture
def run(text: Path, tmp_path: Path) -> Run:
    """Half-way, with a checkpoint."""
    run = start(text)
    for _ in range(3):
        run.advance()
    save_checkpoint(run, tmp_path / CHECKPOINT)
    return run


def test_full_disk_keeps_the_previous_checkpoint(run: Run, text: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write breaks off half-way with an OSError."""
    size = (tmp_path / CHECKPOINT).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(seconds: float) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))

    try:
        with pytest.raises(CheckpointNotWrittenError) as caught:
            train(run, tmp_path, on_step=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write the checkpoint of step 6" in str(caught.value)
    assert "the one of step 3 is intact, go on with --resume" in str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == {"text.txt", CHECKPOINT}

    resumed = start(text)
    load_checkpoint(resumed, tmp_path / CHECKPOINT)
    assert resumed.step == 3
    assert train(resumed, tmp_path)
    assert torch.equal(resumed.model.token.weight, run.model.token.weight)


def test_divergence_stops_before_the_weights_are_spoilt(run: Run, tmp_path: Path) -> None:
    with torch.no_grad():
        run.model.token.weight[:, 0] = torch.nan
    position = run.model.position.weight.clone()
    with pytest.raises(DivergedError, match=r"training diverged at step 4: .*lower train.learning_rate"):
        train(run, tmp_path)
    assert torch.equal(run.model.position.weight, position) and run.step == 3
    assert read_checkpoint(tmp_path / CHECKPOINT)["step"] == 3
