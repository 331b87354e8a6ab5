"""Data sets, augmentation and batches for training and evaluation."""

from train.data.augment import AugmentConfig, augment
from train.data.dataset import (
    DataError,
    Dataset,
    Selection,
    Source,
    class_frequencies,
    class_weights,
    label_frequencies,
    positive_weights,
)
from train.data.descriptions import open_dataset
from train.data.pipeline import (
    EvalStep,
    TrainBatches,
    eval_batches,
    plan_evaluation,
    plan_of_some,
)

__all__ = [
    "AugmentConfig",
    "DataError",
    "Dataset",
    "EvalStep",
    "Selection",
    "Source",
    "TrainBatches",
    "augment",
    "class_frequencies",
    "class_weights",
    "eval_batches",
    "label_frequencies",
    "open_dataset",
    "plan_evaluation",
    "plan_of_some",
    "positive_weights",
]
