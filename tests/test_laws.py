"""Every law on every example of everything that is registered, without naming one; and the commands around them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from broken_manifolds import MissesTheIdentity
from cli_cases import run
from hyperconn import gates, manifolds, predictors
from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.map import Map
from hyperconn.manifolds.registry import MANIFOLDS
from hyperconn.testing import (
    LAWS,
    SCALES,
    SHAPES,
    ContractError,
    GateLaws,
    ManifoldLaws,
    check_law,
    gate_laws,
    kernel_laws,
    manifold_laws,
    predictor_laws,
    subjects,
    verify,
)
from hyperconn.testing.cases import grid
from hyperconn.testing.certificate import BEGIN, put
from hyperconn.testing.subjects import choose
from source_tree import ROOT

# Cases drawn on top of the fixed ones; `make laws` takes more.
EXAMPLES = 4
KINDS = {manifolds: manifold_laws, gates: gate_laws, predictors: predictor_laws}

for module, suite in KINDS.items():
    for name in module.available():
        part = module.get(name)
        globals()[f"Test{part.__name__}"] = suite(part, examples=0)
        globals()[f"TestMore{part.__name__}"] = pytest.mark.exhaustive(suite(part, examples=EXAMPLES, seed=0))
for gate in gates.BUILT_IN:
    if gate(n=2).kernel is not None:
        globals()[f"Test{gate.__name__}OnTheDevice"] = kernel_laws(gate, sizes=(3,))

INSTANCES = tuple(each for module in KINDS for name in module.available() for each in choose(module.get(name)))
OF_MANIFOLDS = tuple(each for each in INSTANCES if isinstance(each, Manifold))


ONE_OF_EACH = {type(getattr(each, "predictor", each)): each for each in reversed(INSTANCES) if each.n == 3}


@pytest.mark.parametrize("part", ONE_OF_EACH.values(), ids=[part.__name__ for part in ONE_OF_EACH])
def test_drawn_cases(part: Map) -> None:
    assert [verdict for verdict in verify(part, examples=EXAMPLES) if not verdict.holds] == []


def test_nothing_is_left_out() -> None:
    concerned = {law.name: [each for each in INSTANCES if law.applies(each)] for law in LAWS}
    assert len(LAWS) == 41 and all(concerned.values()) and len(ONE_OF_EACH) > 15
    assert sum(map(len, concerned.values())) > 15 * len(INSTANCES) and len(OF_MANIFOLDS) > 65
    for module in KINDS:
        for name in module.available():
            examples = module.get(name).examples()
            assert len(set(examples)) == len(examples) and all(type(m) is module.get(name) for m in examples)
    tests = [test for test in vars(globals()["TestStiefel"]) if test.startswith("test_")]
    assert len(tests) > 25 and "test_membership" in tests


def test_the_grid_meets_what_the_laws_promise() -> None:
    """Each law meets each of its scales in each dtype, and each of its batch shapes, whatever is drawn beyond."""
    m = manifolds.make("birkhoff", n=3)
    for law in LAWS:
        fixed = grid(law, m)
        assert {(case.dtype, case.scale) for case in fixed} == {(d, s) for d in law.dtypes for s in law.scales}
        assert {case.batch for case in fixed} == set(law.batches)
    by_name = {law.name: law for law in LAWS}
    assert by_name["shape"].batches == SHAPES == ((), (0,), (3,), (2, 3))
    for name in ("membership", "finite", "norm_bound"):
        assert by_name[name].scales == SCALES == (0.0, 1e-3, 1.0, 10.0, 1e2, 1e4)
        assert {torch.float32, torch.float64, torch.bfloat16} == set(by_name[name].dtypes)


def test_two_lines_are_a_suite() -> None:
    class TestMine(ManifoldLaws):
        subject = manifolds.Stiefel
        sizes = (3,)
        examples = 1

    names = [name for name in vars(TestMine) if name.startswith("test_")]
    assert len(names) > 25 and "test_round_trip" in names
    (mark,) = TestMine.test_membership.pytestmark  # type: ignore[attr-defined]
    assert mark.args[0] == "subject" and {each.n for each in mark.args[1]} == {3}
    with pytest.raises(ContractError, match="subclass of Gate, got <class"):
        type("TestWrong", (GateLaws,), {"subject": manifolds.Stiefel})
    with pytest.raises(ContractError, match=r"takes none of these sizes: n=7 is refused"):
        choose(manifolds.Permutation, (7,))


def test_a_suite_that_must_fail_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n")
    source = "from broken_manifolds import MissesTheIdentity\nfrom hyperconn.testing import ManifoldLaws\n\n\n"
    source += "class TestBroken(ManifoldLaws):\n    subject = MissesTheIdentity\n    sizes = (3,)\n    examples = 1\n"
    (tmp_path / "test_broken.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "breaks the law 'identity'" in done.stdout
    assert re.search(r"1 failed, \d\d passed", done.stdout)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.exhaustive)])
def test_verify_writes_into_pages(tmp_path: Path, jobs: str) -> None:
    page = tmp_path / "identity.md"
    page.write_text("# `identity`\n", encoding="utf-8")
    done = run("verify", "identity", "softmax", "--examples", "5", "--jobs", jobs, "--pages", str(tmp_path))
    assert done.exit_code == 0 and "membership" in done.output and "read_start" in done.output
    written = page.read_text(encoding="utf-8")
    assert written.count(BEGIN) == 1 and "Every [law]" in written
    assert " in bfloat16, " in written and put(written, written[written.index(BEGIN) :].strip()) == written
    with pytest.raises(ValueError, match="once each"):
        put(written + BEGIN, BEGIN)


def test_verify_takes_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in subjects.KINDS:
        monkeypatch.setattr(registry, "available", lambda known=(("misses",) if registry is MANIFOLDS else ()): known)
    manifolds.register("misses")(MissesTheIdentity)
    try:
        done = run("verify", "--all", "--n", "3", "--examples", "1")
    finally:
        manifolds.unregister("misses")
    assert done.exit_code == 1 and "MissesTheIdentity(n=3) breaks identity" in done.output
    assert "get_law('identity').check(" in done.output


def test_no_part_of_the_library_is_left_out() -> None:
    refused = run("verify", "--all", "--n", "7")
    assert refused.exit_code == 2 and "Kronecker takes none of these sizes" in refused.output


def test_verify_takes_names_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = "from broken_manifolds import MissesTheIdentity as Mine\nfrom hyperconn.gates import Softmax\nthree = 3\n"
    (tmp_path / "my_parts.py").write_text(source, encoding="utf-8")
    good = run("verify", "my_parts:Softmax", "--n", "3", "--examples", "2")
    assert good.exit_code == 0 and "read_start" in good.output and "19 of 19 checks hold" in good.output
    bad = run("verify", "my_parts:Mine", "--n", "3", "--examples", "1", "--json")
    assert bad.exit_code == 1 and not json.loads(bad.stdout)["holds"]
    twice = [run("verify", "static", "--examples", "2", "--json", "--seed", "3").stdout for _ in range(2)]
    assert twice[0] == twice[1] and json.loads(twice[0])["name"] == "static"
    for wrong, said in (("my_parts:three", "got 3"), ("my_parts:Lost", "has no Lost"), ("stifel", "stiefel")):
        refused = run("verify", wrong, "--examples", "1")
        assert refused.exit_code == 2 and said in refused.output


def test_hypothesis_is_needed_by_the_laws_alone() -> None:
    code = "import sys, hyperconn; print('hypothesis' in sys.modules); sys.modules['hypothesis'] = None"
    done = subprocess.run([sys.executable, "-c", f"{code}; import hyperconn.testing"], capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
    assert done.returncode != 0 and "pip install 'hyperconn[cli]'" in done.stderr


def test_laws_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not apply .* law.applies"):
        check_law("iterations", manifolds.Stiefel(n=3))
    with pytest.raises(KeyError, match="Did you mean 'membership'"):
        check_law("member_ship", manifolds.Stiefel(n=3))
