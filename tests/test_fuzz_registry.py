"""Whatever a manifold is asked for by: a manifold, or an error that says what is wrong, soon."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_cases import DEEP, attempt, numbers, objects, product_of_products, text
from hyperconn import HyperConnectionConfig, manifolds
from hyperconn.manifolds import Kronecker, Manifold, UnknownNameError
from hyperconn.manifolds.core.plain_data import MAX_DEPTH

thorough = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
LOOK_UPS = (manifolds.get, manifolds.resolve, manifolds.aliases, manifolds.provider, manifolds.unregister)


@thorough
@given(objects)
def test_names_of_any_kind(name: Any) -> None:
    for look_up in LOOK_UPS[:3]:
        found = attempt(look_up, name)
        assert found is None or isinstance(name, str)
    attempt(manifolds.make, name, n=4)


@pytest.mark.parametrize("name", DEEP.values(), ids=DEEP)
def test_large_names_are_refused_at_once(name: Any) -> None:
    started = time.monotonic()
    for look_up in LOOK_UPS:
        if look_up is not manifolds.provider:  # which takes instances and classes too
            assert attempt(look_up, name) is None
    assert time.monotonic() - started < 5.0


def test_a_long_name_gets_no_long_message() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown manifold 'xxx.{50,300}\. Known: birkhoff"):
        manifolds.make("x" * 10_000_000, n=4)


OPTIONS = {
    name: [f.name for f in dataclasses.fields(manifolds.get(name)) if f.name != "n"] for name in manifolds.available()
}
cases = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.one_of(st.integers(1, 8), numbers, objects),
        st.dictionaries(st.sampled_from([*OPTIONS[name], "surprise"]), objects, max_size=2),
    )
)


@thorough
@given(cases)
def test_options_of_any_kind(case: tuple[str, Any, dict[str, Any]]) -> None:
    name, n, options = case
    made = attempt(manifolds.make, name, n, **options)
    if made is not None:
        assert isinstance(made, Manifold) and made.num_coordinates >= 0 and repr(made)
        assert made == dataclasses.replace(made) and hash(made) == hash(dataclasses.replace(made))


SIZES = {
    "huge": 10**5000,
    "negative": -(10**5000),
    "64 bits": 2**63,
    "nan": float("nan"),
    "text": "4",
    "tensor": torch.tensor(4),
}


@pytest.mark.parametrize("n", [*SIZES.values(), 1025, None], ids=[*SIZES, "1025", "None"])
@pytest.mark.parametrize("name", manifolds.available())
def test_sizes_that_no_manifold_takes(name: str, n: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{manifolds.get(name).__name__}: n must be"):
        manifolds.make(name, n=n)


UNCOMPARABLE = {"vector": torch.ones(2), "scalar": torch.ones(()), "large": 10**400, "low": -(10**400), **DEEP}


@pytest.mark.parametrize("value", UNCOMPARABLE.values(), ids=UNCOMPARABLE)
def test_options_that_cannot_be_compared(value: Any) -> None:
    started = time.monotonic()
    for name, options in OPTIONS.items():
        for option in options:
            assert attempt(manifolds.make, name, n=4, **{option: value}) is None
    assert time.monotonic() - started < 10.0


def test_an_array_of_words_is_no_word() -> None:
    words = np.array(["columns", "rows"])
    with pytest.raises(ValueError, match=r"^Birkhoff: first_axis must be one of 'columns', 'rows', got array"):
        manifolds.make("birkhoff", n=4, first_axis=words)
    with pytest.raises(UnknownNameError, match=r"^unknown backend of a HyperConnectionConfig array"):
        HyperConnectionConfig(backend=words)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- factors


@given(objects)
def test_factors_of_any_kind(factors: Any) -> None:
    attempt(Kronecker, 4, factors)
    attempt(Kronecker, 4, (factors, 2))


@pytest.mark.parametrize(
    "factors",
    [itertools.count(), iter([2, 2]), range(10**9), [1] * 10**6, b"22", {2}],
    ids=("endless", "iterator", "range", "list", "bytes", "set"),
)
def test_endless_factors(factors: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="^Kronecker: factors"):
        Kronecker(n=4, factors=factors)


def test_products_of_products() -> None:
    shallow, deep = product_of_products(5), product_of_products(10_000)
    assert Kronecker(n=2, factors=shallow).num_coordinates == 2
    with pytest.raises(ValueError, match=rf"^Kronecker: factors is nested more than {MAX_DEPTH}"):
        Kronecker(n=2, factors=deep)
    product = Kronecker(n=2)
    for _ in range(MAX_DEPTH - 1):
        product = Kronecker(n=2, factors=(product,))
    with pytest.raises(ValueError, match=f"products of products more than {MAX_DEPTH} deep; use one list"):
        Kronecker(n=2, factors=(product,))
    assert product.num_coordinates == 2 and hash(product) and product(torch.zeros(2)).shape == (2, 2)


@given(text)
def test_names_in_an_allow_list(value: str) -> None:
    if "\0" in value or "\ud800" in value or any(0xD800 <= ord(c) < 0xE000 for c in value):
        return  # no environment variable holds these
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERCONN_PLUGINS", value)
        assert set(OPTIONS) <= set(manifolds.available())
        attempt(manifolds.get, "tilt")
