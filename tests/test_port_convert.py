"""`port.load_torch` and `port.to_torch`: what they refuse, how they say so, and what they leave alone."""

import functools
from collections.abc import Callable

import efficientnet_lite_pytorch
import jax
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from flax import nnx
from originals.standalone import Standalone
from originals.vainf import VainF
from references import (
    images,
    nhwc,
    quick_comparison,
    randomise,
    relative_error,
    run_torch,
    without_weights,
)
from safetensors.torch import save_file
from torch import nn
from torchvision.models import segmentation

from deeplab_jax import DeepLabV3, ResNet, ResNetConfig
from deeplab_jax.heads import FCNConfig
from deeplab_jax.model import create
from port import LAYOUTS, CheckpointError, load_torch, to_module, to_torch
from port.convert import convert

State = dict[str, np.ndarray]

# A small model of each layout whose code is in a package or in references.py, with 7 classes.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": lambda: segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=True
    ),
    "vainf": lambda: VainF("mobilenet_v2", plus=True, output_stride=16),
    "smp": lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=7),
    "standalone": lambda: Standalone(160, 24, 16),
    "torchvision-classification": lambda: torchvision.models.resnet18(num_classes=7),
    "timm": lambda: timm.create_model("mobilenetv2_050", num_classes=7),
    "efficientnet-lite-pytorch": lambda: efficientnet_lite_pytorch.EfficientNet.from_name(
        "efficientnet-lite0", num_classes=7
    ),
}
A_NORM = "backbone.1.block.0.1.running_var"  # of torchvision's MobileNetV3


@functools.cache
def _weights(layout: str) -> State:
    return arrays(MODELS[layout])


def arrays(make: Callable[[], nn.Module]) -> State:
    module = randomise(without_weights(make))
    return {
        name: tensor.numpy()
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def checkpoint(layout: str = "torchvision") -> State:
    """A dict of the caller's own; the arrays are shared."""
    return dict(_weights(layout))


def refusal(state: State, **options) -> str:
    """The message with which `load_torch` refuses."""
    with pytest.raises(CheckpointError) as caught:
        load_torch(state, **options)
    return str(caught.value)


# ---- what training frameworks put around a network ----


@pytest.mark.parametrize("prefix", ["net.", "model.module.", "lightning.model.seg."])
@pytest.mark.parametrize("layout", ["torchvision", "smp", "standalone"])
def test_a_network_is_found_under_any_prefix(prefix, layout):
    state = {prefix + name: tensor for name, tensor in checkpoint(layout).items()}
    state |= {"loss.weight": np.ones(7, np.float32), "mean": np.zeros((1, 3, 1, 1), np.float32)}
    conversion = convert(state)
    assert conversion.layout.name == layout
    assert conversion.tensors.keys() == checkpoint(layout).keys()
    assert "loss.weight, mean: beside the network" in conversion.dropped
    assert any(line.startswith("prefix ") for line in conversion.dropped)
    assert convert(state, layout=layout).tensors.keys() == checkpoint(layout).keys()


def test_a_part_of_another_network_is_not_taken_for_a_network():
    # A ResNet as the backbone of what we do not know: its head must not be passed by.
    state = {f"body.{name}": t for name, t in checkpoint("torchvision-classification").items()}
    state["mystery_head.weight"] = np.zeros((7, 512, 3, 3), np.float32)
    message = refusal(state)
    assert "no layout knows these names" in message
    assert "Its backbone under 'body.' has the names of ResNet" in message
    assert "what is not known is its head: mystery_head.weight" in message


def _under(prefix: str, layout: str) -> dict[str, np.ndarray]:
    return {prefix + name: tensor for name, tensor in checkpoint(layout).items()}


def test_of_two_networks_one_must_be_named():
    state = _under("student.", "smp") | _under("teacher.net.", "torchvision")
    message = refusal(state)
    assert "more than one network; say which with --prefix" in message
    assert f"student. (smp, {len(checkpoint('smp'))} tensors)" in message
    assert f"teacher.net. (torchvision, {len(checkpoint())} tensors)" in message
    conversion = convert(state, prefix="teacher.net")
    assert conversion.layout.name == "torchvision"
    assert conversion.tensors.keys() == checkpoint().keys()
    assert any("beside the network" in line for line in conversion.dropped)


def test_a_network_beside_a_large_one_that_is_no_deeplab_is_found_and_the_other_told():
    state = _under("generator.", "smp")
    state["discriminator.weight"] = np.zeros((512, 512, 3, 3), np.float32)
    conversion = convert(state)
    assert conversion.layout.name == "smp"
    assert "discriminator.weight: beside the network" in conversion.dropped


def test_a_prefix_that_no_name_has_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"begins with 'student.'; there are .*backbone. \("):
        convert(checkpoint(), prefix="student")


