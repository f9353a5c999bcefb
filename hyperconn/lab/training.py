"""The training loop: steps, evaluations and checkpoints, until done or interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hyperconn.lab.checkpoint import save_checkpoint
from hyperconn.lab.run import Run

CHECKPOINT = "checkpoint.pt"


@contextmanager
def deferred_interrupt(on_request: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C as a request that a loop honours between two steps: what it gives says whether there was one.

    ``on_request`` is called at once, to tell people. The second Ctrl-C ends the program as usual. Use it in the main
    thread: Python delivers signals nowhere else.
    """
    requested = False
    previous = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_request()

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)


def train(
    run: Run,
    out: Path,
    *,
    on_step: Callable[[float], None] = lambda seconds: None,
    on_evaluation: Callable[[float], None] = lambda bits: None,
    on_interrupt: Callable[[], None] = lambda: None,
) -> bool:
    """Train ``run`` to its last step, with a checkpoint in the folder ``out``.

    Args:
        run: what to train; it may already be under way.
        out: an existing folder.
        on_step: called after every step with its seconds.
        on_evaluation: called after every evaluation with its bits per byte.
        on_interrupt: called at the first SIGINT.

    Returns:
        True when the last step was taken; False when SIGINT came first. A checkpoint of the last step taken is there
        either way.

    Raises:
        DivergedError: the loss is nan or inf; the last checkpoint is from before.
        CheckpointNotWrittenError: the disk is full, say; the checkpoint before it survives.
    """
    config = run.config.train
    with deferred_interrupt(on_interrupt) as interrupted:
        while run.step < config.steps and not interrupted():
            on_step(run.advance())
            last = run.step == config.steps
            if not interrupted() and (last or _due(run.step, config.eval_every)):
                on_evaluation(run.evaluate())
            if interrupted() or last or _due(run.step, config.checkpoint_every):
                save_checkpoint(run, out / CHECKPOINT)
    return run.step >= config.steps


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
