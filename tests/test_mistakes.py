"""Mistakes that newcomers make, where they are noticed, and the words that the one message has to hold."""

# ruff: noqa: E501 — a mistake is a line of the tables

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cli_cases import refused
from healthy_manifold import Circulant
from hyperconn import HyperConnection, HyperConnectionConfig, HyperConnectionStack, gates, manifolds, predictors
from hyperconn.lab.checkpoint import FORMAT
from hyperconn.lab.training import CHECKPOINT
from hyperconn.manifolds import invariants
from hyperconn.manifolds.registry import MANIFOLDS
from hyperconn.testing import ContractError, LawViolation, check_law, get_law, verify
from hyperconn.testing.subjects import choose
from hyperconn.testing.survey import failures, rows
from plugin_cases import Install, shape_class

forward, logits = Circulant.forward, predictors.Static.logits
IDENTITY = {"identity_coordinates": lambda m: [0.0, -64.0, -64.0, -64.0]}


def prop(value: Any) -> property:
    return property(lambda self: value)


def spoils(self: Any, theta: Any) -> Any:
    theta -= theta.amax(-1, keepdim=True)
    return forward(self, theta)


def post_init(self: Any) -> None:
    """Forgets the base's."""


# Of a manifold, what a class gets wrong, and what is said of it: at register what the class alone shows …
OF_CLASSES: dict[str, tuple[type, dict[str, Any], str]] = {
    "no property": (Circulant, {"num_coordinates": lambda m: 3}, "num_coordinates of Mine is a method.*put @property"),
    "invariants, no property": (Circulant, {"invariants": lambda m: ()}, "invariants of Mine is a method, not a value"),
    "exact, no property": (Circulant, {"exact": lambda m: True}, "exact of Mine is a method, not a value"),
    "kernel, no property": (Circulant, {"kernel": lambda m: None}, "kernel of Mine is a method, not a value"),
    "property forward": (Circulant, {"forward": prop(3)}, "forward of Mine is a property, but it is called: remove"),
    "property start": (Circulant, {"identity_coordinates": prop([0])}, "identity_coordinates of Mine is a property"),
    "number tolerance": (Circulant, {"tolerance": 1e-5}, "tolerance of Mine is called, but it is 1e-05: make it a met"),
    "no classmethod": (
        Circulant,
        {"examples": lambda m: ()},
        "examples of Mine is called on the class: put @classmeth",
    ),
    "name method": (Circulant, {"name": lambda m: "mine"}, "name of Mine belongs to the class: write `name = …`"),
    "no forward": (manifolds.Manifold, {}, "Mine is incomplete, it has to define: .*forward.*identity_coordinates"),
    "another version": (Circulant, {"api_version": 2}, "for version 2 of the API .*: upgrade this library"),
    "lost option": (Circulant, {"__annotations__": {"k": int}, "k": 1}, "Mine annotates k, .*put @dataclass.frozen=Tr"),
    "gate, no inverse": (gates.Gate, {"forward": lambda g, x: x}, "Mine is incomplete, it has to define: inverse"),
    "gate, no property": (gates.Linear, {"value_shape": lambda g: (3,)}, "value_shape of Mine is a method"),
    "predictor property": (predictors.Static, {"parameters": prop({})}, "parameters of Mine is a property, but it is"),
}

