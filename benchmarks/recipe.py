"""Which defaults train best: plain models and their conversions by the README, one thing varied at a time.

    python benchmarks/recipe.py run --models gpt,vit --variants plain,default --seeds 5
    python benchmarks/recipe.py table

A run is a line of ``benchmarks/results/recipe.jsonl``; what is there already is not trained again. Equal seeds mean
equal weights outside of the connections, equal data and an equal order of it. All of it runs on one thread of a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from hyperconn import HyperConnection, HyperConnectionConfig, collapse_streams, expand_streams
from hyperconn.lab.data import load_corpus
from hyperconn.lab.settings import DataConfig

RESULTS = Path(__file__).parent / "results" / "recipe.jsonl"
WARMUP = 20  # steps


def variants() -> dict[str, HyperConnectionConfig | None]:
    """The default, what differs from it in one thing, and from it with kronecker; None is the plain residual."""
    default = HyperConnectionConfig()
    changes: dict[str, dict[str, Any]] = {"default": {}}
    others = ("kronecker", "permutation", "spectral_sphere", "identity", "unconstrained")
    changes |= {name: {"manifold": name} for name in others}
    changes |= {
        "static": {"predictor": "static"},
        "flat": {"predictor": "flat"},
        "rate 1": {"predictor_options": {"rate": 1.0}},
        "rate 100": {"predictor_options": {"rate": 100.0}},
        "random fn": {"fn_std": 0.1},
        "collapse head": {"collapse": "head"},
        "kronecker, static": {"manifold": "kronecker", "predictor": "static"},
        "kronecker, sharpness 1": {"manifold": "kronecker", "sharpness": 1.0},
        "kronecker, gates of mHC": {"manifold": "kronecker", "pre_gate": "sigmoid", "post_gate": "double_sigmoid"},
    }
    presets = {f"preset {name}": HyperConnectionConfig.preset(name) for name in ("hc", "mhc", "kromhc")}
    return {"plain": None, **{name: dataclasses.replace(default, **own) for name, own in changes.items()}, **presets}


class Attention(nn.Module):
    """Pre-normed self-attention of 4 heads."""

    def __init__(self, dim: int, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.norm = causal, nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Pre-normed two-layer perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.up, self.out = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(functional.gelu(self.up(self.norm(h))))


class Convolutions(nn.Module):
    """The branch of a pre-activation ResNet, on ``[B, H, W, C]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = [nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1, bias=False)]
        self.net = nn.Sequential(*half, nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1, bias=False))

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Residual(nn.Module):
    """Branches between an embedding and a head: the part of a model that a conversion touches."""

    def __init__(self, branches: list[nn.Module], dim: int, config: HyperConnectionConfig | None) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            branches
            if config is None
            else (HyperConnection(branch, dim=dim, config=config, layer_index=i) for i, branch in enumerate(branches))
        )
        if config is not None:
            self.collapse = config.make_collapse().make(dim, config.streams)

    def forward(self, h: Tensor) -> Tensor:
        if self.config is None:
            for branch in self.layers:
                h = h + branch(h)
            return h
        x = expand_streams(h, streams=self.config.streams)
        for layer in self.layers:
            x = layer(x)
        return collapse_streams(x, self.collapse)


class GPT(nn.Module):
    """Byte-level, with the starts of GPT-2: 0.02, smaller in front of the residual, tied embeddings."""

    def __init__(self, blocks: int, dim: int, context: int, config: HyperConnectionConfig | None) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, dim), nn.Embedding(context, dim)
        branches = [branch for _ in range(blocks) for branch in (Attention(dim, causal=True), MLP(dim))]
        self.norm = nn.LayerNorm(dim)
        for module in (self.tokens, self.positions, *(module for branch in branches for module in branch.modules())):
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for branch in branches:
            nn.init.normal_(branch.out.weight, std=0.02 / math.sqrt(len(branches)))
        self.residual = Residual(list(branches), dim, config)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return functional.linear(self.norm(self.residual(h)), self.tokens.weight)


def _classifier(
    embed: nn.Module, branches: list[nn.Module], dim: int, config: HyperConnectionConfig | None, pool: nn.Module
) -> nn.Module:
    return nn.Sequential(embed, Residual(branches, dim, config), nn.LayerNorm(dim), pool, nn.Linear(dim, 10))


