"""The comparison: equal conditions, right numbers, legible files."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig
from hyperconn.lab import GPT, Contestant, LabConfig, ModelConfig, Run, contestants, train_side_by_side
from hyperconn.lab.contest import DEFAULT_PRESETS
from hyperconn.lab.measure import measure_matrices
from hyperconn.lab.plots import draw_plots
from hyperconn.lab.report import COLUMNS, number, plain_data, table, write_report
from hyperconn.manifolds import Unconstrained, invariants
from lab_cases import corpus, tiny, write_text

SIZES = ModelConfig(blocks=2, channels=8, heads=2, context=16)
COMPARED = {"presets": ["plain", "hc", "kromhc"], "overrides": {"fn_std": 0.1}}


def prepare(tmp_path: Path, names: tuple[str, ...] = (), **sections: Any) -> list[Contestant]:
    config = tiny(**{"hyper_connection": None, "compare": COMPARED, **sections})
    return contestants(config, corpus(write_text(tmp_path / "text.txt"), config), names)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Contestant]:
    field = prepare(tmp_path_factory.mktemp("compare"), DEFAULT_PRESETS)
    assert train_side_by_side(field)
    return field


def test_training_side_by_side_equals_training_alone(tmp_path: Path) -> None:
    """Neighbours leave no trace: no shared generator, no shared weight. They differ in their connection only."""
    together = prepare(tmp_path, model={"dropout": 0.2})
    assert [contestant.name for contestant in together] == ["plain", "hc", "kromhc"]
    assert together[0].is_plain and not together[1].is_plain
    assert together[1].run.config.hyper_connection == HyperConnectionConfig.preset("hc", fn_std=0.1)
    assert len({dataclasses.replace(c.run.config, hyper_connection=None) for c in together}) == 1
    assert len({id(contestant.run.corpus) for contestant in together}) == 1
    train_side_by_side(together)
    for contestant in together:
        alone = Run(contestant.run.config, contestant.run.corpus)
        for _ in range(6):
            alone.advance()
        assert alone.history.train == contestant.run.history.train
        assert alone.evaluate() == contestant.bits_per_byte
        assert len(contestant.seconds) == 6
        assert [step for step, _ in contestant.run.history.valid] == [3, 6]


def test_own_section_takes_part(tmp_path: Path) -> None:
    own = {"manifold": "stiefel", "streams": 2}
    defaults = prepare(tmp_path, hyper_connection=own, compare={})
    assert [contestant.name for contestant in defaults] == [*DEFAULT_PRESETS, "config"]
    assert defaults[-1].run.config.hyper_connection == HyperConnectionConfig(streams=2, manifold="stiefel")
    assert [c.name for c in prepare(tmp_path, ("plain", "shc"), hyper_connection=own)] == ["plain", "shc"]


@pytest.mark.parametrize(
    ("names", "overrides", "says"),
    [
        (("plain", "kromch"), {}, "unknown preset 'kromch'. Did you mean 'kromhc'"),
        (("hc", "hc"), {}, "every preset can be compared once only, got hc twice"),
        (("plain", "config"), {}, "this config has none"),
        (("hc",), {"fnstd": 0.1}, "Did you mean 'fn_std'"),
    ],
)
def test_bad_contestants_are_refused(tmp_path: Path, names: tuple[str, ...], overrides: Any, says: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        prepare(tmp_path, names, compare={"overrides": overrides})
    assert says in str(caught.value)


def test_diverged_contestant_stops_alone(tmp_path: Path) -> None:
    field = prepare(tmp_path)

    def spoil() -> None:
        if field[1].run.step == 2:
            with torch.no_grad():
                field[1].run.model.token.weight.fill_(torch.nan)

    assert train_side_by_side(field, on_round=spoil)
    assert [contestant.run.step for contestant in field] == [6, 2, 6]
    assert table(field)[1][2] == "diverged" and table(field)[1][5:] == ("–",) * 4
    write_report(field, tmp_path, draw_plots(field, tmp_path))
    assert "- hc diverged: training diverged at step 3" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert plain_data(field)["contestants"]["hc"]["bits_per_byte"] is None


def test_interruption_still_reports(tmp_path: Path) -> None:
    field = prepare(tmp_path)

    def press_ctrl_c() -> None:
        if field[0].run.step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    assert not train_side_by_side(field, on_round=press_ctrl_c)
    assert signal.getsignal(signal.SIGINT) is before
    assert {contestant.run.step for contestant in field} == {2}
    assert all(4 < float(row[2]) < 9 for row in table(field))


def test_measurements_of_known_matrices() -> None:
    """Static layers whose H is known: the composed gains are powers of it."""
    growing = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    kind = HyperConnectionConfig(streams=2, manifold="unconstrained", predictor="static", orientation="direct")
    model = GPT(SIZES, kind, seed=0)
    for layer in model.sublayers:
        assert isinstance(layer, HyperConnection)
        with torch.no_grad():
            layer.base[-4:] = growing.flatten()
    report = measure_matrices(model, torch.randint(256, (3, 16)), chunk=2)
    assert report is not None and report.violation is None
    assert report.forward == [1.5, 2.0, 2.5, 3.0] == report.backward
    power = torch.linalg.matrix_power(growing.double(), 4)
    assert report.spectral[-1] == pytest.approx(float(torch.linalg.matrix_norm(power, 2)))


@dataclasses.dataclass(frozen=True)
class Stochastic(Unconstrained):
    """Rows sum to 1 and columns need not: its transpose is no member."""

    name = "only-rows"
    invariants = (invariants.row_sums,)

    def forward(self, theta: Tensor) -> Tensor:
        return super().forward(theta).softmax(-1)


@pytest.mark.parametrize("orientation", ["direct", "transposed"])
def test_transposed_manifolds_are_measured_as_they_are_made(orientation: str) -> None:
    """What a layer applies is the transpose of what the manifold promises something about."""
    options = {"manifold": Stochastic(n=4), "fn_std": 3.0, "scale_init": 1.0, "init": "published"}
    kind = HyperConnectionConfig(orientation=orientation, **options)
    report = measure_matrices(GPT(SIZES, kind, seed=0), torch.randint(256, (2, 8)))
    assert report is not None and report.violation is not None and report.violation < report.tolerance
    # Of the direct one the rows sum to 1 at any depth, of its transpose the columns.
    exact, free = report.forward, report.backward
    if orientation == "transposed":
        exact, free = free, exact
    assert exact == pytest.approx([1.0] * 4, abs=1e-5) and min(free) > 1.1


def test_table(finished: list[Contestant]) -> None:
    rows = dict(zip(DEFAULT_PRESETS, table(finished), strict=True))
    assert [row[0] for row in rows.values()] == list(DEFAULT_PRESETS)
    assert [row[1] for row in rows.values()] == [
        "identity", "free", *["doubly stochastic"] * 3, "orthogonal", "spectral norm 1",
    ]  # fmt: skip
    assert rows["plain"][3:] == ("0", "1.00", "–", "1.00", "1.00", "1.00")
    assert rows["hc"][5] == "–"
    for contestant in finished[1:]:
        matrices, cells = contestant.matrices, rows[contestant.name]
        assert matrices is not None
        if contestant.name in ("mhc-lite", "kromhc", "shc", "jpmhc"):
            assert matrices.violation is not None and matrices.violation <= matrices.tolerance
            assert max(matrices.spectral) <= 1 + 1e-4
        added = contestant.run.model.num_parameters() - finished[0].run.model.num_parameters()
        assert cells[3] == f"{added:,}" and added > 0 and 0 < float(cells[4]) < 10
        assert cells[6:8] == (number(max(matrices.forward)), number(max(matrices.backward)))


def test_speed_is_paired_by_round(tmp_path: Path) -> None:
    """Noise that hits a whole round cancels; the ratio of medians would be 0.55 here."""
    plain, other = prepare(tmp_path, ("plain", "hc"))
    noise = [1.0, 1.0, 1.0, 1.0, 50.0, 3.0, 7.0, 1.0]
    plain.seconds = list(noise)
    other.seconds = [2.0 * factor for factor in noise]
    assert other.speed_over(plain) == 0.5
    other.seconds = other.seconds[:5]  # it diverged
    assert other.speed_over(plain) == 0.5
    assert table([other])[0][4] == "–"


def test_report_folder(finished: list[Contestant], tmp_path: Path) -> None:
    write_report(finished, tmp_path, draw_plots(finished, tmp_path))
    pictures = {"composite_gain.png", "loss_curves.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"report.md", "report.json", *pictures}
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in pictures)

    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(DEFAULT_PRESETS)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert all(f"]({file})" in text for file in pictures) and "6 steps, seed 0" in text

    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert LabConfig.from_dict(saved["config"]) == finished[0].run.config
    assert {"torch", "hyperconn", "python"} <= saved["versions"].keys()
    for contestant in finished:
        own = saved["contestants"][contestant.name]
        assert own["bits_per_byte"] == contestant.bits_per_byte and own["steps"] == 6
        assert own["history"]["train"] == contestant.run.history.train
        if contestant.matrices is not None:
            assert own["matrices"] == dataclasses.asdict(contestant.matrices)


def test_plots_without_any_matrix(finished: list[Contestant], tmp_path: Path) -> None:
    assert draw_plots(finished[:1], tmp_path) == ["loss_curves.png"]
