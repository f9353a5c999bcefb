"""The plugin in docs/plugin-example, as others meet it: chosen by name, and built, installed, proved, removed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cli_cases import run, words
from plugin_cases import Install
from source_tree import ROOT, build_wheel, call, make_environment, pip, pyproject

EXAMPLE = ROOT / "docs" / "plugin-example"
NAME = "hyperconn-example-manifolds"
MANIFOLDS = ("circulant", "orthostochastic", "quaternion", "transportation")

BLOCKS = re.findall(r"^```python installed\n(.*?)^```", (EXAMPLE / "README.md").read_text("utf-8"), re.M | re.S)
USED = """
import json, pathlib, torch
import hyperconn, hyperconn_example_manifolds
from hyperconn import HyperConnection, HyperConnectionConfig

gated = dict(predictor="low_rank", pre_gate="channel_gate", pre_gate_options={"channels": 6})
for fields in ({"manifold": "transportation", "fn_std": 0.05}, {"manifold": "identity", "fn_std": 0.05, **gated}):
    config = HyperConnectionConfig(streams=4, **fields)
    layer = HyperConnection(torch.nn.Linear(6, 6), dim=6, config=config)
    layer(torch.randn(3, 4, 6)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())
    pathlib.Path(f"{config.manifold}.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
""" + "\n".join(BLOCKS)
FILES = "for module in (hyperconn, hyperconn.manifolds, hyperconn_example_manifolds):\n    print(module.__file__)\n"

# What hyperconn itself saved also knows where a part came from.
REMOVED = """
from hyperconn import HyperConnectionConfig, UnknownNameError

for name in ("transportation", "identity"):
    try:
        HyperConnectionConfig.from_file(f"{name}.json")
        raise SystemExit(f"{name} was found")
    except UnknownNameError as error:
        print(error)
"""


def test_its_parts_are_found_by_name(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a copy of its sources, under the entry points that it declares."""
    project = pyproject(EXAMPLE)["project"]
    info = install(project["name"], project["version"], entries={})
    tables = project["entry-points"].items()
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items()) for group, entries in tables]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    shutil.copytree(EXAMPLE / "src", info.parent, dirs_exist_ok=True)
    shown = words(run("list"))
    assert all(f" {name} " in shown for name in MANIFOLDS) and " broken " not in shown
    monkeypatch.chdir(tmp_path)
    assert BLOCKS
    exec(USED, {})
    assert f"provided by {NAME} 0.1.0" in words(run("show", "quaternion"))


def environment(folder: Path) -> Path:
    """A virtual environment with hyperconn and the example, from wheels; returns its folder of commands."""
    wheels = [build_wheel(ROOT, folder / "hyperconn-source"), build_wheel(EXAMPLE, folder / "example")]
    return make_environment(folder, *wheels)


@pytest.mark.exhaustive
def test_the_life_of_a_plugin(tmp_path: Path) -> None:
    commands = environment(tmp_path)
    python = commands / "python"
    assert re.search(rf"provided by\W+{NAME} 0\.1\.0", call(commands / "hyperconn", "show", "quaternion"))
    files = call(python, "-c", USED + FILES, cwd=tmp_path).split()
    assert len(files) == 3 and all(Path(file).is_relative_to(tmp_path / "venv") for file in files), files
    passed = call(python, "-m", "pytest", "-q", cwd=tmp_path / "example")
    assert re.search(r"\b[1-9]\d* passed", passed) and "skipped" not in passed, passed

    pip(commands, "uninstall", "--yes", NAME)
    missing = call(python, "-c", REMOVED, cwd=tmp_path)
    assert missing.count(f"pip install '{NAME}==0.1.0'") == 2, missing
