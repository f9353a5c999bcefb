"""`hyperconn verify`: sizes, verdicts, certificates, and what it says to classes that are no manifolds."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cli_cases import refused, run, words
from hyperconn import manifolds
from hyperconn.cli.arguments import rewrite
from hyperconn.testing import LAWS

HEALTHY = (Path(__file__).parent / "healthy_manifold.py").read_text(encoding="utf-8")

# Classes over the healthy one, by name. Some break laws, some are no manifolds at all.
PLUGIN = '''
import sys
from abc import abstractmethod
from enum import Enum

print("a plugin that talks")

class BreaksFarOut(Circulant):
    name = "breaks-far-out"
    def forward(self, theta):
        far = theta.amax(-1) > 80
        return super().forward(theta) * torch.where(far, 0.999, 1.0)[..., None, None].to(theta.dtype)

class Four(Circulant):
    """Takes one size, and leaves examples() as it is."""
    def __post_init__(self):
        super().__post_init__()
        if self.n != 4:
            raise ValueError(f"Four is for 4 streams, got n={self.n}; use another manifold")

class Unfinished(Manifold):
    name = "unfinished"

class Nameless(Manifold):
    exact = True
    num_coordinates = 0
    invariants = ()
    def forward(self, theta):
        return torch.eye(self.n, dtype=theta.dtype, device=theta.device).expand(*theta.shape[:-1], -1, -1)
    def identity(self, *, dtype=None, device=None):
        return torch.zeros(0, dtype=dtype, device=device)

class OwnInit(Circulant):
    def __init__(self, n):
        self.n = n

class KeepsNothing(Circulant):
    def __init__(self, n):
        pass

class NoDefault(Circulant):
    def __init__(self, n, temperature):
        object.__setattr__(self, "n", n)

class NoExamples(Circulant):
    @classmethod
    def examples(cls):
        return ()

class WrongExamples(Circulant):
    @classmethod
    def examples(cls):
        return (4,)

class ExamplesRaise(Circulant):
    @classmethod
    def examples(cls):
        raise KeyError("examples")

class OwnError(Exception):
    pass

class Raises(Circulant):
    def forward(self, theta):
        raise OwnError("a bug of its own \\udc80 [/red] ‖")

class Leaves(Circulant):
    def forward(self, theta):
        sys.exit(0)

class Talks(Circulant):
    def identity(self, *, dtype=None, device=None):
        print("{")
        return super().identity(dtype=dtype, device=device)

class ReturnsNone(Circulant):
    def forward(self, theta):
        return None

class ReturnsList(Circulant):
    def forward(self, theta):
        return super().forward(theta).tolist()

class WrongShape(Circulant):
    def forward(self, theta):
        return super().forward(theta)[..., 0]

class NotANumber(Circulant):
    def forward(self, theta):
        return super().forward(theta) * float("nan")

class LooseTolerance(Circulant):
    def tolerance(self, dtype):
        return float("inf")

class NoTolerance(Circulant):
    def tolerance(self, dtype):
        return None

class WordsForNumbers(Circulant):
    num_coordinates = "n"

class WrongInvariants(Circulant):
    invariants = ("row_sums",)

class Secretive(Circulant):
    def __repr__(self):
        raise RuntimeError("a bug of its own")

class Unhashable(Circulant):
    __hash__ = None

class Outer:
    class Inner(Circulant):
        name = "inner"
'''

BREAK_LAWS = (
    *("BreaksFarOut", "Secretive", "Nameless", "Raises", "Leaves", "ReturnsNone", "ReturnsList", "WrongShape"),
    *("NotANumber", "LooseTolerance", "NoTolerance", "WordsForNumbers", "WrongInvariants", "Unhashable"),
)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a module, which is the current one; the module is imported anew."""
    (tmp_path / "my_plugin.py").write_text(HEALTHY + PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_plugin", raising=False)
    return tmp_path


def certificate(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """The certificate on stdout, read strictly, from a command that ends with this status."""
    result = run("verify", *arguments, "--json")
    assert result.exit_code == status, (result.output, result.exception)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return dict(json.loads(result.stdout, parse_constant=refuse))


# ------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "rewritten"),
    [
        (["x", "--n", "2", "3"], ["x", "--n", "2", "--n", "3"]),
        (["--n", "2", "3", "x"], ["--n", "2", "--n", "3", "x"]),
        (["x", "--n=2,3", "4", "--n", "8"], ["x", "--n", "2", "--n", "3", "--n", "4", "--n", "8"]),
        (["x", "--n"], ["x", "--n"]),
        (["x", "--n", "--json"], ["x", "--n", "--json"]),
        (["x", "--json"], ["x", "--json=-"]),
        (["--json", "x"], ["--json=-", "x"]),
        (["x", "--json", "y.json", "--n", "2"], ["x", "--json=y.json", "--n", "2"]),
        (["x", "--json=y"], ["x", "--json=y"]),
        (["--", "--n", "2", "3"], ["--", "--n", "2", "3"]),
    ],
)
def test_options_of_several_values_or_none(arguments: Sequence[str], rewritten: Sequence[str]) -> None:
    assert rewrite(arguments) == rewritten


def test_several_sizes() -> None:
    found = certificate("stiefel", "--n", "2", "3,4", "--examples", "1")
    assert [instance["options"]["n"] for instance in found["instances"]] == [2, 3, 3, 3, 4, 4]
    assert [instance["manifold"] for instance in found["instances"]][4:] == [
        "Stiefel(n=4)",
        "Stiefel(n=4, method='iterative')",
    ]


def test_a_size_that_is_refused_is_left_out_and_said(plugin: Path) -> None:
    result = run("verify", "my_plugin:Four", "--n", "3", "4", "--examples", "1")
    assert result.exit_code == 0, result.output
    assert "n=3 is refused: Four is for 4 streams" in result.stderr
    assert "on 1 manifolds" in result.stdout
    assert "Four takes none of these sizes: " in refused("verify", "my_plugin:Four", "--n", "3")
    assert "on 1 manifolds" in run("verify", "my_plugin:Four", "--examples", "1").stdout
    remarks = certificate("my_plugin:Four", "--n", "3", "4", "--examples", "1")["remarks"]
    assert any("n=3 is refused" in remark for remark in remarks)


@pytest.mark.parametrize("arguments", [("--n", "0"), ("--n", "x"), ("--n",), ("--examples", "0"), ("--seed", "-1")])
def test_bad_numbers(arguments: Sequence[str]) -> None:
    assert run("verify", "identity", *arguments).exit_code == 2


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    assert "cannot be written" in refused("verify", "identity", f"--json={tmp_path}/gone/x.json")
    assert "cannot be written" in refused("verify", "identity", f"--json={tmp_path}")


# ------------------------------------------------------------------------------------------------------- verdicts


def test_a_verdict_for_each_law() -> None:
    result = run("verify", "stiefel", "--n", "2", "--examples", "7", "--seed", "3")
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line.split("│") for line in result.stdout.splitlines() if "│" in line}
    assert set(rows) - {""} == {law.name for law in LAWS if law.applies(manifolds.make("stiefel", n=2))}
    membership = next(law for law in LAWS if law.name == "membership")
    assert int(rows["membership"][3]) == len(membership.grid()) + 7
    assert re.search(r"violation: \d", rows["membership"][4]) and "≤ " in rows["membership"][5]
    assert "seed 3" in result.stdout


