"""What the commands print to, and how they turn bad input into one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130  # what a shell expects of a program ended by SIGINT

# A pipe or a log has no width of its own; rich's 80 columns would break tables there.
_PIPE_WIDTH = 120
output = Console(width=None if Console().is_terminal else _PIPE_WIDTH)
_errors = Console(stderr=True, soft_wrap=True)


def progress(message: str) -> Status:
    """A line on stderr that says what a command is at, for as long as its context lasts."""
    return _errors.status(message)


def say(message: str) -> None:
    """Print plain text: no markup, no colours, no line breaks of our own."""
    output.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn the errors that describe bad input into one line and exit status 2.

    Wrap the reading of arguments, configs, data and checkpoints in it, never the work itself: there a ValueError is a
    bug, and its traceback is wanted.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        fail(str(error), BAD_INPUT)


def fail(message: str, status: int) -> NoReturn:
    """Print ``message`` to stderr as one line and exit."""
    _errors.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False)
    raise typer.Exit(status)
