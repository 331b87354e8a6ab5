"""transformers' MobileNetV2 and MobileViT against the real classes; the config.json beside them.

Nothing is downloaded: models are made of config objects, with random weights and statistics.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from references import (
    assert_agrees,
    copied,
    images,
    nhwc,
    quick_comparison,
    randomise,
    relative_error,
    run_torch,
)
from torch.nn import functional

from deeplab_jax.backbones import BackboneConfig, MobileNetV2Config, MobileViTConfig
from deeplab_jax.backbones.mobilevit import TransformerLayer, fold, unfold
from deeplab_jax.config import from_dict, to_dict
from deeplab_jax.model import create
from deeplab_jax.preprocessing import Preprocessing, normalize
from port import LAYOUTS, CheckpointError, load_torch, to_torch, verify
from port.convert import Conversion, convert
from port.read import read

V2, VIT = "transformers-mobilenet-v2", "transformers-mobilevit"
CLASSES = {
    V2: (transformers.MobileNetV2ForSemanticSegmentation, transformers.MobileNetV2Config),
    VIT: (transformers.MobileViTForSemanticSegmentation, transformers.MobileViTConfig),
}
SIZES = {
    "xxs": {
        "hidden_sizes": [64, 80, 96],
        "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
        "expand_ratio": 2.0,
    },
    "xs": {
        "hidden_sizes": [96, 120, 144],
        "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384],
    },
    "s": {},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of transformers.

    Attributes:
      layout: that must be found.
      made: options that the original is made with.
      options: what we must be told of them.
      backbone: the config that must come of it.
      rates: of the head.
      shape: of the images. Even sizes make TensorFlow's padding lopsided, odd ones the patches of
        MobileViT incomplete; there is some of both at every stride.
    """

    layout: str
    made: dict[str, Any]
    options: dict[str, Any]
    backbone: BackboneConfig
    rates: tuple[int, ...]
    shape: tuple[int, int, int, int]


def _v2(stride: int, made=None, options=None, in_channels: int = 3, **fields) -> Case:
    known = {"padding": "same", "norm_momentum": 0.003, "norm_epsilon": 1e-3}
    return Case(
        V2,
        {"output_stride": stride, "num_channels": in_channels} | (made or {}),
        ({} if stride == 32 else {"output_stride": stride}) | (options or {}),
        MobileNetV2Config(
            output_stride=stride,
            last_conv="unused",
            in_channels=in_channels,
            **known | fields | (options or {}),
        ),
        (),
        (2, 67, 100, in_channels),
    )


def _vit(size: str, stride: int, made=None, options=None, rates=(6, 12, 18), **fields) -> Case:
    return Case(
        VIT,
        SIZES[size] | {"output_stride": stride} | (made or {}),
        ({} if stride == 32 else {"output_stride": stride}) | (options or {}),
        MobileViTConfig(size, stride, **fields),
        rates,
        (2, 97, 131, 3),
    )


CASES = {
    "v2-os8": _v2(8),
    "v2-os16-symmetric-narrow": _v2(
        16,
        made={
            "tf_padding": False,
            "depth_multiplier": 0.5,
            "finegrained_output": False,
            "first_layer_is_expansion": False,
            "layer_norm_eps": 1e-4,
        },
        options={"padding": "symmetric", "norm_epsilon": 1e-4},
        width=0.5,
        first_expand=True,
        last_channels=640,
    ),
    "v2-os32-1-channel": _v2(32, made={"depth_multiplier": 0.35}, width=0.35, in_channels=1),
    "vit-xxs-os8": _vit("xxs", 8),
    "vit-xs-os16": _vit(
        "xs",
        16,
        made={"atrous_rates": [2, 3, 5], "aspp_out_channels": 64, "layer_norm_eps": 1e-2},
        options={"rates": (2, 3, 5), "layer_norm_epsilon": 1e-2},
        rates=(2, 3, 5),
        layer_norm_epsilon=1e-2,
    ),
    "vit-s-os32": _vit("s", 32),
}


