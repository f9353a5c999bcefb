"""The training loop: steps, evaluations and checkpoints, until done or interrupted."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from hyperconn.files import write_atomically
from hyperconn.lab.checkpoint import save_checkpoint
from hyperconn.lab.run import Run, learning_rate

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


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
    """Train ``run`` to its last step, with a checkpoint and the metrics of every step in the folder ``out``.

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
                write_metrics(run, out)
    return run.step >= config.steps


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def write_metrics(run: Run, out: Path) -> None:
    """A line of JSON a step: step, loss (bits per byte), gradient_norm, learning_rate, and held_out where evaluated."""
    held_out = dict(run.history.valid)
    lines = []
    for step, (loss, norm) in enumerate(zip(run.history.train, run.history.gradient, strict=True), 1):
        rate = learning_rate(run.config.train, step - 1)
        metrics = {"step": step, "loss": loss, "gradient_norm": norm, "learning_rate": rate}
        lines.append(json.dumps(metrics | ({"held_out": held_out[step]} if step in held_out else {})) + "\n")
    write_atomically(out / METRICS, "".join(lines).encode())


@torch.no_grad()
def sample(run: Run, prompt: bytes, length: int, temperature: float = 0.8) -> bytes:
    """``prompt`` and ``length`` bytes that the model goes on with; the same for the same weights and seed."""
    run.model.eval()
    generator = torch.Generator().manual_seed(run.config.train.seed)
    text = list(prompt)
    for _ in range(length):
        window = torch.tensor([text[-run.config.model.context :]], device=run.device)
        with run.autocast():
            logits = run.model(window)[0, -1].float().cpu()
        text.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
    return bytes(text)
