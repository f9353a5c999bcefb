"""The command line: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hyperconn
from cli_cases import refused, run, words, write_config
from hyperconn import HyperConnection, HyperConnectionConfig, cli, gates, manifolds, predictors
from hyperconn.cli.bench import _step
from hyperconn.cli.console import output

PARTS = (manifolds, gates, predictors)
BUILT_IN = manifolds.available()


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
    n = HyperConnectionConfig.preset(name).streams if preset else 4
    shown = manifolds.get(HyperConnectionConfig.preset(name).manifold if preset else name)  # type: ignore[arg-type]
    assert f"manifold {shown.name}: {shown.__name__}(n={n}" in result.stdout
    assert str(shown.__doc__).strip().splitlines()[0].replace("``", "") in result.stdout
    assert not any(mark in result.stdout for mark in ("``", "**", ":math:", "\\", ">>>"))
    assert "tolerance" in result.stdout and "violation" in result.stdout
    assert (f"preset {name}" in result.stdout) == preset
    matrix = [line.split() for line in result.stdout.splitlines()[-n:]]
    H = torch.tensor([[float(value) for value in line] for line in matrix])
    assert H.shape == (n, n)
    if shown(n=n).invariants:
        assert shown(n=n).violation(H) < (0.1 if shown.name == "birkhoff" else 1e-3)


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


def test_bad_input() -> None:
    assert "Use manifold 'kronecker'" in refused("show", "permutation", "--n", "7")
    assert "there is no module 'no_such_module'" in refused("verify", "no_such_module:Thing")
    unknown = refused("show", "kromch")
    assert "unknown manifold, gate, predictor or preset 'kromch'. Did you mean 'kromhc'" in unknown
    assert all(name in unknown for name in HyperConnectionConfig.presets())


def test_doctor() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    shown = words(result)
    assert f"torch {torch.__version__}" in shown and f"hyperconn {hyperconn.__version__}" in shown
    assert "geotorch" in shown and "cpu" in shown and "the triton backend: runs on c" in shown


def test_doctor_believes_no_kernel_that_it_has_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = "hyperconn.cli.doctor._PROBE"
    monkeypatch.setattr(probe, "import sys\nprint('long ago', file=sys.stderr)\nraise OSError('no {device}')")
    assert "the triton backend: BROKEN here, a small layer failed: OSError: no c" in words(run("doctor"))
    monkeypatch.setattr(probe, "import os; os._exit(11)")
    assert "a small layer failed: the process ended with status 11; use backend='torch'" in words(run("doctor"))


def test_list_doctor_and_show_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    advice = "triton is not installed (on Linux: pip install 'hyperconn[triton]')"
    assert f"the triton backend: {advice}" in words(run("doctor")) and "takes torch on" in words(run("doctor"))
    listed = words(run("list"))
    assert f"takes triton; {advice}" in listed and re.search(r"\bkronecker 4 6 yes \?", listed), listed
    assert run("show", "kronecker").exit_code == run("show", "sigmoid").exit_code == 0


def test_version_help_and_typing_errors() -> None:
    assert run("--version").stdout == f"hyperconn {hyperconn.__version__}\n"
    for command in ("train", "compare", "list", "show", "verify", "bench", "doctor"):
        assert command in run("--help").stdout
        assert run(command, "--help").exit_code == 0
    assert run("trian").exit_code == 2
    assert run("train", "x.toml", "--sede", "3").exit_code == 2


def test_list_and_doctor_name_what_is_wrong_with_plugins(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("list")
    assert result.exit_code == 0, result.exception
    shown = words(result)
    broken = ("lost", "rough", "twice")
    for name in (*BUILT_IN, *broken, "tilt", "even", "picky", "stumbles"):
        assert name in manifolds.available() and f" {name} " in f" {shown}"
        assert (f"{name} broken" in shown) == (name in broken)
    assert "lost is broken: manifold plugin 'lost' (entry point lost = extra_lost:Odd of extra 1.0) cannot be" in shown
    assert "SystemExit: I am off" in shown
    assert "rough is broken: rough of extra 1.0: IndexError: list index out of range" in shown
    assert "twice is broken: the manifold 'twice' is provided by extra 1.0 and other 2.0" in shown

    monkeypatch.setattr("hyperconn.cli.doctor.triton_missing", lambda: "not asked")  # which takes seconds to answer
    shown = words(run("doctor"))
    assert "HYPERCONN_PLUGINS is not set" in shown and "SystemExit: I am off" in shown
    for line in ("tilt extra 1.0 extra_tilt:Odd used", "twice other 2.0 other_twice:Twice broken: the manifold"):
        assert line in shown
    assert "stiefel extra 1.0 extra_tilt:Odd not used: the name is taken by" in shown
    monkeypatch.setenv("HYPERCONN_PLUGINS", "other, tild")
    shown = words(run("doctor"))
    assert "HYPERCONN_PLUGINS is 'other, tild'" in shown
    assert "HYPERCONN_PLUGINS allows 'tild', which is neither" in shown and "allows 'other'" not in shown
    assert "lost extra 1.0 extra_lost:Odd not used: HYPERCONN_PLUGINS does not" in shown


def test_show_plugins(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "provided by extra 1.0" in words(run("show", "tilt")) and "6 at n=4" in words(run("show", "tilt"))
    # Of what refuses the default, its first example.
    assert "15 at n=6" in words(run("show", "even")) and "angle=0.5)" in words(run("show", "picky"))
    for arguments, says in (
        (["even", "--n", "4"], "even of extra 1.0: ValueError: n must be a multiple of 6"),
        (["stumbles"], "stumbles of extra 1.0: IndexError: list index out of range"),
        (["lost"], "cannot be imported: SystemExit: I am off"),
    ):
        assert refused("show", *arguments).endswith(says)
    assert "tilt" in refused("show", "kromch")
    monkeypatch.setenv("HYPERCONN_PLUGINS", "")
    assert "extra 1.0 provides it, but the environment variable HYPERCONN_PLUGINS" in refused("show", "lost")


def test_a_bug_of_a_built_in_is_no_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(manifolds.Identity, "__post_init__", fail)
    assert isinstance(run("list").exception, RuntimeError)


def test_missing_extras_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, missing = importlib.util.find_spec, ("typer", "rich", "hypothesis", "matplotlib")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *where: None if name in missing else found(name, *where)
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "hyperconn: the command line needs typer and rich: pip install 'hyperconn[cli]'\n"
    assert "pip install 'hyperconn[cli]'" in refused("verify", "stiefel")
    assert "pip install 'hyperconn[cli]'" in refused("compare", write_config(tmp_path))


def test_the_package_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["hyperconn", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("hyperconn", run_name="__main__")
    assert caught.value.code == 0 and capsys.readouterr().out == f"hyperconn {hyperconn.__version__}\n"


# ``bench``, on little
SMALL = ("--tokens", "5", "--dim", "8", "--rounds", "3")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def small(*arguments: str) -> str:
    result = run("bench", *SMALL, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return words(result)


def test_every_manifold_is_timed_against_the_plain_residual() -> None:
    said = small("--device", "cpu", "--backend", "torch")
    for name in manifolds.available():
        assert re.search(rf" {name} torch [\d.]+ ms [\d.]+ [\d.]+ – [\d.]+ ", said), (name, said)
    assert re.search(r"plain residual [\d.]+ ms 1\.00 1\.00 – 1\.00 ", said)
    assert "5 tokens of 4×8, float32, on cpu" in said and "medians of 3 rounds" in said


@no_gpu  # the kernels run in the interpreter, on the CPU
def test_the_backend_that_runs_is_named() -> None:
    choices = "--streams 2 --dtype bfloat16 --backend triton --device cpu --tokens 2 --rounds 1"
    said = small("kronecker", *choices.split())
    assert re.search(r" kronecker triton [\d.]+ ms", said), said
    assert "birkhoff" not in said and "2 tokens of 2×8, bfloat16" in said


def test_a_step_is_a_forward_and_backward_of_everything() -> None:
    torch.manual_seed(0)
    layer = HyperConnection(nn.RMSNorm(8), 8, HyperConnectionConfig(predictor="flat", fn_std=0.1))
    x, seen = torch.randn(3, 4, 8), {}
    parameters = dict(layer.named_parameters())
    for name, tensor in (*parameters.items(), ("x", x.requires_grad_())):
        tensor.register_post_accumulate_grad_hook(lambda t, name=name: seen.update({name: float(t.grad.abs().amax())}))
    _step(layer, x, list(parameters.values()))()
    assert set(seen) == {*parameters, "x"} and len(parameters) == 4
    assert all(largest > 0 for largest in seen.values())
    assert x.grad is None and all(tensor.grad is None for tensor in parameters.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("birkof", "unknown manifold 'birkof'. Did you mean 'birkhoff'"),
        ("--dtype int8", "--dtype is one of float32, bfloat16, float16, got 'int8'"),
        ("--device nowhere", "--device 'nowhere' cannot be used here: Expected one of cpu, cuda"),
        ("--device meta", "--device is cpu, cuda or auto, got 'meta'"),
        pytest.param("--device cuda", "--device 'cuda' cannot be used here: ", marks=no_gpu),
        ("--backend fast", "unknown backend of a HyperConnectionConfig 'fast'"),
        ("stiefel --streams 20 --backend triton", "backend='triton' cannot run: the kernels hold up to 16"),
        # What was asked for by name cannot be left out.
        ("birkhoff permutation --streams 8", "the largest n is 6"),
        ("birkhoff even --streams 8", "even of extra 1.0: ValueError: n must be"),
        ("birkhoff stumbles --streams 8", "manifold Odd of extra 1.0: forward of Odd(n=8) raised IndexError"),
    ],
)
def test_bad_input_of_bench(zoo: None, arguments: str, message: str) -> None:
    assert message in refused("bench", *arguments.split(), *SMALL)


def test_without_names_what_cannot_be_timed_is_left_out(zoo: None) -> None:
    result = run("bench", "--streams", "8", "--device", "cpu", "--backend", "torch", *SMALL)
    assert result.exit_code == 0, (result.output, result.exception)
    table, below = result.stdout.split("medians of 3 rounds")
    assert " birkhoff " in table and "stumbles" not in table
    for line in (
        "permutation: ",
        "even: even of extra 1.0: ValueError: n must be a multiple of 6",
        "lost: manifold plugin 'lost' (entry point lost = extra_lost:Odd of extra 1.0) cannot be imported: SystemExit",
        "stumbles: manifold Odd of extra 1.0: forward of Odd(n=8) raised IndexError: list index out of range",
    ):
        assert sum(said.startswith(line) for said in below.splitlines()) == 1, (line, below)