def test_tensors_are_left_out_by_patterns_of_their_names():
    state = checkpoint() | {"criterion.weight": np.ones(7, np.float32)}
    message = refusal(state)
    assert "1 unknown: criterion.weight" in message
    assert "num-classes" not in message
    conversion = convert(state, ignore=("crit*",))
    assert "criterion.weight: as --ignore 'crit*' says" in conversion.dropped
    with pytest.raises(ValueError, match=r"--ignore 'los\*' matches none of the"):
        convert(state, ignore=("los*",))


def test_smps_classification_head_is_left_out_and_told():
    state = checkpoint("smp") | {"classification_head.3.weight": np.zeros((2, 512), np.float32)}
    conversion = convert(state)
    assert "classification_head.3.weight: no part of the segmentation" in conversion.dropped


# ---- strict: all tensors, no others, of the right shapes ----


def test_a_missing_tensor_is_named():
    state = checkpoint()
    del state[A_NORM]
    assert f"1 missing: {A_NORM}\n" in refusal(state)


def test_an_extra_tensor_is_named():
    state = checkpoint() | {"backbone.1.block.0.2.weight": np.zeros(3, np.float32)}
    assert "1 unknown: backbone.1.block.0.2.weight\n" in refusal(state)


def test_a_tensor_of_another_shape_is_named_with_both_shapes():
    state = checkpoint() | {"classifier.1.weight": np.zeros((256, 256, 1, 1), np.float32)}
    message = refusal(state)
    assert "1 of another shape: classifier.1.weight is [256, 256, 1, 1]" in message
    assert "expected [256, 256, 3, 3]\n" in message


def test_a_transposed_kernel_is_not_mistaken_for_the_right_one():
    # 160 -> 256 as 256 -> 160: as many numbers
    state = checkpoint("standalone")
    name = "aspp.aspp2.0.weight"
    state[name] = state[name].transpose(1, 0, 2, 3)
    assert f"{name} is [160, 256, 3, 3], expected [256, 160, 3, 3]" in refusal(state)


def test_all_that_is_wrong_is_said_at_once_with_what_to_do():
    state = checkpoint() | {"ema_decay": np.zeros((), np.float32)}
    del state[A_NORM], state["classifier.4.bias"]
    state["classifier.2.weight"] = np.zeros(255, np.float32)
    message = refusal(state)
    for part in (
        "not quite torchvision's",
        "1 unknown: ema_decay",
        "2 missing: ",
        A_NORM,
        "classifier.4.bias",
        "1 of another shape: classifier.2.weight is [255], expected [256]",
        "Leave out unknown tensors with --ignore (in Python, ignore=...), save missing ones, or",
        "num_classes=",
    ):
        assert part in message


def test_a_long_list_is_cut():
    extra = {f"extra.{i}": np.zeros(1, np.float32) for i in range(100)}
    message = refusal(checkpoint() | extra)
    assert "100 unknown: extra.0, " in message
    assert "and 80 more" in message


