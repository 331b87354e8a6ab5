"""HRNetV2 and DRN: their parts against torch, and the checkpoints of VainF's and jfzhang's models.

What torchvision has (residual blocks, ASPP, v3's head) is taken from there; the rest is written out
as small as can be. VainF's own HRNet refuses sides that are not multiples of 32.
"""

import json
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from originals.vainf import VainFPlusHead, VainFV3Head
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
from torch.nn import functional as F
from torchvision.models import resnet

from deeplab_jax import ops
from deeplab_jax.backbones.drn import DRN, VARIANTS, DRNConfig, PlainBlock
from deeplab_jax.backbones.hrnet import UNITS, ExchangeUnit, HRNetConfig
from deeplab_jax.backbones.resnet import BasicBlock, Bottleneck
from deeplab_jax.config import Config, from_dict, to_dict
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig
from deeplab_jax.layers import Conv, Norm
from deeplab_jax.model import build, create, fill
from deeplab_jax.ops import receptive_field
from deeplab_jax.presets import PRESETS
from deeplab_jax.summary import summarize
from port import CheckpointError, load_torch, to_torch, verify
from port.backbones.drn import AuthorsDRN
from port.backbones.resnet import residual_names
from port.convert import convert, weighted_modules
from port.naming import conv_bn

# Rounding of float32 through a few layers, and through a network: see test_port_layouts.py.
PART, FINAL = 1e-5, 1e-4


@pytest.fixture(scope="module", autouse=True)
def _quick_comparison() -> Iterator[None]:
    with quick_comparison():
        yield


# ---------------------------------------------------------------------------- in torch


def conv_bn_relu(cin: int, cout: int, kernel: int = 3, **options) -> list[nn.Module]:
    options.setdefault("padding", kernel // 2)
    conv = nn.Conv2d(cin, cout, kernel, bias=False, **options)
    return [conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]


class TorchUnit(nn.Module):
    """One exchange unit: four residual blocks in each branch, then every branch becomes the sum."""

    def __init__(self, widths: list[int], mode: str = "nearest"):
        super().__init__()
        self.mode = mode
        self.branches = nn.ModuleList(
            nn.Sequential(*(resnet.BasicBlock(w, w) for _ in range(4))) for w in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self.path(widths, i, j) for j in range(len(widths)))
            for i in range(len(widths))
        )

    @staticmethod
    def path(widths: list[int], i: int, j: int) -> nn.Sequential:
        if j > i:  # resized in forward
            return nn.Sequential(*conv_bn_relu(widths[j], widths[i], 1)[:2])
        steps = []
        for step in range(j + 1, i + 1):
            out = widths[i] if step == i else widths[j]
            parts = conv_bn_relu(widths[j], out, stride=2)
            steps.append(nn.Sequential(*(parts[:2] if step == i else parts)))
        return nn.Sequential(*steps)

    def forward(self, streams):
        streams = [branch(x) for branch, x in zip(self.branches, streams, strict=True)]
        corners = {} if self.mode == "nearest" else {"align_corners": False}
        outputs = []
        for i, paths in enumerate(self.fuse_layers):
            parts = [
                F.interpolate(path(x), streams[i].shape[2:], mode=self.mode, **corners)
                if j > i
                else path(x)
                for j, (path, x) in enumerate(zip(paths, streams, strict=True))
            ]
            outputs.append(F.relu(sum(parts)))
        return outputs


class TorchHRNet(nn.Module):
    """VainF's: conv2 follows bn1 directly, and coarse streams are repeated, not interpolated."""

    def __init__(self, width: int):
        super().__init__()
        w = [width * 2**i for i in range(4)]
        self.conv1, self.bn1, _ = conv_bn_relu(3, 64, stride=2)
        self.conv2, self.bn2, _ = conv_bn_relu(64, 64, stride=2)
        shortcut = nn.Sequential(*conv_bn_relu(64, 256, 1)[:2])
        blocks = [resnet.Bottleneck(256, 64) for _ in range(3)]
        self.layer1 = nn.Sequential(resnet.Bottleneck(64, 64, downsample=shortcut), *blocks)
        self.transition1 = nn.ModuleList(
            [
                nn.Sequential(*conv_bn_relu(256, w[0])),
                nn.Sequential(nn.Sequential(*conv_bn_relu(256, w[1], stride=2))),
            ]
        )
        self.stage2 = nn.ModuleList(TorchUnit(w[:2]) for _ in range(UNITS[2]))
        self.transition2 = nn.Sequential(*conv_bn_relu(w[1], w[2], stride=2))
        self.stage3 = nn.ModuleList(TorchUnit(w[:3]) for _ in range(UNITS[3]))
        self.transition3 = nn.Sequential(*conv_bn_relu(w[2], w[3], stride=2))
        self.stage4 = nn.ModuleList(TorchUnit(w) for _ in range(UNITS[4]))

    def forward(self, x):
        low = self.layer1(F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        streams = [transition(low) for transition in self.transition1]
        for i, stage in enumerate((self.stage2, self.stage3, self.stage4)):
            if i:
                streams.append(getattr(self, f"transition{i + 1}")(streams[-1]))
            for unit in stage:
                streams = unit(streams)
        size = streams[0].shape[2:]
        high = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in streams]
        return {"low_level": low, "out": torch.cat(high, dim=1)}