# … and in a config, in make and first in verify what an instance shows.
OF_INSTANCES: dict[str, tuple[type, dict[str, Any], str]] = {
    "one invariant": (Circulant, {"invariants": invariants.row_sums}, "invariants of Mine.n=4. must be a tuple of .*got <"),
    "strings": (Circulant, {"invariants": ("row_sums",)}, r"as \(invariants.row_sums,\), got \('row_sums',\)"),
    "a float": (Circulant, {"num_coordinates": 4.0}, "num_coordinates of Mine.n=4. must be an int, .* got 4.0"),
    "exact is no bool": (Circulant, {"exact": "yes"}, "exact of Mine.n=4. must be True or False, got 'yes'"),
    "flat": (Circulant, {"forward": lambda m, t: forward(m, t).flatten(-2)}, r"forward .* the shape \[2, 4, 4\], got \[2, 16"),
    "None": (Circulant, {"forward": lambda m, t: None}, "forward of Mine.n=4. .*, got None: is there a return"),
    "a list": (Circulant, {"forward": lambda m, t: forward(m, t).tolist()}, "must return a tensor of shape .* got a list"),
    "half": (Circulant, {"forward": lambda m, t: forward(m, t).half()}, "must keep the dtype, torch.float64, got torch.fl"),
    "transposed": (Circulant, {"forward": lambda m, t: forward(m, t).movedim(0, 1)}, "forward of Mine.*the shape .*got"),
    "wrong axis": (Circulant, {"forward": lambda m, t: forward(m, t - t.mean(0))}, "beside other tokens than alone.*dim=-1"),
    "in place": (Circulant, {"forward": spoils}, "forward of Mine.n=4. changes theta in place: make a new tensor"),
    "random": (Circulant, {"forward": lambda m, t: forward(m, t) * random.random()}, "gives two values for one theta.*pure"),
    "item": (Circulant, {"forward": lambda m, t: forward(m, t) + 0 * t.sum().item()}, "needs the numbers of theta.*without .i"),
    "detached": (Circulant, {"forward": lambda m, t: forward(m, t).detach()}, "forward of Mine.n=4. cuts the graph.*detach"),
    "NaN at zero": (Circulant, {"forward": lambda m, t: forward(m, t) + (t / t).sum() * 0}, "be finite at theta = 0, got"),
    "kink": (Circulant, {"forward": lambda m, t: forward(m, t + 0 * t.norm(dim=-1, keepdim=True).sqrt())}, "finite gradient at"),
    "bug": (Circulant, {"forward": lambda m, t: idx}, "forward of Mine.n=4. raised NameError: name 'idx'"),  # noqa: F821
    "long start": (Circulant, {"identity_coordinates": lambda m: [0.0] * 5}, "identity_coord.*return 4 numbers.*shape .5"),
    "no start": (Circulant, {**IDENTITY, "initial_coordinates": lambda m, s: None}, "initial_coordinates of Mine.*4 numbers.*got None"),
    "no sharpness": (Circulant, {**IDENTITY, "initial_coordinates": lambda m: [0.0] * 4}, "initial of Mine.n=4. raised TypeError: .*takes 1"),
    "coordinates": (Circulant, {"coordinates": lambda m, H: H}, r"coordinates of Mine.n=4. .* shape \[4\], got \[4, 4\]"),
    "groups": (Circulant, {"coordinate_groups": prop((("a", 5),))}, "coordinate_groups .* add up to num_coordinates, 4, got"),
    "name": (Circulant, {"name": 3}, "name of Mine.n=4. must be a string, got 3"),
    "post_init": (Circulant, {"__post_init__": post_init}, r"takes n=0: call super\(\).__post_init__\(\) first"),
    "gate shape": (gates.Linear, {"forward": lambda g, x: x.sum(-1)}, r"gate Mine: forward .* shape \[2, 4\], got \[2\]"),
    "gate inverse": (gates.Linear, {"inverse": lambda g, w: w[0]}, r"inverse of Mine.n=4. must return the shape \[4\], got \[\]"),
    "shapes": (predictors.Static, {"parameters": lambda p, x: {"base": x.total}}, "parameters.'base'.* must be a shape.*got 8"),
    "logits": (predictors.Static, {"logits": lambda p, *a: logits(p, *a)[:-1]}, r"logits of Mine.. .*\[5, 8\] or \[8\], got \[7"),
    "key": (predictors.Static, {"logits": lambda p, x, r, q, w: q["bias"]}, "logits of Mine.. raised KeyError: 'bias'"),
    "reset": (predictors.Static, {"reset": lambda p, q, *a: q.update(base=a[1].logits)}, "reset of Mine.. leaves 'base' as it"),
}  # fmt: skip


