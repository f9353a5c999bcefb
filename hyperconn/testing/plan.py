"""Which instances of a class the laws are checked on, and with how many random cases each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.class_check import require_contract
from hyperconn.testing.law import CRASHES
from hyperconn.testing.laws import LAWS
from hyperconn.testing.reproduce import expression

GUIDE = "docs/add-a-manifold.md says what a class has to bring"


class ContractError(TypeError):
    """A class is no manifold that laws could be checked on; the message says what is missing."""


@dataclass(frozen=True)
class Chosen:
    """A class with the instances to check, and what was left out of them and why."""

    cls: type[Manifold]
    instances: tuple[Manifold, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One instance to check: random cases for each law that concerns it, and the seed of their draws."""

    manifold: Manifold
    examples: tuple[tuple[str, int], ...]
    seed: int
    device: str = "cpu"


def choose(cls: object, sizes: Sequence[int] | None = None) -> Chosen:
    """The instances that the laws run on.

    Args:
        cls: a subclass of Manifold.
        sizes: numbers of streams; None takes what ``cls.examples()`` returns. With sizes it is the examples of these
            sizes and the class with its default options. A size that the class refuses with a ValueError is left
            out and remarked upon.

    Raises:
        ContractError: what is there is no manifold, nothing is left, or an error other than ValueError came up.
    """
    try:
        require_contract(cls, "hyperconn.testing")
    except (TypeError, ValueError) as error:
        raise ContractError(f"{error}; {GUIDE}") from error
    assert isinstance(cls, type) and issubclass(cls, Manifold)
    if sizes is None:
        return Chosen(cls, _examples(cls))
    remarks: list[str] = []
    try:
        shown = [example for example in _examples(cls) if example.n in sizes]
    except ContractError as error:
        shown = []
        remarks.append(f"default options only: {error}")
    made = [instance for n in dict.fromkeys(sizes) for instance in _made(cls, n, remarks, bool(shown))]
    instances = {expression(instance): instance for instance in (*made, *shown)}
    if not instances:
        raise ContractError(f"{cls.__name__} takes none of these sizes: {'; '.join(remarks)}")
    return Chosen(cls, tuple(sorted(instances.values(), key=lambda instance: instance.n)), tuple(remarks))


def _examples(cls: type[Manifold]) -> tuple[Manifold, ...]:
    try:
        examples = tuple(cls.examples())
    except CRASHES as error:
        raise ContractError(
            f"{cls.__name__}.examples() raised {type(error).__name__}: {error}; override it to return the instances "
            "that the laws run on, or choose sizes"
        ) from error
    if not examples or not all(isinstance(example, Manifold) for example in examples):
        raise ContractError(f"{cls.__name__}.examples() must return instances of the class, got {examples!r}")
    return tuple(map(_sized, examples))


def _sized(instance: Manifold) -> Manifold:
    if not hasattr(instance, "n"):
        raise ContractError(f"a {type(instance).__name__} has no n: its __init__ does not set the field; {GUIDE}")
    return instance


def _made(cls: type[Manifold], n: int, remarks: list[str], others: bool) -> tuple[Manifold, ...]:
    try:
        return (_sized(cls(n=n)),)
    except ValueError as error:
        remarks.append(f"n={n} is refused: {error}")
        return ()
    except ContractError:
        raise
    except CRASHES as error:
        if others and isinstance(error, TypeError):  # an option without a default, which the examples give
            remarks.append(f"n={n} without options is refused: {error}")
            return ()
        raise ContractError(
            f"{cls.__name__}(n={n}) raised {type(error).__name__}: {error}; a manifold is a frozen dataclass with the "
            f"field n whose options have defaults, and refuses a size with ValueError; {GUIDE}"
        ) from error


def tasks(instances: Iterable[Manifold], examples: int, seed: int, device: str = "cpu") -> list[Task]:
    """One task an instance; the random cases of a law are shared out among the instances that it concerns."""
    chosen = list(instances)
    concerned = {law.name: [law.applies(instance) for instance in chosen] for law in LAWS}
    return [
        Task(
            instance,
            tuple((name, -(-examples // sum(applies))) for name, applies in concerned.items() if applies[k]),
            seed + k,
            device,
        )
        for k, instance in enumerate(chosen)
    ]
