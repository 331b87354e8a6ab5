"""detectron2's DeepLab project: v3 and v3+ on ResNets, of which R-103 is ResNet-101 with a deep stem.

Image pooling averages windows as large as the crops of its training, so that a large image is pooled in
parts, and its convolution has a bias in place of a norm. Logits are enlarged by their stride and cropped.

What the configs differ in, the stem tells: R-103, which its model zoo has, was pretrained on RGB in
PyTorch; the weights of a plain stem are MSRA's, of BGR and with a block's stride in its first convolution.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from deeplab_jax.backbones import ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Place, of_bytes
from port.naming import Names, Shapes, under

CROP = (512, 1024)
"""Of the configs for Cityscapes, which are all that it has."""

RATES = (6, 12, 18)
MULTI_GRID = (1, 2, 4)

MSRA_MEAN = (103.53, 116.28, 123.675)
"""detectron2's default, of BGR images of 0 to 255, whose deviation is left alone."""

PLUS, V3 = "sem_seg_head.decoder.res5.project_conv", "sem_seg_head.aspp"  # where ASPP is
LOW = "sem_seg_head.decoder.res2"


class Detectron2(Layout):
    name = "detectron2"
    code = "detectron2's projects/DeepLab"
    models = (
        "DeepLabV3 and V3Plus on ResNet-50, 101 and 152, with plain stems and deep ones (R-103); "
        "separable convolutions; .pkl and .pth"
    )
    choices = (
        "output_stride",
        "multi_grid",
        "rates",
        "pool_window",
        "bottleneck_stride",
        "preprocessing",
    )
    apart = ("pixel_mean", "pixel_std")

    rules: ClassVar = {ResNetConfig: {"first_block_dilation": "same"}}

    def recognises(self, shapes: Shapes) -> bool:
        return f"{PLUS}.project.weight" in shapes or f"{V3}.project.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        stride = output_stride or 16
        plus = f"{PLUS}.project.weight" in shapes
        aspp = PLUS if plus else V3
        _check_known(shapes, aspp)
        common = {
            "rates": RATES,
            "channels": shapes[f"{aspp}.project.weight"][0],
            "separable": f"{aspp}.convs.1.depthwise.weight" in shapes,
            "norm_between": f"{aspp}.convs.1.depthwise.weight" in shapes,
            "dropout": 0.1,
            "pool_norm": False,
            "pool_window": tuple(side // stride for side in CROP),
        }
        if plus:
            fused = shapes.get(f"{LOW}.fuse_conv.depthwise.weight")
            head = DeepLabV3PlusConfig(
                **common,
                low_channels=shapes[f"{LOW}.project_conv.weight"][0],
                separable_decoder=fused is not None,
                decoder_convs=2 if fused is None else 1,
                decoder_kernel=3 if fused is None else fused[-1],
            )
        else:
            head = DeepLabV3Config(**common, convs=0)
        classes = shapes.get("sem_seg_head.predictor.weight", (19,))[0]
        backbone = self.backbone(shapes, stride)
        config = Config(backbone, head, classes, upsampling="by_stride")
        if not isinstance(backbone, ResNetConfig):
            return config
        if backbone.stem == "deep":
            return config.override(multi_grid=MULTI_GRID)
        stride_in = "1x1" if backbone.bottlenecks else "3x3"
        msra = of_bytes(MSRA_MEAN, backbone.in_channels, "bgr")
        return config.override(bottleneck_stride=stride_in, preprocessing=msra)

    def preprocessing(self, config: Config, source: Mapping[str, np.ndarray]) -> Preprocessing:
        """What the checkpoint keeps, as earlier versions of detectron2 did; of RGB unless blue is first."""
        if not {"pixel_mean", "pixel_std"} <= source.keys():
            return config.preprocessing
        mean, std = (
            source[name].astype(np.float64).ravel() for name in ("pixel_mean", "pixel_std")
        )
        bgr = mean.shape == (3,) and np.abs(mean - MSRA_MEAN).max() < 1  # as people round it
        return Preprocessing(
            tuple((mean / 255).tolist()),
            tuple((std / 255).tolist()),
            channel_order="bgr" if bgr else "rgb",
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        plus = isinstance(config.head, DeepLabV3PlusConfig)
        names = self.backbone_names(config, place)
        aspp = _conv("branches.0", "convs.0") | _conv("project", "project")
        for i in range(1, 4):
            branch = _separable if config.head.separable else _conv
            aspp |= branch(f"branches.{i}", f"convs.{i}")
        aspp["pool"] = "convs.4.1"
        names |= under("head.aspp", PLUS if plus else V3, aspp)
        if not plus:
            return names | {"head.classifier": "sem_seg_head.predictor"}
        decoder = _conv("low", "project_conv")
        if config.head.separable_decoder:
            decoder |= _separable("convs.0", "fuse_conv")
        else:
            for i in range(config.head.decoder_convs):
                decoder |= _conv(f"convs.{i}", f"fuse_conv.{i}")
        names |= under("head.decoder", LOW, decoder)
        return names | {"head.decoder.classifier": "sem_seg_head.predictor"}


def _check_known(shapes: Shapes, aspp: str) -> None:
    """Raises ValueError, naming it, for a head that only looks like ours."""
    if any(
        name.startswith(("sem_seg_head.decoder.res3.", "sem_seg_head.head.")) for name in shapes
    ):
        raise ValueError("its decoder has more stages than one: Panoptic-DeepLab's is not read")
    if f"{aspp}.project.norm.running_mean" not in shapes:
        raise ValueError(
            "the norms of its head have no running statistics (SEM_SEG_HEAD.NORM is GN or empty there), "
            "and we have batch norm only"
        )


def _conv(ours: str, theirs: str) -> Names:
    """detectron2's Conv2d, which has its norm inside."""
    return {f"{ours}.conv": theirs, f"{ours}.bn": f"{theirs}.norm"}


def _separable(ours: str, theirs: str) -> Names:
    """Two of them, so that a norm and an activation are between depthwise and pointwise."""
    return {
        f"{ours}.depthwise": f"{theirs}.depthwise",
        f"{ours}.depthwise_bn": f"{theirs}.depthwise.norm",
        f"{ours}.pointwise": f"{theirs}.pointwise",
        f"{ours}.bn": f"{theirs}.pointwise.norm",
    }
