"""What a class has to be before the registry takes it."""

from __future__ import annotations

import inspect

# Raised when a class written for the version before would no longer work.
API_VERSION = 1


def require_contract(cls: object, base: type, what: str) -> None:
    """Refuse what is no complete class of a part of this API version; ``what`` begins the message.

    Raises:
        TypeError: no subclass of the base, an abstract one, or one whose annotated fields are no options.
        ValueError: a class written for another version of the contract.
    """
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{what} takes a subclass of {base.__name__}, got {cls!r}")
    # First: what else such a class has or lacks is the business of the version that it was written for.
    _require_version(cls, what)
    missing = sorted({*cls.__abstractmethods__, *getattr(cls, "_missing", tuple)()})  # type: ignore[attr-defined]
    if missing:
        raise TypeError(f"{what}: {cls.__qualname__} is incomplete, it has to define: {', '.join(missing)}")
    for name in dir(base):
        if isinstance(getattr(base, name), property) and inspect.isfunction(getattr(cls, name)):
            raise TypeError(f"{what}: {name} of {cls.__qualname__} is a method, not a value: put @property above it")
    for ancestor in cls.__mro__:
        annotated = issubclass(ancestor, base) and "__dataclass_params__" not in vars(ancestor)
        lost = _annotated_fields(ancestor) if annotated else []
        if lost:
            raise TypeError(
                f"{what}: {ancestor.__qualname__} annotates {', '.join(lost)}, which are no options of a class that is "
                f"no dataclass itself: put @dataclass(frozen=True) on {ancestor.__qualname__}, below @register, or "
                "annotate class attributes as ClassVar"
            )


def _require_version(cls: type, what: str) -> None:
    version: object = cls.api_version  # type: ignore[attr-defined]
    if type(version) is not int:
        raise TypeError(f"{what}: api_version of {cls.__qualname__} must be an int, got {version!r}")
    if version != API_VERSION:
        behind = "this library" if version > API_VERSION else "the package that provides the class"
        raise ValueError(
            f"{what}: {cls.__qualname__} was written for version {version} of the API of parts, this library speaks "
            f"version {API_VERSION}: upgrade {behind}"
        )


def _annotated_fields(cls: type) -> list[str]:
    """What ``@dataclass`` would make fields of; an annotation may be text."""
    return [name for name, annotation in inspect.get_annotations(cls).items() if "ClassVar" not in str(annotation)]
