"""The comparison: equal conditions, and results that survive whatever ends the process."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest

from hyperconn import HyperConnectionConfig
from hyperconn.lab import Comparison, Run, contestants
from hyperconn.lab import contest as lab_contest
from hyperconn.lab.contestants import DEFAULT_CONTESTANTS, Contestant, described
from hyperconn.lab.findings import headline, markdown, tables
from hyperconn.lab.plots import draw_plots
from hyperconn.lab.records import RECORDS, DifferentSettingError, Record, read_records
from hyperconn.lab.run import DivergedError
from lab_cases import COMPARED, prepare, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two seeds at two learning rates, uninterrupted."""
    comparison = prepare(tmp_path_factory.mktemp("compare") / "a", compare=COMPARED | {"lr_multipliers": [1, 4]})
    heats: list[tuple[int, float, int]] = []
    assert comparison.train(on_heat=lambda *heat: heats.append(heat))
    assert heats == [(0, 1.0, 0), (0, 4.0, 0), (1, 1.0, 0), (1, 4.0, 0)]
    return comparison


def timeless(record: Record) -> Record:
    return dataclasses.replace(record, speed=None, step_seconds=None)


def test_training_side_by_side_equals_training_alone(finished: Comparison) -> None:
    """Neighbours leave no trace: no shared generator, no shared weight."""
    assert [r.key for r in finished.records[:4]] == [
        ("plain", 0, 1.0), ("hc", 0, 1.0), ("turned", 0, 1.0), ("plain", 0, 4.0),
    ]  # fmt: skip
    assert len(finished.records) == 12
    kinds = {c.name: c.connection for c in finished.field}
    assert kinds["hc"] == HyperConnectionConfig.preset("hc", fn_std=0.1) and kinds["plain"] is None
    assert kinds["turned"] == HyperConnectionConfig(streams=2, manifold="stiefel")
    for record in finished.records[4:7]:  # one of each kind, of both rates
        rate = finished.config.train.learning_rate * record.multiplier
        train = dataclasses.replace(finished.config.train, seed=record.seed, learning_rate=rate)
        own = dataclasses.replace(finished.config, train=train, hyper_connection=kinds[record.contestant])
        alone = Run(own, finished.corpus)
        for _ in range(6):
            alone.advance()
        assert alone.history.train == record.history["train"] and len(alone.history.train) == 6
        assert alone.history.gradient == record.history["gradient"]
        assert alone.evaluate() == record.bits_per_byte
        assert [step for step, _ in record.history["valid"]] == [3, 6]
        assert record.parameters_added == alone.model.num_connection_parameters()


def test_contestants_of_every_kind(tmp_path: Path) -> None:
    own = {"manifold": "stiefel", "streams": 2}
    config = tiny(hyper_connection=own, compare=COMPARED)
    field = contestants(config, ("plain", "config", "shc", "kronecker", "turned"))
    assert [c.name for c in field] == ["plain", "config", "shc", "kronecker", "turned"]
    assert field[1].connection == field[4].connection == HyperConnectionConfig(streams=2, manifold="stiefel")
    assert field[3].connection == HyperConnectionConfig(manifold="kronecker", fn_std=0.1)
    assert [described(c) for c in field] == [
        ("plain", {}), ("defaults", {}), ("preset shc", {"fn_std": 0.1}),
        ("defaults", {"fn_std": 0.1}), ("defaults", {}),
    ]  # fmt: skip
    near = Contestant("mine", HyperConnectionConfig.preset("kromhc", streams=2, fn_std=0.3))
    assert described(near) == ("preset kromhc", {"streams": 2, "fn_std": 0.3})
    defaults = contestants(tiny(hyper_connection=own, compare={}))
    assert [c.name for c in defaults] == [*DEFAULT_CONTESTANTS, "config"]


@pytest.mark.parametrize(
    ("names", "table", "says"),
    [
        (("plain", "kromch"), {}, "unknown contestant 'kromch'. Did you mean 'kromhc'"),
        (("hc", "hc"), {}, "a contestant takes part once, got hc twice"),
        (("plain", "config"), {}, "this config has none"),
        (("hc",), {"overrides": {"fnstd": 0.1}}, "Did you mean 'fn_std'"),
        ((), {"contestants": [{"name": "a", "manifold": "stiefle"}]}, "Did you mean 'stiefel'"),
        ((), {"contestants": [{"name": "plain", "fn_std": 1.0}]}, "takes no keys, got fn_std"),
    ],
)
def test_bad_contestants_are_refused(tmp_path: Path, names: tuple[str, ...], table: Any, says: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        prepare(tmp_path / "a", names, compare=table)
    assert says in str(caught.value)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, steps: int, how: Any) -> None:
    """Let ``how`` happen before the step of that number, counted over all runs of the process."""
    advance, taken = Run.advance, 0

    def counted(self: Run) -> float:
        nonlocal taken
        taken += 1
        if taken == steps:
            how()
        return advance(self)

    monkeypatch.setattr(Run, "advance", counted)


