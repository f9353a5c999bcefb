"""One model in training: its state and the step that advances it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from hyperconn.lab.data import Corpus, step_seed, training_batch, validation_windows
from hyperconn.lab.model import GPT
from hyperconn.lab.settings import LabConfig, TrainConfig

_NATS_PER_BIT = math.log(2)


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


@dataclass
class History:
    """What happened so far, in bits per byte.

    Attributes:
        train: loss of every step.
        gradient: norm of the gradient of every step, before it is clipped.
        valid: pairs of a step and the validation loss after it.
    """

    train: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    valid: list[tuple[int, float]] = field(default_factory=list)


class Run:
    """A model, its optimizer and its position in training.

    Everything that decides the next step is here or follows from the config: two runs with equal config and data are
    equal bit for bit on the same machine with the same number of threads.

    Args:
        config: what to build and how to train it.
        corpus: the text.
    """

    def __init__(self, config: LabConfig, corpus: Corpus) -> None:
        self.config, self.corpus = config, corpus
        self.device = resolve_device(config.train.device)
        self.model = GPT(config.model, config.hyper_connection, seed=config.train.seed).to(self.device)
        self.optimizer = _optimizer(self.model, config.train)
        self.step = 0
        self.saved = 0  # step of the last checkpoint
        self.history = History()
        self._windows = validation_windows(corpus, config.train.eval_windows, config.model.context)

    def advance(self) -> float:
        """Take one optimizer step; returns the seconds that it took.

        Raises:
            DivergedError: the loss is nan or inf; the weights are those of the step before.
        """
        config = self.config.train
        tokens, following = training_batch(self.corpus, config.seed, self.step, config.batch, self.config.model.context)
        started = time.perf_counter()
        self.model.train()
        # Dropout, like the data, is a function of the seed and the step: a resumed run needs no generator state, and
        # models that are compared drop the same entries.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(step_seed(config.seed, self.step))
            with self.autocast():
                loss = self.model.loss(tokens.to(self.device), following.to(self.device))
            loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf))
        bits = loss.item() / _NATS_PER_BIT
        if not (math.isfinite(bits) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise DivergedError(
                f"training diverged at step {self.step + 1}: the loss is {bits:.4g} bits per byte, the gradient norm "
                f"{norm:.4g}; lower train.learning_rate or lengthen train.warmup"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - started
        self.step += 1
        self.history.train.append(bits)
        self.history.gradient.append(norm)
        return seconds

    def autocast(self) -> torch.autocast:
        """What the model computes in: ``train.dtype``."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.dtype == "bfloat16")

    @torch.no_grad()
    def evaluate(self) -> float:
        """Bits per byte on the held-out windows, recorded in the history."""
        self.model.eval()
        tokens, following = self._windows
        size = max(self.config.train.batch, 16)
        with self.autocast():
            total = sum(
                self.model.loss(part.to(self.device), target.to(self.device)).item() * len(part)
                for part, target in zip(tokens.split(size), following.split(size), strict=True)
            )
        bits = total / len(tokens) / _NATS_PER_BIT
        if not self.history.valid or self.history.valid[-1][0] != self.step:
            self.history.valid.append((self.step, bits))
        return bits


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step ``step``, counted from 0.

    >>> [learning_rate(TrainConfig(learning_rate=1.0, warmup=4), step) for step in (0, 3, 10)]
    [0.25, 1.0, 1.0]
    >>> cosine = TrainConfig(learning_rate=1.0, warmup=4, steps=15, schedule="cosine")
    >>> [round(learning_rate(cosine, step), 3) for step in (3, 4, 9, 14)]
    [1.0, 1.0, 0.55, 0.1]
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


def resolve_device(name: str, option: str = "train.device") -> torch.device:
    """The device that an option means; raises ValueError where it does not exist here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"{option} {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
