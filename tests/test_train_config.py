"""Configs of runs, recipes, and the model that a run begins with."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from deeplab_jax import Config, FCNConfig, MobileNetV2Config, ResNetConfig, build, load, save
from deeplab_jax.backbones import EfficientNetLiteConfig
from deeplab_jax.checkpoint import ModelError
from deeplab_jax.heads import ClassifierConfig
from deeplab_jax.layers import BatchNorm
from deeplab_jax.model import fill, named_variables
from deeplab_jax.preprocessing import Preprocessing
from deeplab_jax.presets import PRESETS
from train.config import (
    DataConfig,
    DistributedConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
    differences,
    to_json,
)
from train.configs import RECIPES
from train.data.descriptions import DESCRIPTIONS
from train.model import make_model

CLASSES = ("a", "b", "c")

# ---------------------------------------------------------------------------- configs


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_command_and_names_things_that_exist(name):
    recipe = RECIPES[name]
    assert re.search(rf"^    deeplab-train {name}\b", recipe.__doc__, re.M)
    assert recipe.CONFIG.model.preset in PRESETS
    assert recipe.CONFIG.data.name in DESCRIPTIONS or name == "finetune"
    assert recipe.CONFIG.run.name == name


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "finetune"])  # of a folder of yours
def test_a_recipe_says_how_its_own_data_set_is_prepared(name):
    data = RECIPES[name].CONFIG.data.name
    sources = " ".join(DESCRIPTIONS[data].sources)
    said = re.findall(r"^    deeplab-train prepare (.*)$", RECIPES[name].__doc__, re.M)
    assert said == ([f"{data} --source {sources}"] if sources else [])


def test_a_run_is_in_a_folder_or_where_orbax_writes():
    TrainConfig(run=Path("gs://bucket/run"))
    TrainConfig(run=Path("C:/runs"), data=DataConfig("folder:a/b:/c"))
    with pytest.raises(ValueError, match=r"run must be .* got s3://bucket/run: Orbax writes"):
        TrainConfig(run=Path("s3://bucket/run"))  # a Path of it is s3:/bucket/run


def test_what_is_wrong_is_listed_together():
    with pytest.raises(ValueError, match=r"(?s)batch_size must.*steps must.*epochs must.*ema must"):
        TrainConfig(steps=0, epochs=0, batch_size=0, ema=1.5)


def test_processes_are_given_whole():
    with pytest.raises(ValueError, match="given together: got host:1, None, None"):
        DistributedConfig(coordinator="host:1")


def test_a_resume_elsewhere_is_no_other_run_but_another_rate_is():
    began = json.loads(to_json(TrainConfig()))
    elsewhere = TrainConfig(mesh=MeshConfig(space=2), log_every=3)
    assert differences(began, json.loads(to_json(elsewhere))) == []
    other = TrainConfig(optim=dataclasses.replace(TrainConfig().optim, learning_rate=0.5), seed=3)
    changed = differences(began, json.loads(to_json(other)))
    assert changed == ["optim.learning_rate: 0.01 -> 0.5", "seed: 0 -> 3"]


def test_a_field_that_was_not_there_yet_is_a_difference():
    began = json.loads(to_json(TrainConfig()))
    del began["loss"]["dice"]
    assert differences(began, json.loads(to_json(TrainConfig()))) == ["loss.dice: not set -> 0.0"]


def test_other_classes_are_a_difference_where_both_tell():
    began, now = (
        json.loads(to_json(TrainConfig(), classes)) for classes in (["a", "b"], ["b", "a"])
    )
    assert differences(began, now) == ["classes: ['a', 'b'] -> ['b', 'a']"]
    assert differences(json.loads(to_json(TrainConfig())), now) == []


# ---------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder of an ImageNet network, with a preprocessing of its own."""
    config = Config(
        ResNetConfig(18, output_stride=32),
        ClassifierConfig(),
        10,
        preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3)),
    )
    return save(fill(build(config), nnx.Rngs(1)), tmp_path_factory.mktemp("models") / "resnet18")


