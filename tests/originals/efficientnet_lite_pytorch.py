"""efficientnet-lite-pytorch."""

import efficientnet_lite_pytorch

from deeplab_jax.backbones import EfficientNetLiteConfig
from originals.case import Case, Cases, classifier


def _elp(variant: int, image_size: int) -> Case:
    def make(num_classes):
        name = f"efficientnet-lite{variant}"
        return efficientnet_lite_pytorch.EfficientNet.from_name(name, num_classes=num_classes)

    backbone = EfficientNetLiteConfig(
        variant,
        32,
        last_conv="used",
        padding="same",
        same_size=image_size,
        norm_momentum=0.01,
        norm_epsilon=1e-3,
        drop_path=0.2,
    )
    return classifier(make, backbone, "efficientnet-lite-pytorch")


# 260 and 300 pad otherwise than 224: the sizes on the way down are odd.
COMPARED: Cases = {"elp-lite0": _elp(0, 224), "elp-lite2": _elp(2, 260)}
DEEPER: Cases = {f"elp-lite{v}": _elp(v, size) for v, size in ((1, 240), (3, 280), (4, 300))}