def test_the_counterexample_is_a_line_for_a_fresh_interpreter(plugin: Path) -> None:
    """In the folder of the module the line raises the violation of the same law that the command found."""
    result = run("verify", "my_plugin:BreaksFarOut", "--n", "3", "--examples", "20")
    assert result.exit_code == 1
    assert "breaks membership: H violates no promised invariant" in result.stdout
    (line,) = set(re.findall(r"See it again with: (.*get_law\('membership'\).*)", result.stdout))
    done = subprocess.run([sys.executable, "-c", line], cwd=plugin, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "LawViolation: BreaksFarOut(n=" in done.stderr and "breaks the law 'membership'" in done.stderr
    assert "scale=100.0, batch=()" in line, "shrunk: the smallest scale that shows it, one token"


@pytest.mark.parametrize("name", BREAK_LAWS)
def test_whatever_a_class_does_is_a_verdict(plugin: Path, name: str) -> None:
    found = certificate(f"my_plugin:{name}", "--n", "3", "--examples", "2", status=1)
    broken = [law for instance in found["instances"] for law in instance["laws"] if not law["holds"]]
    assert broken and not found["holds"]
    assert all(f"my_plugin import {name}; " in law["reproducer"] for law in broken)


@pytest.mark.parametrize("name", ["Outer.Inner", "Talks"])
def test_classes_that_are_only_odd_pass(plugin: Path, name: str) -> None:
    assert certificate(f"my_plugin:{name}", "--n", "2", "--examples", "1")["holds"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "Unfinished",
            "is incomplete, it has to define: exact, forward, identity, invariants, num_coordinates; docs/",
        ),
        ("NoExamples", "NoExamples.examples() must return instances of the class, got ()"),
        ("WrongExamples", "WrongExamples.examples() must return instances of the class, got (4,)"),
        ("ExamplesRaise", "ExamplesRaise.examples() raised KeyError: 'examples'; override it"),
        ("OwnInit", "OwnInit.examples() raised FrozenInstanceError"),
        ("NoDefault", "NoDefault.examples() raised TypeError"),
        ("KeepsNothing", "a KeepsNothing has no n: its __init__ does not set the field"),
        ("OwnError", "takes a subclass of hyperconn.manifolds.Manifold"),
        ("Outer", "takes a subclass of hyperconn.manifolds.Manifold"),
        ("Gone", "my_plugin has no Gone"),
        ("", "neither a name nor package.module:Class"),
    ],
)
def test_what_is_no_manifold_is_refused(plugin: Path, name: str, says: str) -> None:
    assert says in refused("verify", f"my_plugin:{name}")