class Patches(nn.Module):
    """2×2 patches of an image with a learned position each: ``[B, 1, 8, 8] -> [B, 16, C]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(4, dim), nn.Parameter(0.02 * torch.randn(16, dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(functional.unfold(images, 2, stride=2).mT) + self.places


class Pixels(nn.Module):
    """``[B, 1, 8, 8] -> [B, 8, 8, C]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images).permute(0, 2, 3, 1)


class MeanPool(nn.Module):
    """Mean over all but the first and last axis."""

    def forward(self, h: Tensor) -> Tensor:
        return h.flatten(1, -2).mean(1)


class Case(NamedTuple):
    """A model, how to make it, and how long and how fast it is trained."""

    make: Callable[[HyperConnectionConfig | None], nn.Module]
    rate: float
    steps: int
    batch: int
    context: int = 0  # of a language model


def _vit(config: HyperConnectionConfig | None) -> nn.Module:
    branches = [branch for _ in range(4) for branch in (Attention(48, causal=False), MLP(48))]
    return _classifier(Patches(48), branches, 48, config, MeanPool())


def _resnet(config: HyperConnectionConfig | None) -> nn.Module:
    return _classifier(Pixels(16), [Convolutions(16) for _ in range(6)], 16, config, MeanPool())


def _mlp(config: HyperConnectionConfig | None) -> nn.Module:
    embed = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    return _classifier(embed, [MLP(64) for _ in range(12)], 64, config, nn.Identity())


CASES = {
    "gpt": Case(lambda config: GPT(4, 64, 64, config), 3e-3, 300, 8, 64),
    "gpt wide": Case(lambda config: GPT(6, 128, 64, config), 2e-3, 300, 8, 64),
    "vit": Case(_vit, 3e-3, 150, 64),
    "resnet": Case(_resnet, 3e-3, 100, 64),
    "mlp": Case(_mlp, 2e-3, 150, 64),
}


class Data(NamedTuple):
    """Batches of a case, and what it is judged by."""

    batches: Iterator[tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]


