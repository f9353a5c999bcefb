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
from hyperconn.lab.run import resolve_device
from hyperconn.timing import interleaved, ratios

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PLAIN = "plain residual"


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Manifolds. Default: all.")] = None,
    streams: Annotated[int, typer.Option(help="Streams.", min=1)] = 4,
    dim: Annotated[int, typer.Option(help="Channels of a stream.", min=1)] = 768,
    tokens: Annotated[int, typer.Option(help="Tokens.", min=1)] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the streams: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, torch or triton.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Rounds of the comparison.", min=1)] = 11,
    seed: Annotated[int, typer.Option(help="Seed of the data.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Time a layer with each manifold on this machine, forward and backward, against the plain residual."""
    with bad_input():
        place = resolve_device(device, "--device")
        if place.type not in ("cpu", "cuda"):
            raise ValueError(f"--device is cpu, cuda or auto, got {device!r}")
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
            with blaming_plugins(name) as foreign:
                config = HyperConnectionConfig(streams=streams, manifold=name, backend=backend)
                layer = HyperConnection(norm, dim, config, layer_index=1, device=place)
                runs = choose_backend(layer.spec, place, x.dtype, next(layer.parameters()).dtype)
                unfused = runs == "triton" and unfused_part(layer.spec)
                step = _step(layer, expand_streams(x, streams).contiguous(), list(layer.parameters()))
                if foreign:  # what a step of a built-in raises is a bug of ours, and keeps its traceback
                    step()
        except (ValueError, TypeError, BackendUnavailableError) as error:
            if names:  # what was asked for cannot be left out
                fail(str(error), BAD_INPUT)
            left_out.append(f"{name}: {' '.join(str(error).split())}")
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


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> Callable[[], None]:
    """A forward and backward with every gradient, which it forgets again."""
    leaf = x.requires_grad_()
    cotangent = torch.randn_like(x)

    def step() -> None:
        layer(leaf).backward(cotangent)
        for tensor in (leaf, *parameters):
            tensor.grad = None

    return step
