"""Oxford-IIIT Pets, 2 classes: the pet and the background; the border between them is ignored.

    deeplab-train prepare oxford_iiit_pet --source images.tar.gz annotations.tar.gz
    deeplab-train pets --model.init lite0

From the ImageNet EfficientNet-Lite0 of `deeplab-port demo lite0`, 320 crops, batch 16, 20 epochs. With
--data.name oxford_iiit_pet_trimap the border is a third class. Not measured.
"""

from pathlib import Path

from train.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig
from train.optim import OptimConfig

CONFIG = TrainConfig(
    run=Path("runs/pets"),
    data=DataConfig("oxford_iiit_pet"),
    augment=AugmentConfig(crop=(320, 320)),
    model=ModelConfig("deeplabv3plus_efficientnet_lite0"),
    optim=OptimConfig("adamw", learning_rate=1e-3, weight_decay=1e-2, backbone_factor=0.3),
    epochs=20,
    batch_size=16,
    evaluation=EvaluationConfig(every=1000, batch_size=16),
)
