"""Sizes that JAX does not know while it traces a program, as arithmetic of those of the images."""

import ast
import operator
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

T = TypeVar("T")

Operation = Callable[[Any, Any], Any]

_OPERATORS: dict[type[ast.operator], Operation] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_FUNCTIONS: dict[str, Operation] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}


def call(function: Operation, left: Any, right: Any) -> Any:
    """What an operation gives of two values."""
    return function(left, right)


def compute(
    size: Any, known: MutableMapping[str, int | T], apply: Callable[..., int | T] = call
) -> int | T:
    """A size of an array.

    Args:
      size: a number, or what JAX writes as `floordiv(height - 1, 2) + 1`.
      known: the values of symbols; what is computed is added to them.
      apply: computes an operation, one of Python's `operator`, `max` or `min`, of two values of which one
        at least is no number.

    Raises:
      ValueError: for what is none of these operations.
    """
    if isinstance(size, int):
        return size
    return _value(ast.parse(str(size), mode="eval").body, known, apply)


def _value(
    tree: ast.expr, known: MutableMapping[str, int | T], apply: Callable[..., int | T]
) -> int | T:
    text = ast.unparse(tree)
    if text not in known:
        known[text] = _computed(tree, known, apply)
    return known[text]


def _computed(
    tree: ast.expr, known: MutableMapping[str, int | T], apply: Callable[..., int | T]
) -> int | T:
    match tree:
        case ast.Constant(int(number)):
            return number
        case ast.UnaryOp(ast.USub(), operand):
            function, terms = operator.sub, [ast.Constant(0), operand]
        case ast.BinOp(left, sign, right):
            function, terms = _OPERATORS[type(sign)], [left, right]
        case ast.Call(ast.Name(name), [left, right]):
            function, terms = _FUNCTIONS[name], [left, right]
        case _:
            raise ValueError(f"the size {ast.unparse(tree)} is not arithmetic of sizes")
    values = [_value(term, known, apply) for term in terms]
    numbers = all(isinstance(value, int) for value in values)
    return function(*values) if numbers else apply(function, *values)