@pytest.mark.parametrize("layout", MODELS)
def test_a_missing_tensor_that_tells_what_the_model_is_is_refused_as_a_checkpoint(layout):
    # Whatever single tensor is gone: those that the config is read from are asked for by name, and
    # nothing of how a layout looks for them (KeyError, ...) gets out.
    state, family = checkpoint(layout), LAYOUTS[layout]
    telling = 0
    for name in state:
        rest = checkpoint(layout)
        del rest[name]
        shapes = {other: array.shape for other, array in rest.items()}
        if not family.recognises(shapes):
            refusal(rest)
        else:
            try:
                family.config(shapes, None)
            except Exception:
                pass
            else:
                continue
        telling += 1
        refusal(rest, layout=layout)
    assert telling


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("torchvision", "backbone.0.0.weight"),
        ("smp", "encoder.conv1.weight"),
        ("smp", "encoder.layer1.0.conv1.weight"),
        ("vainf", "backbone.high_level_features.4.conv.2.weight"),
        ("torchvision-classification", "layer1.0.bn1.weight"),
        ("timm", "conv_stem.weight"),
        ("timm", "blocks.0.0.conv_pw.weight"),
        ("efficientnet-lite-pytorch", "_conv_stem.weight"),
        ("standalone", "aspp.aspp1.0.weight"),
    ],
)
def test_the_message_names_the_missing_tensor_where_the_layout_is_given(layout, name):
    state = checkpoint(layout)
    del state[name]
    message = refusal(state, layout=layout)
    assert name.split(".", 1)[-1] in message or "that we know" in message


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.conv_stem.weight", "'conv_stem.weight' is missing"),
        ("encoder.blocks.1.0.conv_pwl.weight", "no EfficientNet-Lite that we know"),
    ],
)
def test_an_encoder_that_is_not_whole_is_refused(name, message):
    encoder = "timm-tf_efficientnet_lite0"
    state = arrays(lambda: smp.DeepLabV3Plus(encoder, encoder_weights=None))
    del state[name]
    assert message in refusal(state)


def test_a_head_may_stand_on_a_backbone_of_other_code():
    # torchvision's DeepLabv3 on timm's MobileNetV3.
    v3 = {n: t for n, t in checkpoint().items() if n.startswith("classifier.")}
    timms = arrays(lambda: timm.create_model("mobilenetv3_large_100"))
    state = v3 | {
        f"backbone.{name}": tensor
        for name, tensor in timms.items()
        if not name.startswith(("conv_head.", "classifier."))
    }
    conversion = convert(state)
    assert conversion.layout.name == "torchvision"
    assert conversion.model.config.backbone.size == "large"
    kernel = _tensors(conversion.model)["backbone.blocks.3.se.fc1.kernel"]
    theirs = state["backbone.blocks.2.0.se.conv_reduce.weight"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), theirs)


# ---- which layout ----


def test_a_checkpoint_of_another_model_is_refused_with_what_we_read():
    state = without_weights(torchvision.models.squeezenet1_1).state_dict()
    message = refusal({name: np.zeros(x.shape, np.float32) for name, x in state.items()})
    assert "no layout knows these names: features.0.weight, " in message
    for layout in LAYOUTS.values():
        assert layout.name in message
        assert layout.code in message


def test_an_unknown_layout_is_refused_with_those_there_are():
    for call in (
        lambda: load_torch(checkpoint(), layout="keras"),
        lambda: to_torch(load_torch(checkpoint("timm")), "keras"),
    ):
        with pytest.raises(ValueError, match=r"layout must be one of torchvision, .*'keras'"):
            call()


def test_names_of_two_layouts_are_ambiguous_and_a_layout_may_be_chosen():
    both = checkpoint("standalone") | checkpoint("smp")
    message = refusal(both)
    assert "may be of smp or standalone" in message
    assert "layout=" in message
    assert "unknown: encoder.conv1.weight" in refusal(both, layout="standalone")


def test_a_classifier_in_a_larger_networks_names_is_not_taken_for_all_of_it():
    both = checkpoint("standalone") | checkpoint("timm")
    assert "is not quite standalone's" in refusal(both)


