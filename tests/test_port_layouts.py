"""Every layout against the code whose checkpoints it reads: same outputs, same bits on the way back.

Nothing is downloaded: weights are random, see `references.randomise`. Sizes are odd and not square
wherever the original accepts it, and the batch has two images.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import efficientnet_lite_pytorch
import jax
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from flax import nnx
from references import (
    Standalone,
    VainF,
    assert_agrees,
    copied,
    images,
    nhwc,
    quick_comparison,
    randomise,
    relative_error,
    run_torch,
    without_weights,
)
from torch import nn
from torchvision.models import segmentation

from deeplab_jax.backbones import (
    BackboneConfig,
    ConvNeXtConfig,
    EfficientNetLiteConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    ResNetConfig,
)
from deeplab_jax.config import FeaturesConfig
from deeplab_jax.heads import (
    ClassifierConfig,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    LRASPPConfig,
)
from port import LAYOUTS, load_torch, to_torch, verify
from port.convert import Conversion, convert

# ---------------------------------------------------------------------------- the originals


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of an original code base.

    Attributes:
      layout: that must be found.
      make: the torch module.
      backbone, head: what the config must have.
      aux: whether there is an auxiliary head.
      options: for `convert`, where the original was not built with its code's defaults.
      shapes: of the inputs, `[B, H, W, C]`.
    """

    layout: str
    make: Callable[[], nn.Module]
    backbone: BackboneConfig | FeaturesConfig
    head: type
    aux: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((2, 65, 97, 3),)


pytestmark = pytest.mark.filterwarnings(
    # smp prefers its newer tu-tf_*, whose checkpoints have other names
    "ignore:`timm-` encoders are deprecated:DeprecationWarning"
)

COMPARED: dict[str, Case] = {}
"""A representative of each path through the code."""
DEEPER: dict[str, Case] = {}
"""The same paths, only longer, wider or with other options of the same kind: what they export has the bits
of the checkpoint, and is not run once more."""

# ---- torchvision.models.segmentation

NO_WEIGHTS = {"weights": None, "weights_backbone": None}
V3, V3PLUS, FCN, LRASPP = DeepLabV3Config, DeepLabV3PlusConfig, FCNConfig, LRASPPConfig