def made(base: type, members: dict[str, Any]) -> tuple[Any, Any, str]:
    """The class, the module of its kind, and the field of a config that takes it."""
    module, field = {"M": (manifolds, "manifold"), "G": (gates, "post_gate"), "P": (predictors, "predictor")}[
        next(cls.__name__[0] for cls in base.__mro__ if cls.__name__ in ("Manifold", "Gate", "Predictor"))
    ]
    return type("Mine", (base,), {"name": "mine", **members}), module, field


@pytest.mark.parametrize(("base", "members", "words"), OF_CLASSES.values(), ids=OF_CLASSES)
def test_mistakes_that_a_class_shows(base: type, members: dict[str, Any], words: str) -> None:
    cls, module, _ = made(base, members)
    with pytest.raises((TypeError, ValueError), match=rf"^register\('mine'\): .*{words}"):
        module.register("mine")(cls)
    with pytest.raises(ContractError, match=words):
        choose(cls)


@pytest.mark.parametrize(("base", "members", "words"), OF_INSTANCES.values(), ids=OF_INSTANCES)
def test_mistakes_that_an_instance_shows(base: type, members: dict[str, Any], words: str, own_names: None) -> None:
    cls, module, field = made(base, members)
    with pytest.raises(TypeError, match=words) as caught:
        HyperConnectionConfig(**{field: cls() if module is predictors else cls(n=4)})
    assert " Mine: " in str(caught.value) and caught.value.args[0].count("Mine: ") == 1
    if "name" not in members:
        module.register("mine")(cls)
        with pytest.raises(TypeError, match=words):
            HyperConnectionConfig(**{field: "mine"})
    cls.examples = classmethod(lambda cls: (cls() if module is predictors else cls(n=4),))  # type: ignore[attr-defined]
    with pytest.raises(ContractError, match=words):
        choose(cls)


@pytest.mark.parametrize(("base", "n"), [(Circulant, 4), (gates.Linear, 4), (predictors.Static, None)])
def test_what_is_right_is_taken(base: type, n: int | None, own_names: None) -> None:
    cls, module, field = made(base, {})
    module.register("mine")(cls)
    assert HyperConnectionConfig(**{field: "mine"}) == HyperConnectionConfig(**{field: cls(n=n) if n else cls()})
    assert choose(cls)


def restored() -> None:
    kinds = (HyperConnectionConfig(manifold=name) for name in ("stiefel", "kronecker"))
    own, saved = (nn.ModuleList(HyperConnection(None, 8, config) for _ in range(3)) for config in kinds)
    own.load_state_dict(saved.state_dict())


OF_USERS: dict[str, tuple[Callable[[], Any], str]] = {
    "option": (lambda: HyperConnectionConfig(manifold="kronecker", manifold_options={"factor": (2, 2)}),
               "manifold 'kronecker' has no option 'factor'; its options are: factors. Did you mean 'factors'"),
    "field": (lambda: HyperConnectionConfig(stream=4), "HyperConnectionConfig has no field 'stream'. Did you mean 'streams'"),  # type: ignore[call-arg]
    "preset": (lambda: HyperConnectionConfig.preset("kromch"), "unknown preset 'kromch'. Did you mean 'kromhc'"),
    "key": (lambda: HyperConnectionConfig.from_dict({"strems": 4}), "'strems'. Did you mean 'streams'"),
    "no name": (lambda: manifolds.register(Circulant), r'names are strings, got .*write @register\("my-name"\)'),  # type: ignore[arg-type]
    "blanks": (lambda: manifolds.register("my manifold"), "register.'my manifold'.: a manifold name is made of letters"),
    "taken": (lambda: manifolds.register("Stiefel")(Circulant), r"'Stiefel' is already taken by .*Stiefel; register Circulant "
              r"under another name, .*unregister\('Stiefel'\)"),
    "an instance": (lambda: manifolds.register("x")(Circulant(n=3)), "takes a subclass of Manifold, got .*pass its class, Circ"),  # type: ignore[type-var]
    "call": (lambda: type("Mine", (Circulant,), {"forward": lambda m, t: t})(n=4)(torch.zeros(2, 4)),
             r"forward of Mine\(n=4\) has to return a tensor of shape \[2, 4, 4\], it returned \[2, 4\]"),
    "checkpoint": (restored, r"\t0 and 2 more like it: the checkpoint holds another kind of hyper-connection, manifold='kronecker' "
                   r"where this one has 'stiefel'[^\n]*$"),
}  # fmt: skip


