"""``hyperconn bench``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.table import Table
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, expand_streams, manifolds
from hyperconn.backends import BackendUnavailableError, choose_backend
from hyperconn.cli.console import BAD_INPUT, bad_input, fail, output, say
from hyperconn.cli.plugins import blaming_plugins
from hyperconn.coefficients import unfused_part
from hyperconn.manifolds import PluginError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WARMUPS = 2
_PLAIN = "plain residual"


def run_bench(
    names: Sequence[str],
    *,
    streams: int,
    dim: int,
    tokens: int,
    dtype: str,
    device: str | None,
    backend: str,
    rounds: int,
    seed: int,
) -> None:
    """Time a layer with each manifold against the plain residual, and print a table."""
    with bad_input():
        place = _device(device)
        if dtype not in _DTYPES:
            raise ValueError(f"--dtype is one of {', '.join(_DTYPES)}, got {dtype!r}")
    torch.manual_seed(seed)
    x = torch.randn(tokens, dim, device=place, dtype=_DTYPES[dtype])
    norm = nn.RMSNorm(dim, device=place, dtype=_DTYPES[dtype])
    steps = {_PLAIN: _step(lambda h: h + norm(h), x, [norm.weight])}
    running: dict[str, str] = {}
    left_out: list[str] = []
    for name in dict.fromkeys(names or manifolds.available()):
        try:
            with blaming_plugins(name):
                config = HyperConnectionConfig(streams=streams, manifold=name, backend=backend)
                layer = HyperConnection(norm, dim, config, layer_index=1, device=place)
                runs = choose_backend(layer.spec, place, x.dtype, next(layer.parameters()).dtype)
                unfused = runs == "triton" and unfused_part(layer.spec)
        except (ValueError, TypeError, BackendUnavailableError) as error:
            _leave_out(name, error, names, left_out)
            continue
        step = _step(layer, expand_streams(x, streams).contiguous(), list(layer.parameters()))
        try:
            with blaming_plugins(name):
                step()
        except PluginError as error:  # whatever a built-in raises here is a bug of ours
            _leave_out(name, error, names, left_out)
            continue
        running[name], steps[name] = "triton, map by torch" if unfused else runs, step
    if not running:
        fail(f"no manifold can be timed; {left_out[0]}", BAD_INPUT)
    with output.status("timing"):
        seconds = _interleaved(steps, rounds, _synchronize(place))
    table = Table(title=f"{tokens} tokens of {streams}×{dim}, {dtype}, on {place}", title_justify="left")
    for column in ("manifold", "backend", "forward + backward", "× plain residual", "10–90 %"):
        table.add_column(column, justify="left" if column in ("manifold", "backend") else "right")
    for name, taken in seconds.items():
        ratios = sorted(mine / plain for mine, plain in zip(taken, seconds[_PLAIN], strict=True))
        low, high = ratios[round(0.1 * (rounds - 1))], ratios[round(0.9 * (rounds - 1))]
        milliseconds = f"{1e3 * statistics.median(taken):.2f} ms"
        table.add_row(
            name, running.get(name, ""), milliseconds, f"{statistics.median(ratios):.2f}", f"{low:.2f} – {high:.2f}"
        )
    output.print(table)
    say(f"medians of {rounds} rounds in which everybody runs once; the branch is an RMSNorm, the same for all")
    for line in left_out:
        say(line)


def _leave_out(name: str, error: Exception, names: Sequence[str], left_out: list[str]) -> None:
    """Note why a manifold is not timed; for one that was asked for, that is the end."""
    if names:
        fail(str(error), BAD_INPUT)
    left_out.append(f"{name}: {' '.join(str(error).split())}")


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:  # torch's word for a name that it cannot read
        raise ValueError(f"--device {name!r} is no device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch sees no GPU; `hyperconn doctor` says why")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is cpu or cuda, got {name!r}")
    return device


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> Callable[[], None]:
    """A forward and backward with every gradient, which it forgets again."""
    leaf = x.requires_grad_()
    cotangent = torch.randn_like(x)

    def step() -> None:
        layer(leaf).backward(cotangent)
        for tensor in (leaf, *parameters):
            tensor.grad = None

    return step


def _synchronize(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _interleaved(
    steps: dict[str, Callable[[], None]], rounds: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds by name; in a round everybody runs once, so that a slow moment is everybody's."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-_WARMUPS, rounds):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds
