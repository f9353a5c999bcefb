"""The plugin in docs/plugin-example, as somebody else meets it: built, installed, chosen by name, proved, removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from source_tree import PACKAGES, ROOT

EXAMPLE = ROOT / "docs" / "plugin-example"

INSTALLED = """
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
for module in (hyperconn, hyperconn.manifolds, hyperconn_example_manifolds):
    print(module.__file__)
"""

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


def environment(folder: Path) -> Path:
    """A virtual environment with hyperconn and the example, from wheels; returns its folder of commands.

    What they depend on is the running environment's, whose folders of packages come last on the path. Paths that are
    named in files there are not followed, so an editable hyperconn does not leak in.
    """
    sources, generated = folder / "hyperconn-source", shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sources / package, ignore=generated)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(EXAMPLE, folder / "example", ignore=generated)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "./hyperconn-source", "./example"]
    call(sys.executable, "-m", "pip", "--quiet", *build, cwd=folder)

    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    commands, wheels = folder / "venv" / "bin", sorted((folder / "wheels").glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["hyperconn", "hyperconn_example_manifolds"]
    # Before the other packages can be seen: pip would find a hyperconn among them.
    pip(commands, "install", "--no-deps", "--no-index", *wheels)
    (installed,) = (folder / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (installed / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return commands


def pip(commands: Path, command: str, *arguments: str | Path) -> None:
    """The running environment's pip at work on another one."""
    call(sys.executable, "-m", "pip", "--quiet", "--python", commands / "python", command, *arguments)


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to end well; returns what it printed, as words."""
    ours = ("PYTHON", "HYPERCONN", "TRITON")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, f"{command}: status {run.returncode}\n{run.stdout}\n{run.stderr}"
    return " ".join(f"{run.stdout}\n{run.stderr}".split())


def test_the_life_of_a_plugin(tmp_path: Path) -> None:
    commands = environment(tmp_path)
    python, hyperconn = commands / "python", commands / "hyperconn"

    listed = call(hyperconn, "list", cwd=tmp_path)
    for name in ("circulant", "orthostochastic", "quaternion", "transportation"):
        assert re.search(rf" {name} \d", listed), listed
    call(hyperconn, "verify", "transportation", "--n", "4", "--examples", "1", cwd=tmp_path)
    blocks = re.findall(r"^```python installed\n(.*?)^```", (EXAMPLE / "README.md").read_text("utf-8"), re.M | re.S)
    assert blocks
    files = call(python, "-c", "\n".join([INSTALLED, *blocks]), cwd=tmp_path).split()
    assert len(files) == 3 and all(Path(file).is_relative_to(tmp_path / "venv") for file in files), files
    passed = call(python, "-m", "pytest", "-q", cwd=tmp_path / "example")
    assert re.search(r"\b[1-9]\d* passed", passed) and "skipped" not in passed, passed

    pip(commands, "uninstall", "--yes", "hyperconn-example-manifolds")
    missing = call(python, "-c", REMOVED, cwd=tmp_path)
    assert missing.count("pip install 'hyperconn-example-manifolds==0.1.0'") == 2, missing