@pytest.mark.parametrize(("mistake", "words"), OF_USERS.values(), ids=OF_USERS)
def test_mistakes_of_users(mistake: Callable[[], Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        mistake()


def test_a_forgotten_layer_index_is_noticed() -> None:
    layers = [HyperConnection(nn.Tanh(), 8) for _ in range(3)]
    with pytest.warns(UserWarning, match="all 3 layers have layer_index=0.*pass layer_index=i to layer i"):
        HyperConnectionStack(layers)
    HyperConnectionStack(layers[:1])


def test_a_plugin_behind_a_built_in_warns_once(install: Install) -> None:
    install(entries={"stiefel": "extra_tilt:Tilt"}, extra_tilt=shape_class())
    MANIFOLDS._shadows_told = False
    with pytest.warns(UserWarning, match=r"'stiefel' .*of extra 1.0\) is not used: .*Stiefel; rename") as caught:
        assert manifolds.get("kronecker") is manifolds.Kronecker and manifolds.get("stiefel") is manifolds.Stiefel
    assert len(caught) == 1


def test_a_resumed_run_names_the_distribution_of_a_missing_plugin(tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text('{"hyper_connection": {"manifold": "tilt"}}', encoding="utf-8")
    plugin = {"tilt": {"distribution": "extra", "version": "1.0"}}
    torch.save({"format": FORMAT, "config": {"hyper_connection": {"plugins": plugin}}}, tmp_path / CHECKPOINT)
    said = refused("train", config, "--out", str(tmp_path), "--resume")
    assert said.endswith("needs the manifold 'tilt' of extra 1.0, which is not installed: pip install 'extra==1.0'")


def test_laws_name_the_first_cause_and_fold_the_rest() -> None:
    cls, *_ = made(Circulant, {"forward": lambda m, t: forward(m, t).flatten(-2), "reference": None, "symmetries": ()})
    verdicts = verify(cls(n=3), examples=1)
    broken = [verdict for verdict in verdicts if not verdict.holds]
    said = failures(verdicts)
    assert len(broken) > 20 and "Mine(n=3) breaks shape" in said[0] and "the same in dtype, device" in said[0]
    assert len(said) <= 5 and "may follow from the first" in said[-1]
    assert sum("as in shape" in row[3] for row in rows(verdicts)) > 15


def test_a_crash_of_a_law_is_not_blamed_on_the_map() -> None:
    def measure(subject: Any, case: Any) -> Any:
        yield from ()
        raise IndexError("of its own")

    measure = type(measure)(measure.__code__, {"__name__": "hyperconn.testing.some_laws", "IndexError": IndexError})
    with pytest.raises(LawViolation, match="not measured, the law itself met IndexError: of its own"):
        check_law(replace(get_law("finite"), measure=measure), Circulant(n=3), examples=0)
    lazy = type("Mine", (Circulant,), {"forward": lambda m, t: (_ for _ in ()).throw(IndexError("of the map"))})
    with pytest.raises(LawViolation, match="error IndexError: of the map"):
        check_law("finite", lazy(n=3), examples=0)
