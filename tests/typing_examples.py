"""What a type checker must understand of a user's code; checked by mypy in `.ci/run`, never run."""

import dataclasses
from typing import ClassVar, assert_type

import jax
from flax import nnx

import deeplab_jax
from deeplab_jax import (
    ASPP,
    PRESETS,
    Backbone,
    Config,
    Decoder,
    DeepLabV3Plus,
    DeepLabV3PlusConfig,
    FeaturesConfig,
    FeaturesModel,
    ResNet,
    ResNetConfig,
    SegmentationModel,
    build,
    create,
    fold_batch_norm,
    load,
    named_variables,
    predict,
    register_backbone,
    save,
    summarize,
    with_values,
)
from port import load_torch, to_torch, verify


def models(images: jax.Array) -> None:
    """Every way to a model gives the same type."""
    assert_type(load("m"), SegmentationModel)
    assert_type(load("m").config, Config)
    print(load("m").config.num_classes)
    assert_type(load_torch("m.pth"), SegmentationModel)
    assert_type(load_torch("m.pth").with_aux(images), tuple[jax.Array, jax.Array | None])
    model = create("deeplabv3plus_resnet50", num_classes=19, in_channels=4, rngs=nnx.Rngs(0))
    assert_type(model, SegmentationModel)
    assert_type(model(images), jax.Array)
    assert_type(model.features(images), dict[str, jax.Array])
    assert_type(create(PRESETS["fcn_resnet18"], rngs=nnx.Rngs(0)), SegmentationModel)
    assert_type(build(PRESETS["fcn_resnet18"].override(num_classes=2)), SegmentationModel)
    assert_type(fold_batch_norm(model), SegmentationModel)
    values = {name: variable[...] for name, variable in named_variables(model).items()}
    assert_type(with_values(model, values), SegmentationModel)
    save(model, "m.safetensors", overwrite=True)
    predict(model, "photo.jpg", flip=True)
    print(summarize(model, (512, 512))[0].multiply_adds)
    print(verify(model, None, images).ok, to_torch(model, "torchvision"))  # type: ignore[arg-type]


def parts(images: jax.Array) -> None:
    """Models by hand, and of features."""
    rngs = nnx.Rngs(0)
    backbone = ResNet(ResNetConfig(50, output_stride=8, multi_grid=(1, 2, 4)), rngs=rngs)
    assert_type(backbone, ResNet)
    print(backbone.config.depth + 1, create("fcn_resnet18").backbone.output_stride)
    assert_type(backbone(images)["low"], jax.Array)
    model = DeepLabV3Plus(backbone, 21, rngs=rngs)
    assert_type(model(images), jax.Array)
    high = ASPP(2048, rates=(6, 12, 18), rngs=rngs)(images)
    assert_type(Decoder(256, num_classes=21, rngs=rngs)(high, images), jax.Array)
    features = FeaturesModel(FeaturesConfig(), 21, head=DeepLabV3PlusConfig(), rngs=rngs)
    assert_type(features(high, images), jax.Array)
    assert_type(features.aspp, ASPP)


@dataclasses.dataclass(frozen=True)
class MyConfig:
    """A backbone's config of a user's own."""

    kind: ClassVar[str] = "mine"
    output_stride: int = 16
    in_channels: int = 3

    def build(self, *, rngs: nnx.Rngs) -> "MyNet":
        return MyNet(self, rngs=rngs)


class MyNet(Backbone[MyConfig]):
    """And its module."""

    def __init__(self, config: MyConfig, *, rngs: nnx.Rngs):
        self.config = config

    @property
    def channels(self) -> dict[str, int]:
        return {"high": 3}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        return {"high": images}


register_backbone(MyConfig, presets={"mine": MyConfig()})
Config(MyConfig(), DeepLabV3PlusConfig(), num_classes=2)
Config("resnet50", DeepLabV3PlusConfig())  # type: ignore[arg-type]
ResNet(50, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
print(deeplab_jax.no_such_name)  # type: ignore[attr-defined]
