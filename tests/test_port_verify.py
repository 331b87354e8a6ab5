"""`port.verify`: it finds planted mistakes, and names the layer where they begin."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from flax import nnx
from originals.standalone import Standalone
from references import (
    assert_agrees,
    copied,
    images,
    quick_comparison,
    randomise,
    without_weights,
)
from torch import nn

from deeplab_jax.preprocessing import Preprocessing
from port import LAYOUTS, Outcome, Report, load_torch, verify
from port.verify import AGREEMENT, ROUNDING_FACTOR, TOLERANCE, Row, stage_of

SIZE = (2, 48, 80, 3)


@pytest.fixture(scope="module", autouse=True)
def _quick_comparison() -> Iterator[None]:
    with quick_comparison():
        yield


@functools.cache
def original() -> nn.Module:
    """DeepLabv3+ on ResNet-18: few layers, and one of everything."""
    module = without_weights(lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=7))
    return randomise(module, (2, 3, 48, 80))


def port(**options) -> nnx.Module:
    return load_torch(original().state_dict(), **options)


# ---- planted mistakes ----


def found(report: Report, path: str) -> None:
    """Asserts that the report has a mistake that begins in `path`, and nothing before it."""
    assert not report.ok
    assert report.first_difference.path == path
    paths = [row.path for row in report.layers]
    assert all(row.agrees for row in report.layers[: paths.index(path)])
    assert not report.layers[-1].agrees  # it reaches the logits
    assert report.layers[-1].path == "logits"


def test_another_epsilon_in_one_batch_norm_is_found_there():
    model = port()
    model.backbone.layer2[0].bn1.epsilon = 1e-3
    found(verify(model, original(), images(*SIZE)), "backbone.layer2.0.bn1")


def test_another_dilation_of_one_convolution_is_found_in_its_batch_norm():
    model = port()
    conv = model.backbone.layer4[1].conv2
    conv.dilation = conv.padding = 1
    found(verify(model, original(), images(*SIZE)), "backbone.layer4.1.bn2")


def test_another_order_of_concatenation_is_found_where_it_is_convolved(monkeypatch):
    monkeypatch.setattr(type(LAYOUTS["smp"]), "rolls", lambda self, config: {})
    found(verify(port(), original(), images(*SIZE)), "head.decoder.convs.0.bn")


def test_the_other_corner_rule_is_found_where_it_is_first_used():
    report = verify(port(align_corners=False), original(), images(*SIZE))
    found(report, "head.decoder.convs.0.bn")
    # a small mistake everywhere: many pixels keep their class, and the count alone would hide it
    assert 0.5 < report.agreement < AGREEMENT


def test_another_output_stride_is_found_at_the_first_layer_that_it_changes():
    report = verify(port(output_stride=8), original(), images(*SIZE))
    assert not report.ok
    row = report.first_difference
    assert row.path == "backbone.layer3.0.bn1"
    assert row.shape == (2, 6, 10, 256)  # at stride 8; stride 16 has 3 x 5
    assert row.relative == math.inf


def test_a_mistake_in_the_auxiliary_head_is_found_though_no_logits_show_it():
    module = randomise(
        without_weights(
            lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
                weights=None, weights_backbone=None, num_classes=7, aux_loss=True
            )
        ),
        (2, 3, 33, 49),
    )
    model = load_torch(module.state_dict())
    model.aux_head.conv.bn.epsilon = 1e-2
    report = verify(model, module, images(2, 33, 49, 3))
    assert report.first_difference.path == "aux_head.conv.bn"
    assert report.layers[-1].path == "logits"
    assert report.layers[-1].agrees
    assert not report.ok


# ---- what is compared with what ----


@functools.cache
def honest() -> Report:
    """Of a right port on two batches of different sizes."""
    small, large = images(*SIZE), images(1, 64, 48, 3, seed=3)
    return verify(port(), original(), small, large)


def test_a_right_port_agrees_on_batches_of_several_sizes():
    assert_agrees(honest())
    assert honest().images == 3


FEATURES = images(2, 5, 7, 32), images(2, 9, 13, 16)


def features_only() -> nn.Module:
    """ASPP and decoder alone."""
    return randomise(Standalone(32, 16, 16), (2, 32, 5, 7), (2, 16, 9, 13))


def test_features_of_a_model_without_a_backbone_are_one_batch():
    done, module = [], features_only()
    report = verify(load_torch(module.state_dict()), module, *FEATURES, progress=done.append)
    assert_agrees(report)
    assert done == [1]
    assert report.images == 2


def test_a_mistake_that_the_first_of_the_batches_shows_is_found():
    model = port()
    branch = model.head.aspp.branches[2].depthwise
    assert branch.dilation == 24
    branch.dilation = branch.padding = 36
    # 3 x 5 features see the centre of the kernel only, at either rate; 3 x 26 see more at rate 24
    shows_not, shows = images(*SIZE), images(1, 48, 416, 3)
    assert_agrees(verify(model, original(), shows_not))
    found(verify(model, original(), shows, shows_not), "head.aspp.branches.2.bn")


def test_a_last_batch_that_is_not_a_number_spoils_the_report():
    report = verify(port(), original(), images(*SIZE), np.full(SIZE, np.nan, np.float32))
    assert not report.ok
    assert report.first_difference is report.layers[0]
    # null, and no NaN, which is not JSON
    assert json.loads(report.to_json())["layers"][0]["relative"] is None


def test_layers_are_in_the_order_in_which_pytorch_runs_them():
    paths = [row.path for row in honest().layers]
    assert paths[0] == "backbone.bn1"
    assert paths[-2:] == ["head.decoder.classifier", "logits"]
    # ResNet's forward has the shortcut after the convolutions
    block = [path for path in paths if path.startswith("backbone.layer2.0.")]
    assert [path.removeprefix("backbone.layer2.0.") for path in block] == [
        "bn1",
        "bn2",
        "downsample.bn",
    ]


def test_pixels_that_pad_to_the_output_stride_do_not_count():
    # 45 x 70 becomes 48 x 80 for smp, whose code takes no other sizes
    report = verify(port(), original(), images(1, 45, 70, 3))
    assert_agrees(report)
    assert report.layers[-1].shape == (1, 48, 80, 7)


def test_the_torch_module_is_left_as_it_was():
    module = features_only()
    model = load_torch(module.state_dict())
    module.train()
    before = copied(module.state_dict())
    verify(model, module, *FEATURES)
    assert module.training
    assert not any(part._forward_hooks for part in module.modules())
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name


def test_a_mask_of_one_channel_is_compared_where_its_probability_passes_a_half():
    make = without_weights(lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=1))
    module = randomise(make, (2, 3, 48, 80))
    x, bias = images(*SIZE), module.segmentation_head[0].bias
    with torch.no_grad():
        # Half is foreground, and no pixel's logit is 0, which rounding would decide.
        logits = module(torch.from_numpy(x.transpose(0, 3, 1, 2))).flatten().sort().values
        bias -= logits[len(logits) // 2 - 1 :][:2].mean()
    report = verify(load_torch(module.state_dict()), module, x)
    assert report.ok
    shifted = module.state_dict() | {"segmentation_head.0.bias": bias.detach() + 0.3}
    report = verify(load_torch(shifted), module, x)
    assert not report.ok
    assert report.agreement < 0.99  # an argmax over one channel would say 1


def test_ours_is_computed_in_float32_where_a_gpu_would_not(monkeypatch):
    asked = []
    conv = jax.lax.conv_general_dilated

    def spy(*arguments, **options):
        asked.append(jax.config.jax_default_matmul_precision)
        return conv(*arguments, **options)

    monkeypatch.setattr(jax.lax, "conv_general_dilated", spy)
    assert verify(port(), original(), images(2, 48, 64, 3)).ok
    assert asked
    assert set(asked) == {"highest"}
    assert jax.config.jax_default_matmul_precision is None


def test_an_unknown_layout_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"layout must be one of .*smp.*, got 'keras'"):
        verify(port(), original(), images(*SIZE), layout="keras")


def test_a_module_of_another_layout_is_refused():
    module = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"the torch module has no encoder\..* not smp's"):
        verify(port(), module, images(*SIZE), layout="smp")
    with pytest.raises(ValueError, match=r"is torchvision-classification's, .* head\.aspp"):
        verify(port(), module, images(*SIZE))


def test_a_module_that_cannot_run_is_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"fails on inputs of \[2, 3, 50, 80\]: .*divisible"):
        # smp's own code refuses sizes that are no multiples of the output stride; ours pads for it
        verify(port(preprocessing=Preprocessing()), original(), images(2, 50, 80, 3))


# ---- the report ----


def row(path: str, relative: float, rounding: float = 0.0) -> Row:
    return Row(path, (1, 2, 3, 4), 10 * relative, relative, rounding)


def test_a_report_is_json_with_every_layer():
    data = json.loads(honest().to_json())
    assert data["ok"] is True
    assert data["images"] == 3
    assert data["argmax_agreement"] == honest().agreement
    assert [layer["path"] for layer in data["layers"]] == [r.path for r in honest().layers]
    first = data["layers"][0]
    assert first["shape"] in ([2, 24, 40, 64], [1, 32, 24, 64])  # whichever batch was worse
    assert first["agrees"] is True
    assert {"absolute", "relative", "rounding"} <= first.keys()


def test_a_layer_agrees_within_the_tolerance_or_some_times_pytorchs_rounding():
    assert row("a", 0.9 * TOLERANCE).agrees
    assert not row("a", 1.1 * TOLERANCE).agrees
    assert row("a", 0.9e-3, 1e-3 / ROUNDING_FACTOR).agrees
    assert not row("a", 1.1e-3, 1e-3 / ROUNDING_FACTOR).agrees
    assert not row("a", math.nan).agrees
    assert not row("a", math.inf).agrees


def test_a_report_is_right_when_all_layers_and_nearly_all_classes_agree():
    good, bad = row("a", 0.0), row("b", 1.0)
    assert Report((good, good), 1.0, 1).ok
    assert Report((good,), None, 1).ok  # an image classifier has no pixels
    assert not Report((good,), AGREEMENT - 1e-6, 1).ok
    assert not Report((good, bad), 1.0, 1).ok
    assert (
        Report((good, bad, good, dataclasses.replace(bad, path="c")), 1.0, 1).first_difference
        is bad
    )
    assert Report((good,), 1.0, 1).first_difference is None


def test_a_report_of_no_layer_is_no_agreement():
    report = Report((), None, 0)
    assert report.outcome is Outcome.NOT_COMPARED
    assert not report.ok


def test_a_stage_has_a_layer_that_disagrees_before_one_that_is_less_exact_but_agrees():
    rough, wrong = row("head.conv.bn", 1e-4, 1e-4), row("head.conv.conv", 5e-5)
    for layers in ((rough, wrong), (wrong, rough)):
        (stage,) = Report(layers, 1.0, 1).stages()
        assert not stage.agrees
        assert stage.relative == 5e-5


def test_a_stage_has_the_worst_of_its_layers():
    layers = (
        row("backbone.bn1", 1e-7),
        row("backbone.layer1.0.bn1", 3e-7),
        row("backbone.layer1.1.bn2", 8e-7),
        row("backbone.layer1.1.bn1", 2e-7),
        row("head.aspp.branches.0.bn", 5e-7),
        row("head.aspp.branches.1.bn", 6e-7),
        row("head.aspp.pool.bn", 7e-7),
        row("logits", 9e-7),
    )
    assert [(r.path, r.relative) for r in Report(layers, 1.0, 1).stages()] == [
        ("backbone.stem", 1e-7),
        ("backbone.layer1", 8e-7),
        ("head.aspp.branches.0", 5e-7),
        ("head.aspp.branches.1", 6e-7),
        ("head.aspp.pool", 7e-7),
        ("logits", 9e-7),
    ]


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("backbone.conv1", "backbone.stem"),
        ("backbone.bn1", "backbone.stem"),
        ("backbone.stem.bn", "backbone.stem"),
        ("backbone.stem.2.bn", "backbone.stem"),
        ("backbone.layer3.22.downsample.bn", "backbone.layer3"),
        ("backbone.blocks.13.depthwise.bn", "backbone.blocks.13"),
        ("backbone.last.bn", "backbone.last"),
        ("head.aspp.branches.3.bn", "head.aspp.branches.3"),
        ("head.aspp.project.bn", "head.aspp.project"),
        ("head.refine.bn", "head.refine"),
        ("head.conv.bn", "head.conv"),
        ("head.classifier", "head.classifier"),
        ("head.decoder.low.bn", "head.decoder.low"),
        ("head.decoder.convs.1.bn", "head.decoder.convs.1"),
        ("head.decoder.classifier", "head.decoder.classifier"),
        ("aux_head.conv.bn", "aux_head.conv"),
        ("aspp.branches.2.bn", "aspp.branches.2"),
        ("decoder.low.bn", "decoder.low"),
        ("logits", "logits"),
    ],
)
def test_stages_are_called_as_people_would(path, stage):
    assert stage_of(path) == stage
