"""VainF's models, re-created in references.py."""

from references import VainF

from deeplab_jax.backbones import BackboneConfig, MobileNetV2Config, ResNetConfig
from originals.case import V3, V3PLUS, Case, Cases


def _vainf(backbone_config: BackboneConfig, head: type, **options) -> Case:
    backbone = "resnet50" if isinstance(backbone_config, ResNetConfig) else "mobilenet_v2"
    stride = options["output_stride"] = backbone_config.output_stride
    return Case(
        "vainf",
        lambda: VainF(backbone, plus=head is V3PLUS, **options),
        backbone_config,
        head,
        options={"output_stride": stride},
    )


def _v2_vainf(stride: int) -> MobileNetV2Config:
    return MobileNetV2Config(1.0, stride, pad_before_expand=True, stem_padding=0)


COMPARED: Cases = {
    "vainf-v3plus-r50-os16-separable": _vainf(ResNetConfig(50, 16), V3PLUS, separable=True),
    "vainf-v3plus-mbv2-os8": _vainf(_v2_vainf(8), V3PLUS),
    "vainf-v3-mbv2-os16": _vainf(_v2_vainf(16), V3),
}
DEEPER: Cases = {
    "vainf-v3-r50-os8": _vainf(ResNetConfig(50, 8), V3),
    "vainf-v3plus-r50-os16": _vainf(ResNetConfig(50, 16), V3PLUS),
    "vainf-v3plus-mbv2-os16-separable": _vainf(_v2_vainf(16), V3PLUS, separable=True),
}
