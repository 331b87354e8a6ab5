"""A training run from its config to a model folder: prepare, loop, finish."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import deeplab_jax
from deeplab_jax import buckets
from deeplab_jax.checkpoint import RUN_CHECKPOINTS, RUN_MODEL
from deeplab_jax.command import BAD_USE
from deeplab_jax.config import Config, to_dict
from deeplab_jax.model import with_values
from deeplab_jax.preprocessing import FULL_SCALE
from deeplab_jax.progress import duration
from deeplab_jax.quiet import is_debugging
from deeplab_jax.whole_file import PARTIAL, write_file
from train import early_stop, lock, report, sharding
from train.checkpoint import Checkpoints, set_aside_damaged
from train.cluster import is_main_process, join_processes
from train.config import MODEL_CONFIG, DataConfig, TrainConfig, differences, to_json
from train.data import (
    AugmentConfig,
    Dataset,
    TrainBatches,
    class_frequencies,
    class_weights,
    label_frequencies,
    open_dataset,
    positive_weights,
)
from train.data.statistics import Statistics, measure
from train.evaluate import Evaluator
from train.flops import training_flops
from train.journal import Journal, environment
from train.meter import Diverged, Meter
from train.model import Start, make_model
from train.optim import OptimConfig, make_optimizer
from train.peers import LOST, PEER_LOST
from train.place import Place, place_of
from train.profiler import Profiler, steps_to_trace
from train.run_folder import ENVIRONMENT, chosen
from train.steps import (
    Batch,
    Metrics,
    State,
    inference_values,
    initial_state,
    make_train_step,
)
from train.stop import StopSignal
from train.targets import in_words, scored_names
from train.writers import jsonl, open_writers

CONFIG = "config.json"

EXAMPLES = 4
"""Images of the validation split that TensorBoard shows; the best and worst ones in the folder."""

FINISHED, DIVERGED, STOPPED = 0, 1, 143
"""Exit statuses: done; the loss is NaN or infinite; stopped by a signal, and saved; see `PEER_LOST` too."""


def train(config: TrainConfig) -> int:
    """Trains, or resumes, the run in `config.run`; returns the exit status.

    Raises:
      ValueError, OSError: for anything that the user can fix, with how to fix it.
    """
    join_processes(config.distributed)
    try:
        mesh = sharding.make_mesh(config.mesh)
        _check(config, mesh)
        alone = lock.only_run_in(config.run) if is_main_process() else contextlib.nullcontext()
        with alone, place_of(config.run, writes=is_main_process()) as place:
            return _train(config, mesh, place)
    except Diverged as error:
        print(f"{error}. The last checkpoint was saved before that.", file=sys.stderr)
        return DIVERGED
    except Exception as error:
        if jax.process_count() == 1:
            raise
        _exit_at_once(error)


def _train(config: TrainConfig, mesh: Mesh, place: Place) -> int:
    run = _prepare(config, mesh, place)
    moved = _set_aside_damaged(place)
    with Checkpoints(place.checkpoints, config.checkpoint) as checkpoints:
        try:
            first, state = _begin_or_resume(run, checkpoints)
        except Exception:
            for line in moved:  # no journal will say it
                print(line, file=sys.stderr)
            raise
        journal = _journal(run, first)
        traced = None if config.profile is None else steps_to_trace(config.profile)
        profiler = Profiler(traced, place.folder)
        with journal, run.batches, profiler, StopSignal() as stop_requested:
            _introduce(run, first, journal, moved)
            step, state = _run_steps(
                run, first, state, checkpoints, journal, profiler, stop_requested
            )
            early = step < run.total and _has_stalled(run)
            if step < run.total and not early:
                _save_model(run, state)
                journal.say(
                    f"Stopped. Step {step} is saved, and a model of it in {place.name}/{RUN_MODEL}; run "
                    "the same command to resume"
                )
                return STOPPED
            if early:
                del state  # or there would be two at once
                step, state = _end_early(run, step, checkpoints, journal)
            _finish(run, step, state, journal)
    return FINISHED


# ---------------------------------------------------------------------------- prepare


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run that is ready to start: everything but its state.

    Attributes:
      config: what was asked for.
      mesh: all devices.
      place: where it is kept.
      dataset: both splits, and the names of the classes.
      start: the model, and its first weights.
      batches: of the training split.
      total: number of steps.
      make_state: (params, stats) -> the state before the first step.
      shapes, shardings: of the arrays of the state, in the same tree.
      pixels: shardings of what the step takes of a batch.
      train_step: (state, batch) -> (state, metrics), compiled when it is first called.
      evaluator: of the validation split.
    """

    config: TrainConfig
    mesh: Mesh
    place: Place
    dataset: Dataset
    start: Start
    batches: TrainBatches
    total: int
    make_state: Callable[..., State]
    shapes: State
    shardings: State
    pixels: Mapping[str, NamedSharding]
    train_step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluator: Evaluator

    @property
    def scored(self) -> tuple[str, ...]:
        """Names of the classes that have scores."""
        return scored_names(self.start.model.config, self.dataset.class_names)


