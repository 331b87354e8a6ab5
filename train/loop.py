"""A training run, from its config to a model folder: `train` reads down the page."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import deeplab_jax
from deeplab_jax.checkpoint import save
from deeplab_jax.command import BAD_USE
from deeplab_jax.config import Config
from deeplab_jax.model import with_values
from train import lock, report, sharding
from train.checkpoint import Checkpoints
from train.cluster import join_processes
from train.config import TrainConfig, differences, to_json
from train.data import (
    AugmentConfig,
    Dataset,
    TrainBatches,
    class_frequencies,
    class_weights,
    open_dataset,
)
from train.evaluate import Evaluator
from train.journal import Journal, environment, write_text
from train.meter import Diverged, Meter
from train.model import make_model
from train.optim import OptimConfig, make_optimizer
from train.steps import State, inference_values, initial_state, make_train_step
from train.stop import StopSignal

CONFIG = "config.json"

EXAMPLES = 4
"""Images of the validation split that TensorBoard shows; the best and worst ones in the folder."""

FINISHED, DIVERGED, STOPPED, PEER_LOST = 0, 1, 143, 17
"""Exit statuses: done; the loss is no number; told to end, and saved; another process died."""


def train(config: TrainConfig) -> int:
    """Trains, or goes on with, the run in `config.run`; returns the exit status.

    Raises:
      ValueError, OSError: for anything that the user can mend, with the way out.
    """
    join_processes(config.distributed)
    speaks = jax.process_index() == 0
    try:
        mesh = sharding.make_mesh(config.mesh)
        _check(config, mesh)
        with lock.only_run_in(config.run) if speaks else contextlib.nullcontext():
            return _train(config, mesh, speaks)
    except Diverged as error:
        print(f"{error}. The last checkpoint is from before.", file=sys.stderr)
        return DIVERGED
    except Exception as error:
        if jax.process_count() == 1:
            raise
        _leave(error)


def _train(config: TrainConfig, mesh: Mesh, speaks: bool) -> int:
    # ---------------------------------------------------------------- data and model
    dataset = open_dataset(
        config.data.name,
        data_dir=config.data.data_dir,
        class_names=config.data.class_names,
        labels=config.data.labels,
    )
    start = make_model(
        config.model, dataset.class_names, seed=config.seed, data_shards=mesh.shape["data"]
    )
    batches = TrainBatches(
        dataset.train,
        _augmentation(config, start.model.config),
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
        height_multiple=sharding.row_multiple(
            config.mesh, start.model.config.backbone.output_stride
        ),
        unreadable=config.data.unreadable,
    )
    total = config.steps or math.ceil(config.epochs * len(dataset.train) / config.batch_size)

    # ---------------------------------------------------------------- optimiser, state, steps
    optimizer, schedule = make_optimizer(_optim(config), start.params, total)

    make_state = functools.partial(initial_state, optimizer=optimizer, ema=config.ema > 0)
    shapes = jax.eval_shape(make_state, start.params, start.stats)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=config.mesh.fsdp)
    pixels = {name: sharding.batch_shardings(mesh)[name] for name in ("image", "label")}
    train_step = jax.jit(
        make_train_step(start.model, optimizer, schedule, config, _class_weights(config, dataset)),
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
        bucket=config.evaluation.bucket,
        unreadable=config.data.unreadable,
    )

    with Checkpoints(config.run / "checkpoints", config.checkpoint) as checkpoints:
        # ------------------------------------------------------------ begin, or go on
        first = checkpoints.latest() or 0
        if first:
            _check_resume(config, dataset, checkpoints, first, shapes, total)
            state = checkpoints.restore(first, sharding.with_shardings(shapes, shardings))
        if speaks:  # before a new run takes its time: a folder without a config would be refused
            write_text(config.run / CONFIG, to_json(config, dataset.class_names))
            write_text(config.run / "environment.json", json.dumps(environment(), indent=2))
        if not first:
            state = jax.jit(make_state, out_shardings=shardings)(start.params, start.stats)
        journal = Journal(config.run, total=total, start=first, speaks=speaks)
        with journal, batches, StopSignal() as told_to_end:
            journal.say(_introduction(config, dataset, mesh, start.origin))
            journal.say(f"Step {first} of {total}." if first else f"{total} steps.")
            if first < total:
                journal.say("Compiling the first step")
            meter = Meter(
                dataset.train,
                journal,
                batch_size=config.batch_size,
                log_every=config.log_every,
                total=total,
            )

            # -------------------------------------------------------- the loop
            step, ended = first, False
            coming = itertools.islice(meter.waiting(batches.iterate(first)), total - first)
            for step, batch in enumerate(coming, first + 1):
                arrays = sharding.to_devices({n: batch[n] for n in pixels}, pixels)
                state, metrics = train_step(state, arrays)
                meter.add(step, metrics, batch["index"])
                ended, means = told_to_end() or checkpoints.preempted(step), None
                if step % config.evaluation.every == 0 and step < total and not ended:
                    meter.catch_up()
                    means = _evaluate(evaluator, state, step, dataset, journal).means()
                    meter.restart()
                if means or ended or step == total or step % config.checkpoint.every == 0:
                    meter.catch_up()  # what is no number must not get on disk
                    checkpoints.save(step, state, means)
                if ended:
                    break
            checkpoints.wait()
            if step < total:
                journal.say(
                    f"Told to end: step {step} is saved, the same command goes on from there."
                )
                return STOPPED

            # -------------------------------------------------------- the end
            evaluation = _evaluate(evaluator, state, total, dataset, journal)
            extremes = evaluation.extremes(EXAMPLES)
            shown = evaluator.examples(inference_values(state), tuple(extremes.values()))
            values = sharding.gathered(inference_values(state), mesh)
            if speaks:
                model = with_values(start.model, values)
                model.eval()
                save(model, config.run / "model", overwrite=True)
                report.write(
                    config.run / "evaluation",
                    evaluation,
                    dataset.class_names,
                    dict(zip(extremes, shown, strict=True)),
                    {"run": str(config.run), "step": total},
                )
                journal.show(report.table(evaluation, dataset.class_names))
                if batches.skipped:
                    journal.say(f"Not readable, replaced by others: {dict(batches.skipped)}")
                journal.say(
                    f"Look at {config.run}; try: deeplab predict {config.run}/model PICTURE"
                )
    return FINISHED


# ---------------------------------------------------------------------------- before the first step


def _check(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ValueError, listing them, for what does not fit the devices or the run's folder."""
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
            f"model.batch_norm must divide what is computed at once: {groups} does not divide "
            f"{config.batch_size // config.accumulate} examples"
        )
    if jax.process_index() == 0 and (problem := _no_place(config.run)):
        problems.append(f"{problem}: choose another --run")
    if problems:
        raise ValueError("\n".join(problems))