def _segmentation(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(segmentation, name)(**NO_WEIGHTS, num_classes=7, **options)


def _dilated(head: Callable, depth: int, stride: int, aux: bool) -> Callable[[], nn.Module]:
    """What the public constructors cannot build: they have output stride 8."""

    def make():
        dilated = [False, stride == 8, stride <= 16]
        network = getattr(torchvision.models, f"resnet{depth}")(
            replace_stride_with_dilation=dilated
        )
        return head(network, 7, aux)

    return make


_v3_resnet, _fcn_resnet = segmentation.deeplabv3._deeplabv3_resnet, segmentation.fcn._fcn_resnet
_mobile = MobileNetV3Config("large")
TV = "torchvision"

COMPARED |= {
    "tv-v3-r50-aux-os8": Case(
        TV, _segmentation("deeplabv3_resnet50", aux_loss=True), ResNetConfig(50, 8), V3, True
    ),
    "tv-fcn-r50-aux-os16": Case(
        TV,
        _dilated(_fcn_resnet, 50, 16, aux=True),
        ResNetConfig(50, 16),
        FCN,
        True,
        options={"output_stride": 16},
    ),
    "tv-v3-mbv3-aux": Case(
        TV, _segmentation("deeplabv3_mobilenet_v3_large", aux_loss=True), _mobile, V3, True
    ),
    "tv-lraspp": Case(TV, _segmentation("lraspp_mobilenet_v3_large"), _mobile, LRASPP),
    "tv-lraspp-os32": Case(
        TV,
        lambda: segmentation.lraspp._lraspp_mobilenetv3(
            torchvision.models.mobilenet_v3_large(dilated=False), 7
        ),
        MobileNetV3Config("large", output_stride=32),
        LRASPP,
        options={"output_stride": 32},
    ),
}
DEEPER |= {
    f"tv-{head}-r{depth}-{'aux-' if aux else ''}os8": Case(
        TV,
        _segmentation(f"{name}_resnet{depth}", aux_loss=aux),
        ResNetConfig(depth, 8),
        config,
        aux,
    )
    for head, name, config in (("v3", "deeplabv3", V3), ("fcn", "fcn", FCN))
    for depth in (50, 101)
    for aux in (True, False)
}
DEEPER |= {
    f"tv-{head}-r{depth}-os16": Case(
        TV,
        _dilated(make, depth, 16, aux=False),
        ResNetConfig(depth, 16),
        config,
        options={"output_stride": 16},
    )
    for head, make, config, depth in (("v3", _v3_resnet, V3, 101), ("fcn", _fcn_resnet, FCN, 50))
}
del DEEPER["tv-v3-r50-aux-os8"]  # compared
DEEPER["tv-v3-mbv3"] = Case(TV, _segmentation("deeplabv3_mobilenet_v3_large"), _mobile, V3)

# ---- segmentation_models_pytorch: sizes must be multiples of the output stride


def _smp(
    name: str,
    encoder: str,
    backbone: BackboneConfig,
    options: dict[str, Any] | None = None,
    **model,
) -> Case:
    stride = backbone.output_stride
    model |= {"encoder_weights": None, "classes": 7, "encoder_output_stride": stride}
    fields = {}
    if isinstance(backbone, ResNetConfig | MobileNetV2Config | EfficientNetLiteConfig):
        rule = "previous" if encoder.startswith("tu-") else "same"  # timm's own, or smp's
        fields = {"first_block_dilation": rule}
    return Case(
        "smp",
        lambda: getattr(smp, name)(encoder, **model),
        dataclasses.replace(backbone, **fields),
        V3PLUS if "Plus" in name else V3,
        options={"output_stride": stride} | (options or {}),
        shapes=((2, 48, 80, backbone.in_channels),),
    )


def _lite(variant: int, stride: int = 16) -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(variant, stride, last_conv="unused", drop_path=0.2)


_v2_smp = MobileNetV2Config(last_conv=True)
COMPARED |= {
    "smp-v3plus-r18-os16": _smp("DeepLabV3Plus", "resnet18", ResNetConfig(18, 16)),
    "smp-v3-r18-os8-1-channel": _smp(
        "DeepLabV3", "resnet18", ResNetConfig(18, 8, in_channels=1), in_channels=1
    ),
    "smp-v3-r18-os16-separable-4-channels": _smp(
        "DeepLabV3",
        "resnet18",
        ResNetConfig(18, 16, in_channels=4),
        {"rates": (6, 12, 18)},
        in_channels=4,
        decoder_channels=96,
        decoder_atrous_rates=(6, 12, 18),
        decoder_aspp_separable=True,
    ),
    "smp-v3plus-r50-os8-dense": _smp(
        "DeepLabV3Plus", "resnet50", ResNetConfig(50, 8), decoder_aspp_separable=False
    ),
    "smp-v3-mbv2-os8": _smp(
        "DeepLabV3", "mobilenet_v2", dataclasses.replace(_v2_smp, output_stride=8)
    ),
    "smp-v3plus-mbv2-os16": _smp("DeepLabV3Plus", "mobilenet_v2", _v2_smp),
    "smp-v3plus-lite0-os16": _smp("DeepLabV3Plus", "timm-tf_efficientnet_lite0", _lite(0)),
    "smp-v3plus-tu-r34-os16": _smp("DeepLabV3Plus", "tu-resnet34", ResNetConfig(34, 16)),
    "smp-v3-tu-r50-os8": _smp("DeepLabV3", "tu-resnet50", ResNetConfig(50, 8)),
    "smp-v3-lite0-os8": _smp("DeepLabV3", "timm-tf_efficientnet_lite0", _lite(0, 8)),
}
DEEPER |= {
    f"smp-v3plus-r{depth}-os{stride}": _smp(
        "DeepLabV3Plus", f"resnet{depth}", ResNetConfig(depth, stride)
    )
    for depth, stride in ((34, 8), (50, 16), (101, 16), (152, 8))
}
DEEPER |= {
    f"smp-v3plus-lite{variant}": _smp(
        "DeepLabV3Plus", f"timm-tf_efficientnet_lite{variant}", _lite(variant)
    )
    for variant in (1, 2, 3, 4)
}
DEEPER |= {
    "smp-v3-r101-os8": _smp("DeepLabV3", "resnet101", ResNetConfig(101, 8)),
    "smp-v3plus-mbv2-os8": _smp(
        "DeepLabV3Plus", "mobilenet_v2", dataclasses.replace(_v2_smp, output_stride=8)
    ),
}

# ---- torchvision.models, and timm's ResNets under the same names


def _classifier(
    make: Callable[..., nn.Module], backbone: BackboneConfig, layout: str, **options
) -> Case:
    stride = {} if backbone.output_stride == 32 else {"output_stride": backbone.output_stride}
    return Case(
        layout,
        lambda: make(num_classes=7),
        backbone,
        ClassifierConfig,
        options=stride | options,
    )


def _tvc(name: str, backbone: BackboneConfig, **model) -> Case:
    make = getattr(torchvision.models, name)
    return _classifier(
        lambda num_classes: make(num_classes=num_classes, **model),
        backbone,
        "torchvision-classification",
    )


def _timm(name: str, backbone: BackboneConfig, options: dict[str, Any] | None = None) -> Case:
    stride = backbone.output_stride
    layout = "torchvision-classification" if "resnet" in name else "timm"
    return _classifier(
        lambda num_classes: timm.create_model(
            name,
            num_classes=num_classes,
            **({"output_stride": stride} if stride < 32 else {}),  # MobileNetV3 does not take it
        ),
        backbone,
        layout,
        **(options or {}),
    )


def _v2(width: float, stride: int = 32) -> MobileNetV2Config:
    return MobileNetV2Config(width, stride, last_conv=True)


COMPARED |= {
    "tvc-r18": _tvc("resnet18", ResNetConfig(18, 32)),
    "tvc-mbv3-small": _tvc("mobilenet_v3_small", MobileNetV3Config("small", output_stride=32)),
    "timm-r50-os16": _timm("resnet50", ResNetConfig(50, 16)),
}
DEEPER |= {
    f"tvc-r{depth}": _tvc(f"resnet{depth}", ResNetConfig(depth, 32)) for depth in (34, 50, 101, 152)
}
DEEPER |= {
    "tvc-mbv2-1.4": _tvc("mobilenet_v2", _v2(1.4), width_mult=1.4),
    "tvc-mbv3-large-os16": _tvc(
        "mobilenet_v3_large", MobileNetV3Config("large", output_stride=16), dilated=True
    ),
    "tvc-r50-os8": _tvc(
        "resnet50", ResNetConfig(50, 8), replace_stride_with_dilation=[False, True, True]
    ),
    "tvc-r50-os16": _tvc(
        "resnet50", ResNetConfig(50, 16), replace_stride_with_dilation=[False, False, True]
    ),
    "tvc-mbv2-0.5": _tvc("mobilenet_v2", _v2(0.5), width_mult=0.5),
    "tvc-mbv2-1.0": _tvc("mobilenet_v2", _v2(1.0)),
    "tvc-mbv3-large": _tvc("mobilenet_v3_large", MobileNetV3Config("large", output_stride=32)),
    "tvc-mbv3-small-os16": _tvc(
        "mobilenet_v3_small", MobileNetV3Config("small", output_stride=16), dilated=True
    ),
    "timm-r18": _timm("resnet18", ResNetConfig(18, 32)),
    "timm-r50-os8": _timm("resnet50", ResNetConfig(50, 8)),
}

# ---- timm


def _v3_timm(size: str, stride: int, **fields) -> MobileNetV3Config:
    return MobileNetV3Config(
        size, 1.0, stride, "previous", norm_momentum=0.1, **{"norm_epsilon": 1e-5} | fields
    )


BORN_IN_TF = {"padding": "same", "norm_epsilon": 1e-3}  # what no weight tells
_LITE_TIMM = EfficientNetLiteConfig(0, 32, last_conv="used")
COMPARED |= {
    "timm-mbv2-050-os16": _timm("mobilenetv2_050", _v2(0.5, 16)),
    "timm-mbv3-small": _timm("mobilenetv3_small_100", _v3_timm("small", 32)),
    "timm-tf-mbv3-large": _timm(
        "tf_mobilenetv3_large_100", _v3_timm("large", 32, **BORN_IN_TF), BORN_IN_TF
    ),
    "timm-lite0-os8": _timm("efficientnet_lite0", dataclasses.replace(_LITE_TIMM, output_stride=8)),
    "timm-tf-lite0-os16": _timm(
        "tf_efficientnet_lite0",
        dataclasses.replace(_LITE_TIMM, output_stride=16, **BORN_IN_TF),
        BORN_IN_TF,
    ),
}
DEEPER |= {
    "timm-mbv2-100-os8": _timm("mobilenetv2_100", _v2(1.0, 8)),
    "timm-mbv2-140": _timm("mobilenetv2_140", _v2(1.4)),
    "timm-mbv3-large": _timm("mobilenetv3_large_100", _v3_timm("large", 32)),
    "timm-lite4": _timm("efficientnet_lite4", dataclasses.replace(_LITE_TIMM, variant=4)),
}

# ---- ConvNeXt, of torchvision, of timm, and of timm within segmentation_models_pytorch

COMPARED |= {
    "tvc-convnext-tiny": _tvc("convnext_tiny", ConvNeXtConfig("tiny", 32)),
    "timm-convnext-tiny-os16": _timm("convnext_tiny", ConvNeXtConfig("tiny", 16)),
    "timm-convnext-tiny-os8": _timm("convnext_tiny", ConvNeXtConfig("tiny", 8)),
    "smp-v3plus-tu-convnext-tiny-os16": _smp(
        "DeepLabV3Plus", "tu-convnext_tiny", ConvNeXtConfig("tiny", 16)
    ),
}
DEEPER |= {
    f"timm-convnext-{size}": _timm(f"convnext_{size}", ConvNeXtConfig(size, 32))
    for size in ("tiny", "small", "base")
}

# ---- efficientnet-lite-pytorch


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
    return _classifier(make, backbone, "efficientnet-lite-pytorch")


# 260 and 300 pad otherwise than 224: the sizes on the way down are odd.
COMPARED |= {"elp-lite0": _elp(0, 224), "elp-lite2": _elp(2, 260)}
DEEPER |= {f"elp-lite{v}": _elp(v, size) for v, size in ((1, 240), (3, 280), (4, 300))}

# ---- VainF's models and the two modules alone, re-created in references.py


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


def _standalone(stride: int) -> Case:
    return Case(
        "standalone",
        lambda: Standalone(160, 24, stride),
        FeaturesConfig(160, 24, stride),
        V3PLUS,
        options={"output_stride": stride},
        shapes=((2, 9, 13, 160), (2, 33, 49, 24)),
    )


COMPARED |= {
    "vainf-v3plus-r50-os16-separable": _vainf(ResNetConfig(50, 16), V3PLUS, separable=True),
    "vainf-v3plus-mbv2-os8": _vainf(_v2_vainf(8), V3PLUS),
    "vainf-v3-mbv2-os16": _vainf(_v2_vainf(16), V3),
    "standalone-os16": _standalone(16),
    "standalone-os8": _standalone(8),
}
DEEPER |= {
    "vainf-v3-r50-os8": _vainf(ResNetConfig(50, 8), V3),
    "vainf-v3plus-r50-os16": _vainf(ResNetConfig(50, 16), V3PLUS),
    "vainf-v3plus-mbv2-os16-separable": _vainf(_v2_vainf(16), V3PLUS, separable=True),
}

# ---------------------------------------------------------------------------- the tests


@dataclasses.dataclass(frozen=True)
class Ported:
    """A case, its torch module with random weights, a copy of those, and what the port made of them."""

    case: Case
    module: nn.Module
    state: dict[str, torch.Tensor]
    conversion: Conversion

    @property
    def model(self) -> nnx.Module:
        return self.conversion.model

    @functools.cached_property
    def exported(self) -> dict[str, torch.Tensor]:
        return to_torch(self.model, self.conversion.layout.name)


def port_of(case: Case) -> Ported:
    shapes = [(b, c, h, w) for b, h, w, c in case.shapes]
    module = randomise(without_weights(case.make), *shapes)
    state = copied(module.state_dict())
    return Ported(case, module, state, convert(state, **case.options))


@pytest.fixture(scope="module", autouse=True)
def _quick_comparison() -> Iterator[None]:
    with quick_comparison():
        yield


@pytest.fixture(scope="module")
def ported(request: pytest.FixtureRequest) -> Ported:
    return port_of((COMPARED | DEEPER)[request.param])


@pytest.mark.parametrize("ported", [*COMPARED, *DEEPER], indirect=True)
def test_names_alone_tell_the_layout_and_the_config(ported):
    config = ported.model.config
    assert ported.conversion.layout.name == ported.case.layout
    assert config.backbone == ported.case.backbone
    assert type(config.head) is ported.case.head
    assert (config.aux_head is not None) == ported.case.aux
    assert config.num_classes == 7


@pytest.mark.parametrize("ported", [*COMPARED, *DEEPER], indirect=True)
def test_export_has_the_names_and_bits_of_the_checkpoint(ported):
    exported = ported.exported
    # Which of them comes first is the module's affair: load_state_dict goes by name.
    assert exported.keys() == ported.state.keys()
    for name, tensor in ported.state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(exported[name], tensor), name
            assert exported[name].dtype == tensor.dtype


@pytest.mark.parametrize("ported", [*COMPARED, *DEEPER], indirect=True)
def test_original_code_loads_the_export_strictly(ported):
    _original(ported)


@pytest.mark.parametrize("ported", COMPARED, indirect=True)
def test_original_code_computes_the_same_with_the_export(ported):
    inputs = [images(*shape) for shape in ported.case.shapes]
    theirs, ours = run_torch(ported.module, *inputs), run_torch(_original(ported), *inputs)
    if not isinstance(theirs, dict):
        theirs, ours = {"out": theirs}, {"out": ours}
    assert ours.keys() == theirs.keys()
    for name, output in theirs.items():
        assert torch.equal(ours[name], output), name


def _original(ported: Ported) -> nn.Module:
    """The layout's own reference where there is one, with the weights that we export."""
    layout = LAYOUTS[ported.case.layout]
    fresh = without_weights(lambda: layout.reference(ported.model.config) or ported.case.make())
    fresh.load_state_dict(copied(ported.exported), strict=True, assign=True)
    return fresh.eval()


@pytest.mark.parametrize("ported", [*COMPARED, *DEEPER], indirect=True)
def test_every_layer_agrees_with_pytorch(ported):
    inputs = [images(*shape) for shape in ported.case.shapes]
    report = verify(ported.model, ported.module, *inputs)
    assert_agrees(report)
    assert report.images == 2
    assert len(report.layers) == _layers_that_run(ported)


def _layers_that_run(ported: Ported) -> int:
    """Batch norms and convolutions with a bias, of which verify must not leave out any, and the logits."""
    config = ported.model.config
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in ported.module.modules())
    biased = sum(getattr(part, "bias", None) is not None for part in ported.module.modules())
    count = biased  # a batch norm has a bias too
    assert norms < count
    if isinstance(config.head, ClassifierConfig):
        # No logits per pixel over there; and heads of more layers than one are a test of their own below.
        return count - (2 if config.head.hidden or config.head.head_norm_epsilon else 0)
    unused = getattr(config.backbone, "last_conv", None) == "unused"
    return count + 1 - unused


