"""Tables from TOML, YAML and JSON files, and files that are never half-written. No table can run code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperconn.manifolds.core.errors import shown
from hyperconn.manifolds.core.plain_data import MAX_DEPTH, require_small

# Of a config file; published ones have some hundred bytes. Parsers take time that grows with the square of some inputs:
# keys of many parts, numbers of base 60. Of this much, each is read within seconds.
MAX_BYTES = 20_000


def read_table(path: str | Path) -> dict[str, Any]:
    """The table in a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, a file of more than ``MAX_BYTES``, one that does not parse, holds no table, or one
            that is nested too deep; the message names the file.
        ModuleNotFoundError: PyYAML is not installed; the message says how to install it.
    """
    path = Path(path)
    try:
        parse = _PARSERS[path.suffix.lower()]
    except KeyError:
        raise ValueError(f"{path}: a config file ends in {', '.join(_PARSERS)}, got {path.suffix!r}") from None
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"a config file has at most {MAX_BYTES} bytes, this one has {path.stat().st_size}")
        table = parse(content.decode("utf-8"))
        require_small(table, "the table")
    except (ValueError, OverflowError) as error:
        said = str(error)
        raise ValueError(f"{path}: {said if len(said) <= 500 else said[:500] + ' …'}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: tables and lists are nested too deep, at most {MAX_DEPTH} are taken") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected a table of names and values, got {type(table).__name__}")
    return table


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Replace ``path`` by ``content``, or leave it as it was.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and only then take the name.

    Raises:
        OSError: a full disk, a quota, no permission; the previous file survives and nothing else is left behind.
    """
    path = Path(path)
    # One name per process: two runs in one folder cannot write into each other's half-finished file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading YAML needs PyYAML: pip install 'hyperconn[yaml]'") from error

    class PlainLoader(yaml.SafeLoader):
        """No aliases, which make tables that grow exponentially, and no tags, with which constructors fail oddly."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"aliases are not taken, *{event.anchor}: write the value out")
            if event.tag is not None:
                raise ValueError(f"tags are not taken, {shown(event.tag)}: write a plain value")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": _parse_toml,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": json.loads,
}