def _no_place(run: Path) -> str | None:
    """Why a run cannot be in a folder; None where it can begin or go on there."""
    if not run.exists():
        return None
    if not run.is_dir():
        return f"{run} is a file"
    names = {path.name for path in run.iterdir()} - {lock.NAME}  # a crash leaves that
    return f"{run} is there and is not a run" if names and CONFIG not in names else None


def _check_resume(
    config: TrainConfig,
    dataset: Dataset,
    checkpoints: Checkpoints,
    step: int,
    shapes: Any,
    total: int,
) -> None:
    """Raises ValueError or CheckpointError where there is nothing to go on with, or the config changed."""
    if step > total:
        raise ValueError(
            f"{config.run} is at step {step} already, beyond the {total} that are asked for: choose "
            "another --run, or more steps"
        )
    began = json.loads((config.run / CONFIG).read_text())
    changes = differences(began, json.loads(to_json(config, dataset.class_names)))
    checkpoints.check(step, shapes, changes)  # first: what does not fit cannot be accepted
    if changes and not config.accept_changes:
        raise ValueError(
            f"{config.run} was begun with another config. Choose another --run, or --accept-changes to "
            "go on from its last checkpoint with this one:\n  " + "\n  ".join(changes)
        )


def _augmentation(config: TrainConfig, model: Config) -> AugmentConfig:
    """What a picture does not fill is zero to the model, as in evaluation."""
    mean = tuple(round(255 * value) for value in model.preprocessing.mean[:3])
    return dataclasses.replace(config.augment, fill=config.augment.fill or mean)


