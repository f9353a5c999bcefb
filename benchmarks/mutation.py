"""Small wrong changes to a Python source: what a tired author, or a reviewer who is not looking, lets in.

A mutant differs from the source in one expression or statement of a function that computes something. Left alone: what
is raised or asserted, argument checks, docstrings, defaults, and functions whose business is not the mathematics.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

# Construction, limits, examples and device pairs have tests of their own; nobody is told a wrong H by them. What the
# laws hold the map to would only pad the count: a wrong reference is found out by the map.
_NOT_MATHEMATICS = {
    "__post_init__", "__init__", "__repr__", "__str__", "examples", "kernel", "_depth",
    "symmetries", "reference", "cayley_reference", "skew_reference", "_within_the_blocks",
}  # fmt: skip

_OTHER_OPERATOR: dict[type[ast.AST], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.MatMult: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitXor: ast.BitOr, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_OTHER_COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OTHER_NAME = {
    "amax": "amin", "amin": "amax", "max": "min", "min": "max", "minimum": "maximum", "maximum": "minimum",
    "argmax": "argmin", "all": "any", "any": "all", "sum": "mean", "prod": "sum", "exp": "expm1", "log": "log1p",
    "logsumexp": "amax", "log_softmax": "softmax", "softmax": "log_softmax", "tanh": "sigmoid", "zeros": "ones",
    "ones": "zeros", "new_zeros": "new_ones", "new_ones": "new_zeros", "zeros_like": "ones_like", "svd": "qr",
    "rows": "columns", "columns": "rows",
}  # fmt: skip
_COMMUTATIVE = {"logaddexp", "maximum", "minimum", "max", "min"}
# Where numbers are kept, and how wide, is not what is computed.
_CASTS = {"contiguous", "double", "to"}
# Without these keywords a call does the same, or fails, or promises less.
_PROMISES_LESS = (
    None, "dtype", "device", "keepdim", "strict", "normal",
    "closed_under_products", "closed_under_kronecker", "closed_under_mixtures", "closed_under_relabelling",
)  # fmt: skip
# Calls of more arguments that can stand for their first one: the step was forgotten.
_STEPS = {"clamp", "softmax", "log_softmax", "saturate", "logaddexp", "where"}


@dataclass(frozen=True)
class Mutant:
    """One wrong version of a file.

    Attributes:
        path: of the file, below the root of the repository.
        line: where it differs.
        function: qualified name of the function that differs.
        before, after: the line of code as it is, and as it is in the mutant.
        source: the whole mutant.
    """

    path: str
    line: int
    function: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.before}  →  {self.after}"


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a source, in the order of its lines, without duplicates."""
    tree = ast.parse(source)
    found: dict[str, Mutant] = {}
    for function, statement, holder, field, node in list(_places(tree)):
        before = _header(statement)
        for replacement in _replacements(node):
            _put(holder, field, replacement)
            mutated = ast.unparse(ast.fix_missing_locations(tree))
            after = _header(replacement if node is statement else statement)
            _put(holder, field, node)
            found.setdefault(mutated, Mutant(path, statement.lineno, function, before, after, mutated))
    found.pop(ast.unparse(tree), None)
    return sorted(found.values(), key=lambda mutant: mutant.line)


Field = tuple[str, int | None]
_Place = tuple[str, ast.stmt, ast.AST, Field, ast.AST]


def _places(tree: ast.Module) -> Iterator[_Place]:
    """Function, statement, and the holder and field of every node that a mutant may replace."""

    def walk(holder: ast.AST, function: str, statement: ast.stmt | None) -> Iterator[_Place]:
        for name, index, node in _children(holder):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if node.name not in _NOT_MATHEMATICS and not _is_abstract(node):
                    yield from walk(node, f"{function}.{node.name}".lstrip("."), None)
                continue
            if not _counts(holder, name, node):
                continue
            inner = node if isinstance(node, ast.stmt) else statement
            if function and inner is not None:
                yield function, inner, holder, (name, index), node
            elif isinstance(node, ast.stmt) and isinstance(holder, ast.Module):  # tables and constants
                inner = node
            yield from walk(node, function or ("module" if isinstance(holder, ast.Module) else ""), inner)

    yield from walk(tree, "", None)


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield name, None, value
        elif isinstance(value, list):
            yield from ((name, index, item) for index, item in enumerate(value) if isinstance(item, ast.AST))


def _is_abstract(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "abstractmethod" for mark in node.decorator_list)


