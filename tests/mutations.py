"""Source -> its mutants: the same source with one small fault each. No files, no tests."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "minimum": "maximum",
    "maximum": "minimum",
    "floor": "ceil",
    "ceil": "floor",
}
NEVER_MUTATED = (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault: a span of a file, and what stands there instead."""

    path: str
    function: str  # qualified name of the function around it; "" outside of functions
    start: tuple[int, int]  # line from 1, column in bytes
    end: tuple[int, int]
    text: str
    before: str  # the lines, stripped
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.start[0]}\n    - {self.before}\n    + {self.after}\n   "

    def applied(self, source: str) -> str:
        """The source with the fault. SyntaxError where the language has no such thing."""
        lines = source.encode().splitlines(keepends=True)
        changed = _changed(lines, self.start, self.end, self.text)
        mutated = b"".join([*lines[: self.start[0] - 1], changed, *lines[self.end[0] :]]).decode()
        ast.parse(mutated)
        return mutated


def mutants_in(path: str, source: str) -> Iterator[Mutant]:
    """All mutants of one file, from top to bottom."""
    lines = source.encode().splitlines(keepends=True)  # columns are of bytes
    for place, function in _places(ast.parse(source), ""):
        for node, text in _replacements(place):
            start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
            before = b"".join(lines[start[0] - 1 : end[0]])
            after = _changed(lines, start, end, text)
            shown = (" ".join(part.decode().split()) for part in (before, after))
            yield Mutant(
                path=path, function=function, start=start, end=end, text=text, before=next(shown), after=next(shown)
            )


def _changed(lines: list[bytes], start: tuple[int, int], end: tuple[int, int], text: str) -> bytes:
    return lines[start[0] - 1][: start[1]] + text.encode() + lines[end[0] - 1][end[1] :]


def _places(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """Nodes that may be mutated, each with the qualified name of its function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, NEVER_MUTATED) or _is_declaration(node, child):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _places(child, _qualified(function, child.name))
        elif isinstance(child, ast.ClassDef):
            yield from _places(child, _qualified(function, child.name) + ".<class>")
        else:
            yield child, function if not function.endswith(".<class>") else ""
            yield from _places(child, function)


def _qualified(outer: str, name: str) -> str:
    if outer.endswith(".<class>"):
        return f"{outer.removesuffix('.<class>')}.{name}"
    return f"{outer}.<locals>.{name}" if outer else name


def _is_declaration(node: ast.AST, child: ast.AST) -> bool:
    """True for annotations, decorators, base classes, `__all__` and `strict=` of zip: no behaviour to test."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return child in node.decorator_list or child is node.returns
        case ast.ClassDef():
            return child in node.decorator_list or child in node.bases
        case ast.arg() | ast.AnnAssign():
            return child is node.annotation
        case ast.keyword():
            return node.arg == "strict"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def _replacements(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes at this place, and what may stand there instead."""
    match node:
        case ast.If() | ast.While() | ast.IfExp() if not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield node.test, f"(not ({ast.unparse(node.test)}))"
    match node:
        case ast.expr():
            yield from ((node, text) for text in _expressions(node))
        case ast.stmt():
            yield from ((node, text) for text in _statements(node))


def _expressions(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Compare(ops=ops):
            flips = [[*ops[:i], COMPARISONS[type(op)](), *ops[i + 1 :]] for i, op in enumerate(ops)]
            yield from (_text(node, ops=flipped) for flipped in flips)
        case ast.BinOp() if type(node.op) in OPERATORS and not _is_text(node.left) and not _is_text(node.right):
            yield _text(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _text(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            yield "0" if value == 1 else repr(value + 1)
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield NAMES[name]
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in NAMES:
            yield f"{ast.unparse(node.value)}.{NAMES[name]}"


def _statements(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return None"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _text(node: ast.expr, **changed: object) -> str:
    """The node's source with some fields changed, in parentheses."""
    other = copy.copy(node)
    for name, value in changed.items():
        setattr(other, name, value)
    return f"({ast.unparse(other)})"