def _optim(config: TrainConfig) -> OptimConfig:
    """A frozen backbone must not even decay."""
    frozen = config.model.freeze_backbone
    return dataclasses.replace(config.optim, backbone_factor=0) if frozen else config.optim


def _class_weights(config: TrainConfig, dataset: Dataset) -> np.ndarray | None:
    """The loss's weight of each class, counted in the training split where the config asks for it.

    Raises:
      ValueError: as many weights are given as there are not classes.
    """
    weights = config.loss.class_weights
    if weights is None:
        return None
    if weights == "data":
        weights = class_weights(class_frequencies(dataset.train, dataset.num_classes))
    if len(weights) != dataset.num_classes:
        raise ValueError(
            f"loss.class_weights must have a number for each of the {dataset.num_classes} classes of "
            f"{dataset.name}, got {len(weights)}"
        )
    return np.asarray(weights, np.float32)


def _introduction(config: TrainConfig, dataset: Dataset, mesh: Mesh, origin: str) -> str:
    device = jax.devices()[0].device_kind
    layout = " x ".join(f"{n} {axis}" for axis, n in mesh.shape.items() if n > 1)
    notes = "".join(f"{note}\n" for note in dataset.notes)
    return (
        f"{origin}\n{dataset.name}: {len(dataset.train)} examples to learn from, "
        f"{len(dataset.val)} to validate on, {dataset.num_classes} classes\n{notes}"
        f"{config.model.dtype} on {jax.device_count()} x {device}{layout and f' ({layout})'}"
    )


def _evaluate(
    evaluator: Evaluator, state: State, step: int, dataset: Dataset, journal: Journal
) -> report.Evaluation:
    """Scores on the validation split, and a few of its images for TensorBoard, always the same."""
    journal.advance(step, doing="evaluating")
    values = inference_values(state)
    evaluation = evaluator(values)
    means = evaluation.means()
    journal.scalars(step, {f"val/{name}": value for name, value in means.items()})
    journal.say(f"step {step}: " + ", ".join(f"{n} {v:.4f}" for n, v in means.items()))
    first = sorted(evaluation.images, key=lambda image: image.index)[:EXAMPLES]
    for number, example in enumerate(evaluator.examples(values, first), 1):
        journal.picture(step, f"val/{number}", report.comparison(example, dataset.class_names))
    return evaluation


# ---------------------------------------------------------------------------- when it fails


def _leave(error: Exception) -> NoReturn:
    """Ends this process of several at once: an orderly end would wait, up to minutes, for the others.

    They then end too: a step without this process fails.
    """
    # Of a lost peer, XLA tells in errors of any class that begin with a status, such as "UNKNOWN: ".
    of_a_peer = isinstance(error, ConnectionError | TimeoutError) or re.match(
        "[A-Z_]+: ", str(error)
    )
    if isinstance(error, ValueError | OSError) and not of_a_peer:
        status, told = BAD_USE, f"error: {error}"
    else:
        traceback.print_exception(error)
        status = PEER_LOST
        told = (
            "This process cannot go on; if another one died, that is why. Start all of them again with "
            "the same command: the run goes on from its last checkpoint."
        )
    print(told, file=sys.stderr, flush=True)
    os._exit(status)
