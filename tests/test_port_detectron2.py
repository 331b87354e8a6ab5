"""detectron2's DeepLab: what its names tell, and what the tests of all layouts do not ask for.

`originals.detectron2` stands in for it there, and a recorded output of its own code in `tests/golden`.
"""

import dataclasses
import pickle

import numpy as np
import pytest
from originals.detectron2 import Segmentor, V3PlusHead
from references import without_weights

from deeplab_jax import Config, FCNConfig
from port import CheckpointError, load_torch
from port.convert import convert
from port.layouts.base import of_bytes
from port.layouts.detectron2 import MSRA_MEAN

RGB = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
BGR = {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}


def state(*, deep=True, **images):
    """A checkpoint of zeros that take no memory, with the statistics of images that older ones keep."""
    module = without_weights(lambda: Segmentor(V3PlusHead, deep=deep))
    zeros = {n: np.broadcast_to(np.float32(0), t.shape) for n, t in module.state_dict().items()}
    kept = {n: np.asarray(v, np.float32).reshape(-1, 1, 1) for n, v in images.items()}
    return zeros | kept


def test_the_model_zoos_pickle_is_read_with_its_conventions(tmp_path):
    file = tmp_path / "model_final.pkl"
    tensors = {name: np.array(array) for name, array in state(**RGB).items()}
    file.write_bytes(pickle.dumps({"model": tensors, "__author__": "Detectron2 Model Zoo"}))
    conversion = convert(file)
    config = conversion.model.config
    assert config.head.pool_window == (32, 64)
    assert config.backbone.multi_grid == (1, 2, 4)
    assert config.upsampling == "by_stride"
    assert "pixel_mean, pixel_std: no part of the segmentation" in conversion.dropped
    assert "preprocessing" in conversion.assumed


def test_a_plain_stem_is_msras():
    config = load_torch(state(deep=False)).config
    assert config.backbone.bottleneck_stride == "1x1"
    assert config.backbone.multi_grid == ()
    assert config.preprocessing == of_bytes(MSRA_MEAN, 3, "bgr")


def test_at_output_stride_8_windows_have_more_pixels():
    assert load_torch(state(), output_stride=8).config.head.pool_window == (64, 128)


@pytest.mark.parametrize(("statistics", "order"), [(RGB, "rgb"), (BGR, "bgr")])
def test_the_statistics_of_images_in_a_checkpoint_are_taken(statistics, order):
    found = load_torch(state(**statistics)).config.preprocessing
    assert found.channel_order == order
    for ours, name in ((found.mean, "pixel_mean"), (found.std, "pixel_std")):
        np.testing.assert_allclose(np.multiply(ours, 255), statistics[name], rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: {n: t for n, t in s.items() if not n.endswith("project.norm.running_mean")},
            "have no running statistics",
        ),
        (
            lambda s: s | {"sem_seg_head.decoder.res3.project_conv.weight": np.zeros(1)},
            "Panoptic-DeepLab's is not read",
        ),
        (
            lambda s: s | {"backbone.res5.0.conv2_offset.weight": np.zeros(1)},
            "convolutions are deformable",
        ),
    ],
)
def test_its_other_networks_are_refused_by_what_they_are(edit, message):
    with pytest.raises(CheckpointError, match=message):
        load_torch(edit(state()))


def test_logits_of_two_strides_cannot_be_enlarged_by_one():
    config = load_torch(state()).config
    with pytest.raises(ValueError, match="without an auxiliary head"):
        dataclasses.replace(config, aux_head=FCNConfig(tap="aux"))
    with pytest.raises(ValueError, match="must be to_image or by_stride, got 'up'"):
        Config(config.backbone, config.head, upsampling="up")


@pytest.mark.parametrize("window", [(0, 4), (3,), 3, "whole"])
def test_a_window_has_two_sides(window):
    with pytest.raises(ValueError, match="pool_window must be rows and columns"):
        load_torch(state(), pool_window=window)
