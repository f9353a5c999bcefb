"""Where text comes from, how it is split, and what is refused."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
import torch

from hyperconn.lab import Corpus, load_corpus
from hyperconn.lab.data import step_seed, training_batch, validation_windows
from hyperconn.lab.settings import DataConfig


def load(path: Path | None, max_bytes: int = 100_000, held_out: float = 0.2) -> Corpus:
    return load_corpus(DataConfig(None if path is None else str(path), max_bytes, held_out), context=8)


def text_of(corpus: Corpus) -> bytes:
    return bytes(torch.cat([corpus.train, corpus.valid]).tolist())


def test_default_is_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = load(None, max_bytes=200_000)
    assert sysconfig.get_paths()["stdlib"] in corpus.source and text_of(corpus).count(b"import ") > 50
    assert corpus.train.numel() == 160_000 and corpus.valid.numel() == 40_000
    assert load(None, max_bytes=200_000).digest == corpus.digest
    for name in ("a.py", "json/b.py", "test/c.py", "json/tests/d.py", "site-packages/e.py", "f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>" * 10)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    text = text_of(load(None))
    assert text.count(b"<a.py>") == text.count(b"<json/b.py>") == 10
    assert len(text) == 10 * len("<a.py><json/b.py>")


def test_folder_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["z.txt", "sub/y.txt", "a.txt", "sub/deep/b.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}, repeated. " * 3)
    (tmp_path / ".hidden").write_text("secret" * 100)
    walk, one = os.walk, load(tmp_path)
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: [(at, folders, files[::-1]) for at, folders, files in walk(*a, **k)][::-1]
    )
    assert load(tmp_path).digest == one.digest
    assert all(f"content of {name},".encode() in text_of(one) for name in names) and b"secret" not in text_of(one)


def test_split_and_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    (tmp_path / "bytes.bin").write_bytes(content)
    corpus = load(tmp_path / "bytes.bin", held_out=0.25)
    assert bytes(corpus.train.tolist()) == content[:768] and bytes(corpus.valid.tolist()) == content[768:]
    assert corpus.train.dtype == torch.uint8
    (tmp_path / "other.bin").write_bytes(content[:-1] + b"x")
    others = {load(tmp_path / "other.bin", held_out=0.25).digest, load(tmp_path / "bytes.bin", held_out=0.3).digest}
    assert len({corpus.digest, *others}) == 3


def test_batches_are_windows_of_the_training_part(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(bytes(k % 251 for k in range(2000)))
    corpus = load(tmp_path / "t")
    tokens, following = training_batch(corpus, seed=3, step=7, batch=64, context=8)
    assert tokens.shape == following.shape == (64, 8) and tokens.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    assert torch.equal((tokens + 1) % 251, following)
    assert len({tuple(row) for row in tokens.tolist()}) > 40
    assert torch.equal(tokens, training_batch(corpus, seed=3, step=7, batch=64, context=8)[0])
    for seed, step in ((3, 8), (4, 7)):
        assert not torch.equal(tokens, training_batch(corpus, seed=seed, step=step, batch=64, context=8)[0])
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400
    # context + 1 training bytes are exactly one window
    (tmp_path / "t").write_bytes(b"123456789" * 2)
    corpus = load(tmp_path / "t", held_out=0.5)
    tokens, following = training_batch(corpus, seed=0, step=0, batch=3, context=8)
    assert bytes(tokens[2].tolist()) == b"12345678" and bytes(following[2].tolist()) == b"23456789"
    assert validation_windows(corpus, count=99, context=8)[0].shape == (1, 8)


def test_validation_windows_are_disjoint_and_spread(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(bytes(k // 8 % 256 for k in range(10_000)))
    corpus = load(tmp_path / "t")
    tokens, following = validation_windows(corpus, count=5, context=8)
    valid = corpus.valid.tolist()
    starts = [valid.index(row[0]) for row in tokens.tolist()]
    assert tokens.shape == (5, 8) and starts[0] == 0 and starts[-1] >= len(valid) - 32
    every, _ = validation_windows(corpus, count=10_000, context=8)
    assert len(every) == (len(valid) - 1) // 8
    assert torch.equal(every.flatten(), corpus.valid[: every.numel()].long())
    assert torch.equal(following[0], corpus.valid[1:9].long())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "does not exist; pass a text file"),
        ("empty.txt", b"", "is empty; pass a text file"),
        ("", None, "holds no text files"),
        ("short.txt", b"x" * 30, "its held-out part has 6 of 30 bytes, a window of context 8 needs 9"),
    ],
)
def test_unusable_text_is_refused(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as caught:
        load(tmp_path / name)
    assert says in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(("what", "owner", "function"), [("file", Path, "open"), ("folder", os, "scandir")])
def test_what_cannot_be_read_is_named(
    what: str, owner: object, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving it out would train on other text than the user thinks. Also as root, whom permissions do not stop."""
    (tmp_path / "locked").mkdir()
    for name in ("a.txt", "b.txt", "locked/c.txt"):
        (tmp_path / name).write_text("text " * 100)
    real, locked = getattr(owner, function), {"file": "b.txt", "folder": "locked"}[what]

    def refuse(path: object, *args: object, **kwargs: object) -> object:
        if str(path).endswith(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(owner, function, refuse)
    with pytest.raises(PermissionError, match=rf"cannot read data {what} '.*{locked}': Permission denied"):
        load(tmp_path)
