"""Means, verdicts, tables and pictures: functions of the results."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hyperconn.lab import Comparison, LabConfig
from hyperconn.lab.findings import headline, markdown, tables, verdicts
from hyperconn.lab.plots import draw_plots
from hyperconn.lab.records import RECORDS, DifferentSettingError, Mean, Record, merged, read_records, summaries
from lab_cases import COMPARED, prepare


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two seeds at two learning rates."""
    comparison = prepare(tmp_path_factory.mktemp("compare") / "a", compare=COMPARED | {"lr_multipliers": [1, 4]})
    assert comparison.train()
    return comparison


def made(contestant: str, losses: Sequence[float | None], multiplier: float = 1.0, **fields: Any) -> list[Record]:
    """Records with these losses, one a seed, and nothing else of interest."""
    plain = contestant == "plain"
    setting = {"train": {"schedule": "constant", "learning_rate": 0.01}}
    return [
        Record(
            **{
                "contestant": contestant, "seed": seed, "multiplier": multiplier, "setting": setting, "machine": {},
                "hyper_connection": None if plain else {"n": contestant}, "base": "plain" if plain else "defaults",
                "differences": {}, "kind": "identity" if plain else "free" if contestant == "hc" else "orthogonal",
                "parameters": 1, "parameters_added": 0, "steps": 100, "diverged": None if loss else "nan",
                "bits_per_byte": loss, "speed": 1.0 if plain else 0.25, "step_seconds": 1.0, "matrices": None,
                "history": {"train": [3.0], "gradient": [1.0], "valid": [[20, 4.0], [40, 3.0], [100, loss]]},
                **fields,
            }
        )
        for seed, loss in enumerate(losses)
    ]  # fmt: skip


def test_means_are_paired_by_seed() -> None:
    """Seeds that differ by far more than the contestants do: the pairs tell them apart, the means cannot."""
    records = made("plain", [2.0, 3.0, 4.0]) + made("hc", [2.1, 3.2, 4.1]) + made("b", [1.0, 4.0, 4.0])
    found = summaries(list(reversed(records)))
    loss, gap = found["hc", 1.0].loss, found["hc", 1.0].gap
    assert loss is not None and gap is not None
    assert (loss.value, loss.error) == pytest.approx((9.4 / 3, statistics.stdev([2.1, 3.2, 4.1]) / math.sqrt(3)))
    assert (gap.value, gap.error) == pytest.approx((0.4 / 3, statistics.stdev([0.1, 0.2, 0.1]) / math.sqrt(3)))
    # A quarter of the speed: step 25 of 100, a quarter of the way from 4.0 to 3.0.
    timed = found["hc", 1.0].gap_at_equal_time
    assert timed is not None and timed.value == pytest.approx(3.75 - 3.0)
    assert verdicts(records) == [
        "hc: worse at equal steps, +0.133 ± 0.033; no verdict at equal time, +0.750 ± 0.577",
        "b: no verdict at equal steps, +0.000 ± 0.577; no verdict at equal time, +0.750 ± 0.577",
    ]
    assert found["plain", 1.0].gap is None
    # A seed whose step at equal time is unknown, and one that plain did not finish.
    slow = made("plain", [2.0, None, 4.0]) + made("hc", [2.1, 3.2]) + made("hc", [0.0, 0.0, 4.1], speed=0.1)[2:]
    summary = summaries(slow)["hc", 1.0]
    assert summary.gap_at_equal_time is None and summary.gap is not None and summary.gap.count == 2
    assert verdicts(slow)[1] == "hc: no verdict at equal steps, +0.100 ± 0.000; plain finished 2 of 3 seeds"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"speed": 0.1}, None),  # before the first evaluation
        ({"speed": 1.2}, 2.0),
        ({"speed": None}, None),
        ({"bits_per_byte": None}, None),
        ({"setting": {"train": {"schedule": "cosine"}}}, None),
    ],
)
def test_equal_time_is_known_or_not(changes: dict[str, Any], expected: float | None) -> None:
    (record,) = made("hc", [2.0], **changes)
    assert record.at_equal_time() == expected


@pytest.mark.parametrize(
    ("free", "held", "says"),
    [
        (
            [2.5, 2.6, 2.5],
            [2.0, 2.0, 2.0],
            "costs something here: hc ends above b (+0.533 ± 0.033) at learning rate ×1",
        ),
        (
            [2.5, None, 2.5],
            [2.0, 2.0, 2.0],
            "costs something here: hc diverged in 1 of 3 runs at learning rate ×1, b in",
        ),
        ([1.5, 1.6, 1.5], [2.0, 2.0, 2.0], "Leaving H free wins here: hc at learning rate ×1 ended below every"),
        ([1.5, 2.6, 1.5], [2.0, 2.0, 2.0], "costs nothing here that goes beyond two standard errors"),
        ([2.5, 2.6], [2.0, 2.0], "Fewer than 3 seeds: no verdict"),
    ],
)
def test_the_first_line(free: list[float | None], held: list[float | None], says: str) -> None:
    records = made("plain", [2.0] * len(free)) + made("hc", free) + made("b", held)
    assert says in headline(records)
    assert headline(records[: -len(held)]) == "" == headline(made("plain", [2.0]) + made("b", [2.0]))


