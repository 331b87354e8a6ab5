"""Configs: the same after a trip through JSON, and errors that say what there is."""

import dataclasses
import json

import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.backbones import (
    EfficientNetLiteConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    OriginalXceptionConfig,
    ResNetConfig,
)
from deeplab_jax.config import Config, FeaturesConfig, from_dict, kinds, to_dict
from deeplab_jax.heads import (
    HEAD_CONFIGS,
    ClassifierConfig,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
)
from deeplab_jax.preprocessing import Preprocessing
from deeplab_jax.presets import PRESETS


def through_json(config):
    return from_dict(json.loads(json.dumps(to_dict(config))))


# ---------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_after_json(name):
    assert through_json(PRESETS[name]) == PRESETS[name]


@pytest.mark.parametrize(
    "config",
    [
        PRESETS["deeplabv3_resnet50"].override(
            multi_grid=(1, 2, 4),
            rates=(2, 4, 8),
            num_classes=2,
            class_names=("sky", "ground"),
            align_corners=True,
            aux_head=FCNConfig(tap="aux", channels=64),
            preprocessing=Preprocessing((0.5,) * 4, (0.25,) * 4, 16),
            in_channels=4,
        ),
        PRESETS["deeplabv3plus_mobilenet_v2"].override(width=0.35, decoder_dropout=(0.5, 0.1)),
        Config(FeaturesConfig(512, 64, 8), DeepLabV3PlusConfig(rates=())),
        Config(EfficientNetLiteConfig(3, same_size=280), ClassifierConfig(hidden=7)),
        Config(OriginalXceptionConfig(), FCNConfig()),
    ],
)
def test_a_config_with_changes_is_the_same_after_json(config):
    again = through_json(config)
    assert again == config
    assert hash(again) == hash(config)  # tuples are tuples again, everywhere


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds())
def test_every_kind_of_part_can_be_read(kind):
    backbone = kind not in HEAD_CONFIGS
    config = Config(kind(), FCNConfig()) if backbone else Config(ResNetConfig(), kind())
    assert through_json(config) == config


def test_no_kind_of_part_is_left_out():
    # It could be written, but never read.
    public = [
        v for n, v in vars(deeplab_jax).items() if n.endswith("Config") and hasattr(v, "kind")
    ]
    ours = {
        k: config for k, config in kinds().items() if config.__module__.startswith("deeplab_jax")
    }
    assert {config.kind: config for config in public} == ours


def test_fields_that_are_left_out_take_their_defaults():
    data = {"backbone": {"kind": "resnet", "depth": 18}, "head": {"kind": "deeplabv3"}}
    assert from_dict(data) == Config(ResNetConfig(18), DeepLabV3Config())


def test_an_unknown_kind_is_refused_with_all_that_there_are():
    data = to_dict(PRESETS["deeplabv3_resnet18"])
    data["backbone"]["kind"] = "vgg"
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'vgg'") as error:
        from_dict(data)
    for kind in kinds():
        assert kind in str(error.value)


@pytest.mark.parametrize("place", ["", "backbone", "head", "preprocessing"])
def test_an_unknown_field_is_refused_wherever_it_is(place):
    data = to_dict(PRESETS["deeplabv3_resnet18"])
    (data[place] if place else data)["temperature"] = 1.0
    with pytest.raises(ValueError, match=r"has no field temperature; it has .*newer version"):
        from_dict(data)


def test_an_object_where_a_plain_value_belongs_is_refused():
    data = to_dict(PRESETS["deeplabv3_resnet18"]) | {"num_classes": {"value": 21}}
    with pytest.raises(ValueError, match=r"a plain value is expected where \{'value': 21\} stands"):
        from_dict(data)


def test_values_are_checked_after_json_too():
    data = to_dict(PRESETS["deeplabv3_resnet18"])
    data["backbone"]["output_stride"] = 12
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 12"):
        from_dict(data)


# ---------------------------------------------------------------------------- Config


def test_class_names_must_be_as_many_as_classes():
    with pytest.raises(ValueError, match="each of the 3 classes, got 2 names"):
        Config(ResNetConfig(), DeepLabV3Config(), num_classes=3, class_names=("a", "b"))


def test_a_model_has_a_class():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        Config(ResNetConfig(), DeepLabV3Config(), num_classes=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone": "resnet50"},
            r"backbone must be .*, such as ResNetConfig\(50\), got 'resnet50'",
        ),
        ({"backbone": DeepLabV3Config()}, "backbone must be a backbone's config"),
        (
            {"head": "deeplabv3"},
            r"head must be .*, such as DeepLabV3PlusConfig\(\), got 'deeplabv3'",
        ),
        ({"head": ResNetConfig()}, "head must be a head's config"),
        (
            {"backbone": ResNetConfig(in_channels="3")},
            "in_channels must be a whole number, got '3'",
        ),
        ({"aux_head": True}, "aux_head must be a FCNConfig or None, got True"),
        ({"num_classes": "21"}, "num_classes must be a whole number, got '21'"),
        ({"num_classes": 2.0}, r"num_classes must be a whole number, got 2\.0"),
        ({"num_classes": 2, "class_names": "ab"}, "class_names must be a tuple .*, got 'ab'"),
    ],
)
def test_what_is_nearly_a_part_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**({"backbone": ResNetConfig(), "head": DeepLabV3Config()} | fields))