def _prepare(config: TrainConfig, mesh: Mesh, place: Place) -> _Run:
    """Opens the data, builds the model, and puts together the training step and the evaluation."""
    dataset = open_dataset(
        config.data.name,
        data_dir=config.data.data_dir,
        class_names=config.data.class_names,
        labels=config.data.labels,
        keys=config.data.keys,
        bands=config.data.bands,
        unpaired=config.data.unpaired,
        resize_labels=config.data.resize_labels,
    )
    start = make_model(
        config.model,
        dataset.class_names,
        overlapping=dataset.overlapping,
        seed=config.seed,
        data_shards=mesh.shape["data"],
        pictures=dataset.pictures,
        statistics=_statistics(config.data, dataset),
    )
    batches = _batches(config, dataset, start.model.config)
    total = config.steps or math.ceil(config.epochs * len(dataset.train) / config.batch_size)
    optimizer, schedule = make_optimizer(_optim(config), start.params, total)
    make_state = functools.partial(initial_state, optimizer=optimizer, ema=config.ema > 0)
    shapes = jax.eval_shape(make_state, start.params, start.stats)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=config.mesh.fsdp)
    pixels = {name: sharding.batch_shardings(mesh)[name] for name in ("image", "label")}
    weights = _class_weights(config, dataset, start.model.config)
    train_step = jax.jit(
        make_train_step(start.model, optimizer, schedule, config, weights),
        in_shardings=(shardings, pixels),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
        compiler_options=deeplab_jax.compiler_options(gradients=True),
    )
    evaluator = Evaluator(
        start.model,
        dataset.val,
        mesh,
        batch_size=config.evaluation.batch_size,
        overlapping=dataset.overlapping,
        unreadable=config.data.unreadable,
    )
    return _Run(
        config=config,
        mesh=mesh,
        place=place,
        dataset=dataset,
        start=start,
        batches=batches,
        total=total,
        make_state=make_state,
        shapes=shapes,
        shardings=shardings,
        pixels=pixels,
        train_step=train_step,
        evaluator=evaluator,
    )


def _statistics(config: DataConfig, dataset: Dataset) -> Statistics | Callable[[], Statistics]:
    """Of the pictures: those that were given, or what measures them."""
    if config.mean is not None and config.std is not None:
        return Statistics(config.mean, config.std)
    return functools.partial(measure, dataset.train)


def _batches(config: TrainConfig, dataset: Dataset, model: Config) -> TrainBatches:
    return TrainBatches(
        dataset.train,
        _augmentation(config, model),
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
        height_multiple=sharding.row_multiple(config.mesh, model.backbone.output_stride),
        unreadable=config.data.unreadable,
    )


def _augmentation(config: TrainConfig, model: Config) -> AugmentConfig:
    """The augmentation, with padding that is zero to the model, as in evaluation.

    Raises:
      ValueError: it is not defined for the pictures that the model takes.
    """
    given, asked = model.preprocessing, config.augment
    if not given.is_rgb and (asked.saturation or asked.hue):
        raise ValueError(
            "augment.saturation and augment.hue are those of RGB, and must be 0 for "
            f"{len(given.mean)} bands of {given.pixels}"
        )
    if asked.fill is not None and len(asked.fill) != len(given.mean):
        raise ValueError(
            f"augment.fill must have a value for each of the {len(given.mean)} channels, got {asked.fill}"
        )
    zero = (FULL_SCALE[given.pixels] * value for value in given.mean)
    mean = tuple(zero if given.pixels == "float32" else map(round, zero))
    return dataclasses.replace(asked, fill=asked.fill or mean)


def _optim(config: TrainConfig) -> OptimConfig:
    """The optimiser's config; a frozen backbone has no weight decay either."""
    frozen = config.model.freeze_backbone
    return dataclasses.replace(config.optim, backbone_factor=0) if frozen else config.optim


