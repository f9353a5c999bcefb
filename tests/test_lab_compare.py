"""The comparison: equal conditions, right numbers, and results that survive whatever ends the process."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig
from hyperconn.lab import GPT, Comparison, LabConfig, ModelConfig, Run, contestants
from hyperconn.lab import contest as lab_contest
from hyperconn.lab.contestants import DEFAULT_CONTESTANTS, Contestant, described
from hyperconn.lab.measure import learning_layers, measure_matrices
from hyperconn.lab.plots import draw_plots
from hyperconn.lab.records import RECORDS, DifferentSettingError, Mean, Record, merged, read_records, summaries
from hyperconn.lab.report import headline, markdown, tables, verdicts
from hyperconn.lab.run import DivergedError
from hyperconn.manifolds import Unconstrained, invariants
from lab_cases import corpus, tiny, write_text

SIZES = ModelConfig(blocks=2, channels=8, heads=2, context=16)
COMPARED = {
    "contestants": ["plain", "hc", {"name": "turned", "manifold": "stiefel", "streams": 2}],
    "overrides": {"fn_std": 0.1},
    "seeds": 2,
}


def prepare(folder: Path, names: tuple[str, ...] = (), **sections: Any) -> Comparison:
    folder.mkdir(exist_ok=True)
    config = tiny(**{"hyper_connection": None, "compare": COMPARED, **sections})
    text = corpus(write_text(folder.parent / "text.txt"), config)
    return Comparison(config, text, contestants(config, names), folder)


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


LEARNING: dict[str, tuple[HyperConnectionConfig, list[bool]]] = {
    "free": (HyperConnectionConfig.preset("hc", fn_std=0.5), [True, True, True, True]),
    "doubly stochastic": (HyperConnectionConfig.preset("kromhc", fn_std=0.5), [False, True, True, False]),
    "seen by a head": (HyperConnectionConfig.preset("kromhc", fn_std=0.5, collapse="head"), [False, True, True, True]),
    "orthogonal": (HyperConnectionConfig.preset("jpmhc", fn_std=0.5), [True, True, True, True]),
    "rows": (HyperConnectionConfig(manifold=Stochastic(n=4), fn_std=0.5), [False, True, True, True]),
    "columns": (
        HyperConnectionConfig(manifold=Stochastic(n=4), orientation="transposed", fn_std=0.5),
        [True, True, True, False],
    ),
}


@pytest.mark.parametrize("kind", LEARNING)
def test_layers_that_cannot_learn(kind: str) -> None:
    """Another H in a layer changes what the model says, or it does not: that is what is claimed."""
    config, expected = LEARNING[kind]
    model, tokens = GPT(SIZES, config, seed=0).double().eval(), torch.randint(256, (2, 8))
    own = [p for name, p in model.named_parameters() if name.startswith(("sub", "coll")) and ".branch." not in name]
    with torch.no_grad():
        for p in own:  # far from H = I
            p.add_(torch.randn_like(p) * 0.5)
        said, changes = model(tokens), []
        for layer in model.sublayers:
            assert isinstance(layer, HyperConnection)
            spec, other = layer.spec, copy.copy(layer.spec.manifold)
            forward = spec.manifold.forward
            object.__setattr__(other, "forward", lambda theta, forward=forward: forward(theta.flip(-1) * 2 + 0.3))
            layer.spec = dataclasses.replace(spec, manifold=other)
            changes.append(bool((model(tokens) - said).abs().max() > 1e-6))
            layer.spec = spec
    assert changes == expected == learning_layers(config, 4)
    assert not any(learning_layers(HyperConnectionConfig.preset("ihc"), 4))


def test_one_process_measures_means(finished: Comparison) -> None:
    """The mean H of a token average, and no gain of a composed H below that of what it composes."""
    hc = next(record for record in finished.records if record.contestant == "hc" and record.matrices is not None)
    assert hc.matrices is not None
    mean = torch.tensor(hc.matrices["mean"])
    assert mean.shape == (4, 4, 4) and len(hc.matrices["learns"]) == 4
    assert float((mean - torch.eye(4)).abs().max()) < 0.5 and not torch.equal(mean[0], torch.eye(4))


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
        ([1.5, 1.6, 1.5], [2.0, 2.0, 2.0], "Leaving H free wins here"),
        ([1.5, 2.6, 1.5], [2.0, 2.0, 2.0], "costs nothing here that goes beyond two standard errors"),
        ([2.5, 2.6], [2.0, 2.0], "Fewer than 3 seeds: no verdict"),
    ],
)
def test_the_first_line(free: list[float | None], held: list[float | None], says: str) -> None:
    records = made("plain", [2.0] * len(free)) + made("hc", free) + made("b", held)
    assert says in headline(records)
    assert headline(records[: -len(held)]) == "" == headline(made("plain", [2.0]) + made("b", [2.0]))


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