def start_of(classes=CLASSES, **fields):
    config = ModelConfig("deeplabv3plus_resnet50", **fields)
    return make_model(config, classes, seed=0, data_shards=4)


def test_an_imagenet_folder_gives_backbone_and_preprocessing(classifier):
    start = start_of(init=classifier)
    config = start.model.config
    assert config.backbone == ResNetConfig(18, output_stride=16)
    assert config.head == PRESETS["deeplabv3plus_resnet50"].head
    assert config.preprocessing.mean == (0.1, 0.2, 0.3)
    assert config.class_names == CLASSES
    source = named_variables(load(classifier))
    for name, value in start.params.items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(value, source[name][...], err_msg=name)
    assert start.origin.endswith("new weights in head")


@pytest.mark.parametrize(("asked", "stride"), [(None, 16), (8, 8)])
def test_tensorflows_zeros_ask_for_sides_that_the_output_stride_divides(tmp_path, asked, stride):
    backbone = EfficientNetLiteConfig(0, output_stride=32, padding="same", same_size=224)
    config = Config(backbone, ClassifierConfig(), 10)
    folder = save(fill(build(config), nnx.Rngs(1)), tmp_path / "model")
    config = start_of(init=folder, output_stride=asked).model.config
    assert config.backbone.output_stride == config.preprocessing.size_multiple == stride


def test_the_last_layer_of_an_imagenet_network_is_left_out(tmp_path):
    config = Config(MobileNetV2Config(last_conv="used"), ClassifierConfig(), 10)
    folder = save(fill(build(config), nnx.Rngs(1)), tmp_path / "model")
    start = start_of(init=folder)
    assert start.model.config.backbone == MobileNetV2Config()
    assert start.params["head.aspp.pool.conv.kernel"].shape[2] == 320
    assert start.origin.endswith("The backbone of deeplabv3plus_resnet50 is not used")


def test_a_segmentation_folder_keeps_its_head_but_for_another_number_of_classes(tmp_path):
    config = Config(ResNetConfig(18), FCNConfig(channels=8), 3)
    folder = save(fill(build(config), nnx.Rngs(1)), tmp_path / "model")
    same = start_of(init=folder)
    assert same.origin.endswith("all weights. The head of deeplabv3plus_resnet50 is not used")
    other = start_of(("a", "b"), init=folder)
    assert other.model.config.head == FCNConfig(channels=8)
    np.testing.assert_array_equal(
        other.params["head.conv.conv.kernel"], same.params["head.conv.conv.kernel"]
    )
    assert other.params["head.classifier.kernel"].shape[-1] == 2


def test_new_weights_follow_the_seed():
    config = ModelConfig("fcn_resnet18")
    first, again, other = (
        make_model(config, CLASSES, seed=seed, data_shards=1).params["backbone.conv1.kernel"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_batch_norms_are_set_up_as_asked(classifier):
    def norms(**fields):
        model = start_of(init=classifier, **fields).model
        return [part for _, part in nnx.iter_modules(model) if isinstance(part, BatchNorm)]

    assert {norm.groups for norm in norms()} == {1}
    assert {norm.groups for norm in norms(batch_norm="local")} == {4}
    assert {norm.groups for norm in norms(batch_norm=2)} == {2}
    assert {norm.momentum for norm in norms(batch_norm_momentum=0.3)} == {0.3}
    assert {norm.frozen for norm in norms(freeze_batch_norm=True)} == {True, False}


def test_an_auxiliary_head_is_added(classifier):
    start = start_of(init=classifier, aux_head=True)
    assert start.params["aux_head.classifier.kernel"].shape[-1] == len(CLASSES)


def test_a_start_that_is_none_says_what_is_one(tmp_path):
    with pytest.raises(ValueError, match=r"'resnet50'\. Did you mean fcn_resnet50"):
        make_model(ModelConfig("resnet50"), CLASSES, seed=0, data_shards=1)
    with pytest.raises(ModelError, match="does not exist"):
        start_of(init=tmp_path / "nothing")
