"""The documentation runs, says something about everything, links only to what exists, and draws what the code does."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shutil
import sys
import textwrap
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_cases import run
from hyperconn import HyperConnectionConfig, gates, manifolds, predictors
from hyperconn.testing.certificate import BEGIN
from source_tree import ROOT, call, make_environment

DOCS = ROOT / "docs"
PAGES = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")] + sorted(DOCS.rglob("*.md"))
BUILT_IN = [name for name in manifolds.available() if manifolds.get(name).__module__.startswith("hyperconn.manifolds.")]
MOST_WORDS = 12_000  # of README and docs/ but the reference; a page that grows has to earn its place


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The fenced Python blocks of a page, each with the number of lines above it."""
    assert len(re.findall(r"^```", text, flags=re.MULTILINE)) % 2 == 0, "a block is never closed"
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: block.start(1)].count("\n"), block[1]) for block in found]


def run_blocks(path: Path) -> int:
    """Run a page's blocks in order in one module, which classes and pickles can name; return how many ran."""
    page = types.ModuleType(f"docs_{path.stem.replace('-', '_')}")
    sys.modules[page.__name__] = page
    blocks = python_blocks(path.read_text(encoding="utf-8"))
    try:
        for lines_above, source in blocks:
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * lines_above + source, str(path), "exec"), page.__dict__)
    finally:
        del sys.modules[page.__name__]
    return len(blocks)


@pytest.fixture
def own_names(own_names: None, request: pytest.FixtureRequest) -> None:
    if "circulant" in manifolds.available() and "manifolds/circulant" not in request.node.name:
        manifolds.unregister("circulant")  # somebody has followed the guide


