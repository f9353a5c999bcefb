"""How the tests of the command line call it, and a small run for it to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner, Result

from hyperconn.cli.app import app
from lab_cases import tiny, write_text


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The one line that a command prints to stderr as it ends with status 2."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0].removeprefix("error: ")


def words(result: Result) -> str:
    """Output without line breaks and table borders."""
    return " ".join(re.sub(r"[│┃|]", " ", result.stdout).split())


def write_config(tmp_path: Path, **train: int) -> Path:
    text = write_text(tmp_path / "text.txt")
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny(data={"path": str(text)}, train=train).to_dict()))
    return path
