"""What a class has to be before the registry takes it."""

from __future__ import annotations

import inspect

from hyperconn.manifolds.core.errors import shown

# Raised when a class written for the version before would no longer work.
API_VERSION = 1


def require_contract(cls: object, base: type, what: str) -> None:
    """Refuse what is no complete class of a part of this API version; ``what`` begins the message.

    What only an instance shows is for ``instance_check``.

    Raises:
        TypeError: no subclass of the base, an abstract one, a member of another kind than the base's (a method where
            a property is asked for, say), or one whose annotated fields are no options.
        ValueError: a class written for another version of the contract.
    """
    if not (isinstance(cls, type) and issubclass(cls, base)):
        hint = f"; pass its class, {type(cls).__qualname__}" if isinstance(cls, base) else ""
        raise TypeError(f"{what} takes a subclass of {base.__name__}, got {shown(cls)}{hint}")
    # First: what else such a class has or lacks is the business of the version that it was written for.
    _require_version(cls, what)
    missing = sorted({*cls.__abstractmethods__, *getattr(cls, "_missing", tuple)()})  # type: ignore[attr-defined]
    if missing:
        raise TypeError(f"{what}: {cls.__qualname__} is incomplete, it has to define: {', '.join(missing)}")
    for name in dir(base):
        if not name.startswith("__"):
            _require_same_kind(cls, base, name, what)
    for ancestor in cls.__mro__:
        annotated = issubclass(ancestor, base) and "__dataclass_params__" not in vars(ancestor)
        lost = _annotated_fields(ancestor) if annotated else []
        if lost:
            raise TypeError(
                f"{what}: {ancestor.__qualname__} annotates {', '.join(lost)}, which are no options of a class that is "
                f"no dataclass itself: put @dataclass(frozen=True) on {ancestor.__qualname__}, below @register, or "
                "annotate class attributes as ClassVar"
            )


def _require_same_kind(cls: type, base: type, name: str, what: str) -> None:
    """A value of the base is no method of the class, a method no value, and a classmethod stays one."""
    asked, given = inspect.getattr_static(base, name), inspect.getattr_static(cls, name)
    member = f"{what}: {name} of {cls.__qualname__}"
    if isinstance(asked, property):
        if inspect.isfunction(given):
            raise TypeError(f"{member} is a method, not a value: put @property above it")
    elif isinstance(asked, classmethod):
        if inspect.isfunction(given):
            raise TypeError(f"{member} is called on the class: put @classmethod above it")
        if isinstance(given, property):
            raise TypeError(f"{member} is a property, but it is called: put @classmethod in place of @property")
    elif inspect.isfunction(asked):
        if isinstance(given, property):
            raise TypeError(f"{member} is a property, but it is called: remove @property")
        if not callable(given) and not hasattr(given, "__get__"):
            raise TypeError(f"{member} is called, but it is {shown(given)}: make it a method")
    elif isinstance(given, property) or inspect.isfunction(given):
        raise TypeError(f"{member} belongs to the class: write `{name} = …` in its body, without def")


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