WITH_BLOCKS = [path for path in PAGES if python_blocks(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=name_of)
@pytest.mark.usefixtures("own_names")
def test_pages_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes is nobody else's business
    assert run_blocks(path) > 0


def test_nothing_that_runs_is_missing() -> None:
    must = ["quickstart", "vision", "presets", "checkpoints", "gates-and-predictors", "add-a-manifold"]
    must += ["manifolds/index"]
    must += [f"manifolds/{name}" for name in BUILT_IN]
    assert {path.stem for path in (DOCS / "examples").glob("*.py")} == set(EXAMPLES)
    assert {DOCS / f"{page}.md" for page in must} | {ROOT / "README.md"} <= set(WITH_BLOCKS)


def test_a_wrong_page_fails(tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text("Text.\n\n```python\nx = 1\n```\n\n```python\nassert x == 1\nassert x == 2\n```\n", "utf-8")
    with pytest.raises(AssertionError) as failure:
        run_blocks(page)
    assert failure.traceback[-1].lineno + 1 == 9  # the line of the page, counted from 1
    page.write_text("```python\nx = 1\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="never closed"):
        run_blocks(page)


EXAMPLES = {  # a file, and what its last lines have to say: losses fall, starts and sets hold
    "nanogpt_block": lambda loss, last: last < 0.5 * loss,
    "vit_block": lambda loss, last, accuracy: last < 0.5 * loss and accuracy > 0.8,
    "resnet_digits": lambda loss, last, accuracy: last < 0.5 * loss and accuracy > 0.8,
    "static_weight": lambda error, worst: error < 0.05 and worst < 1e-5,
    "own_manifold": lambda broken, worst: broken == 0 and worst < 1e-5,
    "own_gate": lambda loss, last, least: last < loss and least >= 0.1,
}


TRAINED = ("nanogpt_block", "vit_block", "resnet_digits")
TWO_STEPS = {"range": lambda stop: range(min(stop, 2))}  # in place of the builtin


@pytest.mark.parametrize(
    ("name", "names"),
    [
        *((name, TWO_STEPS if name in TRAINED else {}) for name in EXAMPLES),
        *(pytest.param(name, {}, marks=pytest.mark.exhaustive) for name in TRAINED),
    ],
)
@pytest.mark.usefixtures("own_names")
def test_examples(name: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = DOCS / "examples" / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    with torch.random.fork_rng():
        runpy.run_path(str(path), init_globals=names, run_name="__main__")
    printed = re.findall(r"= ([-+.\de]+)", capsys.readouterr().out)
    assert names or EXAMPLES[name](*map(float, printed)), printed


@pytest.mark.usefixtures("own_names")
def test_the_guide_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class goes into a file, and the command of the next step accepts it."""
    guide = text_of("add-a-manifold")
    (tmp_path / "my_manifolds.py").write_text(python_blocks(guide)[0][1], encoding="utf-8")
    (command,) = re.findall(r"^hyperconn (verify my_manifolds:Circulant) .*#", guide, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    verified = run(*command.split(), "--n", "2", "--examples", "1")
    assert verified.exit_code == 0 and "membership" in verified.stdout, verified.output


NEW_PAGE = """# `circulant`

Mixtures of the cyclic shifts of the streams.

```python
from hyperconn import manifolds

m = manifolds.make("circulant", n=4)
assert m.num_coordinates == 4
```
"""


@pytest.mark.exhaustive
def test_a_manifold_takes_three_files_and_nothing_else(tmp_path: Path) -> None:
    """The guide, played in a copy of the tree: the command of its last step, then the tests that look at all parts."""
    guide = text_of("add-a-manifold")
    source = python_blocks(guide)[0][1]
    imports = textwrap.dedent(re.findall(r"^ *```py\n(.*?)^ *```", guide, flags=re.MULTILINE | re.DOTALL)[0])
    (command,) = re.findall(r"`hyperconn (verify circulant\s+--pages docs/manifolds)`", guide)
    tree = tmp_path / "tree"
    generated = shutil.ignore_patterns("__pycache__", "build", "*.egg-info", ".*", "runs", "dist", "site")
    shutil.copytree(ROOT, tree, ignore=generated)

    theirs = "from hyperconn.manifolds import Manifold, invariants, register\n"
    assert theirs in source
    (tree / "manifolds" / "circulant.py").write_text(
        f'"""Circulant matrices."""\n\n{source.replace(theirs, imports)}', encoding="utf-8"
    )
    init = tree / "manifolds" / "__init__.py"
    text = init.read_text(encoding="utf-8")
    first, name = "from hyperconn.manifolds.core import invariants\n", '    "Birkhoff",\n'
    assert text.count(first) == text.count(name) == 1
    text = text.replace(first, f"from hyperconn.manifolds.circulant import Circulant\n{first}")
    init.write_text(text.replace(name, f'{name}    "Circulant",\n'), encoding="utf-8")
    (tree / "docs" / "manifolds" / "circulant.md").write_text(NEW_PAGE, encoding="utf-8")

    commands = make_environment(tmp_path, "--editable", tree)
    call(commands / "python", "-m", "hyperconn", *command.split(), "--examples", "20", cwd=tree)
    files, chosen = (
        ["tests/test_docs.py", "tests/test_packaging.py"],
        "circulant or documented or missing or import or circle",
    )
    passed = call(
        commands / "python", "-m", "pytest", "-q", "-n", "0", *files, "-k", f"{chosen} or names or wheel", cwd=tree
    )
    assert int(re.search(r"\b(\d+) passed", passed)[1]) > 12 and "failed" not in passed, passed
    call(commands / "python", "-m", "ruff", "check", "manifolds", cwd=tree)
    call(commands / "python", "-m", "ruff", "format", "--check", "manifolds", cwd=tree)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_manifold_has_a_page(name: str) -> None:
    page, cls = text_of(f"manifolds/{name}"), manifolds.get(name)
    assert "Every [law](../laws.md) holds" in page, "run `make certificates`"
    assert page.startswith(f"# `{name}`\n")
    named = [*manifolds.aliases(name), *(field.name for field in dataclasses.fields(cls) if field.name != "n")]
    assert [word for word in named if f"`{word}`" not in page] == [], "aliases and options that the page leaves out"
    assert [word for word in cls.source.split() if word not in page] == [], f"the source {cls.source!r}"


def test_everything_with_a_name_is_documented() -> None:
    assert {path.stem for path in (DOCS / "manifolds").glob("*.md")} == {*BUILT_IN, "index"} and len(BUILT_IN) >= 8
    parts, keys = text_of("gates-and-predictors"), [field.name for field in dataclasses.fields(HyperConnectionConfig)]
    for name in [name for part in (gates, predictors) for name in part.available()]:
        assert f"| `{name}` |" in parts or "hyperconn_example" in str(gates.provider(name)), name
    for name in HyperConnectionConfig.presets():
        assert f"\n| `{name}` |" in text_of("presets"), f"the preset {name!r}"
    table = "\n".join(line.split("|")[1] for line in text_of("quickstart").splitlines() if line.startswith("| "))
    assert [key for key in keys if f"`{key}`" not in table] == [], "keys that the quickstart leaves out"


def test_the_pages_stay_short() -> None:
    """What is generated does not count: the reference, and what `make certificates` writes."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    texts = [path.read_text(encoding="utf-8") for path in pages if DOCS / "reference" not in path.parents]
    assert len(texts) > 20 and sum(len(text.partition(BEGIN)[0].split()) for text in texts) <= MOST_WORDS


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Targets of the links and images of a page."""
    return re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", without_blocks(text)))


def anchors(text: str) -> set[str]:
    """The fragments that code hosts make of a page's headings; no page has a heading twice."""
    headings = re.findall(r"^#{1,6} +(.*)$", without_blocks(text), flags=re.MULTILINE)
    found = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    assert len(set(found)) == len(found), found
    return set(found)


def broken_links(path: Path) -> list[str]:
    """Relative links of a page whose file, or whose heading, does not exist."""
    broken = []
    for link in links(path.read_text(encoding="utf-8")):
        target, _, fragment = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # another site
        if not file.exists() or (fragment and fragment not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path: Path) -> None:
    assert broken_links(path) == []


def test_links_are_checked(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A `title`, here\n```\n# no heading\n```\n", encoding="utf-8")
    page = tmp_path / "page.md"
    good = "[a](there.md) [b](there.md#a-title-here) [c](https://x.org/y) [d](#own)\n# Own\n"
    bad = "[f](gone.md) ![g](gone.png) [h](there.md#gone) [i](#gone) [j](there.md#no-heading)\n"
    page.write_text(good + bad + "`[k](gone.md)`\n```\n[l](gone.md)\n```\n", encoding="utf-8")
    assert broken_links(page) == ["gone.md", "gone.png", "there.md#gone", "#gone", "there.md#no-heading"]


# What has a picture; a manifold that joins later may come without.
PICTURES = [path.stem for path in sorted((DOCS / "images" / "manifolds").glob("*.svg"))]


@pytest.fixture(scope="module")
def pictures() -> types.SimpleNamespace:
    return types.SimpleNamespace(**runpy.run_path(str(DOCS / "pictures.py")))


def numbers(text: str) -> tuple[str, list[float]]:
    """The text without its numbers, and the numbers."""
    pattern = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.sub(pattern, "#", text), [float(number) for number in re.findall(pattern, text)]


def stale(stored: str, drawn: str) -> bool:
    """Whether a picture shows other matrices; machines may differ in the last digit that is shown."""
    (old, then), (new, now) = numbers(stored), numbers(drawn)
    return old != new or any(abs(a - b) > max(0.02, 0.11 * abs(b)) for a, b in zip(then, now, strict=True))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_up_to_date_and_shown(name: str, pictures: types.SimpleNamespace) -> None:
    stored = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert not stale(stored, pictures.draw(name)), "run `make pictures`"
    assert len(stored.encode()) < 60_000
    assert len(ElementTree.fromstring(stored).findall(".//{*}text")) == 5 * 17 + 1
    ((alternative, file),) = re.findall(r"!\[(.*?)\]\((.*?)\)", text_of(f"manifolds/{name}"))
    assert file == f"../images/manifolds/{name}.svg"
    assert len(alternative.split()) >= 5


def test_a_stale_picture_is_noticed(pictures: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PICTURES) >= 8 and set(PICTURES) <= set(manifolds.available())
    stored = (pictures.FOLDER / "stiefel.svg").read_text(encoding="utf-8")
    forward = manifolds.Stiefel.forward
    monkeypatch.setattr(manifolds.Stiefel, "forward", lambda self, theta: forward(self, theta).mT)
    assert stale(stored, pictures.draw("stiefel"))


def test_pictures_show_the_applied_matrices(pictures: types.SimpleNamespace) -> None:
    drawn, eigenvalues = pictures.panels("stiefel")
    for _, H in drawn:
        assert manifolds.make("stiefel", n=4).violation(H) < 1e-13
    assert eigenvalues.shape == (600,) and torch.allclose(eigenvalues.abs(), torch.ones(600, dtype=torch.float64))
    assert [pictures.written(value) for value in (0.5, -0.001, 12.3, -5e6)] == ["0.50", "0.00", "12", "-5e6"]
