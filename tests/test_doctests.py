"""Every example in a docstring runs and prints what it says.

Modules are imported by name: collecting the examples by path would import `manifolds/` a second time under another
name, with a registry of its own.
"""

from __future__ import annotations

import doctest
import importlib

import pytest

import source_tree
from source_tree import ALL_SOURCES, module_name

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [module_name(path) for path in ALL_SOURCES if path.name != "__main__.py"]
FEWEST = {"hyperconn.manifolds": 10, "hyperconn": 15}  # examples below a package, so that none are lost unnoticed


def run(tests: list[doctest.DocTest]) -> int:
    """Run the examples with one namespace each, fail with their report, return how many ran."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    return runner.tries


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    run(doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)))


def test_examples_are_found_and_can_fail() -> None:
    finder = doctest.DocTestFinder()
    found = {name: sum(len(t.examples) for t in finder.find(importlib.import_module(name))) for name in MODULES}
    for package, fewest in FEWEST.items():
        assert sum(count for name, count in found.items() if f"{name}.".startswith(f"{package}.")) >= fewest, found
    assert run(finder.find(source_tree)) == 1
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", "wrong", 0)
    with pytest.raises(AssertionError, match="Expected:"):
        run([wrong])
