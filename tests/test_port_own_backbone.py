"""A backbone of somebody's own, ported under a head of torchvision's and held against its torch twin."""

import numpy as np
import own_backbone
import pytest
from references import assert_agrees, images, quick_comparison, randomise, without_weights
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

import port
from port.backbones import NAMINGS

PARTS = {"stem": "first", "early": "second", "blocks.0": "third", "late": "last"}


class StripesNaming(port.Naming):
    """Sequentials of convolution, norm and ReLU."""

    family = own_backbone.StripesConfig
    known = "Stripes"

    def recognises(self, shapes):
        return "first.0.weight" in shapes and "last.0.weight" in shapes

    def config(self, shapes, **fields):
        width, channels, *_ = shapes["first.0.weight"]
        return own_backbone.StripesConfig(width=width, in_channels=channels, **fields)

    def names(self, config):
        leaves = {"look": 0, "normalise": 1}
        return {
            f"{ours}.{leaf}": f"{theirs}.{at}"
            for ours, theirs in PARTS.items()
            for leaf, at in leaves.items()
        }


class Twin(nn.Module):
    """DeepLabv3 as torchvision has it, at output stride 16."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width]
        self.backbone = nn.Sequential()
        for part, cin, cout in zip(PARTS.values(), widths[:-1], widths[1:], strict=True):
            conv = nn.Conv2d(cin, cout, 3, stride=2, padding=1, bias=False)
            self.backbone.add_module(part, nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU()))
        self.classifier = DeepLabHead(8 * width, classes)

    def forward(self, x):
        logits = self.classifier(self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture
def _named():
    before = list(NAMINGS)
    port.register_naming(StripesNaming())
    yield
    NAMINGS[:] = before


@pytest.mark.usefixtures("_named")
def test_every_layer_agrees_with_its_twin_and_goes_back():
    twin = randomise(without_weights(Twin), (2, 3, 64, 80))
    model = port.load_torch(twin.state_dict(), output_stride=16)
    assert model.config.backbone == own_backbone.StripesConfig()
    with quick_comparison():
        report = port.verify(model, twin, images(2, 65, 97, 3))
    assert_agrees(report)
    assert report.outcome is port.Outcome.AGREES
    exported = port.to_torch(model, "torchvision")
    assert exported.keys() == twin.state_dict().keys()
    for name, tensor in twin.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(exported[name], tensor, err_msg=name)


@pytest.mark.usefixtures("_named")
def test_a_naming_that_is_registered_again_is_replaced():
    count = len(NAMINGS)
    port.register_naming(StripesNaming())
    assert len(NAMINGS) == count


def test_without_its_names_the_checkpoint_is_refused_with_the_backbones_that_are_known():
    with pytest.raises(port.CheckpointError, match="the backbone is not one that we know: ResNet"):
        port.load_torch(without_weights(Twin).to_empty(device="cpu").state_dict())