def _made(case: Case, **more) -> torch.nn.Module:
    """The original; attention of fresh weights is flat, and fresh layer norms do little."""
    model, config = CLASSES[case.layout]
    module = model(config(num_labels=7, **case.made | more))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.3, generator=generator)
            if isinstance(part, torch.nn.Linear):
                part.weight.normal_(0, 1.5 * part.in_features**-0.5, generator=generator)
                part.bias.normal_(0, 0.3, generator=generator)
    batch, height, width, channels = case.shape
    return randomise(module, (batch, channels, height, width))


@dataclasses.dataclass(frozen=True)
class Ported:
    case: Case
    module: torch.nn.Module
    state: dict[str, torch.Tensor]
    conversion: Conversion

    @property
    def model(self) -> nnx.Module:
        return self.conversion.model


@functools.cache
def port_of(name: str) -> Ported:
    case = CASES[name]
    module = _made(case)
    state = copied(module.state_dict())
    return Ported(case, module, state, convert(state, **case.options))


@pytest.fixture(scope="module", autouse=True)
def _quick_comparison() -> Iterator[None]:
    with quick_comparison():
        yield
    port_of.cache_clear()


@pytest.fixture(params=CASES)
def ported(request: pytest.FixtureRequest) -> Ported:
    return port_of(request.param)


# ---------------------------------------------------------------------------- the models


def test_names_and_shapes_tell_the_layout_and_the_config(ported):
    config = ported.model.config
    assert ported.conversion.layout.name == ported.case.layout
    assert config.backbone == ported.case.backbone
    assert config.head.rates == ported.case.rates
    assert config.head.convs == 0
    assert config.num_classes == 7
    assert config.class_names is None
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    hash(nnx.graphdef(ported.model))


@pytest.mark.parametrize("name", [name for name in CASES if "os32" not in name])
def test_every_layer_agrees_with_pytorch(name):
    ported = port_of(name)
    report = verify(ported.model, ported.module, images(*ported.case.shape))
    assert_agrees(report)
    # All that have a bias, and the logits once more, resized. Nothing reads what the 1280-channel
    # convolution makes, so that ours does not make it.
    biased = sum(getattr(part, "bias", None) is not None for part in ported.module.modules())
    assert len(report.layers) == biased + 1 - (ported.case.layout == V2)
    assert report.layers[-1].shape == (*ported.case.shape[:3], 7)


@pytest.mark.parametrize("name", [name for name in CASES if "os32" in name])
def test_logits_at_the_output_stride_are_those_of_the_original(name):
    # Without verify, which would not find its own mistakes; 1e-4 as FINAL in test_port_layouts.py.
    ported = port_of(name)
    x = images(*ported.case.shape, seed=2)
    theirs = run_torch(ported.module, x).logits
    graphdef, state = nnx.split(ported.model)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state).with_aux(x)[0])
    logits = run(state, x)
    assert relative_error(logits, nhwc(theirs)) < 1e-4
    size = x.shape[1:3]
    theirs = functional.interpolate(theirs, size, mode="bilinear", align_corners=False)
    assert relative_error(ported.model.resize(logits, size), nhwc(theirs)) < 1e-4


def test_round_trip_is_exact_and_the_real_class_loads_it_strictly(ported):
    exported = to_torch(ported.model, ported.case.layout)
    assert exported.keys() == ported.state.keys()
    for name, tensor in ported.state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(exported[name], tensor), name
    fresh = LAYOUTS[ported.case.layout].reference(ported.model.config)
    assert type(fresh) is type(ported.module)
    fresh.load_state_dict(exported, strict=True)
    x = images(*ported.case.shape)
    theirs, ours = (run_torch(m.eval(), x).logits for m in (ported.module, fresh))
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("size", SIZES)
def test_presets_have_the_shapes_of_the_real_sizes(size):
    model = create(
        f"deeplabv3_mobilevit_{size}", num_classes=7, rngs=nnx.Rngs(0), convs=0, rates=(6, 12, 18)
    )
    model = nnx.clone(model)
    model.config = model.config.override(dropout=0.1, classifier_dropout=0.1)
    exported = to_torch(model, VIT)
    module = transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(num_labels=7, **SIZES[size])
    )
    module.load_state_dict(exported, strict=True)


def test_every_parameter_of_a_transformer_gets_a_gradient():
    layer = TransformerLayer(16, epsilon=1e-5, dropout=0.0, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda params: (nnx.merge(graphdef, params)(x) ** 2).mean())(params)

    for path, gradient in nnx.to_flat_state(gradients(params, images(2, 4, 6, 16))):
        value = np.asarray(gradient[...])
        assert np.isfinite(value).all(), path
        # a key's bias moves all scores of a query alike, which softmax does not see
        assert np.abs(value).max() > 0 or path == ("key", "bias"), path


