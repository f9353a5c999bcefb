"""Real text as bytes: where it comes from, how it is split, and which bytes a step sees."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyperconn.lab.settings import DataConfig

# Not the library itself: its own tests, and whatever was installed beside it.
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes that are held out.

    Attributes:
        train: ``[N]`` uint8.
        valid: ``[M]`` uint8, the contiguous tail of the text.
        source: where the text came from, for people to read.
        digest: SHA-256 of both parts; a checkpoint records it, so that a run resumes on the same bytes.
    """

    train: Tensor
    valid: Tensor
    source: str
    digest: str


def load_corpus(config: DataConfig, context: int) -> Corpus:
    """Read text and split off its tail.

    Args:
        config: where the text is. Of a folder, all files below it are read, hidden ones left out, ordered by a hash of
            their relative path: so the held-out tail is a fair sample of them, and the order is the same on every
            machine.
        context: length of a training window; either part must hold at least one.

    Raises:
        FileNotFoundError, PermissionError: the path, or a file below it, cannot be read.
        ValueError: there is no text, or too little of it.
    """
    if config.path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        source = f"Python standard library sources ({root})"
        files = [file for file in _files_below(root, _SKIPPED_FOLDERS.__contains__) if file.suffix == ".py"]
    else:
        root = Path(config.path).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"data path {str(root)!r} does not exist; pass a text file or a folder of them")
        source = str(root)
        files = [root] if root.is_file() else _files_below(root, lambda name: name.startswith("."))
    text = _read(root, files, config.max_bytes)

    cut = len(text) - int(len(text) * config.held_out)
    for part, size in (("training", cut), ("held-out", len(text) - cut)):
        if size < context + 1:
            raise ValueError(
                f"too little text in {source}: its {part} part has {size} of {len(text)} bytes, a window of "
                f"context {context} needs {context + 1}; pass more text (--data), or a smaller model.context"
            )
    everything = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    digest = hashlib.sha256(cut.to_bytes(8, "big") + text).hexdigest()
    return Corpus(everything[:cut], everything[cut:], f"{source}, {len(text):,} bytes", digest)


def training_batch(corpus: Corpus, seed: int, step: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """Random windows of a step: inputs and next bytes, both ``[batch, context]`` int64.

    A pure function of its arguments: a resumed run needs no position in the data, and models that are compared
    see the same bytes at the same step.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, step))
    starts = torch.randint(corpus.train.numel() - context, (batch,), generator=generator)
    return _windows(corpus.train, starts, context)


def step_seed(seed: int, step: int) -> int:
    """Seed of everything random in a step, unrelated to those of other steps and of ``seed + 1``."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], "big") >> 1


def validation_windows(corpus: Corpus, count: int, context: int) -> tuple[Tensor, Tensor]:
    """At most ``count`` disjoint windows spread evenly over the held-out part; never random."""
    available = (corpus.valid.numel() - 1) // context
    chosen = torch.linspace(0, available - 1, min(count, available), dtype=torch.float64).round().long()
    return _windows(corpus.valid, chosen * context, context)


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    window = text[starts.unsqueeze(1) + torch.arange(context + 1)].long()
    return window[:, :-1], window[:, 1:]


def _files_below(root: Path, skip: Callable[[str], bool]) -> list[Path]:
    def refuse(error: OSError) -> None:  # os.walk would leave out what it cannot list
        raise type(error)(f"cannot read data folder {error.filename!r}: {error.strerror}") from error

    found = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not skip(name)]
        found += [Path(folder, name) for name in files if not skip(name)]
    return [file for file in found if file.is_file()]


def _read(root: Path, files: list[Path], max_bytes: int) -> bytes:
    def order(file: Path) -> bytes:
        return hashlib.sha256(file.relative_to(root).as_posix().encode(errors="surrogateescape")).digest()

    text = bytearray()
    for file in sorted(files, key=order):
        try:
            with file.open("rb") as handle:
                text += handle.read(max_bytes - len(text))
        except OSError as error:
            raise type(error)(f"cannot read data file {str(file)!r}: {error.strerror}") from error
        if len(text) >= max_bytes:
            break
    if not text:
        kind = "is empty" if root.is_file() else "holds no text files"
        raise ValueError(f"data path {str(root)!r} {kind}; pass a text file or a folder of them with --data")
    return bytes(text)
