"""Models of several labels, of which a pixel may have any number: ported, predicted with, exported."""

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
from flax import nnx
from PIL import Image

from deeplab_jax import create, load, normalize, predict, save, visualize
from deeplab_jax.export import Interface, export
from deeplab_jax.folder import predict_folder
from port.__main__ import main as port_main
from train.data import DataError
from train.data.dataset import Dataset
from train.evaluate_command import check_classes
from train.model import ModelConfig, make_model

NAMES = ("road", "wet ground", "shadow")


@pytest.fixture(scope="module")
def model():
    made = create(
        "fcn_resnet18",
        num_classes=3,
        class_names=NAMES,
        activation="sigmoid",
        rngs=nnx.Rngs(0),
    )
    made.eval()
    return made


def picture(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def logits(model, pixels):
    return np.asarray(model(normalize(pixels[None], model.config.preprocessing)))[0]


def test_each_label_is_where_its_own_probability_is_above_a_half(model):
    pixels = picture(64, 64)
    labels = predict(model, pixels)
    scores = logits(model, pixels)
    assert (labels.dtype, labels.shape) == (np.uint8, (64, 64, 3))
    clear = np.abs(scores) > 1e-4 * np.abs(scores).max()  # of the others rounding decides
    np.testing.assert_array_equal(labels[clear], (scores > 0)[clear])
    count = labels.sum(-1)
    assert count.min() < count.max()  # some have more labels than others: no argmax
    batch = predict(model, pixels[None], flip=True)
    assert batch.shape == (1, 64, 64, 3)


def test_a_folder_has_a_mask_for_each_label(tmp_path, model):
    pixels = picture(64, 64)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def run():
        return predict_folder(model, [tmp_path / "a.png"], tmp_path / "out", progress=False)

    assert run().written == 1
    labels = predict(model, pixels)
    for number, name in enumerate(("road", "wet_ground", "shadow")):
        with Image.open(tmp_path / "out" / f"a_{name}.png") as mask:
            # A folder's model has its batch norms folded: rounding decides where a logit is about 0.
            assert (np.asarray(mask) == labels[..., number]).mean() > 0.999
    assert (tmp_path / "out" / "a_overlay.jpg").is_file()
    assert not (tmp_path / "out" / "a.png").exists()
    assert run().kept == 1
    (tmp_path / "out" / "a_road.png").unlink()
    assert run().written == 1


def test_the_overlay_shows_small_labels_on_large_ones_and_says_the_share_of_each():
    labels = np.zeros((40, 50, 2), np.uint8)
    labels[:, :40, 1] = 1
    labels[10:20, 10:20, 0] = 1
    colors = np.array([(0, 200, 0), (0, 0, 200)], np.uint8)
    shown = visualize.overlay_of_labels(np.zeros((40, 50, 3), np.uint8), labels, colors, alpha=1.0)
    pixels = np.asarray(shown)
    assert pixels[15, 15].tolist() == [0, 200, 0]
    assert pixels[30, 30].tolist() == [0, 0, 200]
    assert pixels[30, 45].tolist() == [0, 0, 0]
    entries, _ = visualize._legend_entries(np.array([400, 100, 1600]), 3, ("none", "a", "b"), 2000)
    assert [share for _, _, share in entries] == ["80.0 %", "20.0 %", "5.0 %"]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_an_exported_model_gives_the_mask_of_each_label(tmp_path, model, layout):
    interface = Interface("pixels", "classes", layout, size=(64, 64), batch=1)
    export(model, tmp_path / "model.onnx", interface)
    pixels = picture(64, 64)
    axes = (2, 0, 1) if layout == "nchw" else (0, 1, 2)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (labels,) = session.run(None, {"images": pixels.transpose(axes)[None]})
    assert labels.dtype == np.uint8
    expected = predict(model, pixels).transpose(axes)
    assert (labels[0] == expected).mean() > 0.999  # batch norms are folded, as above


def test_a_checkpoint_is_ported_as_one_and_verified_by_its_labels(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    original = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=3)
    torch.save(original.state_dict(), tmp_path / "a.pth")
    checkpoint, out = str(tmp_path / "a.pth"), str(tmp_path / "out")
    monkeypatch.setattr(
        "sys.argv", ["deeplab-port", checkpoint, out, "--set", "activation=sigmoid"]
    )
    with pytest.raises(SystemExit) as end:
        port_main()
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "3 labels, any number of them for a pixel (sigmoid)" in said
    assert "Same labels on 100.0000 %" in said
    assert load(tmp_path / "out").config.multilabel


def test_label_maps_have_a_class_more_than_there_are_labels(tmp_path, model):
    check_classes(model.config, Dataset("set", ("ground", *NAMES), [], []))
    with pytest.raises(
        DataError,
        match=r"the first of which is what has none of its labels: it has 4 \(background, road, wet "
        r"ground, shadow\), set has 3",
    ):
        check_classes(model.config, Dataset("set", NAMES, [], []))
    with pytest.raises(DataError, match="its are road, wet ground, shadow; those of set, shadow, "):
        check_classes(model.config, Dataset("set", ("ground", *NAMES[::-1]), [], []))
    save(model, tmp_path / "model")
    for classes, activation in ((("ground", *NAMES), "sigmoid"), (NAMES, "softmax")):
        start = make_model(ModelConfig(init=tmp_path / "model"), classes, seed=0, data_shards=1)
        assert start.model.config.activation == activation
        assert start.model.config.class_names == NAMES
