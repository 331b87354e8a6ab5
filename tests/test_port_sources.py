"""Checkpoints by name. Nothing is downloaded: the packages' own downloading is replaced."""

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from references import without_weights
from safetensors.torch import save_file
from torchvision.models import segmentation

import port
from port.convert import convert
from port.read import CheckpointError, read


def random_state(make) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = without_weights(make).state_dict()
    return {name: torch.rand(tensor.shape) + 0.5 for name, tensor in shapes.items()}


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "LRASPP_MobileNet_V3_Large_Weights.DEFAULT"]
)
def test_torchvisions_weights_have_their_classes_and_statistics(name, monkeypatch):
    make = segmentation.lraspp_mobilenet_v3_large
    state = random_state(lambda: make(weights=None, weights_backbone=None))
    weights = segmentation.LRASPP_MobileNet_V3_Large_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: state)
    conversion = convert(f"torchvision:{name}")
    config = conversion.model.config
    assert conversion.layout.name == "torchvision"
    assert config.class_names[15] == "person"
    assert config.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "preprocessing" not in conversion.assumed


def test_timms_network_is_read_with_its_own_statistics(monkeypatch):
    made = timm.create_model("mobilenetv2_050")
    made.pretrained_cfg = made.pretrained_cfg | {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    asked = []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return made

    monkeypatch.setattr(timm, "create_model", create_model)
    model = port.load_torch("timm:mobilenetv2_050.lamb_in1k", output_stride=16)
    assert asked == [("mobilenetv2_050.lamb_in1k", True)]
    assert model.config.backbone.width == 0.5
    assert model.config.preprocessing.mean == (0.1, 0.2, 0.3)


def test_a_model_of_the_hub_is_read_from_the_folder_that_it_is_kept_in(tmp_path, monkeypatch):
    save_file({"conv.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        assert "*.safetensors" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = read("hf://somebody/roads@v2")
    np.testing.assert_array_equal(found.tensors["conv.weight"], np.ones((2, 2)))
    assert asked == [("somebody/roads", "v2")]


def test_what_cannot_be_fetched_is_one_sentence_with_the_way_out(monkeypatch):
    def offline(*_, **__):
        raise OSError("Network is unreachable\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"hf://a/b cannot be fetched: Network is unreachable. Check"
    ):
        read("hf://a/b")
    with pytest.raises(
        CheckpointError, match="torchvision:nothing cannot be fetched: Unknown model"
    ):
        read("torchvision:nothing")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(CheckpointError, match="pip install timm"):
        read("timm:resnet50")


def test_torchvision_is_the_one_that_is_tested():
    assert torchvision.models.get_weight("ResNet50_Weights.DEFAULT").name == "IMAGENET1K_V2"