# ---- the same without verify, which would not find its own mistakes
#
# Rounding: after at most 70 layers PyTorch's own float32 is 2e-5 (of the largest value) away from its
# float64 on these models; 1e-4 leaves room for other machines. The mistakes that occur here (a corner
# rule, a padding, an epsilon) are 1e-3 and above.

FINAL = 1e-4


def apply(model: nnx.Module, *inputs: np.ndarray, method: str = "__call__"):
    """The compiled model's output."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *x: getattr(nnx.merge(graphdef, state), method)(*x))(
        state, *inputs
    )


@pytest.mark.parametrize(
    "name", ["tv-lraspp", "smp-v3plus-r18-os16", "vainf-v3-mbv2-os16", "standalone-os16"]
)
def test_logits_are_those_of_pytorch(name):
    ported = port_of(COMPARED[name])
    inputs = [images(*shape, seed=2) for shape in ported.case.shapes]
    theirs = run_torch(ported.module, *inputs)
    theirs = theirs["out"] if isinstance(theirs, dict) else theirs
    assert relative_error(apply(ported.model, *inputs), nhwc(theirs)) < FINAL


def test_both_heads_logits_are_those_of_pytorch():
    ported = port_of(COMPARED["tv-v3-mbv3-aux"])
    x = images(2, 65, 97, 3, seed=2)
    theirs = run_torch(ported.module, x)
    logits, aux = apply(ported.model, x, method="with_aux")
    for ours, name in ((logits, "out"), (aux, "aux")):
        assert relative_error(ported.model.resize(ours, (65, 97)), nhwc(theirs[name])) < FINAL


@pytest.mark.parametrize("name", ["tvc-r18", "timm-mbv2-050-os16", "elp-lite0"])
def test_the_mean_over_pixels_is_what_an_image_classifier_says(name):
    # At a size of which the network sees whole pixels only: the logits are resized to the image before
    # the mean, so the mean is taken of what the head gives.
    ported = port_of(COMPARED[name])
    x = images(2, 65, 97, 3, seed=2)
    logits, _ = apply(ported.model, x, method="with_aux")
    assert relative_error(logits.mean((1, 2)), run_torch(ported.module, x).numpy()) < FINAL


@pytest.mark.parametrize("name", ["tvc-mbv3-small", "timm-mbv3-small"])
def test_a_hidden_layer_after_the_mean_has_the_originals_weights(name):
    # MobileNetV3 pools, then has two layers with an activation between: not the mean of anything that
    # we compute per pixel, and nothing that verify can compare. So: our layers, in the original's order.
    ported = port_of(COMPARED[name])
    x = images(2, 65, 97, 3, seed=2)
    head = ported.model.head
    high = apply(ported.model, x, method="features")["high"]
    hidden = head.hidden(high.mean((1, 2), keepdims=True))
    logits = head.classifier(jax.nn.hard_swish(hidden))[:, 0, 0]
    assert relative_error(logits, run_torch(ported.module, x).numpy()) < FINAL


# ---- what is special about one code base


def test_smp_decoder_names_of_before_0_4_are_read():
    state = randomise(without_weights(COMPARED["smp-v3-r18-os8-1-channel"].make)).state_dict()
    old = {}
    for name, tensor in state.items():
        for new, before in (
            ("decoder.aspp.", "0."),
            ("decoder.conv.", "1."),
            ("decoder.bn.", "2."),
        ):
            name = name.replace(new, f"decoder.{before}")
        old[name] = tensor
    assert "decoder.0.convs.0.0.weight" in old
    exported = to_torch(load_torch(old), "smp")  # under the names of today
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(exported[name], tensor), name


@pytest.mark.parametrize(("name", "stride"), [("DeepLabV3", 8), ("DeepLabV3Plus", 16)])
def test_smp_default_output_stride_is_that_of_its_constructors(name, stride):
    module = getattr(smp, name)("resnet18", encoder_weights=None)
    config = load_torch(module.state_dict()).config
    assert config.backbone.output_stride == stride
    assert config.head.rates == (12, 24, 36)


def test_smp_models_ask_for_padding_to_the_output_stride():
    # Their own code refuses other sizes; ours takes them, padded as the caller would have to.
    state = smp.DeepLabV3Plus("resnet18", encoder_weights=None).state_dict()
    assert load_torch(state).config.preprocessing.size_multiple == 16
    assert load_torch(state, output_stride=8).config.preprocessing.size_multiple == 8


def test_timm_dilates_the_second_convolution_of_a_basic_block_by_its_own_stage():
    ported = port_of(_timm("resnet18", ResNetConfig(18, 16)))
    assert_agrees(verify(ported.model, ported.module, images(2, 65, 97, 3)))


def test_efficientnet_lite_pytorch_pads_for_one_image_size_whatever_it_sees():
    # lite0's blocks are padded for 224 pixels: an even image of another size would show the difference
    # to TensorFlow's "same", whose padding depends on the image.
    ported = port_of(COMPARED["elp-lite0"])
    x = images(2, 70, 101, 3)
    theirs = run_torch(ported.module, x).numpy()
    logits, _ = apply(ported.model, x, method="with_aux")
    assert relative_error(logits.mean((1, 2)), theirs) < FINAL


def test_timm_dilated_mobilenet_v3_features_agree():
    # timm dilates MobileNetV3 as an extractor of features only, which has no classifier.
    ported = port_of(COMPARED["timm-mbv3-small"])
    extractor = timm.create_model("mobilenetv3_small_100", features_only=True, output_stride=8)
    kept = {name: ported.state[name] for name in extractor.state_dict()}
    extractor.load_state_dict(kept, strict=True)
    x = images(2, 65, 97, 3)
    high = apply(load_torch(ported.state, output_stride=8), x, method="features")["high"]
    assert relative_error(high, nhwc(run_torch(extractor.eval(), x)[-1])) < FINAL


def test_tf_padding_is_not_found_in_the_weights_and_must_be_said():
    ported = port_of(COMPARED["timm-tf-lite0-os16"])
    untold = load_torch(ported.state, output_stride=16)
    # even: at odd sizes the stem's "same" padding happens to be the symmetric one
    report = verify(untold, ported.module, images(2, 64, 96, 3))
    assert not report.ok
    assert report.first_difference.path == "backbone.stem.conv"
