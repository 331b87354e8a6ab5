"""Checkpoints of a run: all of Orbax that training uses is in this file."""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from deeplab_jax.buckets import url_of
from deeplab_jax.checkpoint import reason_of, steps_in, why_unreadable, why_unwritable
from deeplab_jax.digests import damage, has_digests, write_digests
from train.config import CheckpointConfig

BEST = "miou"

DAMAGED = "damaged"
"""In a run's folder: checkpoints that were damaged, and are kept."""

_LISTED = 3  # names of arrays, or of files, in a message
_SEAL_POLL = 0.1  # seconds
_MODEL = ("params.", "stats.")
_MARKS = {"optimizer": {"sgd": ".trace.", "adamw or lamb": ".nu."}, "ema": {"on": "ema."}}
"""Parts of the names in the state, by what they show that it is of."""

Shapes = Mapping[str, tuple[int, ...]]


class CheckpointError(OSError):
    """A checkpoint that cannot be read, or cannot be written (earlier ones are intact)."""


class Checkpoints:
    """The checkpoints in a folder, written in the background; a context manager.

    What is half written when a process dies has another name and is never taken for a checkpoint. To each
    that is whole, digests of its files are added, by the process that writes them; buckets have their own.

    Args:
      folder: the folder of the checkpoints, created if missing.
      config: how many to keep. The latest are kept whatever their score: a resume needs them.
      read_only: leave the folder as it is; another process may be writing there.

    Raises:
      CheckpointError: the scores of a checkpoint there are damaged.
    """

    def __init__(
        self, folder: epath.PathLike, config: CheckpointConfig, *, read_only: bool = False
    ):
        # What it makes of a URL is no path: "/here/gs://...".
        folder = epath.Path(folder if url_of(folder) else Path(folder).absolute())
        self._seal: _Seal | None = None
        self._seals = not read_only and url_of(folder) is None and jax.process_index() == 0
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
        try:
            self._manager = ocp.CheckpointManager(
                folder,
                item_handlers=ocp.StandardCheckpointHandler(),  # else it reads no names and shapes
                options=ocp.CheckpointManagerOptions(
                    read_only=read_only,
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    # Without it scores are not written, and a resumed run forgets which step was the best.
                    best_fn=lambda metrics: metrics[BEST],
                    # When to save is the loop's decision, which every process takes alike.
                    save_decision_policy=policies.FixedIntervalPolicy(1),
                ),
            )
        except json.JSONDecodeError as error:  # Orbax reads the scores of all steps at once
            scores = folder.glob("*/metrics/metrics")
            damaged = ", ".join(str(file) for file in scores if file.read_text() == error.doc)
            raise CheckpointError(
                f"{damaged} cannot be read, the scores of a checkpoint: {error}. It is damaged: remove "
                "its step's folder to go on from the others"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()
        self._finish_seal()

    def latest(self) -> int | None:
        """The step of the latest whole checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Writes a state in the background; call `wait` before the process ends.

        Raises CheckpointError, as `wait` does, if this or the one before cannot be written.

        Args:
          metrics: with `miou`, by which the best are kept.
        """
        self.wait()  # nothing may be added to what this save removes
        with self._writing():
            self._manager.save(
                step, args=ocp.args.StandardSave(state), metrics=dict(metrics) if metrics else None
            )
        if self._seals:
            self._seal = _Seal(Path(self._manager.directory) / str(step))

    def check(self, step: int, shapes: Any, changes: Sequence[str] = ()) -> None:
        """Raises CheckpointError if a step's arrays are not those of `shapes`, saying what differs.

        Args:
          changes: what else has changed since the run was started, for the message.
        """
        with self._reading(step):
            saved = self._manager.item_metadata(step)
        lines = [] if saved is None else misfits(saved, shapes)
        if not lines:
            return
        run = self._manager.directory.parent
        init = f", with --model.init {run / 'model'} to start from its weights and architecture"
        since = ["Changed since the run was started:", *(f"  {change}" for change in changes)]
        raise CheckpointError(
            "\n".join(
                [
                    f"{run} cannot be resumed with this config: its checkpoint of step {step} "
                    "does not fit.",
                    *(f"  {line}" for line in lines),
                    *(since if changes else ()),
                    "Use the config and data that it was started with, or choose another --run"
                    + (init if (run / "model").exists() else ""),
                ]
            )
        )

    def restore(self, step: int, shapes: Any) -> Any:
        """The state of a step, laid out as the shardings of `shapes` say, on whatever devices.

        Raises CheckpointError if its files are damaged, or those of another model.
        """
        self.check(step, shapes)
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def restore_as_saved(self, step: int) -> Any:
        """The state of a step in the memory of one device, whatever it was saved from.

        Raises CheckpointError if its files are damaged.
        """
        folder = self._manager.directory / str(step)
        if url_of(folder) is None and has_digests(Path(folder)) and (lines := damage(Path(folder))):
            raise CheckpointError(f"{folder} is damaged: {'; '.join(lines[:_LISTED])}")
        with self._reading(step):
            saved = self._manager.item_metadata(step)
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shapes = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), saved
            )
            return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def steps(self) -> list[int]:
        """The steps that are kept now, in order."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def preempted(self, step: int) -> bool:
        """Whether this run has been asked to stop (SIGTERM on any of its hosts), at the same step in
        every process. Only where `jax.distributed` was initialised."""
        return jax.distributed.is_initialized() and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until everything saved is on disk."""
        with self._writing():
            self._manager.wait_until_finished()
        self._finish_seal()

    def _finish_seal(self) -> None:
        if self._seal is not None:
            self._seal.finish()
            self._seal = None

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (reason := why_unreadable(error)) is None:
                raise
            folder = self._manager.directory / str(step)
            before = max((s for s in self._manager.all_steps() if s != step), default=0)
            raise CheckpointError(
                f"{folder} cannot be read: {reason_of(reason)}. It is damaged: choose another --run, or "
                f"remove it to resume from step {before}"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            if (reason := why_unwritable(error)) is None:
                raise
            raise CheckpointError(
                f"a checkpoint cannot be written: {reason}. Fix that, and run the same command again: it "
                f"resumes from step {self.latest() or 0}"
            ) from error


class _Seal:
    """Adds digests to a checkpoint, in the background, as soon as it is whole: when it has its name."""

    def __init__(self, folder: Path):
        self._folder, self._last_look = folder, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for them; call it when the checkpoint is written, or could not be."""
        self._last_look.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not self._folder.exists():
            if last:
                return
            last = self._last_look.wait(_SEAL_POLL)
        with contextlib.suppress(OSError):  # without them it is what it was: a checkpoint
            write_digests(self._folder)


# ---------------------------------------------------------------------------- what is damaged


def set_aside_damaged(folder: Path) -> list[str]:
    """Moves damaged checkpoints out of the way, until the latest is one to resume from.

    Damage shows in digests, which the latest is checked by, and in scores that are no JSON. Nothing is
    deleted: what is damaged goes to a folder `damaged` beside.

    Args:
      folder: of the checkpoints; no process may have them open.

    Returns:
      What was done, and what could not be checked, a line for each.
    """
    notes = []
    latest_is_good = False
    for step in reversed(steps_in(folder)):
        lines = _unreadable_scores(step)
        if not lines and not latest_is_good:
            sealed = has_digests(step)
            lines = damage(step) if sealed else []
            latest_is_good = not lines
            if not sealed:
                notes.append(
                    f"The checkpoint of step {step.name} keeps no digests: damage would not show"
                )
        if lines:
            aside = folder.parent / DAMAGED
            aside.mkdir(exist_ok=True)
            place = next(
                path for n in itertools.count() if not (path := aside / f"{step.name}.{n}").exists()
            )
            step.rename(place)
            notes.append(
                f"The checkpoint of step {step.name} is damaged ({'; '.join(lines[:_LISTED])}) and was "
                f"moved to {place}"
            )
    return notes


def _unreadable_scores(step: Path) -> list[str]:
    file = step / "metrics" / "metrics"
    try:
        json.loads(file.read_text()) if file.exists() else None
    except (OSError, ValueError) as error:
        return [f"its scores cannot be read: {error}"]
    return []


# ---------------------------------------------------------------------------- what does not fit


def misfits(saved: Any, wanted: Any) -> list[str]:
    """How the arrays of a checkpoint differ from those that are wanted, a line each; empty if they do not.

    Args:
      saved, wanted: trees of shapes, see `steps.State`.
    """
    saved, wanted = _by_name(saved), _by_name(wanted)
    models = [
        {name.partition(".")[2]: shape for name, shape in shapes.items() if name.startswith(_MODEL)}
        for shapes in (saved, wanted)
    ]
    # The optimiser's state and the moving average follow the model, and need not be told besides.
    of_model = _classes(*models) + _differing(*models)
    return of_model or _training(saved, wanted) + _differing(saved, wanted)


def _classes(saved: Shapes, wanted: Shapes) -> list[str]:
    """A line where the last layer has another number of classes."""
    counts = {
        (saved[name][-1], shape[-1])
        for name, shape in wanted.items()
        if name.endswith("classifier.kernel") and name in saved
    }
    return [
        f"The checkpoint's classifier has {before} channels (classes), that of this run has {now}"
        for before, now in counts
        if before != now
    ]


def _training(saved: Shapes, wanted: Shapes) -> list[str]:
    """Lines for another optimiser, as far as its state's names tell, and for the moving average."""
    return [
        f"{part}: {before} -> {now}"
        for part, marks in _MARKS.items()
        if (before := _kind(saved, part, marks)) != (now := _kind(wanted, part, marks))
    ]


def _kind(shapes: Shapes, part: str, marks: Mapping[str, str]) -> str:
    names = [name for name in shapes if name.startswith(f"{part}.")]
    return next((kind for kind, mark in marks.items() if any(mark in n for n in names)), "off")


def _differing(saved: Shapes, wanted: Shapes) -> list[str]:
    changed = [name for name in wanted if saved.get(name, wanted[name]) != wanted[name]]
    lines = [
        f"{name} is {list(saved[name])} in the checkpoint, {list(wanted[name])} in this config"
        for name in changed[:_LISTED]
    ]
    if len(changed) > _LISTED:
        lines.append(f"and {len(changed) - _LISTED} more have other shapes")
    for where, shapes, other in (
        ("the checkpoint", saved, wanted),
        ("this config", wanted, saved),
    ):
        if alone := [name for name in shapes if name not in other]:
            more = ", ..." if len(alone) > _LISTED else ""
            lines.append(
                f"only in {where}: {len(alone)} arrays ({', '.join(alone[:_LISTED])}{more})"
            )
    return lines


def _by_name(tree: Any) -> dict[str, tuple[int, ...]]:
    arrays, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(array.shape)
        for path, array in arrays
    }
