"""Cityscapes, 19 classes.

    deeplab-train prepare cityscapes --source leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
    deeplab-train cityscapes --model.init resnet101

From ImageNet weights (`deeplab-port resnet101.pth resnet101`), output stride 16, 769 crops, batch 16, poly
.01, 90 000 steps (Chen et al. 2018, sec. 4.3). With less memory: --mesh.space 2, --model.remat,
--accumulate 2. Not measured: it takes an accelerator.
"""

from pathlib import Path

from train.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/cityscapes"),
    data=DataConfig("cityscapes"),
    augment=AugmentConfig(crop=(769, 769)),
    model=ModelConfig("deeplabv3plus_resnet101", output_stride=16, dtype="bfloat16"),
    optim=OptimConfig("sgd", learning_rate=0.01, weight_decay=1e-4, schedule="poly"),
    steps=90_000,
    batch_size=16,
    evaluation=EvaluationConfig(every=5000, batch_size=8),
)
