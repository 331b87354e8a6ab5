"""Pictures and label maps of your own, some dozens to some thousands, from the weights of another network.

    deeplab-port demo lite0
    deeplab-train finetune --data.name folder:street --model.init lite0

`lite0` is an ImageNet network that a package ships, for any classes; a DeepLab that was ported or trained
on what is like your pictures is a better start. Crops of 320 x 320 suit pictures of some hundred pixels:
larger ones want --augment.crop 512 512 and as large a batch as fits.
"""

from pathlib import Path

from train.config import CheckpointConfig, DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.loss import LossConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/finetune"),
    data=DataConfig("folder:data"),
    augment=AugmentConfig(
        crop=(320, 320), scale=(0.75, 1.75), brightness=0.2, contrast=0.2, saturation=0.2
    ),
    model=ModelConfig("deeplabv3plus_efficientnet_lite0", batch_norm_momentum=0.1),
    loss=LossConfig(lovasz=1.0),
    optim=OptimConfig(
        "adamw", learning_rate=1e-3, weight_decay=1e-2, backbone_factor=0.3, warmup_steps=20
    ),
    epochs=50,
    batch_size=8,
    ema=0.98,
    checkpoint=CheckpointConfig(every=100),
    evaluation=EvaluationConfig(every=500, batch_size=4),
)
