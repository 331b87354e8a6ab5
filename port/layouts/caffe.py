"""What the networks that were born in Caffe have in common, whose weights MSRA and DeepLab published."""

from typing import Any

from deeplab_jax.preprocessing import Preprocessing

CAFFE_BLOCKS: dict[str, Any] = {
    "first_block_dilation": "same",
    "bottleneck_stride": "1x1",
    "stem_pool": "both",
}
"""Fields of their `ResNetConfig`."""

CAFFE_PREPROCESSING = Preprocessing(
    mean=(104.008 / 255, 116.669 / 255, 122.675 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    channel_order="bgr",
)
"""BGR images of 0 to 255, less the mean of ImageNet."""
