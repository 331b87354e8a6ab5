"""Programs as JAX traces them, gone through operation by operation, by other rules than JAX's own."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

Apply = Callable[[core.JaxprEqn, list[Any]], Sequence[Any] | None]
"""From an operation and its operands to its results; None where it has no rule, and may be a program."""


class NoRule(ValueError):
    """An operation that has no rule and is no program by itself; the message is its name."""


def interpret(
    program: core.ClosedJaxpr,
    inputs: Sequence[Any],
    apply: Apply,
    known: Callable[[Any], Any] = lambda array: array,
) -> list[Any]:
    """The outputs of a program.

    Where it has forms for several platforms, the last is taken, which is for those that are not named.

    Args:
      inputs: what stands for its inputs.
      apply: gives what stands for the results of an operation.
      known: gives what stands for an array that is part of the program.

    Raises:
      NoRule: for an operation that `apply` does not know.
    """

    def run(jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        found: dict[Any, Any] = dict(zip(jaxpr.constvars, map(known, consts), strict=True))
        found.update(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> Any:
            return known(variable.val) if isinstance(variable, core.Literal) else found[variable]

        for equation in jaxpr.eqns:
            values = [read(variable) for variable in equation.invars]
            found.update(zip(equation.outvars, results(equation, values), strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def results(equation: core.JaxprEqn, values: list[Any]) -> Sequence[Any]:
        name, parameters = equation.primitive.name, equation.params
        if name == "platform_index":
            return [len(parameters["platforms"]) - 1]
        if name == "cond" and isinstance(values[0], int):
            branch = parameters["branches"][values[0]]
            return run(branch.jaxpr, branch.consts, values[1:])
        if (made := apply(equation, values)) is not None:
            return made
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if inner is None:
            raise NoRule(name)
        if isinstance(inner, core.ClosedJaxpr):
            return run(inner.jaxpr, inner.consts, values)
        return run(inner, (), values)

    return run(program.jaxpr, program.consts, inputs)