def _counts(holder: ast.AST, field: str, node: ast.AST) -> bool:
    if field in ("annotation", "returns", "decorator_list", "args") and isinstance(holder, (ast.FunctionDef, ast.arg)):
        return False
    if field in ("annotation", "bases", "keywords") and not isinstance(holder, ast.Call):
        return False
    if isinstance(holder, ast.ClassDef):  # fields, names and sources
        return False
    if isinstance(holder, ast.Subscript) and isinstance(holder.value, ast.Attribute) and holder.value.attr == "shape":
        return isinstance(node, ast.Slice)  # matrices are square: the other axis is as long
    if isinstance(holder, ast.Module) and isinstance(node, ast.Assign) and _is_type(node.value):
        return False
    if isinstance(holder, ast.keyword) and (holder.arg == "strict" or holder.arg in _PROMISES_LESS[6:]):
        return False
    if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.expr_context)):
        return False
    if isinstance(node, ast.If) and all(isinstance(inner, ast.Raise) for inner in node.body) and not node.orelse:
        return False  # an argument check
    return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))  # a docstring


def _is_type(value: ast.expr) -> bool:
    """Whether a module-level value is an alias of a type, which means nothing at run time."""
    name = value.func if isinstance(value, ast.Call) else value.value if isinstance(value, ast.Subscript) else None
    return isinstance(name, ast.Name) and name.id in ("TypeVar", "Literal", "Callable")


def _put(holder: ast.AST, field: Field, node: ast.AST) -> None:
    name, index = field
    if index is None:
        setattr(holder, name, node)
    else:
        getattr(holder, name)[index] = node


def _rebinds(node: ast.Assign) -> bool:
    """Whether there was a value before: without the assignment, that one would be used."""
    names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return bool(names & {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)})


def _header(statement: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(statement)).splitlines()[0]


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in _OTHER_OPERATOR:
            yield ast.BinOp(node.left, _OTHER_OPERATOR[type(node.op)](), node.right)
        if isinstance(node.op, (ast.Sub, ast.Div, ast.MatMult)):
            yield ast.BinOp(node.right, node.op, node.left)
        yield node.left  # the rest was forgotten
        if isinstance(node.op, (ast.Add, ast.Mult, ast.MatMult)):
            yield node.right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield _other_axis(node) or node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [_OTHER_COMPARISON[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _other_values(node.value))
    elif isinstance(node, ast.Attribute):
        if node.attr == "mT":
            yield node.value
        if node.attr in _OTHER_NAME:
            yield ast.Attribute(node.value, _OTHER_NAME[node.attr], node.ctx)
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, (ast.AugAssign, ast.Expr)) or (isinstance(node, ast.Assign) and _rebinds(node)):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
        yield ast.Return(ast.Tuple([*reversed(node.value.elts)], ast.Load()))


def _other_axis(node: ast.UnaryOp) -> ast.AST | None:
    """−2 for −1 and −1 for −2."""
    if isinstance(node.operand, ast.Constant) and node.operand.value in (1, 2) and isinstance(node.op, ast.USub):
        return ast.UnaryOp(ast.USub(), ast.Constant(3 - node.operand.value))
    return None


def _other_values(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from {0.0: (1.0,), 1.0: (2.0, -1.0)}.get(value, (2 * value,))
    elif isinstance(value, str) and value in _OTHER_NAME:
        yield _OTHER_NAME[value]


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    function = node.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    plain = not node.keywords and not any(isinstance(argument, ast.Starred) for argument in node.args)
    if plain and len(node.args) == 2 and name not in _COMMUTATIVE:
        yield ast.Call(function, [*reversed(node.args)], [])
    is_module = isinstance(function, ast.Attribute) and _root(function) in ("torch", "math")
    if (
        isinstance(function, ast.Attribute)
        and not is_module
        and (not node.args or name in _STEPS)
        and name not in _CASTS
    ):
        yield function.value  # x.clamp(min=0) → x
    elif node.args and (name in _STEPS or (plain and len(node.args) == 1)) and name not in ("len", "range", "super"):
        yield node.args[0]  # saturate(x, cap) → x
    if isinstance(function, ast.Name) and name in _OTHER_NAME:
        yield ast.Call(ast.Name(_OTHER_NAME[name], ast.Load()), node.args, node.keywords)
    if name == "range" and len(node.args) == 1:
        yield ast.Call(function, [ast.BinOp(node.args[0], ast.Sub(), ast.Constant(1))], [])
        yield ast.Call(function, [ast.BinOp(node.args[0], ast.Add(), ast.Constant(1))], [])
    for index, keyword in enumerate(node.keywords):
        if name == "clamp":
            other = ast.keyword("max" if keyword.arg == "min" else "min", keyword.value)
            yield ast.Call(function, node.args, [*node.keywords[:index], other, *node.keywords[index + 1 :]])
        elif keyword.arg not in _PROMISES_LESS:
            yield ast.Call(function, node.args, [*node.keywords[:index], *node.keywords[index + 1 :]])


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
