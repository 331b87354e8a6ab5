"""Every layout against the code whose checkpoints it reads: same outputs, same bits on the way back.

Nothing is downloaded: weights are random, see `references.randomise`. Sizes are odd and not square
wherever the original accepts it, and the batch has two images.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from flax import nnx
from originals import COMPARED, DEEPER
from originals.case import Case, timm_classifier
from references import (
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

from deeplab_jax.backbones import (
    ResNetConfig,
)
from deeplab_jax.heads import (
    ClassifierConfig,
)
from port import LAYOUTS, load_torch, to_torch, verify
from port.convert import Conversion, convert

pytestmark = pytest.mark.filterwarnings(
    # smp prefers its newer tu-tf_*, whose checkpoints have other names
    "ignore:`timm-` encoders are deprecated:DeprecationWarning"
)


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


LONG = [pytest.param(name, marks=pytest.mark.long) for name in DEEPER]


@pytest.mark.parametrize("ported", [*COMPARED, *LONG], indirect=True)
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
        # No logits per pixel there; and heads of more layers than one are a test of their own below.
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
    ported = port_of(timm_classifier("resnet18", ResNetConfig(18, 16)))
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv4_conv_small", "is of MobileNetV4"),
        ("mixnet_s", "is of MixNet"),
        ("efficientnet_cc_b0_4e", "is of EfficientNet-CondConv"),
        ("efficientnet_x_b3", "is of EfficientNet-X"),
        ("gc_efficientnetv2_rw_t", "global context"),
        ("efficientnet_es", "EfficientNet-EdgeTPU"),
        ("mobilenetv3_rw", "mobilenetv3_rw"),
        ("tinynet_e", r"no EfficientNet that we know has blocks of \[8, 16"),
        ("spnasnet_100", r"no MnasNet that we know has blocks of \[16, 24"),
        ("hardcorenas_a", r"no MobileNetV3 that we know has blocks of \[16, 24"),
    ],
)
def test_timms_other_networks_of_inverted_residuals_are_refused_by_what_they_are(name, message):
    state = without_weights(lambda: timm.create_model(name)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert LAYOUTS["timm"].recognises(shapes)
    with pytest.raises(ValueError, match=message):
        LAYOUTS["timm"].config(shapes, None)


def test_tf_padding_is_not_found_in_the_weights_and_must_be_said():
    ported = port_of(COMPARED["timm-tf-lite0-os16"])
    untold = load_torch(ported.state, output_stride=16)
    # even: at odd sizes the stem's "same" padding happens to be the symmetric one
    report = verify(untold, ported.module, images(2, 64, 96, 3))
    assert not report.ok
    assert report.first_difference.path == "backbone.stem.conv"
