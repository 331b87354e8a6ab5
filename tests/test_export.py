"""Exported files compute what the model does, in processes that know nothing of it."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

from deeplab_jax import Preprocessing, create, load, predict, reset_classifier, save
from deeplab_jax import export as package
from deeplab_jax.__main__ import main
from deeplab_jax.config import from_dict
from deeplab_jax.export import ExportError, Interface, export
from deeplab_jax.export.onnx_file import to_onnx
from deeplab_jax.export.program import for_inference, function_of
from deeplab_jax.layers import BatchNorm
from deeplab_jax.model import named_values

# Every kind of operation: each way of pooling, SAME padding, attention, grouped convolutions.
BACKBONES = [
    "deeplabv3plus_mobilenet_v2",
    "deeplabv3_resnet18",
    "fcn_resnest14d",
    "fcn_se_resnet50",
    "fcn_ecaresnet50d",
    "fcn_res2net50_26w_4s",
    "fcn_regnety_002",
    "lraspp_mobilenet_v3_small",
    "fcn_efficientnet_b0",
    "fcn_convnext_tiny",
    "fcn_mit_b0",
    "fcn_mobilevit_xxs",
    pytest.param("fcn_hrnetv2_w18", marks=pytest.mark.long),
    "fcn_mobileone_s0",
    "fcn_dpn68",
]


def model_of(preset, **fields):
    """With statistics as after training: fresh ones, of 0 and 1, would prove nothing of folding."""
    model = create(preset, num_classes=3, rngs=nnx.Rngs(0), **fields)
    rng = np.random.default_rng(0)
    for _, part in nnx.iter_modules(model):
        if isinstance(part, BatchNorm):
            for variable in (part.bias, part.mean):
                variable[...] = jnp.asarray(rng.normal(0, 0.1, variable.shape), jnp.float32)
    return model


def run_onnx(model, interface, images):
    graph = to_onnx(for_inference(model), interface)
    onnx.checker.check_model(graph, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [session.run(None, {"images": x})[0] for x in images]


def ours(model, interface, images):
    folded = for_inference(model)
    run = jax.jit(
        function_of(folded, interface), compiler_options={"xla_backend_optimization_level": 0}
    )
    return [np.asarray(run(named_values(folded), x)) for x in images]


@pytest.mark.parametrize("preset", BACKBONES)
def test_onnx_gives_the_logits_at_any_size(preset):
    model, interface = model_of(preset), Interface(layout="nchw")
    images = list(interface.examples(model))
    # One size is enough of ours, which is compiled for each; runtimes are quick.
    (want,) = ours(model, interface, images[:1])
    got = run_onnx(model, interface, images)
    np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert [y.shape for y in got] == [(x.shape[0], 3, *x.shape[2:]) for x in images]


def test_nothing_is_transposed_in_a_network_of_convolutions_and_biases_are_theirs():
    model = for_inference(model_of("deeplabv3plus_resnet18"))
    graph = to_onnx(model, Interface(layout="nchw")).graph
    kinds = [node.op_type for node in graph.node]
    assert (
        kinds.count("Conv") == 31
    )  # ResNet's 20, ASPP's 7 (its last in two parts), the decoder's 4
    assert kinds.count("Transpose") == 1  # of the pooled features, which are one pixel
    assert kinds.count("Relu") == 17 + 6 + 3
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 4}
    added = [n for n in graph.node if n.op_type == "Add" and weights.intersection(n.input)]
    assert len(added) == 1  # to the sum of ASPP's last convolution's two parts


def test_relu6_is_one_clip():
    graph = to_onnx(for_inference(model_of("fcn_mobilenet_v2")), Interface(layout="nchw")).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Clip") == 1 + 2 * 17 - 1  # the stem, and two of each block but the first
    assert "Min" not in kinds


def test_a_fixed_size_leaves_no_arithmetic_of_sizes():
    interface = Interface(layout="nchw", size=(97, 129), batch=2)
    graph = to_onnx(for_inference(model_of("deeplabv3plus_resnet18")), interface).graph
    assert not {"Shape", "Gather", "Cast"} & {node.op_type for node in graph.node}
    sizes = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    assert sizes == [2, 3, 97, 129]


def test_sizes_have_names():
    graph = to_onnx(for_inference(model_of("fcn_resnet18")), Interface(layout="nchw")).graph
    for value, channels in ((graph.input[0], 3), (graph.output[0], 3)):
        sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert sizes == ["batch", channels, "height", "width"]


@pytest.mark.parametrize("align_corners", [False, True])
def test_both_corner_rules(align_corners):
    model = model_of("fcn_resnet18", align_corners=align_corners)
    interface = Interface()
    images = list(interface.examples(model))[2:3]
    (want,) = ours(model, interface, images)
    (got,) = run_onnx(model, interface, images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("to", "classes"), [("onnx", 1), ("onnx", 3), ("stablehlo", 3)])
def test_pixels_in_and_classes_out_as_predict_has_them(tmp_path, to, classes):
    preprocessing = Preprocessing(size_multiple=16, channel_order="bgr")
    model = model_of("fcn_resnet18", preprocessing=preprocessing)
    if classes == 1:
        model = reset_classifier(model, 1, rngs=nnx.Rngs(1))
    path = tmp_path / f"model.{to}"
    exported = export(model, path, Interface("pixels", "classes"))
    assert exported.error < 1e-5
    module = package._format(None, path)
    pixels = np.random.default_rng(2).integers(0, 256, (1, 75, 90, 3), np.uint8)
    got, want = module.runner(path)(pixels), predict(model, pixels)
    assert (got.dtype, got.shape) == (np.uint8, (1, 75, 90))
    assert (got == want).mean() > 0.999  # ties may fall the other way


def test_stablehlo_runs_without_this_package(tmp_path):
    model, path = model_of("fcn_resnet18"), tmp_path / "model.stablehlo"
    exported = export(model, path)
    assert exported.error < 1e-5
    images = np.random.default_rng(2).standard_normal((2, 70, 81, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys
import numpy as np
images = np.load({str(tmp_path / "images.npy")!r})
{exported.usage}
assert not any(name.startswith("deeplab_jax") for name in sys.modules)
np.save({str(tmp_path / "output.npy")!r}, output)
assert program.platforms == ("cpu", "cuda", "tpu")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    (want,) = ours(model, Interface(), [images])
    got = np.load(tmp_path / "output.npy")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_half_precision_halves_the_file(tmp_path):
    model = model_of("deeplabv3plus_resnet18")
    whole, half = (
        export(
            model,
            tmp_path / "new" / f"{dtype}.onnx",
            Interface(size=(64, 64), batch=1),
            dtype=dtype,
        )
        for dtype in ("float32", "float16")
    )
    assert half.path.stat().st_size < 0.51 * whole.path.stat().st_size
    assert whole.error < 1e-5 < half.error


def test_another_program_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    model, path = model_of("fcn_resnet18"), tmp_path / "model.onnx"
    path.write_bytes(b"of before")
    from deeplab_jax.export import onnx_rules

    # The other corner rule: 0.4 of the largest logit, in corners.
    monkeypatch.setitem(
        onnx_rules.FUNCTIONS, "resize_half_pixel", onnx_rules.FUNCTIONS["resize_align_corners"]
    )
    with pytest.raises(ExportError, match="computes something else: on images"):
        export(model, path, overwrite=True)
    assert path.read_bytes() == b"of before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("when", ["loaded", "run"])
def test_what_the_runtime_refuses_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, when):
    class Session:
        def __init__(self, *_, **__):
            if when == "loaded":
                self.run()

        def run(self, *_):
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no such pool\nof C++")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(ExportError, match=r"cannot be run: .* no such pool\. Nothing was written"):
        export(model_of("fcn_resnet18"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_amplifies_rounding_is_compared_by_that(tmp_path, monkeypatch):
    model = model_of("fcn_resnet18")
    monkeypatch.setattr(package, "TOLERANCE", {"float32": 0.0})
    exported = export(model, tmp_path / "model.onnx", Interface(size=(64, 64), batch=1))
    assert 0 < exported.error < 1e-5
    monkeypatch.setattr(package, "_LOST", 0.0)
    with pytest.raises(ExportError, match="cannot be compared"):
        export(model, tmp_path / "other.onnx", Interface(size=(64, 64), batch=1))
    assert not (tmp_path / "other.onnx").exists()


def test_what_is_there_is_not_replaced(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"of before")
    with pytest.raises(ExportError, match="exists"):
        export(model_of("fcn_resnet18"), path)
    assert path.read_bytes() == b"of before"


def test_an_unknown_format_lists_those_that_there_are(tmp_path):
    with pytest.raises(ExportError, match=r"unknown export format 'engine'.*onnx, stablehlo"):
        export(model_of("fcn_resnet18"), tmp_path / "model.engine")


def test_an_operation_without_a_rule_is_named(monkeypatch):
    from deeplab_jax.export import onnx_rules

    monkeypatch.delitem(onnx_rules.RULES, "concatenate")
    with pytest.raises(ExportError, match="no rule translates JAX's concatenate"):
        to_onnx(for_inference(model_of("deeplabv3_resnet18")), Interface())


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        Interface(size=(0, 64))


def test_the_command_prints_what_it_compared_and_how_to_run_it(tmp_path, monkeypatch, capsys):
    save(model_of("fcn_resnet18"), tmp_path / "model")
    out = tmp_path / "model.onnx"
    words = ["deeplab", "export", str(tmp_path / "model"), str(out), "--size", "64", "96"]
    monkeypatch.setattr(sys, "argv", [*words, "--batch", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "compared with the model on 1 x 3 x 64 x 96" in said
    assert (
        "# images: float32 [1, 3, 64, 96], RGB, (pixels / 255 - mean) / std, of mean 0.485" in said
    )
    assert f'onnxruntime.InferenceSession("{out}")' in said
    (kept,) = (p.value for p in onnx.load(out).metadata_props if p.key == "deeplab_jax")
    assert from_dict(json.loads(kept)) == load(tmp_path / "model").config