def test_folding_undoes_unfolding():
    x = images(2, 6, 10, 3)
    tokens = np.asarray(unfold(x))
    assert tokens.shape == (2, 4, 15, 3)
    np.testing.assert_array_equal(tokens[:, 2, 6], x[:, 2 * 1 + 1, 2 * 1])  # place 2: below, left
    np.testing.assert_array_equal(fold(tokens, (6, 10)), x)


@pytest.mark.parametrize("layout", [V2, VIT])
def test_pictures_are_prepared_as_transformers_does(layout):
    processor = {
        V2: transformers.MobileNetV2ImageProcessor,
        VIT: transformers.MobileViTImageProcessor,
    }[layout](do_resize=False, do_center_crop=False)
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    theirs = processor(picture, return_tensors="pt", input_data_format="channels_last")
    config = port_of("v2-os8" if layout == V2 else "vit-xxs-os8").model.config
    ours = np.asarray(normalize(picture[None], config.preprocessing))
    np.testing.assert_allclose(ours, nhwc(theirs["pixel_values"]), atol=1e-6)


def test_bgr_leaves_further_channels_where_they_are():
    pixels = np.arange(5, dtype=np.uint8).reshape(1, 1, 1, 5)
    swapped = normalize(pixels, Preprocessing((0.0,) * 5, (1 / 255,) * 5, channel_order="bgr"))
    np.testing.assert_allclose(np.ravel(swapped), [2, 1, 0, 3, 4], rtol=1e-6)


# ---------------------------------------------------------------------------- the folder

NAMES = tuple(f"thing {i}" for i in range(12))  # "10" comes after "9", not after "1"
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
TOLD = {
    V2: (
        {
            "output_stride": 16,
            "tf_padding": False,
            "layer_norm_eps": 2e-3,
            "depth_multiplier": 0.5,
            "classifier_dropout_prob": 0.3,
        },
        {
            "output_stride": 16,
            "padding": "symmetric",
            "norm_epsilon": 2e-3,
            "width": 0.5,
        },
        {"dropout": 0.3, "drop_channels": True, "rates": ()},
    ),
    VIT: (
        SIZES["xxs"]
        | {
            "output_stride": 8,
            "layer_norm_eps": 2e-3,
            "atrous_rates": [2, 3, 5],
            "aspp_out_channels": 32,
            "aspp_dropout_prob": 0.2,
            "classifier_dropout_prob": 0.3,
            "hidden_dropout_prob": 0.15,
        },
        {
            "output_stride": 8,
            "layer_norm_epsilon": 2e-3,
            "hidden_dropout": 0.15,
            "size": "xxs",
        },
        {"dropout": 0.2, "classifier_dropout": 0.3, "rates": (2, 3, 5), "channels": 32},
    ),
}


def _saved(folder: Path, layout: str, kind: str = "model.safetensors", **options) -> Path:
    model, config = CLASSES[layout]
    module = model(config(**TOLD[layout][0] | LABELS | options))
    if kind == "model.safetensors":
        module.save_pretrained(folder)
    else:
        module.config.save_pretrained(folder)
        torch.save(module.state_dict(), folder / kind)
    return folder


def _edit(folder: Path, **options) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", [V2, VIT])
def test_a_folder_tells_all_options(layout, kind, tmp_path):
    _saved(tmp_path, layout, kind)
    config = load_torch(tmp_path).config
    for part, fields in zip((config.backbone, config.head), TOLD[layout][1:], strict=True):
        for name, value in fields.items():
            assert getattr(part, name) == value, name
    assert config.class_names == NAMES


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_the_file_inside_a_folder_is_read_as_the_folder_is(kind, tmp_path):
    _saved(tmp_path, VIT, kind)
    assert read(tmp_path / kind).settings == read(tmp_path).settings
    assert read(tmp_path).settings["output_stride"] == 8
    (tmp_path / kind).rename(tmp_path / "mine.pt")  # whose config.json this is, nobody knows
    assert read(tmp_path / "mine.pt").settings == {}
    assert load_torch(tmp_path / "mine.pt").config.backbone.output_stride == 32


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return _saved(tmp_path_factory.mktemp("saved"), VIT)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def test_what_the_user_says_comes_before_the_folder(folder):
    model = load_torch(folder, output_stride=16, rates=(1, 2, 3), class_names=None)
    assert model.config.backbone.output_stride == 16
    assert model.config.head.rates == (1, 2, 3)
    assert model.config.class_names is None
    assert model.config.backbone.layer_norm_epsilon == 2e-3
    # other classes have other names
    config = load_torch(folder, num_classes=5).config
    assert (config.num_classes, config.class_names) == (5, None)
    assert load_torch(folder, num_classes=12).config.class_names == NAMES


