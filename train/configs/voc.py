"""PASCAL VOC 2012 with SBD's extra annotations (trainaug), as the DeepLabv3+ paper trains.

    deeplab-train prepare voc2012_aug --source VOCtrainval_11-May-2012.tar benchmark.tgz
    deeplab-train voc --model.init resnet101

From ImageNet weights (`deeplab-port resnet101.pth resnet101`), output stride 16, 513 crops, batch 16, poly
.007, 30 000 steps (Chen et al. 2018, sec. 4). Not measured: it takes an accelerator.
"""

from pathlib import Path

from train.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/voc"),
    data=DataConfig("voc2012_aug"),
    augment=AugmentConfig(crop=(513, 513)),
    model=ModelConfig("deeplabv3plus_resnet101", output_stride=16, dtype="bfloat16"),
    optim=OptimConfig("sgd", learning_rate=0.007, weight_decay=1e-4, schedule="poly"),
    steps=30_000,
    batch_size=16,
    evaluation=EvaluationConfig(every=2000, batch_size=16),
)