def test_the_first_line_takes_no_side() -> None:
    """Where a free H wins at one learning rate and loses at another, both are said."""
    lost = made("hc", [2.5, 2.6, 2.5]) + made("b", [2.0] * 3)
    even = made("hc", [2.0, 2.1, 1.9], 10.0) + made("b", [2.0] * 3, 10.0)
    won = made("hc", [1.5, 1.6, 1.5], 4.0) + made("b", [2.0] * 3, 4.0)
    both = headline(lost + won + even)
    assert "costs something here: hc ends above b" in both and "But hc at learning rate ×4 ended below" in both
    assert headline(won + even).startswith("Leaving H free wins in part here: hc at learning rate ×4 ended")


def test_reports_merge_or_say_why_not() -> None:
    one, two = made("plain", [2.0, 2.1]), made("plain", [2.0, 2.1, 2.2]) + made("b", [2.0])
    assert [record.key for record in merged({"x": one, "y": two})] == [
        ("plain", 0, 1.0), ("plain", 1, 1.0), ("plain", 2, 1.0), ("b", 0, 1.0),
    ]  # fmt: skip
    other = {"train": {"schedule": "constant", "learning_rate": 0.02}}
    with pytest.raises(DifferentSettingError, match="train.learning_rate is 0.01 in x and 0.02 in y"):
        merged({"x": one, "y": made("b", [2.0], setting=other)})
    with pytest.raises(DifferentSettingError, match="contestant 'b' differs: n is 'b' in y and 'c' in z"):
        merged({"y": two, "z": made("b", [2.0], hyper_connection={"n": "c"})})
    with pytest.raises(
        DifferentSettingError, match="plain, seed 0, learning rate ×1 is in x and in y, with other losses"
    ):
        merged({"x": one, "y": made("plain", [2.0], history={"train": [9.0]})})
    assert Mean.of([]) is None


def test_tables_of_a_comparison(finished: Comparison) -> None:
    field, losses, matrices, *faster = tables(finished.records)
    assert [table.title for table in (field, losses, matrices, *faster)] == [
        "contestants", "loss at learning rate 0.003, 2 seeds", "matrices and gradients at learning rate 0.003",
        "loss at learning rate 0.012 (×4), 2 seeds", "matrices and gradients at learning rate 0.012 (×4)",
    ]  # fmt: skip
    assert [row[:3] for row in field.rows] == [
        ("plain", "identity", "plain"), ("hc", "free", "preset hc, fn_std = 0.1"), ("turned", "orthogonal", "defaults"),
    ]  # fmt: skip
    assert matrices.rows[0][1:5] == ("–", "1.00", "1.00", "1.00") and matrices.rows[1][1] == "–"
    assert float(matrices.rows[2][1]) < 1e-5 and matrices.rows[2][4] == "1.00"
    for table in (losses, faster[0]):
        for k, row in enumerate(table.rows):
            runs = [r for r in finished.records if r.contestant == row[0] and (r.multiplier == 4) == (table != losses)]
            mean = sum(r.bits_per_byte or math.nan for r in runs) / 2
            assert row[1] == "2" and row[2].startswith(f"{mean:.3f} ± ") and len(runs) == 2
            assert (row[3] == "") == (k == 0)
    text = markdown(finished.records, [])
    assert text.splitlines()[2].startswith("Fewer than 3 seeds") and "seeds 0, 1" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("| turned")} == {6, 9}


def test_pictures(finished: Comparison, tmp_path: Path) -> None:
    names = draw_plots(finished.records, tmp_path)
    assert set(names) == {file.name for file in tmp_path.iterdir()} == {
        *(f"{name}{end}.png" for name in ("composite_gain", "loss_curves", "mean_matrices") for end in ("", "_x4")),
        "learning_rates.png",
    }  # fmt: skip
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in names)
    assert draw_plots(finished.records[:1], tmp_path) == ["loss_curves.png"]


def test_results_are_strict_json(finished: Comparison) -> None:
    lines = (finished.folder / RECORDS).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    for line, record in zip(lines, finished.records, strict=True):
        assert Record(**json.loads(line, parse_constant=pytest.fail)) == record
    shared = {key: value for key, value in finished.records[0].setting.items() if key in ("model",)}
    assert LabConfig.from_dict(shared).model == finished.config.model


@pytest.mark.parametrize(("line", "says"), [("{", "line 1: not JSON"), ("[]", "got []"), ("{}", "not a result of")])
def test_damaged_results_are_refused(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text(line + "\n")
    with pytest.raises(ValueError, match=".") as caught:
        read_records(tmp_path)
    assert says in str(caught.value) and str(tmp_path / RECORDS) in str(caught.value)
