"""A model and a text small enough to train in a test."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from hyperconn.lab import Comparison, Corpus, LabConfig, Run, contestants, load_corpus

TINY: dict[str, Any] = {
    "model": {"blocks": 2, "channels": 8, "heads": 2, "context": 16},
    "train": {"steps": 6, "batch": 2, "warmup": 2, "eval_every": 3, "eval_windows": 4, "checkpoint_every": 3},
    "data": {"max_bytes": 20_000},
    "hyper_connection": {"preset": "kromhc", "streams": 4, "fn_std": 0.05},
}

COMPARED: dict[str, Any] = {
    "contestants": ["plain", "hc", {"name": "turned", "manifold": "stiefel", "streams": 2}],
    "overrides": {"fn_std": 0.1},
    "seeds": 2,
}


def tiny(**sections: Any) -> LabConfig:
    """The tiny config with keys of its sections replaced; None for a section without it."""
    table = {name: dict(section) for name, section in TINY.items()}
    for name, section in sections.items():
        if section is None:
            table.pop(name)
        else:
            table[name] = section if name == "hyper_connection" else {**table.get(name, {}), **section}
    return LabConfig.from_dict(table)


def write_text(path: Path, words: int = 3000, seed: int = 0) -> Path:
    """A file of words, the same for the same seed."""
    draw = random.Random(seed)
    vocabulary = ["stream", "residual", "matrix", "token", "gain", "of", "the", "a", "is"]
    path.write_text(" ".join(draw.choice(vocabulary) for _ in range(words)), encoding="utf-8")
    return path


def corpus(path: Path, config: LabConfig) -> Corpus:
    """The text at ``path`` as the config would read it."""
    return load_corpus(LabConfig.from_dict({"data": {"path": str(path)}}).data, config.model.context)


def start(text: Path, **sections: Any) -> Run:
    """A run of the tiny config on that text."""
    config = tiny(**sections)
    return Run(config, corpus(text, config))


def prepare(folder: Path, names: tuple[str, ...] = (), **sections: Any) -> Comparison:
    """A comparison of the tiny config in that folder, on a text beside it."""
    folder.mkdir(exist_ok=True)
    config = tiny(**{"hyper_connection": None, "compare": COMPARED, **sections})
    text = corpus(write_text(folder.parent / "text.txt"), config)
    return Comparison(config, text, contestants(config, names), folder)