def test_old_and_new_names_of_one_tensor_together_are_refused():
    state = checkpoint("smp")
    module = without_weights(lambda: smp.DeepLabV3("resnet18", encoder_weights=None))
    state = {name: np.zeros(x.shape, np.float32) for name, x in module.state_dict().items()}
    state["decoder.2.weight"] = state["decoder.bn.weight"]
    assert "calls two tensors 'decoder.bn.weight'" in refusal(state, layout="smp")


def test_a_resnet_of_no_known_depth_is_refused_with_those_there_are():
    state = checkpoint("torchvision-classification")
    state = {name: array for name, array in state.items() if not name.startswith("layer3.1.")}
    message = refusal(state)
    assert "(2, 2, 1, 2) basic blocks" in message
    assert "ResNet-10 (1, 1, 1, 1), ResNet-18 (2, 2, 2, 2), ResNet-34 (3, 4, 6, 3)" in message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"layer1.0.conv1.paths.0.conv.weight": (64, 64, 3, 3)},
            "it is an SKNet (selective kernels)",
        ),
        ({"maxpool.0.weight": (64, 64, 3, 3)}, "it is a ResNet-RS"),
        (
            {
                "layer1.0.conv1.weight": (47, 64, 1, 1),
                "layer1.0.conv2.weight": (18, 47, 3, 3),
                "layer1.0.conv3.weight": (19, 18, 1, 1),
            },
            "its first block have 47, 18 and 19 channels, which no ResNet that we know has",
        ),
    ],
    ids=["sknet", "resnet-rs", "pruned"],
)
def test_relatives_of_resnet_that_we_have_not_are_refused_by_name(tensors, message):
    with torch.device("meta"):
        shapes = timm.create_model("resnet26").state_dict()
    state = {name: np.zeros(tensor.shape, np.float32) for name, tensor in shapes.items()}
    state |= {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    assert message in refusal(state)


def test_a_resnet_with_group_norm_is_refused():
    with torch.device("meta"):
        shapes = timm.create_model("resnet50_gn").state_dict()
    state = {name: np.zeros(tensor.shape, np.float32) for name, tensor in shapes.items()}
    assert "no running statistics: group norm is not among those we know" in refusal(state)


def test_a_backbone_that_no_naming_recognises_is_named_where_it_can_be():
    shapes = without_weights(
        lambda: smp.DeepLabV3("tu-gernet_s", encoder_weights=None)
    ).state_dict()
    state = {name: np.zeros(tensor.shape, np.float32) for name, tensor in shapes.items()}
    message = refusal(state)
    assert "the backbone is a GERNet or another of timm's ByobNets, not one that we know" in message
    assert "are called model.stem.conv.weight, " in message


def test_a_mobilenet_of_no_known_width_is_refused_with_its_channels():
    name = "blocks.2.1.conv_pwl.weight"
    message = refusal(checkpoint("timm") | {name: np.zeros((17, 96, 1, 1), np.float32)})
    assert "no MobileNetV2 that we know has blocks of [8, 16, 16, 16, 17, " in message


# ---- another number of classes ----

CLASSIFIERS = {
    "torchvision": ["head.classifier", "aux_head.classifier"],
    "vainf": ["head.decoder.classifier"],
    "standalone": ["head.decoder.classifier"],
    "torchvision-classification": ["head.classifier"],
}


@pytest.mark.parametrize("layout", CLASSIFIERS)
def test_other_classes_start_the_classifiers_anew_and_keep_all_else(layout):
    state = checkpoint(layout)
    conversion = convert(state, num_classes=11)
    anew = {f"{path}.{leaf}" for path in CLASSIFIERS[layout] for leaf in ("kernel", "bias")}
    assert set(conversion.initialised) == anew
    assert conversion.model.config.num_classes == 11
    before, after = _tensors(load_torch(state)), _tensors(conversion.model)
    assert before.keys() == after.keys()
    for path, array in after.items():
        if path not in anew:
            np.testing.assert_array_equal(array, before[path], err_msg=path)
            continue
        assert array.shape == (*before[path].shape[:-1], 11)
        if path.endswith("bias"):
            assert not array.any()
        else:  # 88 draws and more, by Glorot's rule
            np.testing.assert_allclose(array.std(), np.sqrt(2 / sum(array.shape[2:])), rtol=0.2)


def test_an_auxiliary_head_of_other_classes_is_left_out_and_the_trained_classifier_kept():
    # What fine-tuning leaves where it replaces the main classifier alone.
    state = checkpoint()
    rng = np.random.default_rng(0)
    state["classifier.4.weight"] = rng.standard_normal((3, 256, 1, 1), np.float32)
    state["classifier.4.bias"] = rng.standard_normal(3, np.float32)
    conversion = convert(state)
    assert conversion.model.config.num_classes == 3
    assert conversion.model.aux_head is None
    assert conversion.initialised == ()
    told = "the auxiliary head: it has 7 classes and the main classifier 3"
    assert told in conversion.dropped
    kernel = _tensors(conversion.model)["head.classifier.kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["classifier.4.weight"])
    assert not [name for name in conversion.tensors if name.startswith("aux_classifier.")]


def test_an_auxiliary_head_of_other_shapes_than_its_classes_is_an_error():
    state = checkpoint()
    state["aux_classifier.4.weight"] = np.zeros((5, 9, 1, 1), np.float32)
    assert "1 of another shape: aux_classifier.4.weight is [5, 9, 1, 1]" in refusal(state)


def test_both_classifiers_of_lraspp_start_anew():
    module = randomise(
        without_weights(
            lambda: segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
        )
    )
    conversion = convert(module.state_dict(), num_classes=3)
    assert {path.split(".")[1] for path in conversion.initialised} == {
        "mid_classifier",
        "high_classifier",
    }


def test_new_classifiers_are_drawn_from_the_seed():
    state = checkpoint("standalone")
    first, again, other = (
        _tensors(convert(state, num_classes=11, seed=seed).model)["head.decoder.classifier.kernel"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_checkpoints_own_number_of_classes_keeps_its_classifier():
    conversion = convert(checkpoint("standalone"), num_classes=7)
    assert conversion.initialised == ()
    kernel = _tensors(conversion.model)["head.decoder.classifier.kernel"]
    expected = checkpoint("standalone")["decoder.output.3.weight"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)


def test_a_checkpoint_without_its_classifier_gets_a_new_one_when_told_the_classes():
    state = checkpoint("standalone")
    del state["decoder.output.3.weight"], state["decoder.output.3.bias"]
    assert "2 missing: decoder.output.3.weight, decoder.output.3.bias" in refusal(state)
    assert load_torch(state, num_classes=11).config.num_classes == 11


def test_other_classes_excuse_nothing_but_the_classifier():
    state = checkpoint("standalone")
    del state["decoder.bn1.weight"]
    assert "1 missing: decoder.bn1.weight" in refusal(state, num_classes=11)


def _tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}


# ---- what weights cannot tell ----


def test_the_output_stride_is_the_codes_default_or_what_is_said():
    state = checkpoint("vainf")
    assert convert(state).chosen == {"output_stride": 16}
    said = convert(state, output_stride=8)
    assert said.chosen == {"output_stride": 8}
    assert said.model.config.backbone.output_stride == 8
    # 12, 24, 36: VainF's rates follow the output stride
    assert [branch.conv.dilation for branch in said.model.head.aspp.branches] == [1, 12, 24, 36]


def test_an_output_stride_that_cannot_be_is_refused():
    message = refusal(checkpoint("vainf"), output_stride=12)
    assert "output_stride must be 8, 16 or 32, got 12" in message


def test_an_option_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"no such field: multi_gird") as caught:
        load_torch(checkpoint("smp"), multi_gird=(1, 2, 4))
    for field in ("multi_grid", "output_stride", "rates", "align_corners"):
        assert field in str(caught.value)


def test_options_reach_the_backbone_and_the_head():
    model = load_torch(checkpoint("smp"), multi_grid=(1, 2), rates=(6, 12, 18))
    assert model.config.backbone.multi_grid == (1, 2)
    assert model.config.head.rates == (6, 12, 18)
    # stage 4 at stride 16: rate 2, times the grid
    assert [block.conv1.dilation for block in model.backbone.layer4] == [2, 4]


def test_a_loaded_model_is_in_eval_mode_and_the_counters_are_told():
    module = randomise(without_weights(MODELS["standalone"]))
    conversion = convert(module.state_dict())
    for _, part in nnx.iter_modules(conversion.model):
        assert getattr(part, "use_running_average", True)
        assert getattr(part, "deterministic", True)
    assert conversion.dropped == ("num_batches_tracked: 8 counters",)


def test_files_with_wrappers_and_prefixes_are_the_state_dict_inside(tmp_path):
    module = randomise(without_weights(MODELS["standalone"]))
    state = module.state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": x for name, x in state.items()}}
    torch.save(wrapped, tmp_path / "a.pth.tar")
    save_file(state, tmp_path / "a.safetensors")
    expected = _tensors(load_torch(state))
    for name in ("a.pth.tar", "a.safetensors"):
        found = _tensors(load_torch(tmp_path / name))
        assert found.keys() == expected.keys()
        for path, array in found.items():
            np.testing.assert_array_equal(array, expected[path])


# ---- memory ----


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_loaded_model_shares_no_memory_with_the_checkpoint(kind):
    module = randomise(without_weights(MODELS["standalone"]))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    source = {name: x.numpy() for name, x in state.items()} if kind == "numpy" else state
    model = load_torch(source)
    before = {path: array.copy() for path, array in _tensors(model).items()}
    for tensor in state.values():
        tensor.fill_(7)  # the numpy arrays are views
    for path, array in _tensors(model).items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)


def test_an_exported_state_dict_shares_no_memory_with_the_model():
    model = load_torch(checkpoint("standalone"))
    before = {path: array.copy() for path, array in _tensors(model).items()}
    for tensor in to_torch(model, "standalone").values():
        tensor.fill_(7)
    for path, array in _tensors(model).items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)


