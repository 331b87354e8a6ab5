"""One way to time: the contestants take turns, so that a busy machine is as busy for each of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

OURS = "deeplab_jax"
PLAIN = "plain JAX"
"""The same model with every convolution left to XLA, compiled as `jax.jit` does by default."""


@dataclasses.dataclass(frozen=True)
class Case:
    """
    Attributes:
      name: what is done.
      runs: how each contestant does it, once and to the end; `OURS` is one of them.
      difference: the largest between its numbers and ours, relative to the largest; None where the
        numbers are not comparable, as weights cannot be carried over.
      warm: whether a run that does not count goes before each that does.
    """

    name: str
    runs: Mapping[str, Callable[[], object]]
    difference: float | None = None
    warm: bool = True


@dataclasses.dataclass(frozen=True)
class Result:
    """`seconds` that each contestant took in each round."""

    name: str
    difference: float | None
    seconds: dict[str, list[float]]

    def median(self, contestant: str) -> float:
        return statistics.median(self.seconds[contestant])

    def ratio(self, contestant: str) -> float:
        """Our time over a contestant's, of medians: below 1 we are faster."""
        return self.median(OURS) / self.median(contestant)


def measure(cases: Iterable[Case], *, rounds: int) -> Iterator[Result]:
    """The results, one at a time, as a case's models are large."""
    for case in cases:
        seconds: dict[str, list[float]] = {name: [] for name in case.runs}
        for _ in range(rounds):
            for name, run in case.runs.items():
                if case.warm:  # the memory that the last one gave back has to be fetched again
                    run()
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        yield Result(case.name, case.difference, seconds)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest, relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def check(name: str, found: float, allowed: float) -> float:
    """`found`, or a ValueError: timings of two things that compute different numbers say nothing."""
    if not found <= allowed:
        raise ValueError(
            f"{name}: ours and PyTorch's numbers differ by {found:.1e}, not {allowed:.0e}"
        )
    return found