def test_a_part_of_several_kinds_must_say_which():
    data = {"backbone": {"depth": 18}, "head": {"kind": "deeplabv3"}}
    with pytest.raises(ValueError, match=r"must say its kind, one of .*resnet"):
        from_dict(data)


def test_a_numpy_number_of_classes_is_a_number():
    config = Config(ResNetConfig(), DeepLabV3Config(), np.int64(3))
    assert through_json(config) == config


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["deeplabv3_resnet18"].num_classes = 2


# ---------------------------------------------------------------------------- override


def test_override_finds_the_part_that_has_the_field():
    config = PRESETS["deeplabv3_resnet50"]
    changed = config.override(num_classes=3, in_channels=1, dropout=0.1)
    assert changed == Config(ResNetConfig(in_channels=1), DeepLabV3Config(dropout=0.1), 3)
    assert config == PRESETS["deeplabv3_resnet50"]


def test_override_of_nothing_changes_nothing():
    assert PRESETS["deeplabv3_resnet50"].override() == PRESETS["deeplabv3_resnet50"]


def test_override_makes_tuples_of_lists():
    config = PRESETS["deeplabv3_resnet50"].override(multi_grid=[1, 2, 4])
    assert config.backbone.multi_grid == (1, 2, 4)


def test_override_of_a_whole_part_and_a_field_of_it_does_both():
    config = PRESETS["deeplabv3_resnet50"]
    changed = config.override(backbone=MobileNetV2Config(), width=0.5, head=FCNConfig(), tap="mid")
    assert changed == Config(MobileNetV2Config(width=0.5), FCNConfig(tap="mid"))
    changed = config.override(backbone=ResNetConfig(101), in_channels=4)
    assert changed.backbone == ResNetConfig(101, in_channels=4)


def test_a_field_that_no_part_has_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match="no such field: widht, wiht") as error:
        PRESETS["deeplabv3_mobilenet_v2"].override(widht=0.5, dropout=0.1, wiht=1)
    message = str(error.value)
    assert "deeplabv3 on mobilenet_v2" in message
    for part in (Config, MobileNetV2Config, DeepLabV3Config):
        for field in dataclasses.fields(part):
            assert field.name in message


def test_fields_of_the_part_that_is_replaced_are_unknown():
    with pytest.raises(
        ValueError, match=r"no such field: depth\. A model of deeplabv3 on mobilenet"
    ):
        PRESETS["deeplabv3_resnet50"].override(backbone=MobileNetV3Config(), depth=18)


def test_override_takes_configs_for_parts():
    with pytest.raises(ValueError, match="backbone must be a config, got 'resnet50'"):
        PRESETS["deeplabv3_resnet50"].override(backbone="resnet50")


def test_override_checks_values():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        PRESETS["deeplabv3_resnet50"].override(output_stride=4)


# ---------------------------------------------------------------------------- one channel


def test_one_channel_is_a_sigmoids_and_more_are_a_softmaxs():
    config = Config(ResNetConfig(), DeepLabV3Config(), 1)
    assert config.activation == "sigmoid"
    assert through_json(config) == config
    assert config.override(num_classes=3).activation == "softmax"
    assert config.override(num_classes=3).override(num_classes=1) == config


@pytest.mark.parametrize(("classes", "activation"), [(1, "softmax"), (3, "tanh")])
def test_an_activation_that_does_not_fit_the_channels_is_refused(classes, activation):
    with pytest.raises(ValueError, match=r"activation must be .*, got"):
        Config(ResNetConfig(), DeepLabV3Config(), classes, activation=activation)


def test_one_channel_names_background_and_foreground_or_the_foreground_alone():
    config = Config(ResNetConfig(), DeepLabV3Config(), 1, class_names=("leaf",))
    assert config.class_names == ("background", "leaf")
    assert through_json(config) == config
    with pytest.raises(ValueError, match="each of the 2 classes, got 3 names"):
        config.override(class_names=("a", "b", "c"))


# ---------------------------------------------------------------------------- other than three channels


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_images_of_other_than_three_channels_are_scaled_by_default(channels):
    config = Config(ResNetConfig(in_channels=channels), DeepLabV3Config())
    assert config.preprocessing == Preprocessing((0.0,) * channels, (1.0,) * channels)
    assert PRESETS["deeplabv3_resnet50"].override(in_channels=channels) == config


def test_statistics_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="a value for each of the backbone's 4 channels, got "):
        Config(
            ResNetConfig(in_channels=4),
            DeepLabV3Config(),
            preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3),
        )


def test_the_last_convolution_of_older_model_folders_is_understood():
    old = to_dict(MobileNetV2Config()) | {"last_conv": True}
    assert from_dict(old) == MobileNetV2Config(last_conv="used")
    assert from_dict(old | {"last_conv": False}) == MobileNetV2Config()


def test_another_number_of_classes_changes_the_models_activation_and_no_heads():
    config = Config(MobileNetV3Config(), ClassifierConfig(hidden=8))
    changed = config.override(num_classes=1)
    assert changed.activation == "sigmoid"
    assert changed.head == config.head
