"""Checkpoints, frozen graphs and archives of TensorFlow's.

The networks of Google's code are held against its recorded outputs in test_golden.py. Here a small DeepLab
is written in TensorFlow's own operations under the names that Google's has, saved in every form, and read.
"""

import contextlib
import io
import json
import sys
import tarfile

import numpy as np
import pytest
from references import quick_comparison

from deeplab_jax import load
from deeplab_jax.backbones import mobilenet_v2
from port import CheckpointError, load_torch, tensorflow_files
from port.__main__ import port
from port.convert import convert

CROP, CLASSES, WIDTH = (65, 81), 5, 0.35
AVERAGE = "ExponentialMovingAverage"


@pytest.fixture(scope="module", autouse=True)
def _quick_comparison():
    with quick_comparison():
        yield


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip(
        "tensorflow", reason="needs pip install 'deeplab-jax[tensorflow]'", exc_type=ImportError
    )


class Network:
    """A DeepLabv3 on MobileNetV2, as a graph of TensorFlow 1's that is being written."""

    def __init__(self, tf, output_stride):
        self.tf, self.v1 = tf, tf.compat.v1
        self.rng = np.random.default_rng(0)
        self.output_stride = output_stride
        picture = self.v1.placeholder(tf.uint8, (1, None, None, 3), name="ImageTensor")
        x = tf.cast(picture, tf.float32)
        below = [tf.maximum(CROP[i] - tf.shape(x)[i + 1], 0) for i in (0, 1)]
        padding = [[0, 0], [0, below[0]], [0, below[1]], [0, 0]]
        x = tf.pad(x - 127.5, padding) + 127.5
        x.set_shape((1, *CROP, 3))
        size = tf.shape(x)[1:3]
        x = self.head(self.backbone(x * (2 / 255) - 1))
        logits = self.v1.image.resize_bilinear(x, size, align_corners=True)
        self.v1.argmax(logits, 3, name="ArgMax")

    def variable(self, name, value):
        return self.v1.get_variable(
            name, initializer=np.asarray(value, np.float32), use_resource=False
        )

    def norm(self, x, scope, epsilon):
        channels, rng = x.shape[-1], self.rng
        gamma, var = (rng.uniform(0.5, 1.5, channels) for _ in range(2))
        beta, mean = (rng.normal(0, 0.3, channels) for _ in range(2))
        values = {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": var}
        inputs = [self.variable(f"{scope}/BatchNorm/{n}", v) for n, v in values.items()]
        y, *_ = self.v1.nn.fused_batch_norm(x, *inputs, epsilon=epsilon, is_training=False)
        return y

    def conv(self, x, scope, out, size=1, stride=1, epsilon=1e-3, act=True):
        kernel = self.rng.normal(
            0, (2 / (size**2 * x.shape[-1])) ** 0.5, (size, size, x.shape[-1], out)
        )
        y = self.tf.nn.conv2d(x, self.variable(f"{scope}/weights", kernel), stride, "SAME")
        y = self.norm(y, scope, epsilon)
        return self.tf.nn.relu6(y) if act else y

    def depthwise(self, x, scope, stride, rate):
        kernel = self.rng.normal(0, (2 / 9) ** 0.5, (3, 3, x.shape[-1], 1))
        kernel = self.variable(f"{scope}/depthwise_weights", kernel)
        options = {"strides": (1, stride, stride, 1), "padding": "SAME", "dilations": (rate, rate)}
        y = self.tf.nn.depthwise_conv2d(x, kernel, **options)
        return self.tf.nn.relu6(self.norm(y, scope, 1e-3))

    def backbone(self, x):
        x = self.conv(x, "MobilenetV2/Conv", mobilenet_v2.stem_channels(WIDTH), 3, 2)
        reached, rate = 2, 1
        for i, block in enumerate(mobilenet_v2.block_table(WIDTH)):
            scope = "MobilenetV2/expanded_conv" + (f"_{i}" if i else "")
            y = x if i == 0 else self.conv(x, f"{scope}/expand", block.expanded)
            lost = reached * block.stride > self.output_stride
            y = self.depthwise(y, f"{scope}/depthwise", 1 if lost else block.stride, rate)
            reached, rate = (
                (reached, rate * block.stride) if lost else (reached * block.stride, rate)
            )
            y = self.conv(y, f"{scope}/project", block.channels, act=False)
            x = x + y if block.stride == 1 and x.shape[-1] == block.channels else y
        return x

    def head(self, x):
        mean = self.tf.reduce_mean(x, (1, 2), keepdims=True)
        mean = self.tf.nn.relu(self.conv(mean, "image_pooling", 256, epsilon=1e-5, act=False))
        mean = self.v1.image.resize_bilinear(mean, self.tf.shape(x)[1:3], align_corners=True)
        y = self.tf.nn.relu(self.conv(x, "aspp0", 256, epsilon=1e-5, act=False))
        y = self.tf.concat([mean, y], 3)
        y = self.tf.nn.relu(self.conv(y, "concat_projection", 256, epsilon=1e-5, act=False))
        kernel = self.variable(
            "logits/semantic/weights", self.rng.normal(0, 0.1, (1, 1, 256, CLASSES))
        )
        bias = self.variable("logits/semantic/biases", self.rng.normal(0, 0.3, CLASSES))
        return self.tf.nn.bias_add(self.tf.nn.conv2d(y, kernel, 1, "SAME"), bias)


def save(tf, folder, *, output_stride=16, averages=False):
    """model.ckpt with a training's other variables, and frozen_inference_graph.pb, in a folder."""
    v1 = tf.compat.v1
    folder.mkdir(parents=True)
    with tf.Graph().as_default() as graph:
        Network(tf, output_stride)
        network = v1.global_variables()
        v1.get_variable("global_step", initializer=np.int64(7), use_resource=False)
        for variable in network:
            name, zeros = variable.op.name, np.zeros(variable.shape, np.float32)
            if name.endswith("weights"):
                v1.get_variable(f"{name}/Momentum", initializer=zeros, use_resource=False)
            if averages and name.endswith(("weights", "gamma")):
                average = v1.get_variable(
                    f"{name}/{AVERAGE}", initializer=zeros + 2, use_resource=False
                )
                assert average.op.name == f"{name}/{AVERAGE}"
        with v1.Session(graph=graph) as session:
            session.run(v1.global_variables_initializer())
            v1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
            constants = v1.graph_util.convert_variables_to_constants(
                session, graph.as_graph_def(), ["ArgMax"]
            )
    (folder / "frozen_inference_graph.pb").write_bytes(constants.SerializeToString())
    return folder


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "deeplab")
    return archive


