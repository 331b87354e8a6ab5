"""Checkpoints of a run: all of Orbax that training uses is in this file."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from deeplab_jax.checkpoint import why_unreadable
from train.config import CheckpointConfig

BEST = "miou"


class CheckpointError(OSError):
    """A checkpoint that cannot be written, while those that are there are whole, or cannot be read."""


class Checkpoints:
    """The checkpoints in a folder, written in the background; a context manager.

    What is half written when a process dies has another name and is never taken for a checkpoint.

    Args:
      folder: is made if it is not there.
      config: how many to keep. The latest are kept whatever their score: a resume needs them.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[BEST],
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                # When to save is the loop's decision, which every process takes alike.
                save_decision_policy=policies.FixedIntervalPolicy(1),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the latest whole checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Writes a state in the background; `wait` for it before the process may end.

        Raises CheckpointError, as `wait` does, if this or the one before cannot be written.

        Args:
          metrics: with `miou`, by which the best are kept.
        """
        with self._writing():
            self._manager.save(
                step, args=ocp.args.StandardSave(state), metrics=dict(metrics) if metrics else None
            )

    def restore(self, step: int, shapes: Any) -> Any:
        """The state of a step, laid out as the shardings of `shapes` say, on whatever devices.

        Raises CheckpointError if its files are damaged, or those of another model.
        """
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
        except Exception as error:
            if (reason := why_unreadable(error)) is None:
                raise
            folder = self._manager.directory / str(step)
            before = max((s for s in self._manager.all_steps() if s != step), default=0)
            raise CheckpointError(
                f"{folder} cannot be read: {reason}. It is damaged, or of another model: choose another "
                f"--run, or remove it to go on from step {before}"
            ) from error

    def preempted(self, step: int) -> bool:
        """Whether this run has been told to end (SIGTERM on any of its hosts): then, at the same step
        in every process. Only where `jax.distributed` was initialised."""
        return jax.distributed.is_initialized() and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Until all that was saved is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            # How tensorstore, which writes, tells of a full disk and its like.
            if "os_error_code" not in str(error) and not isinstance(error, PermissionError):
                raise
            raise CheckpointError(
                f"a checkpoint cannot be written: {str(error).rpartition(': ')[2]}. Mend that, and "
                f"start again: the run goes on from step {self.latest() or 0}"
            ) from error
