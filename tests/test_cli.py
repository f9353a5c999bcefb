"""The command line: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

import hyperconn
from cli_cases import refused, run, words, write_config
from hyperconn import HyperConnectionConfig, cli, gates, manifolds, predictors
from hyperconn.cli.console import output
from source_tree import ROOT

PARTS = (manifolds, gates, predictors)

# -------------------------------------------------------------------------------------------- list, show, doctor


def test_list_is_readable_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "width", 80)
    result = run("list")
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    first = [line.split() for line in result.stdout.splitlines() if re.match(r"[a-z]\S+ ", line)]
    rows = {row[0]: row[1:] for row in first}
    everything = [name for module in PARTS for name in module.available()] + list(HyperConnectionConfig.presets())
    assert set(everything) == rows.keys() - {"manifold", "gate", "predictor", "preset"}
    for name in manifolds.available():
        made = manifolds.make(name, n=4)
        eight = "–" if name == "permutation" else str(manifolds.make(name, n=8).num_coordinates)
        assert rows[name][:2] == [str(made.num_coordinates), eight]
        assert " ".join(rows[name]).endswith(made.source)
        assert (rows[name][2] == "yes") == made.exact
    assert rows["matrix"][:3] == ["16", "read", "no"] and rows["linear"][:4] == ["4", "read,", "write", "yes"]
    assert rows["jpmhc"] == ["stiefel", "row_softmax", "column_softmax", "flat"]


@pytest.mark.parametrize("name", [*manifolds.available(), "cayley", *HyperConnectionConfig.presets()])
def test_show_manifolds_and_presets(name: str) -> None:
    result = run("show", name)
    assert result.exit_code == 0
    preset = name in HyperConnectionConfig.presets()
    shown = manifolds.get(HyperConnectionConfig.preset(name).manifold if preset else name)  # type: ignore[arg-type]
    assert f"manifold {shown.name}: {shown.__name__}(n=4" in result.stdout
    assert str(shown.__doc__).strip().splitlines()[0] in result.stdout
    assert "tolerance" in result.stdout and "violation" in result.stdout
    assert (f"preset {name}" in result.stdout) == preset
    matrix = [line.split() for line in result.stdout.splitlines()[-4:]]
    H = torch.tensor([[float(value) for value in line] for line in matrix])
    assert H.shape == (4, 4)
    if shown(n=4).invariants:
        assert shown(n=4).violation(H) < (0.1 if shown.name == "birkhoff" else 1e-3)


@pytest.mark.parametrize("module", [gates, predictors], ids=["gate", "predictor"])
def test_show_gates_and_predictors(module: object) -> None:
    for name in module.available():  # type: ignore[attr-defined]
        shown = words(run("show", name))
        cls = module.get(name)  # type: ignore[attr-defined]
        assert f" {name}: {cls.__name__}(" in shown and "provided by hyperconn" in shown
        if module is gates:
            made = gates.make(name, n=4)
            assert f"{made.num_coordinates} at n=4" in shown and f"shape {list(made.value_shape)}" in shown
    assert "fn [24, 256], base [24], scale [3]" in words(run("show", "flat"))


def test_show_is_seeded_and_lists_options() -> None:
    one, two, other = (run("show", "shc", "--n", "3", "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert one == two != other
    assert "SpectralSphere(n=3" in one
    shown = words(run("show", "birkhoff"))
    assert "iterations = 20" in shown and "finish = 'none'" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "kromch"], "unknown manifold, gate, predictor or preset 'kromch'. Did you mean 'kromhc'"),
        (["show", "sigmiod"], "Did you mean 'sigmoid'"),
        (["show", "permutation", "--n", "7"], "Use manifold 'kronecker'"),
        (["verify", "stifel"], "unknown manifold 'stifel'. Did you mean 'stiefel'"),
        (["verify", "permutation", "--n", "7"], "Use manifold 'kronecker'"),
        (["verify", "no_such_module:Thing"], "there is no module 'no_such_module'"),
    ],
)
def test_unknown_names(arguments: Sequence[str], says: str) -> None:
    assert says in refused(*arguments)


def test_doctor() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    shown = words(result)
    assert f"torch {torch.__version__}" in shown and f"hyperconn {hyperconn.__version__}" in shown
    assert "geotorch" in shown and "cpu" in shown and "the triton backend: " in shown


def test_version_help_and_typing_errors() -> None:
    assert run("--version").stdout == f"hyperconn {hyperconn.__version__}\n"
    for command in ("train", "compare", "list", "show", "verify", "bench", "doctor"):
        assert command in run("--help").stdout
        assert run(command, "--help").exit_code == 0
    assert run("trian").exit_code == 2
    assert run("train", "x.toml", "--sede", "3").exit_code == 2


# -------------------------------------------------------------------------------------------------------- verify


BROKEN = '''
from dataclasses import dataclass
from hyperconn.manifolds import Stiefel

@dataclass(frozen=True)
class Scaled(Stiefel):
    """Not orthogonal at all."""
    name = "scaled"
    def forward(self, theta):
        return 1.01 * super().forward(theta)
'''


def test_verify_fails_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_by_me.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run("verify", "identity", "--n", "2", "--examples", "2").exit_code == 0
    result = run("verify", "broken_by_me:Scaled", "--n", "2", "--examples", "2")
    assert result.exit_code == 1
    assert "membership" in result.stdout and "Scaled(n=2" in result.stdout


# ------------------------------------------------------------------------------------------------ missing extras


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in packages else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_missing_extras_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "typer", "rich", "hypothesis", "matplotlib")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "hyperconn: the command line needs typer and rich: pip install 'hyperconn[cli]'\n"
    assert "pip install 'hyperconn[test]'" in refused("verify", "stiefel")
    assert "pip install 'hyperconn[cli]'" in refused("compare", write_config(tmp_path))


def test_the_package_is_the_command() -> None:
    command = [sys.executable, "-m", "hyperconn", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent, timeout=60).stdout
    assert printed == f"hyperconn {hyperconn.__version__}\n"
