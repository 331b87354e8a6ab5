"""The configuration of a training run: frozen dataclasses, set by flags and kept in the run's folder."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from train.data import AugmentConfig
from train.data.pairs import Unpaired
from train.data.pictures import Bands
from train.loss import LossConfig
from train.optim import OptimConfig
from train.place import why_no_run
from train.profiler import steps_to_trace
from train.targets import Activation
from train.writers import Service, check_services

MODEL_CONFIG = "model.json"
"""In a run's folder: what its checkpoints are checkpoints of."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, and how it is read.

    Attributes:
      name: a data set's name (`deeplab-train data` lists them), `folder:PATH`, `tfds:NAME` for any other
        that TFDS has prepared, NAME being `NAME[/CONFIG][:VERSION]`, `hf:ORG/NAME[:CONFIG]` or `hf:PATH`
        for one of Hugging Face, or `webdataset:PATTERN` for tar files.
      data_dir: the folder of prepared data sets, or gs://BUCKET/FOLDER, of which the data set is copied to
        this machine first; None is TFDS's own.
      class_names: of a data set that has no name here, where no classes.txt names them.
      labels: the class of each id in the label maps of such a data set, such as
        "0=background,100=road,200=car,7=ignored". Classes are in the order of their names; ids that share
        a name are merged; ids that are not listed are errors, but 255, which is ignored.
      keys: the features of `tfds:` and `hf:` that are picture, label map and (optional) name, such as
        "image,segmentation_mask,file_name", or the endings of `webdataset:`, such as "jpg,seg.png"; needed
        where there are several of a kind.
      bands: read the pictures of `folder:` and `webdataset:` band by band, "all" or those with these
        numbers, from 1 on: for what is more or other than RGB of 8 bits, such as GeoTIFFs and TIFF stacks.
        The model gets as many channels.
      mean, std: of each channel of pictures scaled to [0, 1] (8 bits by 255, 16 bits by 65535, floating
        point not at all). None is what `init` was trained with, ImageNet's for RGB, and otherwise what is
        measured on the training split.
      unpaired: stop at pictures of a folder without label map, and label maps without picture, or skip
        them.
      resize_labels: resize label maps of a folder that are of another size than their pictures, in the same
        proportion, by nearest neighbour.
      unreadable: stop at an example that cannot be read, or skip it, count it and report it.
      threads: number of threads that read and augment, in each process.
      workers: number of processes that do it instead; worth it where threads cannot keep the device busy.
    """

    name: str = "shapes"
    data_dir: Path | None = None
    class_names: tuple[str, ...] | None = None
    labels: str | None = None
    keys: str | None = None
    bands: Bands | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    unpaired: Unpaired = "stop"
    resize_labels: bool = False
    unreadable: Literal["stop", "skip"] = "stop"
    threads: int = 16
    workers: int = 0

    def __post_init__(self):
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                f"data.mean and data.std must be given together, got {self.mean} and {self.std}"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model, and where its weights come from.

    Attributes:
      preset: the architecture, see `deeplab list`.
      init: a model folder, its URL in a bucket, or hf://USER/NAME, to start from. Its backbone, with its
        config and preprocessing, takes the place of the preset's, without an ImageNet classifier's last
        1x1; its heads are kept where they fit. None is random weights.
      activation: "softmax" for one class of each pixel; "sigmoid" for the second of two classes, the
        foreground, in one channel, and of more classes for each but the first as a label of its own. None
        is the sigmoid of `init`, where it has just these channels, and otherwise softmax.
      output_stride: 8, 16 or 32; None is that of `init`, or of the preset where there is none or it is an
        image-classification network.
      aux_head: train an auxiliary head (FCN) on the features at stride 16 too.
      dtype: what convolutions compute in; parameters, batch norm and logits are float32 in any case.
      freeze_backbone: train the heads alone.
      freeze_batch_norm: use, and keep, the running statistics of the backbone.
      batch_norm: whose statistics normalise in training: those of the "global" batch, "local" ones of
        each device, or of each of N equal parts of the batch, see `deeplab_jax.group_batch_norm`.
      batch_norm_momentum: weight of the new value in running statistics; None is the model's own.
      remat: keep only the convolutions' outputs for the backward pass and compute norms and
        activations again: less memory, a little more time.
    """

    preset: str = "deeplabv3plus_resnet50"
    init: Path | None = None
    activation: Activation | None = None
    output_stride: Literal[8, 16, 32] | None = None
    aux_head: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    freeze_backbone: bool = False
    freeze_batch_norm: bool = False
    batch_norm: Literal["global", "local"] | int = "global"
    batch_norm_momentum: float | None = None
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices of all processes are laid out.

    Attributes:
      data: shards of the batch; -1 is all devices that `space` leaves.
      space: shards of an image's rows, for crops too large for one device. Crops are padded to a
        multiple of this times the output stride, with rows that are ignored.
      fsdp: shard large parameters and their optimiser state over `data` too, instead of keeping a
        copy of them on every device.
      slices: number of equal groups of devices with a fast network inside, of whole processes; None is by
        what the devices say: TPU slices, and nodes of GPUs.
    """

    data: int = -1
    space: int = 1
    fsdp: bool = False
    slices: int | None = None


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a distributed run find each other.

    TPU pod slices, Slurm and Open MPI are detected; elsewhere give all three, or set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. See `train.cluster`.

    Attributes:
      coordinator: address of process 0, host:port.
      processes: number of processes.
      process: index of this process, from 0.
      heartbeat: seconds without a heartbeat after which a process is considered dead.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    heartbeat: int = 30

    def __post_init__(self):
        given = [v is not None for v in (self.coordinator, self.processes, self.process)]
        if any(given) and not all(given):
            raise ValueError(
                "distributed.coordinator, distributed.processes and distributed.process must be given "
                f"together: got {self.coordinator}, {self.processes}, {self.process}"
            )
        if self.coordinator is None:
            return
        problems = []
        if ":" not in self.coordinator:
            problems.append(f"distributed.coordinator must be host:port, got {self.coordinator}")
        if not 0 <= self.process < self.processes:
            problems.append(
                "distributed.process must be at least 0 and below distributed.processes, got "
                f"{self.process} of {self.processes}"
            )
        if problems:
            raise ValueError("\n".join(problems))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often checkpoints are written, and how many are kept.

    Attributes:
      every: steps between checkpoints; each evaluation saves one too.
      keep: number of latest checkpoints to keep.
      keep_best: number of checkpoints with the best mIoU to keep besides.
    """

    every: int = 500
    keep: int = 2
    keep_best: int = 1


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How often and how the model is evaluated during training.

    Attributes:
      every: steps between evaluations on the validation split; the last step has one in any case.
      patience: end the run, with the model of its best checkpoint, when the best mIoU has not improved in
        this many evaluations; None is never. The learning rate is as if the run went on.
      batch_size: images at a time, on all devices together.
    """

    every: int = 1000
    patience: int | None = None
    batch_size: int = 8


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The whole configuration of a training run.

    Attributes:
      run: the folder that the run writes, or gs://BUCKET/FOLDER; an existing run is resumed.
      epochs: passes over the training split.
      steps: optimiser steps, instead of epochs.
      batch_size: examples in a step, on all devices of all processes together.
      accumulate: number of parts that a batch is split into, computed one after the other to save memory.
      ema: decay of the moving average of the weights, which is then what is evaluated and saved; 0
        for none.
      seed: seed of new weights, of the order of examples, of augmentation and of dropout.
      log_every: steps between lines of the log and of all that records the run.
      log_to: what records the run besides its metrics.jsonl; all but tensorboard need the extra `tracking`,
        and go on in the same place when the run is resumed.
      profile: FIRST:LAST, the steps of which a trace for xprof is written to the run's folder.
      accept_changes: resume although the config differs from the one the run was started with.
    """

    run: Path = Path("runs/default")
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    epochs: float = 50
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    ema: float = 0.0
    seed: int = 0
    log_every: int = 20
    log_to: tuple[Service, ...] = ("tensorboard",)
    profile: str | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    accept_changes: bool = False

    def __post_init__(self):
        problems = []
        for name in ("batch_size", "accumulate", "log_every", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                problems.append(f"{name} must be at least 1, got {value}")
        if not self.epochs > 0:
            problems.append(f"epochs must be above 0, got {self.epochs}")
        if self.batch_size % self.accumulate:
            problems.append(
                f"batch_size must be a multiple of accumulate: {self.accumulate} does not divide "
                f"{self.batch_size}"
            )
        problems += check_services(self.log_to)
        problems += [why] if (why := why_no_run(self.run)) else []
        if self.profile is not None:
            try:
                steps_to_trace(self.profile)
            except ValueError as error:
                problems.append(str(error))
        if not 0 <= self.ema < 1:
            problems.append(f"ema must be at least 0 and below 1, such as 0.999, got {self.ema}")
        patience = self.evaluation.patience
        if patience is not None and patience < 1:
            problems.append(f"evaluation.patience must be at least 1, got {patience}")
        if patience is not None and not self.checkpoint.keep_best:
            problems.append(
                "evaluation.patience ends with the best checkpoint, so checkpoint.keep_best must be at "
                f"least 1, got {self.checkpoint.keep_best}"
            )
        if problems:
            raise ValueError("\n".join(problems))


TOPOLOGY = ("mesh.", "distributed.", "data.threads", "data.workers", "data.data_dir")
"""Options that may change when a run is resumed: where it computes, not what."""

BOOKKEEPING = (
    "run",
    "log_every",
    "log_to",
    "profile",
    "accept_changes",
    "checkpoint.",
    "evaluation.",
    "data.unreadable",
)
"""Options that do not change the weights of a step; `evaluation.patience` may be changed to go on."""


def to_json(config: TrainConfig, class_names: Sequence[str] = ()) -> str:
    """The config as JSON, with the classes of its data, for the run's folder."""
    fields = dataclasses.asdict(config) | ({"classes": class_names} if class_names else {})
    return json.dumps(fields, indent=2, default=str) + "\n"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two configs in JSON, such as "optim.learning_rate: 0.01 -> 0.02".

    What cannot change the result (`TOPOLOGY` and `BOOKKEEPING`) is left out, and classes where only one
    of the two has them.
    """
    old, new = _flat(old), _flat(new)
    if not ("classes" in old and "classes" in new):
        old, new = ({k: v for k, v in flat.items() if k != "classes"} for flat in (old, new))
    return [
        f"{name}: {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and not name.startswith((*TOPOLOGY, *BOOKKEEPING))
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