def test_sizes_help_where_examples_do_not(plugin: Path) -> None:
    result = run("verify", "my_plugin:ExamplesRaise", "--n", "2", "--examples", "1")
    assert result.exit_code == 0
    assert "default options only: ExamplesRaise.examples() raised KeyError" in result.stderr
    assert "NoDefault(n=2) raised TypeError" in refused("verify", "my_plugin:NoDefault", "--n", "2")


@pytest.mark.parametrize("name", ["/etc/passwd:X", "..my_plugin:X", "my_plugin.py:X y", ":X", "my_plugin:"])
def test_strange_names(name: str) -> None:
    assert "neither a name nor package.module:Class" in refused("verify", name)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("def f():\n    return 1 / 0\nf()", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
    ],
)
def test_an_error_of_the_module_is_shown_from_its_own_first_line(plugin: Path, source: str, error: str) -> None:
    (plugin / "fails_to_import.py").write_text(source, encoding="utf-8")
    result = run("verify", "fails_to_import:Thing", "--json")
    assert result.exit_code == 2 and result.stdout == ""
    assert error in result.stderr and "error: fails_to_import cannot be imported: " in result.stderr
    frames = re.findall(r'File "([^"]+)"', result.stderr)
    assert frames and {Path(frame).name for frame in frames} == {"fails_to_import.py"}


# --------------------------------------------------------------------------------------------------- certificates


def test_the_certificate_is_all_that_stdout_gets(plugin: Path) -> None:
    found = certificate("my_plugin:Talks", "--n", "2", "--examples", "1")
    assert found["manifold"] == "healthy" and found["class"] == "my_plugin:Talks" and found["provider"] is None


def test_two_runs_write_the_same_certificate(plugin: Path) -> None:
    """A fresh process, and this one, which has met all sorts of things by now."""
    arguments = ["verify", "my_plugin:BreaksFarOut", "--n", "2", "--examples", "10", "--json", "--seed"]
    command = [sys.executable, "-m", "hyperconn.cli", *arguments, "5"]
    fresh = subprocess.run(command, capture_output=True, text=True, check=False)
    assert fresh.returncode == 1 and len(fresh.stdout) > 1000
    assert fresh.stdout == run(*arguments, "5").stdout
    assert json.loads(fresh.stdout)["instances"] != json.loads(run(*arguments, "6").stdout)["instances"]


def test_a_certificate_in_a_file_leaves_stdout_to_the_table(tmp_path: Path) -> None:
    file = tmp_path / "identity.json"
    result = run("verify", "identity", "--n", "2", "--examples", "1", "--json", file)
    assert result.exit_code == 0 and "laws of identity" in words(result)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found == certificate("identity", "--n", "2", "--examples", "1")
    assert found["provider"]["distribution"] == "hyperconn" and set(found["laws"]) == {law.name for law in LAWS}


def test_numbers_that_json_does_not_have_are_strings(plugin: Path) -> None:
    found = certificate("my_plugin:NotANumber", "--n", "2", "--examples", "1", status=1)
    laws = {law["law"]: law for law in found["instances"][0]["laws"]}
    value = laws["membership"]["worst"]["value"]
    assert value == "NaN" and math.isnan(float(value))
    found = certificate("my_plugin:LooseTolerance", "--n", "2", "--examples", "1", status=1)
    laws = {law["law"]: law for law in found["instances"][0]["laws"]}
    assert laws["tolerance"]["worst"]["value"] == "Infinity" and not laws["tolerance"]["holds"]