# ---- to PyTorch ----


def unexportable(model: nnx.Module, layout: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the message
        to_torch(model, layout)
    assert type(caught.value) is ValueError
    return str(caught.value)


def test_a_module_that_the_other_code_does_not_have_is_named():
    model = create("deeplabv3plus_resnet50", rngs=nnx.Rngs(0))  # two convolutions in the decoder
    message = unexportable(model, "vainf")
    assert "VainF/DeepLabV3Plus-Pytorch has nothing like head.decoder.convs.1." in message


def test_a_difference_that_weights_do_not_show_is_named_with_both_values():
    fields = {"num_classes": 7, "rates": (12, 24, 36), "rngs": nnx.Rngs(0)}
    model = create("deeplabv3_mobilenet_v3_large", align_corners=True, **fields)
    message = unexportable(model, "torchvision")
    assert "would compute something else with these weights" in message
    assert "align_corners is True here and False there" in message
    model = create("deeplabv3_mobilenet_v3_large", **(fields | {"rates": None}))
    assert "head.rates is None here and (12, 24, 36) there" in unexportable(model, "torchvision")


def test_a_kind_of_model_that_the_code_base_does_not_have_is_a_clear_error():
    for preset in (
        "fcn_resnet18",
        "lraspp_mobilenet_v3_small",
        "fcn_efficientnet_lite0",
        "deeplabv3plus_mobilenet_v2",
    ):
        model = create(preset, align_corners=True, rngs=nnx.Rngs(0))  # none has these so
        for layout in MODELS:
            assert LAYOUTS[layout].code in unexportable(model, layout)


@pytest.mark.parametrize("layout", ["torchvision", "vainf", "smp"])
def test_a_multi_grid_is_not_exported_to_code_that_has_none(layout):
    fields = {"multi_grid": (1, 2), "rngs": nnx.Rngs(0)}
    model = create("deeplabv3_resnet50", **fields)  # torchvision's heads take no basic blocks
    message = unexportable(model, layout)
    assert "backbone.multi_grid is (1, 2) here and () there" in message


def test_names_of_classes_and_preprocessing_do_not_hinder_an_export():
    # They are about what goes in and out of the model, and leave the original's outputs as they are.
    state = checkpoint("standalone")
    model = load_torch(state, class_names=tuple("abcdefg"))
    exported = to_torch(model, "standalone")
    for name, array in state.items():
        np.testing.assert_array_equal(exported[name].numpy(), array)


def test_a_trained_head_on_other_classes_goes_back():
    exported = to_torch(load_torch(checkpoint("standalone"), num_classes=11), "standalone")
    original = without_weights(lambda: Standalone(160, 24, 16, classes=11))
    original.load_state_dict(exported, strict=True, assign=True)


def test_a_model_without_a_config_is_refused():
    rngs = nnx.Rngs(0)
    by_hand = DeepLabV3(ResNet(ResNetConfig(18), rngs=rngs), rngs=rngs)
    assert "the model has no config" in unexportable(by_hand, "torchvision")


def test_a_model_born_here_runs_in_torchvision():
    model = create(
        "deeplabv3_resnet50",
        output_stride=8,
        rates=(12, 24, 36),
        num_classes=7,
        aux_head=FCNConfig(tap="aux"),
        rngs=nnx.Rngs(0),
    )
    model.eval()
    original = without_weights(
        lambda: segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=7, aux_loss=True
        )
    )
    original.load_state_dict(to_torch(model, "torchvision"), strict=True, assign=True)
    x = images(2, 33, 49, 3)
    graphdef, state = nnx.split(model)
    with quick_comparison():
        theirs = run_torch(original.eval(), x)["out"]
        ours = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    # float32 after 60 layers; PyTorch's own is within 1e-5 of its float64
    assert relative_error(ours, nhwc(theirs)) < 1e-4