def data_of(case: Case, seed: int) -> Data:
    """Windows of Python's standard library, or digits of which the last 597 of a seed's order are held out."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if not case.context:
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=generator)
        images, labels = torch.tensor(digits.images / 16).float()[order, None], torch.tensor(digits.target)[order]

        def pictures() -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                chosen = torch.randint(1200, (case.batch,), generator=generator)
                yield images[chosen], labels[chosen]

        return Data(pictures(), (images[1200:], labels[1200:]))
    corpus = load_corpus(DataConfig(), case.context)

    def windows(text: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(text) - case.context, (count, 1), generator=generator)
        found = text[starts + torch.arange(case.context + 1)].long()
        return found[:, :-1], found[:, 1:]

    def texts() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield windows(corpus.train, case.batch, generator)

    return Data(texts(), windows(corpus.valid, 512, torch.Generator().manual_seed(0)))


def train(case: Case, config: HyperConnectionConfig | None, seed: int, schedule: str, steps: int) -> dict[str, float]:
    """Train one model with AdamW as most people do: one group of parameters, decay 0.1."""
    torch.manual_seed(seed)
    model, data = case.make(config), data_of(case, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.rate, weight_decay=0.1)
    started = time.perf_counter()
    for step in range(steps):
        if schedule == "cosine":  # after a warm-up, to a tenth, with clipping; "constant" has none of the three
            decayed = 0.55 + 0.45 * math.cos(math.pi * step / steps)
            optimizer.param_groups[0]["lr"] = case.rate * decayed * min(1.0, (step + 1) / WARMUP)
        inputs, targets = next(data.batches)
        loss = functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        if schedule == "cosine":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        inputs, targets = data.held_out
        logits = torch.cat([model(part) for part in inputs.split(64)]).flatten(0, -2)
        held_out = float(functional.cross_entropy(logits, targets.flatten()))
        right = float((logits.argmax(-1) == targets.flatten()).float().mean())
    return {"held_out": held_out, "right": right, "seconds": seconds, **learned(model, inputs[:64])}


@torch.no_grad()
def learned(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """How far the coefficients went: mean change of each since the start, and spread over tokens."""
    found: dict[str, list[float]] = {}
    for layer in model.modules():
        if isinstance(layer, HyperConnection):
            fresh = HyperConnection(None, layer.dim, layer.config, layer_index=layer.layer_index)
            streams: list[Any] = []
            hook = layer.register_forward_pre_hook(lambda _, args, kept=streams: kept.append(args[0]))
            model(inputs)
            hook.remove()
            pairs = zip(layer.coefficients(streams[0]), fresh.coefficients(streams[0]), strict=True)
            for name, (now, before) in zip(("pre", "post", "H"), pairs, strict=True):
                found.setdefault(f"{name} moved", []).append(float((now - before).abs().mean()))
                tokens = now.flatten(0, -(2 if name != "H" else 3))
                found.setdefault(f"{name} spread", []).append(float(tokens.std(0).mean()))
    return {name: statistics.fmean(values) for name, values in found.items()}


def main() -> None:
    """Train what is asked for and not there yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("run", "table"))
    parser.add_argument("--models", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--variants", default=",".join(variants()), help="comma-separated")
    parser.add_argument("--schedules", default="cosine,constant", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--equal-time", action="store_true", help="only as many steps as plain's seconds allow")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.task == "table":
        print(table(_read(options.results)))
        return
    torch.set_num_threads(1)
    known, chosen = variants(), [options.models.split(","), options.schedules.split(","), options.variants.split(",")]
    for model, schedule, variant in itertools.product(*chosen):
        case, config = CASES[model], known[variant]
        for seed in range(options.seeds):
            done = _read(options.results)
            steps = _steps_in_equal_time(done, model, schedule, variant) if options.equal_time else case.steps
            key = {"model": model, "schedule": schedule, "variant": variant, "steps": steps, "seed": seed}
            if any(key.items() <= line.items() and _config_of(line) == config for line in done):
                continue
            settings = {} if config is None else {"config": config.to_dict()}
            result = train(case, config, seed, schedule, steps)
            line = {**key, **{name: float(f"{value:.6g}") for name, value in result.items()}, **settings}
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps({name: line[name] for name in (*key, "held_out", "seconds")}), flush=True)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _config_of(line: dict[str, Any]) -> HyperConnectionConfig | None:
    return HyperConnectionConfig.from_dict(line["config"]) if "config" in line else None


def _steps_in_equal_time(lines: list[dict[str, Any]], model: str, schedule: str, variant: str) -> int:
    """Steps in which a variant takes as long as plain does for all of its own; both ran with all steps before."""
    of = {name: _runs(lines, model, schedule, name) for name in ("plain", variant)}
    if not all(of.values()):
        raise SystemExit(f"equal time: run plain and {variant} of {model}, {schedule}, with all their steps first")
    seconds = {name: statistics.median(run["seconds"] for run in runs.values()) for name, runs in of.items()}
    return max(1, round(CASES[model].steps * seconds["plain"] / seconds[variant]))


def _runs(lines: list[dict[str, Any]], model: str, schedule: str, variant: str) -> dict[int, dict[str, Any]]:
    """Runs with all steps by seed."""
    wanted = {"model": model, "schedule": schedule, "variant": variant, "steps": CASES[model].steps}
    return {line["seed"]: line for line in lines if wanted.items() <= line.items()}


def table(lines: list[dict[str, Any]]) -> str:
    """Difference of held-out losses to plain with the standard error over paired seeds; bold beyond two of them."""
    settings = [(model, schedule) for model in CASES for schedule in ("cosine", "constant")]
    settings = [setting for setting in settings if _runs(lines, *setting, "plain")]
    head = ["held-out nats minus plain's", *(f"{model}, {schedule}" for model, schedule in settings)]
    rows = [head, [":--", *["--:"] * len(settings)]]
    rows.append(
        ["plain", *(f"{statistics.fmean(_losses(lines, *setting, 'plain').values()):.3f}" for setting in settings)]
    )
    for variant in variants():
        cells = [_cell(lines, *setting, variant) for setting in settings]
        if variant != "plain" and any(cells):
            rows.append([variant, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _losses(lines: list[dict[str, Any]], model: str, schedule: str, variant: str) -> dict[int, float]:
    return {seed: run["held_out"] for seed, run in _runs(lines, model, schedule, variant).items()}


def _cell(lines: list[dict[str, Any]], model: str, schedule: str, variant: str) -> str:
    plain, own = _losses(lines, model, schedule, "plain"), _losses(lines, model, schedule, variant)
    differences = [own[seed] - plain[seed] for seed in own.keys() & plain.keys()]
    if len(differences) < 2:
        return ""
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    cell = f"{mean:+.3f} ± {error:.3f}".replace("-", "−")
    return f"**{cell}**" if abs(mean) > 2 * error else cell


if __name__ == "__main__":
    main()
