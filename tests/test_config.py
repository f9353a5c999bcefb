"""The config: plain data in and out, immutable, and errors that name the nearest thing that exists."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig, UnknownNameError, gates, manifolds, predictors, streams
from layer_cases import PRESETS, every_preset

NESTED = {
    "streams": 8,
    "manifold": "kronecker",
    "manifold_options": {"factors": [{"manifold": "birkhoff", "n": 4, "finish": "round"}, 2]},
    "fn_std": 0.02,
    "collapse": "sum",
}
NUMBERS = ("pre_eps", "post_gain", "post_eps", "sharpness", "scale_init", "fn_std", "norm_eps")
CHOICES = ("orientation", "init", "norm_eps_mode", "read", "expand", "collapse", "backend")
PARTS = ("manifold", "pre_gate", "post_gate", "predictor")
NESTED_TOML = """
streams = 8
manifold = "kronecker"
fn_std = 0.02
collapse = "sum"

[manifold_options]
factors = [{manifold = "birkhoff", n = 4, finish = "round"}, 2]
"""


def configs() -> list[HyperConnectionConfig]:
    presets = [HyperConnectionConfig.preset(name, streams=n) for name in PRESETS for n in (2, 4)]
    return [HyperConnectionConfig(), HyperConnectionConfig(**NESTED), *presets]


every_config = pytest.mark.parametrize("config", configs(), ids=lambda c: f"{c.manifold}-{c.streams}-{c.predictor}")


@every_config
def test_dict_round_trip(config: HyperConnectionConfig) -> None:
    table = config.to_dict()
    assert HyperConnectionConfig.from_dict(table) == config
    assert set(table) == {field.name for field in dataclasses.fields(config)}
    # Plain data all the way down: what JSON and YAML make of it is the same.
    assert json.loads(json.dumps(table)) == table
    assert yaml.safe_load(yaml.safe_dump(table)) == table
    table["manifold_options"]["n"] = 99  # a copy: the config does not change
    assert HyperConnectionConfig.from_dict(config.to_dict()) == config


def test_files(tmp_path: Path) -> None:
    """The table itself, or below hyper_connection beside other keys."""
    config = HyperConnectionConfig(**NESTED)
    nested = NESTED_TOML.replace("[manifold_options]", "[hyper_connection.manifold_options]")
    written = {"flat.toml": NESTED_TOML, "below.toml": f"seed = 3\n[hyper_connection]\n{nested}"}
    for suffix, dump in ((".yaml", yaml.safe_dump), (".yml", yaml.safe_dump), (".json", json.dumps)):
        written |= {f"flat{suffix}": dump(config.to_dict())}
        written |= {f"below{suffix}": dump({"seed": 3, "hyper_connection": config.to_dict()})}
    for name, text in written.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert HyperConnectionConfig.from_file(path) == HyperConnectionConfig.from_file(str(path)) == config
    assert config.make_manifold().num_coordinates == 16 + 2


@every_preset
def test_preset_by_name_in_a_table(preset: str) -> None:
    table = {"preset": preset, "streams": 2, "norm_eps": 1e-5}
    assert HyperConnectionConfig.from_dict(table) == HyperConnectionConfig.preset(preset, streams=2, norm_eps=1e-5)
    assert table["preset"] == preset  # the caller's table is left alone
    assert HyperConnectionConfig.preset(preset) != HyperConnectionConfig.preset(preset, streams=2)


@every_config
def test_immutable(config: HyperConnectionConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.streams = 7  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.manifold_options["iterations"] = 3  # type: ignore[index]
    with pytest.raises(AttributeError, match=r"immutable"):
        config.manifold_options.extra = 3  # type: ignore[attr-defined]


def test_independent_of_what_it_was_made_from() -> None:
    options: dict[str, Any] = copy.deepcopy(NESTED["manifold_options"])
    config = HyperConnectionConfig(8, "kronecker", options)
    before = hash(config)
    options["factors"][0]["finish"] = "none"
    options["factors"].append(3)
    assert config.make_manifold().exact and hash(config) == before


@every_config
def test_copies_are_equal_and_hash_alike(config: HyperConnectionConfig) -> None:
    twins = (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config))
    for twin in twins:
        assert twin == config and hash(twin) == hash(config) and twin.to_dict() == config.to_dict()
    other = dataclasses.replace(config, norm_eps=0.5)
    assert other != config and len({config, other, *twins}) == 2
    assert eval(repr(config), {"HyperConnectionConfig": HyperConnectionConfig}) == config


@dataclasses.dataclass(frozen=True)
class Halved(gates.Sigmoid):
    """A gate that nobody has registered, with an option."""

    name = "halved"
    by: float = 2.0

    def forward(self, theta: Tensor) -> Tensor:
        return super().forward(theta) / self.by

    def inverse(self, weights: Tensor) -> Tensor:
        return super().inverse(weights * self.by)


@dataclasses.dataclass(frozen=True)
class Shifted(manifolds.Stiefel):
    """A manifold that nobody has registered."""

    name = "shifted"


@dataclasses.dataclass(frozen=True)
class Doubled(predictors.Flat):
    """A predictor that nobody has registered: its bias counts twice."""

    name = "doubled"

    def logits(self, x: Tensor, raw: Tensor | None, parameters: Any, layout: predictors.Layout) -> Tensor:
        return super().logits(x, raw, parameters, layout) + parameters["base"]

    @property
    def fuses(self) -> bool:
        return False


STRANGERS = {"manifold": Shifted(n=4), "pre_gate": Halved(n=4, by=1.25), "predictor": Doubled()}


@pytest.mark.parametrize("field", STRANGERS)
def test_objects_that_are_not_registered_work_everywhere_but_in_a_table(field: str) -> None:
    config = HyperConnectionConfig(**{field: STRANGERS[field]}, fn_std=0.3, scale_init=1.0)
    assert getattr(config, field) == getattr(config, f"make_{field}")() == STRANGERS[field]
    with pytest.raises(TypeError, match=rf"to_dict: {field}={type(STRANGERS[field]).__name__}\(.*register"):
        config.to_dict()
    twin = dataclasses.replace(pickle.loads(pickle.dumps(config)), scale_init=1.0)
    assert twin == config and hash(twin) == hash(config) != hash(HyperConnectionConfig(fn_std=0.3, scale_init=1.0))
    block, plain = (HyperConnection(torch.nn.Tanh(), 8, c) for c in (config, HyperConnectionConfig(fn_std=0.3)))
    x = torch.randn(3, 4, 8)
    out = block(x)
    assert not torch.allclose(out, plain(x), atol=1e-3)
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), list(block.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)
    fresh = copy.deepcopy(block)
    fresh.base.data.zero_()
    fresh.load_state_dict(block.state_dict())
    assert torch.equal(fresh(x), out)
    if sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in block.parameters()):
        with pytest.raises(RuntimeError, match=STRANGERS[field].name):
            plain.load_state_dict(block.state_dict())


def test_objects_of_registered_classes_are_their_names() -> None:
    for field, part in (
        ("manifold", manifolds.Birkhoff(n=4, finish="round")),
        ("pre_gate", gates.Softmax(n=4)),
        ("post_gate", gates.DoubleSigmoid(n=4)),
        ("predictor", predictors.Flat(norm_weight="weight")),
    ):
        options = {f"{field}_options": part.chosen_options()} if part.chosen_options() else {}
        named = HyperConnectionConfig(**{field: part.name, **options})
        assert HyperConnectionConfig(**{field: part}) == named != HyperConnectionConfig()
        assert HyperConnectionConfig.from_dict(named.to_dict()) == named


def test_objects_have_to_fit() -> None:
    with pytest.raises(ValueError, match=r"manifold=Stiefel\(n=2.*is made for n=2, streams=4"):
        HyperConnectionConfig(manifold=manifolds.Stiefel(n=2))
    with pytest.raises(TypeError, match=r"manifold_options go with a name; Stiefel\(n=4"):
        HyperConnectionConfig(manifold=manifolds.Stiefel(n=4), manifold_options={"steps": 3})
    with pytest.raises(TypeError, match=r"pre_gate is a name.*or a Gate object, got Stiefel"):
        HyperConnectionConfig(pre_gate=manifolds.Stiefel(n=4))  # type: ignore[arg-type]


class Scaled(streams.Expand):
    """Whole streams, and no name."""

    def stream_dim(self, dim: int, n: int) -> int:
        return dim

    def __call__(self, h: Tensor, n: int) -> Tensor:
        return streams.Copies()(h, n) * torch.arange(1.0, n + 1).unsqueeze(-1)


def test_what_has_no_name_is_called_like_its_class() -> None:
    same = {"forward": lambda self, theta: theta, "inverse": lambda self, weights: weights}
    config = HyperConnectionConfig(expand=Scaled(), post_gate=type("Same", (gates.Gate,), same)(n=4))
    note = HyperConnection(None, 8, config).state_dict()._metadata[""]["hyperconn"]
    assert (note["post_gate"], note["expand"], config.collapse) == ("Same", "Scaled", "mean")
    with pytest.raises(ValueError, match="'Scaled' with collapse='concat'; Scaled are collapsed by 'mean', .*'head'"):
        dataclasses.replace(config, collapse="concat")


def test_a_preset_with_another_part_drops_the_options_of_its_own() -> None:
    config = HyperConnectionConfig.preset("deepseek-v4", manifold="kronecker", predictor="static")
    assert not config.manifold_options and not config.predictor_options and config.orientation == "transposed"
    assert HyperConnectionConfig.preset("deepseek-v4", manifold="birkhoff").manifold_options["first_axis"] == "rows"


@pytest.mark.parametrize(
    ("table", "bad", "near"),
    [
        ({"strems": 4}, "strems", "streams"),
        ({"manifold": "kroneker"}, "kroneker", "kronecker"),
        ({"preset": "mhc-light"}, "mhc-light", "mhc-lite"),
        ({"preset": "mhc", "colapse": "sum"}, "colapse", "collapse"),
        ({"pre_gate": "sigmoyd"}, "sigmoyd", "sigmoid"),
        ({"predictor": "perstream"}, "perstream", "per_stream"),
        ({"collapse": "means"}, "means", "mean"),
        ({"backend": "tritn"}, "tritn", "triton"),
    ],
    ids=str,
)
def test_unknown_names_come_with_the_nearest(table: dict[str, Any], bad: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"{bad}.*Did you mean.*{near}"):
        HyperConnectionConfig.from_dict(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"streams": 0}, r"at least 1.*0"),
        ({"streams": -2}, r"at least 1.*-2"),
        ({"streams": 8, "manifold": "permutation"}, r"kronecker"),
        ({"streams": 4, "manifold": "kronecker", "manifold_options": {"factors": [2, 3]}}, r"multiply to 6.*n=4"),
        ({"norm_eps": -1e-6}, r"norm_eps.*at least 0.*-1e-06"),
        ({"scale_init": float("nan")}, r"scale_init.*finite.*nan"),
        ({"post_gain": 0.0}, r"post_gain must be above 0"),
        ({"expand": "fractions"}, r"expand='fractions' with collapse='mean'.*'concat'"),
        ({"collapse": "concat"}, r"expand='copies' with collapse='concat'.*'mean'"),
        ({"expand": "fractions", "collapse": "concat"}, r"n×n matrix of weights.*pre_gate='matrix'.*'linear'"),
        ({"preset": "fc", "read": "delayed"}, r"read='delayed' hands on one weight a stream.*Matrix"),
        ({"collapse": "pre"}, r"collapse='pre' needs the weights that read='delayed'"),
        ({"predictor": "per_stream", "manifold": "stiefel"}, r"per_stream.*6\].*4 streams.*flat"),
        ({"pre_gate": "column_softmax"}, r"'column_softmax'.*Known: .*sigmoid"),
        ({"post_gate": "softmax"}, r"'softmax'.*Did you mean.*'column_softmax'"),
        (
            {"predictor_options": {"norm_weight": "affine"}},
            r"^WidthScaled: norm_weight='affine' goes with",
        ),
    ],
    ids=str,
)
def test_bad_values(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperConnectionConfig.from_dict(table)


OWN = "HyperConnectionConfig: "
OPTIONS = "options are a table of names and values, got "


@pytest.mark.parametrize(
    ("table", "message"),
    [
        *(({"streams": value}, rf"^{OWN}streams must .*, got {value!r}$") for value in (4.0, "4", True, None)),
        *(({"channel_dim": value}, rf"^{OWN}channel_dim must .*, got {value!r}$") for value in (1.0, "1", True, 65)),
        ({"streams": 100_000}, r"^Stiefel: n must be at least 1 and at most 1024, got 100000"),
        *(
            ({name: value}, rf"^{OWN}{name} is a name, one of .*, or a \w+ object, got {value!r}$")
            for name in PARTS
            for value in (3, None)
        ),
        ({"manifold_options": ["finish"]}, rf"{OPTIONS}\['finish'\]$"),
        (
            {"manifold": "birkhoff", "manifold_options": {"iteration": 3}},
            r"has no option 'iteration'; its options are: iterations,",
        ),
        ({"manifold_options": {"n": 4}}, rf"^{OWN}manifold_options holds n, .*; pass streams=4 instead$"),
        ({"manifold_options": {"finish": {1}}}, r"option 'finish' holds \{1\}; .*plain data"),
        ({"manifold_options": {3: 4}}, r"option names are strings, got 3$"),
        (
            {"manifold": "birkhoff", "manifold_options": {"eps": "1e-6"}},
            r"^Birkhoff: eps must be a number, got '1e-6'; YAML .* write 1.0e-6$",
        ),
        ({"norm_eps": "1e-6"}, rf"^{OWN}norm_eps must be a number, got '1e-6'; YAML .* write 1.0e-6$"),
        *(({name: True}, rf"^{OWN}{name} must be a number, got True$") for name in NUMBERS),
        *(({name: None}, rf"^{OWN}{name} must be a number, got None$") for name in NUMBERS),
        *(({f"{name}_options": 3}, rf"{OPTIONS}3$") for name in PARTS),
        ({"pre_gate_options": {"n": 4}}, rf"^{OWN}pre_gate_options holds n, .*; pass streams=4 instead$"),
        ({"pre_gate_options": {"eps": 1.0}}, r"gate 'linear' has no option 'eps'; its options are: none"),
        ({"predictor_options": {"bias": 1}}, r"^WidthScaled: bias must be true or false, got 1$"),
        ({"predictor_options": {"norm": "batch"}}, r"^WidthScaled: norm must be one of 'rms', 'layer', got 'batch'$"),
        *(({name: 3}, rf"^unknown {name} of a HyperConnectionConfig 3\. Known: ") for name in CHOICES),
        *(({name: None}, rf"^unknown {name} of a HyperConnectionConfig None\. Known: ") for name in CHOICES),
        ({"pre_gate": ["sigmoid"]}, rf"^{OWN}pre_gate is a name, one of .*, or a Gate object, got \['sigmoid'\]$"),
        ({"preset": 3}, r"^unknown preset 3\. Known: "),
        ({"preset": ["mhc"]}, r"^unknown preset \['mhc'\]\. Did you mean"),
    ],
    ids=str,
)
def test_wrong_types(table: dict[str, Any], message: str) -> None:
    """Whatever a file can hold in a wrong place gets an error that names the place and the value."""
    with pytest.raises((TypeError, ValueError), match=message):
        HyperConnectionConfig.from_dict(table)


def test_every_key_meets_a_wrong_type() -> None:
    named = {*NUMBERS, *CHOICES, *PARTS, *(f"{name}_options" for name in PARTS), "streams", "channel_dim"}
    assert named == {field.name for field in dataclasses.fields(HyperConnectionConfig)}


@pytest.mark.parametrize("table", (None, 3, "mhc", [("streams", 4)]), ids=repr)
def test_no_table(table: Any) -> None:
    with pytest.raises(TypeError, match=r"table of names and values"):
        HyperConnectionConfig.from_dict(table)
    with pytest.raises(TypeError, match=r"HyperConnectionConfig"):
        HyperConnection(None, dim=8, config=table or {})


def test_bad_files(tmp_path: Path) -> None:
    """Those that hold no table are in test_fuzz."""
    (tmp_path / "folder.toml").mkdir()
    for name in ("folder.toml", "missing.toml"):
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist"):
            HyperConnectionConfig.from_file(tmp_path / name)
    (tmp_path / "below.yaml").write_text("hyper_connection: mhc", encoding="utf-8")
    with pytest.raises(TypeError, match=r"table of names and values.*mhc"):
        HyperConnectionConfig.from_file(tmp_path / "below.yaml")