@pytest.fixture(scope="module")
def saved(tf, tmp_path_factory):
    return save(tf, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def averaged(tf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "model"
    return save(tf, folder, output_stride=8, averages=True)


# ---- reading


def test_every_form_of_a_model_gives_the_same_tensors(saved, tmp_path):
    pack(saved, tmp_path / "model.tar.gz")
    alone = tmp_path / "renamed.pb"
    alone.write_bytes((saved / "frozen_inference_graph.pb").read_bytes())
    forms = [
        saved,
        tmp_path / "model.tar.gz",
        alone,
        saved / "model.ckpt",
        saved / "model.ckpt.index",
    ]
    expected, *others = (convert(form) for form in forms)
    assert expected.layout.name == "google"
    assert len(expected.tensors) == 5 * 54 + 2  # convolutions with a norm, and the classifier
    for other in others:
        assert other.tensors.keys() == expected.tensors.keys()
        for name, tensor in expected.tensors.items():
            assert np.array_equal(other.tensors[name], tensor), name


def test_what_training_saves_beside_the_weights_is_left_out_and_said(saved):
    dropped = convert(saved / "model.ckpt").dropped
    assert "counters: global_step" in dropped
    assert "55 variables of the optimiser: Momentum" in dropped


def test_options_are_read_from_a_graph_and_assumed_of_a_checkpoint(saved, averaged):
    for folder, stride in ((saved, 16), (averaged, 8)):
        told, untold = convert(folder), convert(folder / "model.ckpt")
        assert told.model.config.backbone.output_stride == stride
        assert told.assumed == ()
        assert untold.model.config.backbone.output_stride == 16
        assert untold.assumed == ("output_stride",)


def test_averages_of_the_weights_are_taken_when_asked_for(averaged):
    plain, average = (convert(averaged / "model.ckpt", ema=ema).tensors for ema in (False, True))
    assert plain.keys() == average.keys()
    assert not np.any(plain["aspp0.weight"] == 2)
    assert np.all(average["aspp0.weight"] == 2)
    # batch norm's statistics are averages already
    name = "aspp0.BatchNorm.running_var"
    assert np.array_equal(plain[name], average[name])


def test_the_latest_of_several_checkpoints_is_read(saved, tmp_path):
    for part in ("index", "data-00000-of-00001"):
        for name in ("model.ckpt", "model.ckpt-9"):
            (tmp_path / f"{name}.{part}").write_bytes((saved / f"model.ckpt.{part}").read_bytes())
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-9"\n')
    assert "model.ckpt: model.ckpt-9 is the latest" in convert(tmp_path).dropped
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"one checkpoint, got model\.ckpt-9, model\.ckpt\."):
        convert(tmp_path)


def test_a_checkpoint_without_its_data_says_so(saved, tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes((saved / "model.ckpt.index").read_bytes())
    with pytest.raises(CheckpointError, match="data-00000-of-00001"):
        convert(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda node: node.op == "FusedBatchNormV3" and setattr(node, "op", "FakeQuantWithMinMaxVars"),
         "quantised"),
        (lambda node: node.name.endswith("/moving_variance") and setattr(node, "name", f"{node.name}s"),
         "folded"),
    ],
    ids=["quantised", "folded"],
)  # fmt: skip
def test_a_graph_that_a_tool_has_changed_is_refused(tf, saved, tmp_path, change, message):
    data = (saved / "frozen_inference_graph.pb").read_bytes()
    graph = tf.compat.v1.GraphDef.FromString(data)
    for node in graph.node:
        change(node)
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "graph.pb")