def test_a_checkpoint_without_a_classifier_gets_one_of_any_number_of_classes():
    # 21 is what is assumed where no classifier tells: asking for just that must not change the answer
    for classes in (21, 11):
        state = {k: v for k, v in checkpoint("standalone").items() if ".output.3." not in k}
        conversion = convert(state, num_classes=classes)
        assert conversion.initialised == (
            "head.decoder.classifier.kernel",
            "head.decoder.classifier.bias",
        )
        assert conversion.model.config.num_classes == classes


def test_half_a_classifier_is_a_missing_tensor_and_not_a_new_classifier():
    state = {k: v for k, v in checkpoint("standalone").items() if k != "decoder.output.3.bias"}
    classes = len(state["decoder.output.3.weight"])
    assert "1 missing: decoder.output.3.bias" in refusal(state, num_classes=classes)


def test_torchvision_has_no_heads_for_basic_blocks():
    model = create("fcn_resnet18", rngs=nnx.Rngs(0))
    assert "this is a ResNet-18" in unexportable(model, "torchvision")


def test_smp_opens_the_folder_that_its_module_writes(tmp_path):
    original = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=2)
    model = load_torch(original.state_dict())
    model.eval()
    to_module(model, "smp").save_pretrained(tmp_path)
    theirs = smp.from_pretrained(tmp_path).eval()
    images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    # float32 against float32
    np.testing.assert_allclose(model(images), want, atol=1e-4 * np.abs(want).max())


def test_a_module_that_no_package_builds_is_refused():
    model = load_torch(VainF("mobilenet_v2", plus=True, output_stride=16).state_dict())
    with pytest.raises(ValueError, match=r"no package builds VainF.*`to_torch`"):
        to_module(model, "vainf")