def _class_weights(config: TrainConfig, dataset: Dataset, model: Config) -> np.ndarray | None:
    """The weight of each class, or label, in the loss, from the training split if so configured.

    Raises:
      ValueError: the number of weights is not that of the model's channels.
    """
    weights, single = config.loss.class_weights, model.activation == "sigmoid"
    if weights is None:
        return None
    if weights == "data":
        weights = (
            positive_weights(label_frequencies(dataset.train, model.num_classes))
            if single
            else class_weights(class_frequencies(dataset.train, dataset.num_classes))
        )
    if len(weights) != model.num_classes:
        labels = f" besides {dataset.class_names[0]}" if single else ""
        raise ValueError(
            f"loss.class_weights must have a number for each of the {model.num_classes} classes of "
            f"{dataset.name}{labels}, got {len(weights)}"
        )
    return np.asarray(weights, np.float32)


def _set_aside_damaged(place: Place) -> list[str]:
    """See `checkpoint.set_aside_damaged`; of several processes one does it, and the others wait."""
    here = is_main_process() and buckets.url_of(place.name) is None
    moved = set_aside_damaged(Path(place.checkpoints)) if here else []
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints")
    return moved


def _begin_or_resume(run: _Run, checkpoints: Checkpoints) -> tuple[int, State]:
    """The step to start after, 0 for a new run, and the state at that step."""
    config = run.config
    first = checkpoints.latest() or 0
    if first:
        _check_resume(run, checkpoints, first)
        state = checkpoints.restore(first, sharding.with_shardings(run.shapes, run.shardings))
    if is_main_process():
        # Before a new run takes its time: without a config it could not be resumed.
        folder = run.place.folder
        write_file(folder / CONFIG, to_json(config, run.dataset.class_names))
        write_file(folder / MODEL_CONFIG, json.dumps(to_dict(run.start.model.config), indent=2))
        _write_environment(run, run.total)
        run.place.upload()
    if not first:
        make_state = jax.jit(run.make_state, out_shardings=run.shardings)
        state = make_state(run.start.params, run.start.stats)
    return first, state


def _write_environment(run: _Run, steps: int) -> None:
    """Writes what a result depends on, with the step that the run ends at, which `watch` waits for."""
    about = environment() | {"steps": steps}
    write_file(run.place.folder / ENVIRONMENT, json.dumps(about, indent=2))


def _journal(run: _Run, first: int) -> Journal:
    config, is_main, folder = run.config, is_main_process(), run.place.folder
    asked = json.loads(to_json(config, run.dataset.class_names))
    writers = open_writers(config.log_to, folder, start=first, config=asked) if is_main else ()
    return Journal(folder, total=run.total, start=first, is_main_process=is_main, writers=writers)


def _introduce(run: _Run, first: int, journal: Journal, moved: Sequence[str]) -> None:
    """Says what is about to be trained, on what, and which checkpoints were damaged."""
    config, dataset = run.config, run.dataset
    device = jax.devices()[0].device_kind
    layout = " x ".join(f"{n} {axis}" for axis, n in run.mesh.shape.items() if n > 1)
    told = in_words(run.start.model.config, dataset.class_names)
    notes = "".join(f"{note}\n" for note in (*dataset.notes, *filter(None, (told,))))
    journal.say(
        f"{run.start.origin}\n{dataset.name}: {len(dataset.train)} training images, "
        f"{len(dataset.val)} validation images, {dataset.num_classes} classes\n{notes}"
        f"{config.model.dtype} on {jax.device_count()} x {device}{layout and f' ({layout})'}"
    )
    for line in moved:
        journal.say(line)
    journal.say(f"Resuming at step {first} of {run.total}." if first else f"{run.total} steps.")


# ---------------------------------------------------------------------------- loop