def test_what_is_no_graph_is_refused(tf, tmp_path):
    (tmp_path / "graph.pb").write_bytes(b"\xff" * 99)
    with pytest.raises(CheckpointError, match="no frozen graph"):
        convert(tmp_path / "graph.pb")


# ---- the command


def test_a_model_is_verified_against_its_frozen_graph(saved, tmp_path, capsys):
    archive = pack(saved, tmp_path / "model.tar.gz")
    report = tmp_path / "report.json"
    assert port(str(archive), tmp_path / "out", report=report) == 0
    printed = capsys.readouterr().out
    assert "TensorFlow's" in printed
    assert "Assumed" not in printed
    result = json.loads(report.read_text())
    assert result["ok"]
    assert len(result["layers"]) == 54 + 2  # batch norms, the classifier and the logits
    model = load(tmp_path / "out")
    assert model.config.preprocessing.mean == (0.5, 0.5, 0.5)


def test_pictures_of_any_size_are_made_to_fit_the_graph(saved, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in {"small": (40, 33), "exact": (81, 65), "large": (200, 100)}.items():
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(
            folder / f"{name}.png"
        )
    assert port(str(saved), tmp_path / "out", images=folder) == 0


def test_a_graph_that_computes_something_else_is_found(tf, saved, tmp_path, capsys):
    for part in ("index", "data-00000-of-00001"):
        (tmp_path / f"model.ckpt.{part}").write_bytes((saved / f"model.ckpt.{part}").read_bytes())
    data = (saved / "frozen_inference_graph.pb").read_bytes()
    graph = tf.compat.v1.GraphDef.FromString(data)
    (bias,) = [node for node in graph.node if node.name == "concat_projection/BatchNorm/beta"]
    value = tf.make_ndarray(bias.attr["value"].tensor)
    bias.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value + 0.01))
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    assert port(str(tmp_path), tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "The first layer that differs is head.aspp.project.bn" in printed
    assert not (tmp_path / "out").exists()


def test_a_graph_that_does_more_than_compute_is_read_and_not_run(tf, saved, tmp_path, capsys):
    graph = tf.compat.v1.GraphDef.FromString((saved / "frozen_inference_graph.pb").read_bytes())
    written = tmp_path / "written"
    for name, text in (("name", str(written)), ("text", "hello")):
        node = graph.node.add(op="Const", name=name)
        node.attr["dtype"].type = tf.string.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))
    graph.node.add(op="WriteFile", name="write", input=["name", "text"])
    (labels,) = [node for node in graph.node if node.name == "ArgMax"]
    (logits,) = [node for node in graph.node if node.name == labels.input[0].partition(":")[0]]
    logits.input.append("^write")
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    port(str(tmp_path / "graph.pb"), tmp_path / "out")
    printed = " ".join(capsys.readouterr().out.split())
    assert "The frozen graph is not run: it has operations that are not run here" in printed
    assert "WriteFile" in printed
    assert "Not verified" in printed
    assert not written.exists()


