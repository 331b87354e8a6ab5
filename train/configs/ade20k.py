"""ADE20K, 150 classes.

    deeplab-train prepare ade20k --source ADEChallengeData2016.zip
    deeplab-train ade20k --model.init resnet101

From ImageNet weights (`deeplab-port resnet101.pth resnet101`), output stride 16, 513 crops, batch 16, poly
.01, 160 000 steps, an auxiliary head (mmsegmentation's schedule). Not measured: it takes an accelerator.
"""

from pathlib import Path

from train.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/ade20k"),
    data=DataConfig("ade20k"),
    augment=AugmentConfig(crop=(513, 513)),
    model=ModelConfig("deeplabv3plus_resnet101", output_stride=16, aux_head=True, dtype="bfloat16"),
    optim=OptimConfig("sgd", learning_rate=0.01, weight_decay=5e-4, schedule="poly"),
    steps=160_000,
    batch_size=16,
    evaluation=EvaluationConfig(every=8000, batch_size=16),
)
