"""Of how much arithmetic a training consists, and what share of the devices' that is."""

import types

import pytest
from flax import nnx

from deeplab_jax import create
from deeplab_jax.summary import summarize
from train.flops import PEAKS, peak_flops, training_flops, utilisation


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        ("Tesla V100-SXM2-16GB", "NVIDIA V100"),
        ("NVIDIA L40S", "NVIDIA L40S"),
    ],
)
def test_a_device_is_known_by_what_jax_calls_it(kind, name):
    assert peak_flops(kind) == PEAKS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v9", "NVIDIA A1000 Laptop", "NVIDIA L40"])
def test_of_other_devices_nothing_is_said(kind):
    assert peak_flops(kind) is None


def test_utilisation_is_of_all_devices_or_unknown():
    def devices(*kinds):
        return [types.SimpleNamespace(device_kind=kind) for kind in kinds]

    assert utilisation(275e12, devices("TPU v4", "TPU v4")) == 0.5
    assert utilisation(1e12, devices("TPU v4", "cpu")) is None
    assert utilisation(1e12, []) is None


def test_a_step_is_three_forward_passes_and_one_of_a_frozen_backbone():
    model = create("deeplabv3plus_mobilenet_v2", num_classes=3, rngs=nnx.Rngs(0))
    rows = summarize(model, (65, 97))
    head = sum(row.multiply_adds for row in rows if row.stage.startswith("head"))
    backbone = sum(row.multiply_adds for row in rows) - head
    assert head > 0
    assert backbone > 0
    assert training_flops(model, (65, 97)) == 6 * (head + backbone)
    frozen = training_flops(model, (65, 97), freeze_backbone=True)
    assert frozen == 6 * head + 2 * backbone
