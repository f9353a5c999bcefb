"""``hyperconn bench``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.table import Table
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, expand_streams, manifolds
from hyperconn.backends import BackendUnavailableError, choose_backend
from hyperconn.cli.blame import blaming_plugins
from hyperconn.cli.console import BAD_INPUT, bad_input, fail, output, say
from hyperconn.coefficients import unfused_part
from hyperconn.manifolds import PluginError
from hyperconn.timing import interleaved, ratios

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PLAIN = "plain residual"


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Manifolds. Default: all.")] = None,
    streams: Annotated[int, typer.Option(help="Streams.", min=1)] = 4,
    dim: Annotated[int, typer.Option(help="Channels of a stream.", min=1)] = 768,
    tokens: Annotated[int, typer.Option(help="Tokens.", min=1)] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the streams: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch or triton.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Rounds of the comparison.", min=1)] = 11,
    seed: Annotated[int, typer.Option(help="Seed of the data.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Time a layer with each manifold on this machine, forward and backward, against the plain residual."""
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
        synchronize = torch.cuda.synchronize if place.type == "cuda" else lambda: None
        seconds = interleaved(steps, rounds, synchronize=synchronize)
    table = Table(title=f"{tokens} tokens of {streams}×{dim}, {dtype}, on {place}", title_justify="left")
    for column in ("manifold", "backend", "forward + backward", "× plain residual", "10–90 %"):
        table.add_column(column, justify="left" if column in ("manifold", "backend") else "right")
    for name, taken in seconds.items():
        ratio = ratios(seconds, name, _PLAIN)
        milliseconds = f"{1e3 * statistics.median(taken):.2f} ms"
        table.add_row(
            name, running.get(name, ""), milliseconds, f"{ratio.median:.2f}", f"{ratio.low:.2f} – {ratio.high:.2f}"
        )
    output.print(table)
    say(f"medians of {rounds} rounds in which everybody runs once; the branch is an RMSNorm, the same for all")
    for line in left_out:
        say(line)


def _leave_out(name: str, error: Exception, names: list[str] | None, left_out: list[str]) -> None:
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