def _run_steps(
    run: _Run,
    first: int,
    state: State,
    checkpoints: Checkpoints,
    journal: Journal,
    profiler: Profiler,
    stop_requested: Callable[[], bool],
) -> tuple[int, State]:
    """Trains from step `first` to the last, or to where it is stopped; returns that step and its state.

    Everything up to that step is on disk then.
    """
    config, total = run.config, run.total
    if _lacks_evaluation(run, first):
        _evaluate(run, state, first, journal)
    if _has_stalled(run):
        return first, state
    if first < total:
        journal.say("Compiling the first step")
    meter = Meter(
        run.dataset.train,
        journal,
        batch_size=config.batch_size,
        log_every=config.log_every,
        total=total,
        image_flops=training_flops(
            run.start.model, config.augment.crop, freeze_backbone=config.model.freeze_backbone
        ),
        began=jsonl.began(run.place.folder),
        in_steps=jsonl.latest(run.place.folder, "speed/seconds_in_steps"),
    )
    step = first
    batches = itertools.islice(meter.waiting(run.batches.iterate(first)), total - first)
    for step, batch in enumerate(batches, first + 1):
        profiler.before(step)
        arrays = sharding.to_devices({name: batch[name] for name in run.pixels}, run.pixels)
        start = time.perf_counter()
        state, metrics = run.train_step(state, arrays)
        if step == first + 1:  # the call returns when the step has been compiled, and runs
            journal.say(f"Compiled in {duration(time.perf_counter() - start)}")
        meter.add(step, metrics, batch["index"])
        if profiler.is_last(step):
            meter.catch_up()
            journal.say(profiler.finish())
        stopping, means = stop_requested() or checkpoints.preempted(step), None
        if step % config.evaluation.every == 0 and step < total and not stopping:
            meter.catch_up()
            means = _evaluate(run, state, step, journal).means()
            meter.restart()
        if means or stopping or step == total or step % config.checkpoint.every == 0:
            meter.catch_up()  # NaN must not get on disk
            if is_main_process():
                run.place.upload()  # first: what resumes from the checkpoint counts its scores
            checkpoints.save(step, state, means)
        if stopping or (means and _has_stalled(run)):
            break
    checkpoints.wait()
    return step, state


def _evaluate(run: _Run, state: State, step: int, journal: Journal) -> report.Evaluation:
    """Scores on the validation split, and a few of its images for TensorBoard, always the same."""
    journal.advance(step, doing="evaluating")
    values = inference_values(state)
    evaluation = run.evaluator(values)
    means = evaluation.means()
    journal.scalars(step, {f"val/{name}": value for name, value in means.items()})
    journal.say(f"step {step}: " + ", ".join(f"{n} {v:.4f}" for n, v in means.items()))
    first = sorted(evaluation.images, key=lambda image: image.index)[:EXAMPLES]
    for number, example in enumerate(run.evaluator.examples(values, first), 1):
        picture = report.comparison(example, run.scored)
        journal.picture(step, f"val/{number}", picture)
    return evaluation


def _lacks_evaluation(run: _Run, step: int) -> bool:
    """Whether a run that counts its evaluations was stopped in place of one; the same in every process."""
    every, patience = run.config.evaluation.every, run.config.evaluation.patience
    if patience is None or step in (0, run.total) or step % every:
        return False
    return bool(_of_main_process(run, lambda scores: step not in scores))


def _has_stalled(run: _Run) -> bool:
    """Whether the run ends before its last step, see `early_stop`; the same in every process.

    It counts what is in the run's folder, and so a resumed run goes on counting.
    """
    patience = run.config.evaluation.patience
    if patience is None:
        return False
    return bool(_of_main_process(run, lambda scores: early_stop.has_stalled(scores, patience)))


def _of_main_process(run: _Run, of: Callable[[Mapping[int, float]], int]) -> int:
    """A number that the main process makes of the scores so far, in every process; all must call it."""
    number = of(jsonl.measured(run.place.folder)) if is_main_process() else 0
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


# ---------------------------------------------------------------------------- finish


def _end_early(
    run: _Run, last: int, checkpoints: Checkpoints, journal: Journal
) -> tuple[int, State]:
    """The step of the best checkpoint, and its state; says why the run ends after step `last`."""
    kept = checkpoints.steps()
    best = _of_main_process(run, lambda scores: chosen("best", kept, scores)[0])
    if is_main_process():
        scores = jsonl.measured(run.place.folder)
        first, since = early_stop.best_and_since(scores)
        journal.say(
            f"Stopping early at step {last}: the best mIoU, {scores[first]:.4f} at step {first}, has not "
            f"improved in {since} evaluations. The model is that of step {best}."
        )
        _write_environment(run, last)
    return best, checkpoints.restore(best, sharding.with_shardings(run.shapes, run.shardings))