def test_names_that_transformers_made_up_are_none(folder):
    _edit(folder, id2label={i: f"LABEL_{i}" for i in range(12)})
    assert load_torch(folder).config.class_names is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "segformer"}, "model_type is 'segformer'.*another model"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and we can only do 'silu'"),
        ({"num_attention_heads": 2, "patch_size": 4}, "patch_size is 4, and we can only do 2"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"id2label": {"0": "cat"}}, "does not fit the weights.*each of the 12 classes, got 1"),
    ],
)
def test_a_folder_with_another_models_options_is_refused(options, message, folder):
    _edit(folder, **options)
    with pytest.raises(CheckpointError, match=message):
        load_torch(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_config_json_that_is_none_is_refused(text, folder):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config.json must be a JSON object"):
        load_torch(folder)


def test_other_layouts_do_not_mind_a_config_json(tmp_path):
    state = create("deeplabv3_resnet18", rngs=nnx.Rngs(0), dropout=0.1)
    torch.save(to_torch(state, "vainf"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"output_stride": 8}')
    assert load_torch(tmp_path).config.backbone.output_stride == 16


# ---------------------------------------------------------------------------- strictness


@pytest.mark.parametrize("name", ["v2-os8", "vit-xxs-os8"])
def test_missing_extra_and_misshapen_tensors_are_all_listed(name):
    ported = port_of(name)
    state = dict(ported.state)
    ends = ("layernorm_after.bias", "layer.3.conv_3x3.convolution.weight")
    gone = [name for name in state if name.endswith(ends)][-1]
    ends = ("query.weight", "conv_1x1.normalization.weight")
    bent = [name for name in state if name.endswith(ends)][-1]
    del state[gone]
    state[bent] = state[bent][:-1]
    state["segmentation_head.extra.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as error:
        load_torch(state)
    for text in (f"1 missing: {gone}", "1 unknown: segmentation_head.extra.weight", f"{bent} is ["):
        assert text in str(error.value)


def test_what_tells_the_size_must_be_there():
    state = dict(port_of("vit-xxs-os8").state)
    del state["mobilevit.encoder.layer.3.conv_1x1.convolution.weight"]
    with pytest.raises(CheckpointError, match=r"encoder.layer.3.conv_1x1.*is missing"):
        load_torch(state)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (V2, {"depth_multiplier": 0.25}, "stem is so narrow"),
        (V2, {"depth_multiplier": 0.77}, "no MobileNetV2 that we know"),
        (VIT, {"hidden_sizes": [32, 48, 64]}, r"transformers of \(32, 48, 64\) channels"),
    ],
)
def test_models_that_we_do_not_have_are_refused(layout, options, message):
    model, config = CLASSES[layout]
    with pytest.raises(CheckpointError, match=message):
        load_torch(model(config(**options)).state_dict())


def test_image_classifiers_of_transformers_are_not_taken_for_segmentation():
    model = transformers.MobileViTForImageClassification(
        transformers.MobileViTConfig(**SIZES["xxs"])
    )
    with pytest.raises(CheckpointError, match="no layout knows these names"):
        load_torch(model.state_dict())


def test_a_model_that_transformers_would_compute_otherwise_is_not_exported():
    model = create("deeplabv3_mobilevit_xxs", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="has nothing like"):
        to_torch(model, VIT)
    model = create("deeplabv3_mobilenet_v2", rngs=nnx.Rngs(0), convs=0, rates=())
    with pytest.raises(ValueError, match="last_conv is 'none' here and 'unused' there"):
        to_torch(model, V2)
