"""Ready-made pytest classes for a manifold, a gate, a predictor and for device pairs, in two lines each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from hyperconn.backends import BackendUnavailableError, triton_missing
from hyperconn.gates import Gate
from hyperconn.manifolds import Manifold
from hyperconn.manifolds.core.map import Map
from hyperconn.predictors import Predictor
from hyperconn.testing.all_laws import LAWS
from hyperconn.testing.expressions import expression
from hyperconn.testing.law import Law
from hyperconn.testing.runner import check_law
from hyperconn.testing.subjects import ContractError, choose


class _Laws:
    """A pytest class with a test for each law that concerns ``subject``, on each of its instances.

    Attributes:
        subject: the class under test; set it in a subclass.
        examples: drawn cases for each test, beside the fixed ones; None takes those of hypothesis' profile.
        sizes: numbers of streams, with default options and with the examples of these sizes; None takes
            ``subject.examples()``.
        seed: of the cases; None leaves it to hypothesis' profile and its database.
    """

    kind: ClassVar[type] = Manifold
    subject: ClassVar[type | None] = None
    examples: ClassVar[int | None] = None
    sizes: ClassVar[Sequence[int] | None] = None
    seed: ClassVar[int | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.subject is None:
            return
        if not (isinstance(cls.subject, type) and issubclass(cls.subject, cls.kind)):
            raise ContractError(
                f"{cls.__name__}.subject must be a subclass of {cls.kind.__name__}, got {cls.subject!r}"
            )
        instances = choose(cls.subject, cls.sizes)
        for law in LAWS:
            concerned = [instance for instance in instances if law.applies(instance)]
            if concerned:
                setattr(cls, f"test_{law.name}", _parametrized(_checks(law, cls), concerned, law.statement))


class ManifoldLaws(_Laws):
    """The laws of a manifold: ``class TestMine(ManifoldLaws): subject = MyManifold``."""


class GateLaws(_Laws):
    """The laws of a gate: ``class TestMine(GateLaws): subject = MyGate``."""

    kind = Gate


class PredictorLaws(_Laws):
    """The laws of a predictor: ``class TestMine(PredictorLaws): subject = MyPredictor``."""

    kind = Predictor


def manifold_laws(cls: type[Manifold], **options: Any) -> type[Any]:
    """The same in one line: ``TestMine = manifold_laws(MyManifold)``; options are its attributes."""
    return type(f"{cls.__name__}Laws", (ManifoldLaws,), {"subject": cls, **options})


def gate_laws(cls: type[Gate], **options: Any) -> type[Any]:
    """The same for a gate."""
    return type(f"{cls.__name__}Laws", (GateLaws,), {"subject": cls, **options})


def predictor_laws(cls: type[Predictor], **options: Any) -> type[Any]:
    """The same for a predictor."""
    return type(f"{cls.__name__}Laws", (PredictorLaws,), {"subject": cls, **options})


def kernel_laws(cls: type[Map], *, sizes: Sequence[int] | None = None) -> type[Any]:
    """A pytest class that checks the device pair of a manifold or a gate against its own torch map.

    The pair runs on the GPU in float32, or with ``TRITON_INTERPRET=1`` on the CPU in float64 and float32. Each instance
    with a pair is checked at all scales, for any number of tokens, with poisoned outputs, beside a NaN token and twice
    for equal bits; and a layer with ``backend="triton"`` against one with ``"torch"``. Instances without a pair are
    left to the laws of the map.

    Args:
        cls: the class.
        sizes: as in ``ManifoldLaws``.

    Raises:
        ContractError: the class is no manifold and no gate.
        ValueError: none of its instances has a pair.
        BackendUnavailableError: pairs cannot run here; the message says what to set or to install.
    """
    import pytest

    missing = triton_missing()
    if missing:
        raise BackendUnavailableError(f"device pairs are Triton functions: {missing}")
    from hyperconn.testing import kernel_checks as checks

    checks.device()
    paired = [instance for instance in choose(cls, sizes) if instance.kernel is not None]
    if not paired:
        raise ValueError(
            f"{cls.__name__} has no device pair: its property kernel is None for every instance; see docs/fast-path.md"
        )
    learning = [instance for instance in paired if instance.num_coordinates]
    dtypes = pytest.mark.parametrize("dtype", checks.dtypes(), ids=lambda dtype: str(dtype).removeprefix("torch."))
    scales = pytest.mark.parametrize("scale", checks.SCALES)

    def forward(self: object, subject: Map, dtype: Any, scale: float) -> None:
        checks.check_forward(subject, dtype, scale)

    def backward(self: object, subject: Map, dtype: Any, scale: float) -> None:
        checks.check_backward(subject, dtype, scale)

    tests = {
        "test_forward": dtypes(scales(_parametrized(forward, paired, checks.check_forward.__doc__))),
        "test_any_number_of_tokens": _parametrized(_method(checks.check_tokens), paired),
        "test_two_runs_give_the_same_bits": _parametrized(_method(checks.check_repeatable), paired),
        "test_layer": _parametrized(_method(checks.check_layer), paired),
    }
    if learning:
        tests["test_backward"] = dtypes(scales(_parametrized(backward, learning, checks.check_backward.__doc__)))
        tests["test_a_nan_token_spoils_no_other"] = _parametrized(_method(checks.check_bad_tokens), learning)
    return type(f"{cls.__name__}KernelLaws", (), {"__doc__": f"The device pair of {cls.__name__}.", **tests})


def _checks(law: Law, cls: type[_Laws]) -> Callable[..., None]:
    def check(self: object, subject: Map) -> None:
        assert check_law(law, subject, examples=cls.examples, seed=cls.seed).holds

    return check


def _method(check: Callable[[Any], None]) -> Callable[..., None]:
    def method(self: object, subject: Map) -> None:
        check(subject)

    method.__doc__ = check.__doc__
    return method


def _parametrized(test: Callable[..., None], subjects: Sequence[Map], doc: str | None = None) -> Callable[..., None]:
    import pytest

    test.__doc__ = doc or test.__doc__
    return pytest.mark.parametrize("subject", subjects, ids=expression)(test)
