"""The built-in manifolds are broken by hand, and the laws notice; `make mutants` breaks them in every small way."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mutants as command
from equivalents import EQUIVALENTS
from mutation import Mutant, mutants
from source_tree import ROOT

SOURCE = '''
def scaled(x, n):
    """A docstring."""
    if n < 1:
        raise ValueError("no streams")
    y = x.mT / x.sum(-1).clamp(min=1)
    for _ in range(n):
        y = torch.softmax(y, 0)
    return -y
'''

EXPECTED = """
y = x / x.sum(-1).clamp(min=1)
y = x.mT * x.sum(-1).clamp(min=1)
y = x.sum(-1).clamp(min=1) / x.mT
y = x.mT
y = x.mT / x.sum(-1)
y = x.mT / x.sum(-2).clamp(min=1)
y = x.mT / x.mean(-1).clamp(min=1)
y = x.mT / x.sum(-1).clamp(max=1)
y = x.mT / x.sum(-1).clamp(min=2)
y = torch.softmax(y, 1)
y = torch.log_softmax(y, 0)
y = y
pass
for _ in range(n - 1):
for _ in range(n + 1):
return y
""".strip().splitlines()


def test_every_small_mistake_is_made_once() -> None:
    found = mutants("kernels/x.py", SOURCE)
    assert {mutant.after for mutant in found} >= set(EXPECTED)
    assert len({mutant.source for mutant in found}) == len(found)
    for mutant in found:
        assert mutant.function == "scaled" and mutant.source != SOURCE
        assert "ValueError" in mutant.source and "if n < 1" in mutant.source, "argument checks are left alone"
        assert 6 <= mutant.line <= 9 and mutant.before in SOURCE


# Each a mistake that somebody could make: (file, text, what it was mistaken for).
SINKHORN, ROUNDING, CAYLEY = "kernels/maps/sinkhorn.py", "kernels/maps/rounding.py", "kernels/maps/cayley.py"
BIRKHOFF, STIEFEL, SPHERE = "manifolds/birkhoff.py", "manifolds/stiefel.py", "manifolds/spectral_sphere.py"
GRASSMANN, PERMUTATION = "manifolds/grassmann.py", "manifolds/permutation.py"
FACTORISATION = "manifolds/core/factorisation.py"
INVARIANTS, UNCONSTRAINED = "manifolds/core/invariants.py", "manifolds/unconstrained.py"

MISTAKES = (
    # signs
    (CAYLEY, "columns * n + rows, -upper", "columns * n + rows, upper"),
    (CAYLEY, "value=-0.5", "value=0.5"),
    (CAYLEY, "return (A - A.mT) / 2", "return (A.mT - A) / 2"),
    (CAYLEY, "solve_ex(eye + Q, eye - Q)", "solve_ex(eye - Q, eye + Q)"),
    (STIEFEL, "cayley_map(-2 * ", "cayley_map(2 * "),
    (GRASSMANN, "-B.mT], -1)", "B.mT], -1)"),
    (GRASSMANN, "B = -torch.linalg.solve", "B = torch.linalg.solve"),
    (SPHERE, "Z[k, k - 1] = -k", "Z[k, k - 1] = k"),
    (ROUNDING, "return matrix + row_missing", "return matrix - row_missing"),
    (INVARIANTS, "(-H).clamp(min=0)", "H.clamp(min=0)"),
    # transposes and axes
    (SINKHORN, '{"rows": 1, "columns": 0}', '{"rows": 0, "columns": 1}'),
    (SPHERE, "unsqueeze(-2)) @ V.mT", "unsqueeze(-2)) @ V"),
    (
        PERMUTATION,
        "self.n, theta)).unflatten(-1, (self.n, self.n))",
        "self.n, theta)).unflatten(-1, (self.n, self.n)).mT",
    ),
    (UNCONSTRAINED, "theta.unflatten(-1, (self.n, self.n))", "theta.unflatten(-1, (self.n, self.n)).mT"),
    (
        FACTORISATION,
        "A[..., :, None, :, None] * B[..., None, :, None, :]",
        "A[..., None, :, None, :] * B[..., :, None, :, None]",
    ),
    (STIEFEL, "A[..., rows, columns]", "A[..., columns, rows]"),
    (INVARIANTS, "lambda H: (H.sum(-1) - 1)", "lambda H: (H.sum(-2) - 1)"),
    (INVARIANTS, "(spectral_norm_of(H) - 1).abs(),", "(spectral_norm_of(H) - 1).clamp(min=0),"),
    (INVARIANTS, "_largest(H - H.mT), normal", "(H - H.mT)[..., 0, :].abs().amax(-1), normal"),
    (INVARIANTS, "_largest(H @ H - H)", "(H @ H - H).diagonal(dim1=-2, dim2=-1).sum(-1).abs()"),
    (FACTORISATION, ".transpose(-3, -2)  #", "  #"),
    (FACTORISATION, "sum((-2, -1)) / part.n", "sum((-2, -1))"),
    (FACTORISATION, "flip = flipped > kept", "flip = flipped < kept"),
    (FACTORISATION, "== 1) != parity", "== 1) == parity"),
    # what normalises, bounds or finishes, forgotten
    (PERMUTATION, "torch.softmax(theta, -1)", "torch.sigmoid(theta)"),
    (SPHERE, "sigma = torch.tanh(s)", "sigma = s"),
    (SPHERE, "return 1.0 / self.n + lifted", "return lifted"),
    (CAYLEY, "POLISH_STEPS = 3", "POLISH_STEPS = 0"),
    (CAYLEY, "(largest / cap).clamp(min=1)", "(largest / cap)"),
    (CAYLEY, "polished = 1.5 * Q", "polished = 1.0 * Q"),
    (ROUNDING, "matrix = matrix / matrix.sum(0, keepdim=True).clamp(min=1)", "matrix = matrix"),
    (ROUNDING, "matrix.sum(1, keepdim=True).clamp(min=1)", "matrix.sum(1, keepdim=True).clamp(max=1)"),
    (ROUNDING, "(column_missing / mass.clamp(min=smallest))", "column_missing"),
    (SINKHORN, "logits = logits - logits.amax((0, 1), keepdim=True)", "logits = logits"),
    (BIRKHOFF, "round_to_doubly_stochastic(H) if", "H if"),
    # derivatives
    (SINKHORN, "step = grad * entries", "step = grad"),
    (SINKHORN, "step = grad * entries", "step = grad * entries * (1.0 if grad.dtype == torch.float64 else -1.0)"),
    (SINKHORN, "entries.mul_(sums)", "entries.div_(sums)"),
    (SINKHORN, "step.sum(dim, keepdim=True), value=-1)", "step.sum(dim, keepdim=True), value=1)"),
    (SINKHORN, "step = step - logarithms.exp()", "step = step + logarithms.exp()"),
    (SINKHORN, "step = step - y * step.sum", "step = step + y * step.sum"),
    (SINKHORN, "tangent = tangent - (y * tangent)", "tangent = tangent + (y * tangent)"),
    (SINKHORN, "(u.unsqueeze(1) + v.unsqueeze(0))", "(u.unsqueeze(1) - v.unsqueeze(0))"),
    (SINKHORN, "return weighted - balanced * (u.unsqueeze(1) + v.unsqueeze(0))", "return weighted"),
    (SINKHORN, "(balanced * v.unsqueeze(0)).sum(1)", "(balanced * v.unsqueeze(1)).sum(1)"),
    (ROUNDING, "_with_gradient_of(projected, rounded)", "_with_gradient_of(matrix, rounded)"),
    (SINKHORN, "entries = entries.clone()", "entries = entries"),
    (ROUNDING, "mass = row_missing.sum(0, keepdim=True)", "mass = row_missing.mean(0, keepdim=True)"),
    # options
    (SINKHORN, "[first, 1 - first] * iterations", "[first, 1 - first] * (iterations + 1)"),
    (SINKHORN, "axes = axes[1:]", "axes = axes"),
    (SINKHORN, "return torch.softmax(logits, axes[-1])", "return torch.softmax(logits, axes[0])"),
    (BIRKHOFF, "            self.iterations,\n            first_axis", "            20,\n            first_axis"),
    (BIRKHOFF, "first_axis=self.first_axis", 'first_axis="columns"'),
    (BIRKHOFF, "eps=self.eps", "eps=0.0"),
    (BIRKHOFF, "eps_mode=self.eps_mode", 'eps_mode="denominator"'),
    (BIRKHOFF, 'implicit=self.gradient == "implicit"', "implicit=True"),
    (STIEFEL, "range(self.steps)", "range(2)"),
    (STIEFEL, "Y = eye + self.alpha * W", "Y = eye + 0.1 * W"),
    (SPHERE, "skew(self.gamma * torch.tanh", "skew(torch.tanh"),
    # nothing at all: it has to survive, or the others would prove nothing
    (UNCONSTRAINED, "unflatten", "unflatten"),
)


def test_mistakes_are_noticed_and_nothing_else() -> None:
    """All in one process that has not imported the library; each in a fork of it."""
    chosen = []
    for path, old, new in MISTAKES:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert old in source, f"{path} has changed: find {old!r} another place in MISTAKES"
        chosen.append(Mutant(path, 1, "by hand", old, new, source.replace(old, new)))
    code = "import sys, mutants, mutation; from mutation import Mutant; chosen = eval(sys.stdin.read())\n"
    code += "for outcome in mutants.outcomes(chosen, 0, 1): print(outcome.killer)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", input=repr(chosen), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    killers = done.stdout.splitlines()
    assert len(killers) == len(MISTAKES)
    assert killers.pop() == "None"
    survivors = [mistake for mistake, killer in zip(MISTAKES, killers, strict=False) if killer == "None"]
    assert not survivors
    assert not [killer for killer in killers if killer.startswith("(")], "each is for a law to notice"
    wanted = {
        "reference",
        "membership",
        "round_trip",
        "tangent",
        "first_derivative",
        "second_derivative",
        "forward_mode",
        "compiled",
    }
    assert wanted <= set(killers)


def test_what_is_called_equivalent_is_a_mutant() -> None:
    """An entry that no mutant has any more explains nothing, and one of many would explain too much."""
    found = command.collect()
    for reason, changes in EQUIVALENTS.items():
        assert reason.strip() and changes
        for change in changes:
            made = {mutant.before for mutant in found if change.made(mutant)}
            assert len(made) == 1, f"{reason}: {change} makes mutants of {made or 'nothing'}"


@pytest.mark.parametrize("arguments", [["manifolds/core/plain_data.py"], ["manifolds/identity.py"]])
def test_the_count_is_of_the_files_asked_for(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "outcomes", lambda chosen, *_: [command.Outcome(one, "reference") for one in chosen])
    assert command.main(arguments) == 0
    found = command.collect(arguments)
    equivalent = sum(map(command.is_equivalent, found))
    assert f"; {equivalent} more are equivalent" in capsys.readouterr().out


@pytest.mark.parametrize("sample", ["0", "-1"])
def test_a_sample_of_nothing_is_refused(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["manifolds/identity.py", f"--sample={sample}"])
    assert "--sample" in capsys.readouterr().err
