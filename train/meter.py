"""Loss and speed of the steps while they run, measured without making the device wait."""

import collections
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np

from deeplab_jax.progress import duration
from train.data import Source
from train.flops import utilisation
from train.journal import Journal

AHEAD = 2
"""Steps that the host may be ahead of the device. Waiting for the last but one keeps the device busy,
and a loss of NaN is noticed two steps later."""

LONG_WAIT = 0.05
"""Share of the time that steps may wait for data before the log says so."""

T = TypeVar("T")


class Diverged(Exception):
    """The loss or the gradient is NaN or infinite; the message names the step and its batch."""


class Meter:
    """Collects the metrics of steps as they arrive, and logs every so often.

    Args:
      source: the training split, which knows the names of examples.
      batch_size: over all processes, for the speed.
      total: steps of the run.
      image_flops: operations that a step takes for one image; 0 where that is not known.
      began: when the run began, also one that has been resumed since, in seconds since 1970.
      in_steps: seconds that it has spent in steps so far.
    """

    def __init__(
        self,
        source: Source,
        journal: Journal,
        *,
        batch_size: int,
        log_every: int,
        total: int,
        image_flops: float = 0.0,
        began: float | None = None,
        in_steps: float = 0.0,
    ):
        self._source, self._journal = source, journal
        self._batch_size, self._log_every, self._total = batch_size, log_every, total
        self._image_flops = image_flops
        self._began, self._in_steps = time.time() if began is None else began, in_steps
        self._running: collections.deque[tuple[int, Mapping[str, jax.Array], np.ndarray]] = (
            collections.deque()
        )
        self._losses: list[float] = []
        self._compiled = False
        self.restart()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time that the device's work waits for them measured."""
        batches = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - start
            yield batch

    def add(self, step: int, metrics: Mapping[str, jax.Array], examples: np.ndarray) -> None:
        """Takes the metrics of a step that has just been dispatched.

        Args:
          examples: the indices of this process's part of the batch.

        Raises:
          Diverged: the loss or gradient of a step so far is NaN or infinite.
        """
        self._running.append((step, metrics, examples))
        while len(self._running) > AHEAD:
            self._finish(*self._running.popleft())

    def catch_up(self) -> None:
        """Waits for all steps so far; raises `Diverged` as `add` does."""
        while self._running:
            self._finish(*self._running.popleft())

    def restart(self) -> None:
        """Leaves out of the speed what was done since the last step, such as an evaluation."""
        self._since = self._until = time.perf_counter()
        self._waited, self._timed = 0.0, 0

    def _finish(self, step: int, metrics: Mapping[str, jax.Array], examples: np.ndarray) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        bad = [name for name in ("loss", "gradient_norm") if not np.isfinite(values[name])]
        if bad:
            names = [self._source.name(i) for i in examples.tolist()]
            what = bad[0].replace("_", " ")  # of a bad loss, the gradient is bad too
            raise Diverged(f"{what} is NaN or infinite at step {step}. Its batch: {names}")
        self._losses.append(values["loss"])
        now = time.perf_counter()
        if self._compiled:
            self._timed += 1
            self._in_steps += now - self._until
            self._until = now
        else:  # the first step took as long as compiling does
            self._compiled = True
            self.restart()
        speed = self._speed()
        rate = f"{speed['speed/images_per_second']:.1f} images/s" if speed else ""
        self._journal.advance(
            step, f"loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}  {rate}"
        )
        if step % self._log_every == 0:
            loss = float(np.mean(self._losses))
            self._journal.scalars(
                step,
                {
                    "train/loss": loss,
                    "train/gradient_norm": values["gradient_norm"],
                    "train/learning_rate": values["learning_rate"],
                    **speed,
                },
            )
            words = [
                f"step {step} of {self._total}: loss {loss:.4f}{self._of_fewer()}",
                f"learning rate {values['learning_rate']:.3g}",
            ]
            if speed:
                words += [rate, *_remarks(speed)]
                left = (self._total - step) * (self._until - self._since) / self._timed
                words.append(f"{duration(left)} left")
            self._journal.note(", ".join(words))
            self._losses.clear()
            self.restart()

    def _speed(self) -> dict[str, float]:
        """Of the steps since the last line; nothing before there is one."""
        if not self._timed:
            return {}
        elapsed = self._until - self._since
        rate = self._timed * self._batch_size / elapsed
        speed = {
            "speed/images_per_second": rate,
            "speed/share_waiting_for_data": self._waited / elapsed,
            "speed/seconds_in_steps": self._in_steps,
            # Not above 1, though clocks are set.
            "speed/goodput": min(1.0, self._in_steps / max(time.time() - self._began, elapsed)),
        }
        if self._image_flops:
            speed["speed/teraflops_per_second"] = rate * self._image_flops / 1e12
            share = utilisation(rate * self._image_flops, jax.devices())
            speed |= {} if share is None else {"speed/model_flops_utilisation": share}
        return speed

    def _of_fewer(self) -> str:
        """Said of a mean that is of fewer steps than others, as the first after a resume."""
        count = len(self._losses)
        return "" if count == self._log_every else f" (mean of {count} step{'s' * (count > 1)})"


def _remarks(speed: Mapping[str, float]) -> list[str]:
    """What is worth a word in the log."""
    share = speed.get("speed/model_flops_utilisation")
    waiting = speed["speed/share_waiting_for_data"]
    return [
        *([] if share is None else [f"{share:.0%} of the devices' FLOP/s"]),
        *([f"{waiting:.0%} of the time waiting for data"] if waiting >= LONG_WAIT else []),
    ]