def _finish(run: _Run, step: int, state: State, journal: Journal) -> None:
    """Evaluates the trained model, and writes it and the report into the run's folder."""
    place, names = run.place, run.scored
    if step == run.total:
        evaluation = _evaluate(run, state, step, journal)
    else:  # it has been recorded, at its time
        evaluation = run.evaluator(inference_values(state))
    extremes = evaluation.extremes(EXAMPLES)
    examples = run.evaluator.examples(inference_values(state), tuple(extremes.values()))
    _save_model(run, state)
    if not is_main_process():
        return
    report.write(
        place.folder / "evaluation",
        evaluation,
        names,
        dict(zip(extremes, examples, strict=True)),
        {"run": place.name, "step": step},
    )
    journal.show(report.table(evaluation, names))
    if run.batches.skipped:
        journal.say(f"Unreadable images, replaced by others: {dict(run.batches.skipped)}")
    journal.say(f"Results are in {place.name}. Next: deeplab predict {place.name}/model PICTURE")


def _save_model(run: _Run, state: State) -> None:
    """Writes what is used of a state as the run's model; all processes must call it."""
    values = sharding.gathered(inference_values(state), run.mesh)
    if is_main_process():
        model = with_values(run.start.model, values)
        model.eval()
        run.place.save_model(model)


# ---------------------------------------------------------------------------- checks


def _check(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ValueError, listing what does not fit the devices or the run's folder."""
    problems = []
    shards = mesh.shape["data"]
    if config.batch_size % (shards * config.accumulate):
        problems.append(
            f"batch_size must be a multiple of the mesh's data shards times accumulate: {shards} x "
            f"{config.accumulate} does not divide {config.batch_size}"
        )
    groups = config.model.batch_norm
    if isinstance(groups, int) and (groups < 1 or config.batch_size // config.accumulate % groups):
        problems.append(
            f"model.batch_norm must divide the number of examples computed at once: {groups} does not "
            f"divide {config.batch_size // config.accumulate} examples"
        )
    if is_main_process() and (problem := _why_unusable(config.run)):
        problems.append(f"{problem}: choose another --run")
    if problems:
        raise ValueError("\n".join(problems))


def _why_unusable(run: Path) -> str | None:
    """Why a folder cannot be a run's; None where a run can start or resume in it."""
    if (url := buckets.url_of(run)) is not None:
        ours = any(buckets.exists(f"{url}/{name}") for name in (CONFIG, lock.NAME))
        return (
            None if ours or not buckets.exists(url) else f"{url} exists and is not a run's folder"
        )
    if not run.exists():
        return None
    if not run.is_dir():
        return f"{run} is a file"
    left = (path for path in run.iterdir() if not _is_left_by_a_start(path))
    names = {path.name for path in left}
    return f"{run} exists and is not a run's folder" if names and CONFIG not in names else None


def _is_left_by_a_start(path: Path) -> bool:
    """Whether a run that ended before it had written its config may have left this in its folder."""
    if path.name == RUN_CHECKPOINTS and path.is_dir():
        return not any(path.iterdir())
    return path.name == lock.NAME or path.name.endswith(PARTIAL)


def _check_resume(run: _Run, checkpoints: Checkpoints, step: int) -> None:
    """Raises ValueError or CheckpointError where the run cannot be resumed, or its config has changed."""
    config = run.config
    if step > run.total:
        raise ValueError(
            f"{run.place.name} is already at step {step}, past the {run.total} steps asked for: choose "
            "another --run, or more steps"
        )
    began = json.loads((run.place.folder / CONFIG).read_text())
    changes = differences(began, json.loads(to_json(config, run.dataset.class_names)))
    checkpoints.check(step, run.shapes, changes)  # first: what does not fit cannot be accepted
    if changes and not config.accept_changes:
        raise ValueError(
            f"{run.place.name} was started with a different config. Choose another --run, or use "
            "--accept-changes to resume from its last checkpoint with this one:\n  "
            + "\n  ".join(changes)
        )


# ---------------------------------------------------------------------------- when it fails


def _exit_at_once(error: Exception) -> NoReturn:
    """Ends this process of several at once: an orderly end would wait, up to minutes, for the others.

    They then end too: a step without this process fails.
    """
    # XLA reports a lost peer in errors of any class that begin with a status, such as "UNKNOWN: ".
    of_a_peer = isinstance(error, ConnectionError | TimeoutError) or re.match(
        "[A-Z_]+: ", str(error)
    )
    if isinstance(error, ValueError | OSError) and not of_a_peer:
        status, message = BAD_USE, f"error: {error}"
    else:
        if is_debugging() or not of_a_peer:
            traceback.print_exception(error)
        status, message = PEER_LOST, LOST
    print(message, file=sys.stderr, flush=True)
    os._exit(status)