class VainFHRNet(nn.Module):
    def __init__(self, width: int, *, plus: bool, classes: int = 7):
        super().__init__()
        self.backbone, rates = TorchHRNet(width), (12, 24, 36)
        if plus:
            self.classifier = VainFPlusHead(15 * width, 256, classes, rates)
        else:
            self.classifier = VainFV3Head(15 * width, classes, rates)

    def forward(self, x):
        logits = self.classifier(self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


class TorchDRN(nn.Module):
    """DRN-D; gives (low, high)."""

    def __init__(self, variant: str):
        super().__init__()
        counts = VARIANTS[variant][1]
        bottleneck = VARIANTS[variant][0].expansion == 4
        block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
        self.layer0 = nn.Sequential(*conv_bn_relu(3, 16, 7))
        self.layer1 = self.plain(16, 16, counts[0], 1, 1)
        self.layer2 = self.plain(16, 32, counts[1], 2, 1)
        width = 32
        for level, stride, rate in ((3, 2, 1), (4, 2, 1), (5, 1, 2), (6, 1, 4)):
            planes = 8 * 2**level
            out = planes * block.expansion
            shortcut = nn.Sequential(*conv_bn_relu(width, out, 1, stride=stride)[:2])
            blocks = [block(width, planes, stride, shortcut)]
            blocks += [block(out, planes) for _ in range(counts[level - 1] - 1)]
            for conv in (m for b in blocks for m in b.modules() if isinstance(m, nn.Conv2d)):
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (rate, rate)
            setattr(self, f"layer{level}", nn.Sequential(*blocks))
            width = out
        self.layer7 = self.plain(width, 512, counts[6], 1, 2)
        self.layer8 = self.plain(512, 512, counts[7], 1, 1)

    @staticmethod
    def plain(cin: int, cout: int, count: int, stride: int, rate: int) -> nn.Sequential:
        layers = []
        for i in range(count):
            layers += conv_bn_relu(
                cin if i == 0 else cout,
                cout,
                stride=stride if i == 0 else 1,
                padding=rate,
                dilation=rate,
            )
        return nn.Sequential(*layers)

    def forward(self, x):
        for level in range(4):
            x = getattr(self, f"layer{level}")(x)
        low = x
        for level in range(4, 9):
            x = getattr(self, f"layer{level}")(x)
        return low, x


# ---------------------------------------------------------------------------- parts


def with_weights_of(module: nnx.Module, theirs: nn.Module, names: dict[str, str]) -> nnx.Module:
    """Our module in eval mode with the weights of a torch module, by a table of names."""
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    parts = weighted_modules(module)
    assert parts.keys() == names.keys()
    for path, part in parts.items():
        weight = state[f"{names[path]}.weight"]
        if isinstance(part, Conv):
            part.kernel.set_value(jax.numpy.asarray(weight.transpose(2, 3, 1, 0)))
        else:
            part.scale.set_value(jax.numpy.asarray(weight))
            for leaf, name in (("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
                getattr(part, leaf).set_value(jax.numpy.asarray(state[f"{names[path]}.{name}"]))
    module.eval()
    return module


def abstract(make) -> nnx.Module:
    """Shapes in place of weights, for `with_weights_of`."""
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def apply(module: nnx.Module, x):
    """The compiled module's output; its weights are arguments, not constants to be folded."""
    graphdef, state = nnx.split(module)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)


def unit_names(streams: int) -> dict[str, str]:
    names = {}
    for i in range(streams):
        for path, name in residual_names(f"{i}", 4, 2, shortcut=False).items():
            names[f"streams.{path}"] = f"branches.{name}"
        for j in range(streams):
            ours, theirs = f"fuse.{i}.{j}", f"fuse_layers.{i}.{j}"
            if j > i:
                names |= conv_bn(f"{ours}.0", f"{theirs}.0", f"{theirs}.1")
            for step in range(i - j):
                names |= conv_bn(f"{ours}.{step}", f"{theirs}.{step}.0", f"{theirs}.{step}.1")
    return names


class Together(nn.Module):
    """Streams as arguments, for `randomise`."""

    def __init__(self, unit: nn.Module):
        super().__init__()
        self.unit = unit

    def forward(self, *streams):
        return self.unit(streams)


@pytest.mark.parametrize(
    ("mode", "size"), [("nearest", (16, 24)), ("bilinear", (16, 24)), ("bilinear", (13, 19))]
)
def test_exchange_unit_is_that_of_pytorch(mode, size):
    widths = (4, 8, 16)
    shapes = []
    for width in widths:
        shapes.append((2, *size, width))
        size = tuple((n + 1) // 2 for n in size)  # what a convolution of stride 2 leaves
    theirs = without_weights(lambda: Together(TorchUnit(list(widths), mode)))
    randomise(theirs, *((b, c, h, w) for b, h, w, c in shapes))
    ours = abstract(lambda rngs: ExchangeUnit(widths, upsample=mode, norm=Norm(), rngs=rngs))
    with_weights_of(ours, theirs.unit, unit_names(len(widths)))
    streams = [images(*shape, seed=i) for i, shape in enumerate(shapes)]
    for value, reference in zip(apply(ours, streams), run_torch(theirs, *streams), strict=True):
        assert relative_error(value, nhwc(reference)) < PART


def test_nearest_exchange_at_sizes_that_do_not_halve_is_a_crop_of_the_next_that_do():
    # Of the coarse streams nothing else could be meant: their pixels lie where they lie.
    widths = (2, 4, 8)
    unit = abstract(lambda r: ExchangeUnit(widths, upsample="nearest", norm=Norm(), rngs=r))
    x = images(1, 4, 5, 8)
    resized = unit._resize(x, 4, (13, 17))
    assert resized.shape == (1, 13, 17, 8)
    np.testing.assert_array_equal(resized, np.kron(x, np.ones((1, 4, 4, 1)))[:, :13, :17])


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_resize_nearest_is_that_of_pytorch(factor):
    x = images(2, 3, 5, 4)
    theirs = F.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), scale_factor=factor, mode="nearest"
    )
    np.testing.assert_array_equal(ops.resize_nearest(x, factor), nhwc(theirs))


@pytest.mark.parametrize("block_type", [BasicBlock, Bottleneck])
def test_drn_d_is_that_of_pytorch(block_type, monkeypatch):
    variant = "d_short"
    monkeypatch.setitem(VARIANTS, variant, (block_type, (1, 1, 1, 1, 2, 2, 2, 1)))
    theirs = randomise(without_weights(lambda: TorchDRN(variant)), (2, 3, 41, 59))
    config = DRNConfig(variant)
    ours = with_weights_of(
        abstract(lambda rngs: DRN(config, rngs=rngs)), theirs, AuthorsDRN().names(config)
    )
    x = images(2, 41, 59, 3)
    features = apply(ours, x)
    low, high = run_torch(theirs, x)
    assert relative_error(features["low"], nhwc(low)) < FINAL
    assert relative_error(features["high"], nhwc(high)) < FINAL
    assert {name: x.shape[-1] for name, x in features.items()} == ours.channels


def test_the_last_blocks_of_drn_c_have_no_shortcut():
    theirs = nn.Sequential(
        *conv_bn_relu(8, 12, padding=2, dilation=2), *conv_bn_relu(12, 12, padding=2, dilation=2)
    )
    randomise(theirs, (2, 8, 9, 11))
    options = {"stride": 1, "dilation": 2, "norm": Norm()}
    ours = abstract(lambda rngs: PlainBlock(8, 12, **options, rngs=rngs))
    names = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4"}
    x = images(2, 9, 11, 8)
    value = apply(with_weights_of(ours, theirs, names), x)
    assert relative_error(value, nhwc(run_torch(theirs, x))) < PART
    plain = ["layer7.0.bn1", "layer7.0.bn2", "layer7.0.conv1", "layer7.0.conv2"]
    network = weighted_modules(build(PRESETS["fcn_drn_d_54"].override(variant="c_58")).backbone)
    assert [path for path in network if path.startswith("layer7.")] == plain


# ---------------------------------------------------------------------------- VainF's HRNet

VAINF_HRNET = HRNetConfig(18, upsample="nearest", stem_relu=False)
HEADS = {
    "v3": DeepLabV3Config((12, 24, 36), dropout=0.1),
    "v3plus": DeepLabV3PlusConfig((12, 24, 36), dropout=0.1, decoder_convs=1),
}


@pytest.fixture(scope="module")
def hrnet() -> dict[str, torch.Tensor]:
    """A checkpoint of v3; nothing is computed with it."""
    return randomise(without_weights(lambda: VainFHRNet(18, plus=False))).state_dict()


def assert_returns_bit_for_bit(model: nnx.Module, state: dict[str, torch.Tensor]) -> None:
    exported = to_torch(model, "vainf")
    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(exported[name], tensor), name


def test_vainf_hrnet_is_told_by_names_and_returns_bit_for_bit(hrnet):
    before = copied(hrnet)
    # The original takes an output stride and does nothing with it.
    conversion = convert(hrnet, output_stride=8)
    assert conversion.layout.name == "vainf"
    assert dict(conversion.chosen) == {}
    assert conversion.model.config == Config(VAINF_HRNET, HEADS["v3"], num_classes=7)
    assert VAINF_HRNET.output_stride == 4
    assert receptive_field_of(conversion.model) == HRNET_FIELD + 32
    assert_returns_bit_for_bit(conversion.model, before)


def test_vainf_hrnet_agrees_in_every_layer(monkeypatch):
    for stage in UNITS:  # the other units of a stage are as its first
        monkeypatch.setitem(UNITS, stage, 1)
    module = without_weights(lambda: VainFHRNet(18, plus=True))
    randomise(module, (2, 3, 64, 96))
    model = load_torch(copied(module.state_dict()))
    assert model.config == Config(VAINF_HRNET, HEADS["v3plus"], num_classes=7)
    assert_returns_bit_for_bit(model, module.state_dict())
    report = verify(model, module, images(2, 64, 96, 3))
    assert_agrees(report)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert len(report.layers) == norms + 2  # the classifier, which has a bias, and the logits


def test_hrnet_keys_that_miss_or_are_too_many_or_too_wide_are_refused(hrnet):
    state = dict(hrnet)
    del state["backbone.stage4.2.fuse_layers.3.0.1.1.running_mean"]
    state["backbone.stage4.3.branches.0.0.conv1.weight"] = torch.zeros(18, 18, 3, 3)
    with pytest.raises(CheckpointError) as error:
        load_torch(state)
    assert "1 unknown: backbone.stage4.3.branches.0.0.conv1.weight" in str(error.value)
    missing = "1 missing: backbone.stage4.2.fuse_layers.3.0.1.1.running_mean"
    assert missing in str(error.value)
    state["backbone.transition1.0.0.weight"] = torch.zeros(40, 256, 3, 3)
    with pytest.raises(CheckpointError, match="width must be 18, 32 or 48, got 40"):
        load_torch(state)


def test_the_papers_hrnet_does_not_go_to_vainf():
    model = build(Config(HRNetConfig(18), HEADS["v3"]))
    with pytest.raises(ValueError, match="upsample is 'bilinear' here and 'nearest' there"):
        to_torch(model, "vainf")


# ---------------------------------------------------------------------------- jfzhang's DRN


@pytest.mark.parametrize("variant", ["d_54", "d_24"])
def test_jfzhang_drn_goes_there_and_back_bit_for_bit(variant):
    head = DeepLabV3PlusConfig(decoder_dropout=(0.5, 0.1))
    config = Config(DRNConfig(variant), head, num_classes=7, align_corners=True)
    state = to_torch(fill(build(config), nnx.Rngs(0)), "jfzhang")
    # The original takes an output stride, and uses 8 whatever it is.
    conversion = convert(state, output_stride=16)
    assert conversion.layout.name == "jfzhang"
    assert conversion.model.config == config
    again = to_torch(conversion.model, "jfzhang")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    backbone = {name.removeprefix("backbone.") for name in state if name.startswith("backbone.")}
    assert backbone == without_weights(lambda: TorchDRN(variant)).state_dict().keys()


def test_drn_keys_that_miss_or_are_too_many_are_refused():
    config = Config(DRNConfig("d_22"), DeepLabV3PlusConfig(), align_corners=True)
    model = fill(build(config.override(decoder_dropout=(0.5, 0.1))), nnx.Rngs(0))
    state = to_torch(model, "jfzhang")
    changed = state | {"backbone.fc.weight": torch.zeros(1000, 512, 1, 1)}
    del changed["backbone.layer7.1.running_var"]
    with pytest.raises(CheckpointError) as error:
        load_torch(changed)
    assert "1 unknown: backbone.fc.weight" in str(error.value)
    assert "1 missing: backbone.layer7.1.running_var" in str(error.value)
    shallower = {n: t for n, t in state.items() if not n.startswith("backbone.layer5.1.")}
    with pytest.raises(
        CheckpointError, match=r"no DRN-D that we know has \(2, 2, 1, 2\) basic blocks"
    ):
        load_torch(shallower)


def test_drn_c_does_not_go_to_jfzhang():
    config = Config(DRNConfig("c_26"), DeepLabV3PlusConfig(), align_corners=True)
    with pytest.raises(ValueError, match="variant is 'c_26' here and 'd_22' there"):
        to_torch(build(config), "jfzhang")


# ---------------------------------------------------------------------------- configs and sizes


# By hand: stem 7, layer1 8 steps of 4 pixels, then each stage's first convolution and its units' on the
# coarsest stream. A pixel of the eightfold resize sees two of the coarsest, 32 apart; after a bilinear
# exchange to the stream before, one of the fourfold resize sees two that are 16 apart.
HRNET_FIELD = 7 + 8 * 4 + (8 + 8 * 8 * 2) + (16 + 32 * 16 * 2) + (32 + 24 * 32 * 2)
# 7x7 and two 3x3, the second of stride 2; then two 3x3 in each block; then one in each of two layers.
DRN_FIELD = 7 + 2 + 2 + (4 + 3 * 8) + (8 + 3 * 16) + 4 * 2 * 16 + 4 * 4 * 16 + 2 * 16 + 16


def receptive_field_of(model: nnx.Module) -> int:
    return receptive_field(layer[1:] for layer in model.backbone.spatial_layers())


@pytest.mark.parametrize(
    ("name", "stride", "field"),
    [("hrnetv2_w48", 4, HRNET_FIELD + 32 + 16), ("drn_d_22", 8, DRN_FIELD)],
)
def test_features_have_the_sizes_and_channels_that_they_claim(name, stride, field):
    model = build(PRESETS[f"deeplabv3plus_{name}"])
    model.eval()
    graphdef, state = nnx.split(model.backbone)
    features = jax.eval_shape(
        lambda state, x: nnx.merge(graphdef, state)(x),
        state,
        jax.ShapeDtypeStruct((2, 65, 97, 3), np.float32),
    )
    strides = {"low": 4, "mid": 8, "aux": 16 if stride == 4 else 8, "high": stride}
    for feature, step in strides.items():
        expected = (2, -(-65 // step), -(-97 // step), model.backbone.channels[feature])
        assert features[feature].shape == expected, feature
    assert receptive_field_of(model) == field


@pytest.mark.parametrize("name", ["hrnetv2_w32", "drn_d_54"])
def test_their_output_stride_is_fixed(name):
    with pytest.raises(ValueError, match="no such field: output_stride"):
        create(f"deeplabv3plus_{name}", output_stride=16, rngs=nnx.Rngs(0))
    config = PRESETS[f"deeplabv3plus_{name}"]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HRNetConfig(40), "width must be 18, 32 or 48, got 40"),
        (lambda: HRNetConfig(upsample="cubic"), "upsample must be bilinear or nearest"),
        (lambda: DRNConfig("d_50"), "variant must be c_26, .* got 'd_50'"),
    ],
)
def test_unknown_variants_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "fields", "parameters"),
    [
        ("deeplabv3plus_hrnetv2_w32", {"decoder_convs": 1}, 33_918_517),
        ("deeplabv3plus_drn_d_54", {}, 40_737_061),
    ],
)
def test_summary_counts_the_parameters_of_the_originals(name, fields, parameters):
    rows = summarize(build(PRESETS[name].override(**fields)), (96, 128))
    assert sum(row.parameters for row in rows) == parameters
    assert all(row.shape and row.multiply_adds for row in rows)
    if "hrnet" in name:
        stages = [(row.stage, row.shape) for row in rows if row.stage.startswith("backbone")]
        assert stages == [
            ("backbone.stem", (24, 32, 64)),
            ("backbone.layer1", (24, 32, 256)),
            ("backbone.stage2", (24, 32, 32)),
            ("backbone.stage3", (24, 32, 32)),
            ("backbone.stage4", (24, 32, 32)),
        ]
