"""Checkpoints: the whole state of a run in one file that is never half-written."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from hyperconn.files import write_atomically
from hyperconn.lab.run import History, Run
from hyperconn.lab.settings import LabConfig
from hyperconn.manifolds.core.errors import shown

FORMAT = "hyperconn-lab-3"
# What may differ between the run that wrote a checkpoint and the one that goes on from it.
_FREE = {f"train.{key}" for key in ("steps", "eval_every", "eval_windows", "checkpoint_every", "device", "threads")}
_FREE |= {"hyper_connection.backend", "hyper_connection.plugins"}  # the layers compare plugins, and warn


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason."""


class CheckpointNotWrittenError(OSError):
    """A checkpoint could not be written; the message says which one is still there."""


def save_checkpoint(run: Run, path: Path) -> None:
    """Write the state of ``run`` to ``path``, all or nothing.

    Raises:
        CheckpointNotWrittenError: the disk is full, say; what was at ``path`` before is still there.
    """
    try:
        write_state(state_of(run), path)
    except OSError as error:
        kept = f"the one of step {run.saved} is intact, go on with --resume" if run.saved else "there is none before it"
        raise CheckpointNotWrittenError(
            f"cannot write the checkpoint of step {run.step} to {path}: {error.strerror or error}; {kept}"
        ) from error
    run.saved = run.step


def state_of(run: Run) -> dict[str, Any]:
    """Tensors and plain data from which ``restore`` goes on."""
    return {
        "format": FORMAT,
        "step": run.step,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "config": run.config.to_dict(),
        "identity": identity(run.config),
        "data": {"digest": run.corpus.digest, "source": run.corpus.source},
        "history": dataclasses.asdict(run.history),
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring ``run`` to a state of a run with the same config and text."""
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step = run.saved = state["step"]
    history = state["history"]
    run.history = History(history["train"], history["gradient"], [tuple(pair) for pair in history["valid"]])


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain data, all or nothing; raises OSError where the disk is full."""
    # Through memory: torch reports a full disk as a RuntimeError of its zip writer, a plain file as OSError.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(run: Run, path: Path) -> None:
    """Bring ``run`` to the state saved at ``path``.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another model, connection, optimizer or text; the
            message names both sides.
    """
    state = read_checkpoint(path)
    differences = _differences(state["identity"], identity(run.config))
    if differences:
        raise CheckpointError(
            f"checkpoint {path} (step {state['step']}) does not fit this config: {'; '.join(differences)}. "
            "Resume with the settings it was made with, or choose another --out folder"
        )
    if state["data"]["digest"] != run.corpus.digest:
        raise CheckpointError(
            f"checkpoint {path} was trained on other text: {state['data']['source']}; this run reads "
            f"{run.corpus.source}. Resume on the same text, or choose another --out folder"
        )
    restore(run, state)


def read_checkpoint(path: Path, format: str = FORMAT, command: str = "train") -> dict[str, Any]:
    """The content of a checkpoint file: tensors and plain data, never code.

    Raises:
        CheckpointError: there is none, or it is no checkpoint of this program.
    """
    try:
        # To the CPU, so that a checkpoint from a GPU opens everywhere; loading the model copies to where it is.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}; start without --resume, or check --out") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:  # torch's words for a damaged file
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != format:
        raise CheckpointError(f"{path} is not a checkpoint of 'hyperconn {command}' ({format!r}), got {shown(found)}")
    return state


def identity(config: LabConfig) -> dict[str, Any]:
    """Everything that decides the course of a run, as flat plain data."""
    table = config.to_dict()
    free = _FREE if config.train.schedule == "constant" else _FREE - {"train.steps"}  # a decay depends on its end
    flat = {f"{section}.{key}": value for section in ("model", "train") for key, value in table[section].items()}
    kind = config.hyper_connection
    flat["hyper_connection"] = "plain residual" if kind is None else "hyper-connection"
    if kind is not None:
        flat |= {f"hyper_connection.{key}": value for key, value in kind.to_dict().items()}
        flat["hyper_connection.manifold"] = repr(kind.make_manifold())
    return {key: value for key, value in flat.items() if key not in free}


def _differences(saved: dict[str, Any], own: dict[str, Any]) -> list[str]:
    both = [key for key in own if key in saved and saved[key] != own[key]]
    if "hyper_connection" in both:
        kinds = (table.get("hyper_connection.manifold", "plain residual") for table in (saved, own))
        return ["checkpoint has {}, config has {}".format(*kinds)]
    return [f"{key} is {saved[key]} in the checkpoint and {own[key]} in the config" for key in both]
