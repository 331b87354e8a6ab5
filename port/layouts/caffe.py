"""What the networks that were born in Caffe have in common, whose weights MSRA and DeepLab published."""

from typing import Any

from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import of_bytes

CAFFE_BLOCKS: dict[str, Any] = {
    "first_block_dilation": "same",
    "bottleneck_stride": "1x1",
    "stem_pool": "both",
}
"""Fields of their `ResNetConfig`."""

MEAN = (104.008, 116.669, 122.675)
"""Of ImageNet's blue, green and red."""


def caffe_preprocessing(channels: int) -> Preprocessing:
    """BGR images of 0 to 255, less the mean of ImageNet."""
    return of_bytes(MEAN, channels, "bgr")