def test_another_output_stride_is_verified_at_that_of_the_graph(saved, tmp_path, capsys):
    assert port(str(saved), tmp_path / "out", output_stride=8) == 0
    assert "Verified with output_stride 16, as the frozen graph has" in capsys.readouterr().out
    assert load(tmp_path / "out").config.backbone.output_stride == 8


def test_a_checkpoint_alone_is_not_called_verified(saved, tmp_path, capsys):
    assert port(str(saved / "model.ckpt"), tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "Not verified" in printed
    assert "frozen_inference_graph.pb" in printed


# ---- without tensorflow


@pytest.mark.parametrize("name", ["graph.pb", "model.ckpt", "model.ckpt.index"])
def test_without_tensorflow_one_sentence_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "graph.pb").write_bytes(b"\n\x05\n\x03abc")
    (tmp_path / "model.ckpt.index").write_bytes(bytes(9))
    with pytest.raises(CheckpointError, match=r"pip install 'deeplab-jax\[tensorflow\]'"):
        load_torch(tmp_path / name)


def archive_of(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_nothing_of_an_archive_leaves_the_folder_and_only_models_are_unpacked(tmp_path):
    members = {"../../model.ckpt.index": b"i", "/x/frozen.pb": b"g", "run.sh": b"", "link.pb": None}
    archive = archive_of(tmp_path / "model.tar.gz", members)
    with contextlib.ExitStack() as stack:
        folder = tensorflow_files._unpacked(archive, stack)
        assert sorted(file.name for file in folder.iterdir()) == ["frozen.pb", "model.ckpt.index"]
    assert not folder.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["model.tar.gz"]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorflow_files, "MOST_UNPACKED", 99)
    archive = archive_of(
        tmp_path / "model.tar.gz", {"other": bytes(60), "model.ckpt.index": bytes(60)}
    )
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        load_torch(archive)


def test_an_archive_of_two_models_is_refused(tmp_path):
    archive = archive_of(
        tmp_path / "model.tar.gz", {"a/model.ckpt.index": b"", "b/model.ckpt.index": b""}
    )
    with pytest.raises(CheckpointError, match=r"two files called model\.ckpt\.index"):
        load_torch(archive)


def test_an_archive_that_is_cut_is_refused(tmp_path):
    whole = archive_of(
        tmp_path / "whole.tar.gz", {"model.ckpt.index": np.random.default_rng(0).bytes(9999)}
    )
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut or damaged"):
        load_torch(tmp_path / "cut.tar.gz")


def test_an_archive_without_tensorflows_files_is_named_for_what_it_is(tmp_path):
    archive = archive_of(tmp_path / "model.tar.gz", {"weights.pth": b"abc"})
    with pytest.raises(CheckpointError, match="it is packed"):
        load_torch(archive)


def test_a_saved_model_is_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    with pytest.raises(CheckpointError, match="SavedModel"):
        load_torch(tmp_path / "saved_model.pb")


@pytest.mark.parametrize("lacking", ["concat_projection", "aspp0"])
def test_a_head_of_googles_that_we_have_not_is_refused_by_what_it_is(lacking):
    names = {"aspp0", "concat_projection", "image_pooling", "logits.semantic"} - {lacking}
    tensors = {f"{name}.weight": np.zeros((5, 5, 1, 1), np.float32) for name in names}
    tensors["MobilenetV3.Conv.weight"] = np.zeros((16, 3, 3, 3), np.float32)
    with pytest.raises(CheckpointError, match="MobileNetV3's, dense prediction cells"):
        load_torch(tensors)
