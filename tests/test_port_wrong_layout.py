"""A checkpoint under the wrong layout: each layout is fed every other's names."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import efficientnet_lite_pytorch
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torchvision
import transformers
from references import without_weights
from torch import nn
from torchvision.models import segmentation

from port import LAYOUTS, CheckpointError, load_torch
from port.convert import convert
from port.network import find_layout

GOLDEN = Path(__file__).parent / "golden"
State = dict[str, np.ndarray]

MODELS: dict[str, Callable[[], nn.Module]] = {  # of layouts that are in a package
    "torchvision": lambda: segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ),
    "smp": lambda: smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None),
    "torchvision-classification": torchvision.models.mobilenet_v2,
    "timm": lambda: timm.create_model("mobilenetv2_050"),
    "efficientnet-lite-pytorch": lambda: efficientnet_lite_pytorch.EfficientNet.from_name(
        "efficientnet-lite0"
    ),
    "transformers-mobilenet-v2": lambda: transformers.MobileNetV2ForSemanticSegmentation(
        transformers.MobileNetV2Config()
    ),
    "transformers-mobilevit": lambda: transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig()
    ),
}
RECORDED = {  # of the others, names and shapes are in a golden file
    "vainf": "vainf_deeplabv3plus_mobilenet_os16",
    "mmseg": "mmseg_deeplabv3plus_mobilenetv2_os8",
    "jfzhang": "jfzhang_deeplabv3plus_mobilenet_os16",
    "yassouali": "yassouali_deeplabv3plus_resnet50_os16",
    "bubbliiiing": "bubbliiiing_deeplabv3plus_mobilenet_os16",
    "yudewang": "yudewang_deeplabv3plus_r101_os8",
    "unimatch": "unimatch_deeplabv3plus_r50_os16",
    "kazuto1011": "kazuto1011_deeplabv3plus_r50_os16",
    "adaptsegnet": "adaptsegnet_deeplabv2_r50",
    "adaptsegnet-multi": "advent_deeplabv2_r50",
    "coincheung": "coincheung_deeplabv3plus_r50_os16",
    "detectron2": "detectron2_deeplabv3plus_r50_os16",
    "standalone": "standalone_os16",
    "google": "google_deeplabv3_mobilenetv2_dm05_os8",
}


@functools.cache
def state_of(layout: str) -> State:
    """A checkpoint of zeros that take no memory, under the layout's names."""
    if layout in MODELS:
        tensors = without_weights(MODELS[layout]).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    else:
        file = np.load(GOLDEN / f"{RECORDED[layout]}.npz")
        shapes = dict(json.loads(file["meta"].tobytes())["entries"])
    return {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_finds_its_own_checkpoint(layout):
    assert find_layout(state_of(layout)) is LAYOUTS[layout]


@pytest.mark.parametrize("wrong", LAYOUTS)
def test_a_layout_refuses_the_checkpoint_of_every_other_by_name(wrong):
    for layout in LAYOUTS:
        # bubbliiiing's head has YudeWang's names, and may stand on any backbone.
        if layout != wrong and (layout, wrong) != ("yudewang", "bubbliiiing"):
            with pytest.raises(CheckpointError, match=f"(not quite|a checkpoint of) {wrong}"):
                load_torch(state_of(layout), layout=wrong)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "standalone"])
def test_a_model_of_four_channels_has_four_means_and_says_that_they_are_assumed(layout):
    if layout == "google":  # its recorded MobileNetV2 has no statistics of RGB, and ResNets have
        file = np.load(GOLDEN / "google_deeplabv3plus_resnet50_os8.npz")
        entries = json.loads(file["meta"].tobytes())["entries"]
        state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in entries}
    else:
        state = state_of(layout)
    first = [name for name, tensor in state.items() if tensor.ndim == 4 and tensor.shape[1] == 3]
    for name in first:  # under two names in jfzhang's
        out, _, *sides = state[name].shape
        state = state | {name: np.broadcast_to(np.float32(0), (out, 4, *sides))}
    conversion = convert(state, layout=layout)
    preprocessing = conversion.model.config.preprocessing
    assert len(preprocessing.mean) == len(preprocessing.std) == 4
    assert "preprocessing" in conversion.assumed
