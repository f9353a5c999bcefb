"""What a module notes in its checkpoint beside its tensors, and compares when one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from hyperconn.manifolds.registry.provenance import check_plugin_records, plugin_records

# In the metadata of a state dict, beside torch's own version number, so that plain tensors stay all that it holds.
_NOTE, _PLUGINS = "hyperconn", "hyperconn_plugins"


class _Difference(str):
    """A message about all modules that differ from what was saved in the same way."""

    first: str
    differs: str
    times: int

    @classmethod
    def of(cls, first: str, differs: str, times: int) -> _Difference:
        others = f" and {times - 1} more like it" if times > 1 else ""
        message = cls(f"{first}{others}: {differs}")
        message.first, message.differs, message.times = first, differs, times
        return message


def _add(messages: list[str], module: str, differs: str) -> None:
    """One message for a difference, however many layers have it."""
    for k, message in enumerate(messages):
        if isinstance(message, _Difference) and message.differs == differs:
            messages[k] = _Difference.of(message.first, differs, message.times + 1)
            return
    messages.append(_Difference.of(module, differs, 1))


class CheckpointNote(nn.Module):
    """A module whose numbers mean something else under other options.

    Many maps share their coordinate count, so shapes alone would let a foreign checkpoint in: the note says what the
    numbers were, and a checkpoint with another note is refused before anything is copied. One without a note, of plain
    tensors from elsewhere, has its shapes alone to be checked.
    """

    kind: ClassVar[str] = "hyper-connection"

    def note(self) -> dict[str, Any]:
        """What must agree for a checkpoint to mean the same, as plain data."""
        raise NotImplementedError(f"{type(self).__name__} has to define note")

    def noted_parts(self) -> tuple[object, ...]:
        """Parts of the module whose plugins are recorded."""
        raise NotImplementedError(f"{type(self).__name__} has to define noted_parts")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            metadata, records = destination._metadata[prefix[:-1]], plugin_records(self.noted_parts())
            metadata[_NOTE] = self.note()
            metadata.update({_PLUGINS: records} if records else {})

    def _load_from_state_dict(self, *args: Any) -> None:
        _state, prefix, metadata, _strict, _missing, _unexpected, error_msgs = args
        problems = []
        try:
            # Without the module's name: a model of many layers gives one warning.
            check_plugin_records(metadata.get(_PLUGINS, {}), "the checkpoint", self.noted_parts())
        except ValueError as error:
            problems.append(str(error))
        differs = self._differences(metadata.get(_NOTE))
        if problems:
            error_msgs += [problem for problem in problems if problem not in error_msgs]
        if differs is not None:
            _add(error_msgs, prefix.rstrip(".") or type(self).__name__, differs)
        if not problems and differs is None:
            super()._load_from_state_dict(*args)

    def _differences(self, saved: object) -> str | None:
        """How a saved note differs from the module's own, in words; None if it does not, or if nothing was saved."""
        own = self.note()
        if saved is None or saved == own:
            return None
        if not isinstance(saved, Mapping):
            return f"the checkpoint holds something else than a {self.kind} here: {saved!r}"
        changed = [key for key in own if saved.get(key) != own[key]]
        differing = ", ".join(f"{key}={saved.get(key)!r} where this one has {own[key]!r}" for key in changed)
        return f"the checkpoint holds another kind of {self.kind}, {differing}; build the model with its config"
