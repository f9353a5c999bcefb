"""Options that take several values, or none: ``--n 2 3 4`` and ``--json [FILE]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

STDOUT = "-"


class VerifyCommand(TyperCommand):
    """Rewrites what click cannot parse into what it can, before it parses."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the rewritten arguments."""
        return super().parse_args(ctx, rewrite(args))


def rewrite(arguments: Sequence[str]) -> list[str]:
    """``--n 2 3`` as ``--n 2 --n 3``, commas too, and ``--json`` as ``--json=-`` unless a name in .json follows.

    >>> rewrite(["--n", "2", "3,4", "stiefel", "--json"])
    ['--n', '2', '--n', '3', '--n', '4', 'stiefel', '--json=-']
    """
    rest = list(arguments)
    rewritten: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*rewritten, word, *rest]
        if word == "--json":
            word = f"--json={rest.pop(0) if rest and rest[0].endswith('.json') else STDOUT}"
        option, _, value = word.partition("=")
        if option != "--n":
            rewritten.append(word)
            continue
        sizes = value.split(",") if value else []
        while rest and (not sizes or rest[0].replace(",", "").isdecimal()):
            sizes += rest.pop(0).split(",")
        rewritten += [part for size in sizes for part in ("--n", size)] or ["--n"]
    return rewritten