class Killed(BaseException):
    """Ends the process without a word to anybody, as far as the code can tell."""


def kill() -> None:
    raise Killed


def test_resumed_equals_uninterrupted(finished: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in one heat, a kill in the next, and one between two results: bit for bit the same in the end."""
    folder = finished.folder.parent / "b"
    asked = finished.config.to_dict()["compare"]
    before = signal.getsignal(signal.SIGINT)
    answered: list[bool] = []
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3 * 2 + 1, lambda: signal.raise_signal(signal.SIGINT))
        assert not prepare(folder, compare=asked).train(on_interrupt=lambda: answered.append(True))
    assert answered == [True] and signal.getsignal(signal.SIGINT) is before
    assert read_records(folder) == [] and {file.name for file in folder.iterdir()} == {"unfinished_0_x1.pt"}

    begun: list[int] = []
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3 * 3 + 3 * 4 + 2, kill)  # in step 5 of the second heat, saved after step 3
        with pytest.raises(Killed):
            prepare(folder, compare=asked).train(on_heat=lambda seed, factor, step: begun.append(step))
    assert begun == [3, 0] and len(read_records(folder)) == 3
    (folder / ".unfinished_0_x4.pt.1.tmp").write_bytes(b"half a checkpoint")

    begun.clear()
    last = prepare(folder, compare=asked)
    assert last.train(on_heat=lambda seed, factor, step: begun.append(step))
    assert begun == [3, 0, 0]
    assert [timeless(r) for r in read_records(folder)] == [timeless(r) for r in finished.records]
    assert {file.name for file in folder.iterdir()} == {RECORDS} and last.heats() == []
    other = prepare(folder, compare=asked | {"seeds": 3})
    assert [(seed, factor) for seed, factor, _ in other.heats()] == [(2, 1.0), (2, 4.0)]


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    comparison = prepare(tmp_path / "a")
    with lab_contest.only_process(comparison.folder), pytest.raises(BlockingIOError, match="another process"):
        comparison.train()
    assert list(comparison.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "sections", "says"),
    [
        ((), {"train": {"steps": 7}}, "train.steps is 6 in {} and 7 in this comparison"),
        ((), {"train": {"learning_rate": 0.5}}, "train.learning_rate is 0.003 in {} and 0.5 in"),
        ((), {"model": {"channels": 16}}, "model.channels is 8 in {} and 16 in"),
        (
            ("hc",),
            {"compare": {"overrides": {"fn_std": 0.2}}},
            "contestant 'hc' differs: fn_std is 0.1 in {} and 0.2 in",
        ),
    ],
)
def test_folder_of_another_comparison_is_refused(
    finished: Comparison, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], sections: Any, says: str
) -> None:
    """Finished or not. What merely adds to it is welcome."""
    for folder in (finished.folder, finished.folder.parent / "begun"):
        if not folder.exists():
            with monkeypatch.context() as patch:
                interrupt_at(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
                assert not prepare(folder, compare=COMPARED).train()
        with pytest.raises(DifferentSettingError, match=r"Choose another --out folder") as caught:
            prepare(folder, names, **sections)
        assert "holds another comparison" in str(caught.value)
        if folder == finished.folder:
            assert says.format(folder) in str(caught.value)
    begun = finished.folder.parent / "begun"
    with pytest.raises(DifferentSettingError, match=r"contestants is \['hc', 'plain', 'turned'\] in "):
        prepare(begun, ("hc", "turned"))
    assert prepare(begun, ("turned", "hc", "plain")).steps_taken(0, 1.0) == 1
    other = dataclasses.replace(finished.corpus, digest="x")
    with pytest.raises(DifferentSettingError, match="text.digest is '"):
        Comparison(finished.config, other, finished.field, finished.folder)
    assert [field[0].name for *_, field in prepare(finished.folder, ("shc",)).heats()] == ["shc", "shc"]


def test_a_report_without_results_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.md").write_text("somebody's")
    with pytest.raises(ValueError, match="choose another --out folder"):
        prepare(tmp_path / "a")


def test_diverged_contestant_stops_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = prepare(tmp_path / "a", compare=COMPARED | {"seeds": 1})
    advance = Run.advance

    def spoil(self: Run) -> float:
        if self.config.hyper_connection == comparison.field[1].connection and self.step == 2:
            raise DivergedError("training diverged at step 3")
        return advance(self)

    monkeypatch.setattr(Run, "advance", spoil)
    assert comparison.train()
    records = read_records(tmp_path / "a")
    assert [record.steps for record in records] == [6, 2, 6]
    assert records[1].bits_per_byte is None and records[1].matrices is None and records[0].bits_per_byte is not None
    assert tables(records)[1].rows[1] == ("hc", "1", "diverged 1/1", "–", "–")
    text = markdown(records, draw_plots(records, tmp_path))
    assert "- hc, seed 0, ×1: training diverged at step 3" in text
    assert headline(records) == (
        "Leaving H free costs something here: hc diverged in 1 of 1 runs at learning rate ×1, turned in none."
    )
