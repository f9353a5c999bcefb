"""Tables from TOML, YAML and JSON files. Data only: nothing in a file can run code, or keep a machine busy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperconn.manifolds.core.errors import shown
from hyperconn.manifolds.core.plain_data import MAX_DEPTH, MAX_SIZE, require_small

# Of a config file. More is refused before anything parses it.
MAX_BYTES = 1_000_000


def read_table(path: str | Path) -> dict[str, Any]:
    """The table in a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, a file of more than ``MAX_BYTES``, one that does not parse or holds no table, or a
            table beyond the limits of ``hyperconn.manifolds.core.plain_data``; the message names the file.
        ModuleNotFoundError: the parser is not installed; the message says what to install.
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
    except ValueError as error:
        said = str(error)
        raise ValueError(f"{path}: {said if len(said) <= 500 else said[:500] + ' …'}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: tables and lists are nested too deep, at most {MAX_DEPTH} are taken") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected a table of names and values, got {type(table).__name__}")
    return table


# A key of many parts, a.b.c, over which the parser would take time that grows with the square of their number.
# The pattern starts at the start of a word only, or it would be no better.
_DEEP_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MAX_DEPTH}}}""")


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("reading TOML on Python 3.10 needs: pip install 'hyperconn[cli]'") from error
    deep = _DEEP_KEY.search(text)
    if deep is not None:
        raise ValueError(f"a key has more than {MAX_DEPTH} parts: {shown(deep[0])}")
    return tomllib.loads(text)


# Values in a file, and characters in a value: the parser is slow.
_MAX_YAML = MAX_SIZE // 10


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading YAML needs: pip install 'hyperconn[cli]'") from error

    class PlainLoader(yaml.SafeLoader):
        """Scalars, lists and tables, each written out where it is and untagged.

        Aliases make tables that grow exponentially. A tag makes the constructors fail in ways of their own.
        """

        nodes = depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"aliases are not taken, *{event.anchor}: write the value out")
            if event.tag is not None:
                raise ValueError(f"tags are not taken, {shown(event.tag)}: write a plain value")
            # Numbers of base 60 take time that grows with the square of their length.
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_YAML:
                raise ValueError(f"a value has {len(event.value)} characters, at most {_MAX_YAML} are taken")
            self.nodes += 1
            if self.nodes > _MAX_YAML or self.depth >= MAX_DEPTH:
                raise ValueError(f"more than {_MAX_YAML} values, or nested more than {MAX_DEPTH} deep")
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(str(error)) from error


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": _parse_toml,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": json.loads,
}
