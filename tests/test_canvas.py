"""Images of many sizes on canvases of one: what a model says of each is what it says of it alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from PIL import Image

from deeplab_jax import canvas, create, ops, predict
from deeplab_jax.canvases import choose_canvases, shared_canvases
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.folder import predict_folder
from deeplab_jax.model import named_values
from deeplab_jax.predict import canvas_evaluator, evaluator, program_of_any_size
from deeplab_jax.preprocessing import pad_to_multiple
from deeplab_jax.runner import Runner
from deeplab_jax.summary import summarize

SIZES = [(64, 96), (91, 65), (80, 80)]
WHOLE = (96, 100)
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(3, *WHOLE, 3)).astype(np.float32)
QUICK = {"xla_backend_optimization_level": 0}

# Every kind of operation that reads beyond a pixel, and of size that one layer has of another.
FUNCTIONS = {
    "zeros around": lambda k, x: ops.conv(x, k, padding=1),
    "no zeros": lambda k, x: ops.conv(x, k, stride=2),
    "TensorFlow's zeros": lambda k, x: ops.conv(x, k, stride=2, padding="same"),
    "more zeros before it than before the canvas": lambda k, x: lax.pad(
        x, 0.0, ((0, 0, 0), (x.shape[1] % 4, 1, 0), (x.shape[2] % 5, 0, 0), (0, 0, 0))
    ),
    "atrous": lambda k, x: ops.conv(x, k, dilation=5, padding=5),
    "strided in turn": lambda k, x: ops.conv(
        ops.conv(x, k, stride=2, padding=1), k, stride=2, padding=1
    ),
    "max pooling": lambda k, x: ops.max_pool(x),
    "mean of windows": lambda k, x: ops.average_pool(
        x, 3, stride=2, padding=1, count_padding=False
    ),
    "mean": lambda k, x: jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape),
    "largest": lambda k, x: jnp.broadcast_to(x.max((1, 2), keepdims=True), x.shape),
    "resize": lambda k, x: ops.resize_bilinear(ops.conv(x, k, stride=2), x.shape[1:3]),
    "corners": lambda k, x: ops.resize_bilinear(
        ops.conv(x, k, stride=2), x.shape[1:3], align_corners=True
    ),
    "attention": lambda k, x: attention(x),
    "every second": lambda k, x: lax.slice_in_dim(x, 1, x.shape[2] - 3, 2, axis=2),
    "rows apart": lambda k, x: ops.resize_nearest(x, 2),
    "padding to a multiple": lambda k, x: ops.conv(
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % 32), (0, -x.shape[2] % 32), (0, 0))), k, padding=1
    ),
}


def attention(x):
    tokens = x.reshape(x.shape[0], -1, x.shape[3])
    weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", tokens, tokens))
    return jnp.einsum("bqk,bkc->bqc", weights, tokens).reshape(x.shape)


def on_canvas(image, beyond=7.0):
    whole = np.full((1, *WHOLE, image.shape[-1]), beyond, np.float32)
    whole[0, : image.shape[0], : image.shape[1]] = image
    return whole


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_sees_the_image_alone(name):
    function = FUNCTIONS[name]
    kernel = RNG.normal(size=(3, 3, 3, 3)).astype(np.float32)
    program = canvas.trace(lambda weights, x: function(weights["k"], x), {"k": kernel}, 3)
    run, alone = jax.jit(program), jax.jit(function)
    for height, width in SIZES:
        image = NOISE[0, :height, :width]
        want = np.asarray(alone(kernel, image[None]))
        sizes = np.array(program.sizes_of(height, width), np.int32)
        # Not a number beyond the image would be seen wherever it got in, also times zero.
        got = np.asarray(run({"k": kernel}, on_canvas(image, np.nan), sizes))
        got = got[:, : want.shape[1], : want.shape[2]]
        # Sums of up to 9000 numbers in another order, and positions rounded another way: 2e-6.
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x[:, ::-1], "rev along rows or columns"),
        (lambda x: jnp.concatenate([x, x], axis=1), "concatenate along rows or columns"),
        (lambda x: x.swapaxes(2, 3).reshape(1, x.shape[1], -1), "a reshape from"),
        (lambda x: lax.slice_in_dim(x, x.shape[1] - 1, x.shape[1], axis=1), "a slice from"),
        (lambda x: x if x.shape[1] > 100 else 2 * x, "depends on the size"),
        (lambda x: x[:, : math.ceil(x.shape[1] / 2)], "depends on the size"),
        (lambda x: jnp.sort(x, axis=1), "no rule does JAX's sort"),
    ],
)
def test_what_cannot_be_done_on_a_canvas_is_refused(function, words):
    with pytest.raises(canvas.NeedsItsSize, match=words):
        canvas.trace(lambda weights, x: function(x), {}, 3)


# Zeros as in TensorFlow, pooling of the whole image, attention with fewer keys, patches.
@pytest.mark.parametrize(
    "preset",
    [
        "deeplabv3plus_mobilenet_v2",
        "lraspp_mobilenet_v3_small",
        "fcn_mit_b0",
        "fcn_mobilevit_xxs",
    ],
)
def test_models_give_the_logits_of_the_image_alone(preset):
    model = fold_batch_norm(create(preset, num_classes=3, rngs=nnx.Rngs(0)))
    multiple, weights = model.config.preprocessing.size_multiple, named_values(model)
    program = program_of_any_size(model)
    height, width = 75, 91
    image = NOISE[0, :height, :width]
    alone = jax.jit(lambda x: model(pad_to_multiple(x, multiple)), compiler_options=QUICK)
    want = np.asarray(alone(image[None]))[:, :height, :width]
    run = jax.jit(program, compiler_options=QUICK)
    got = np.asarray(run(weights, on_canvas(image), np.array(program.sizes_of(height, width))))
    # Rounding alone: 1e-6 to 4e-6 of 11 families.
    assert np.abs(got[:, :height, :width] - want).max() <= 2e-5 * np.abs(want).max()


@pytest.fixture(scope="module")
def model():
    return fold_batch_norm(create("deeplabv3_resnet18", num_classes=4, rngs=nnx.Rngs(1)))


def test_views_of_images_on_one_canvas(model):
    sizes = np.array([(97, 128), (128, 103)])
    images = RNG.integers(0, 256, (2, 128, 128, 3), np.uint8)
    program = program_of_any_size(model)
    made = canvas_evaluator(program, model, (1.0, 0.75), True, top="all")(images, sizes)
    alone = evaluator(model, (1.0, 0.75), True, top="all")
    for row, (height, width) in enumerate(sizes):
        want = alone(images[row : row + 1, :height, :width])
        probabilities = made.probabilities[row, :height, :width]
        # float16, of which a step below 1 is 5e-4.
        np.testing.assert_allclose(probabilities, want.probabilities[0], atol=1e-3)
        assert (made.ids[row, :height, :width] == want.ids[0]).mean() > 0.999


def test_a_folder_of_many_sizes_shares_a_program(model, tmp_path, monkeypatch):
    sizes = [(64, 70), (75, 66), (80, 72), (66, 81), (60, 90)]
    for number, (height, width) in enumerate(sizes):
        pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    ran = []
    call = Runner.__call__

    def counting(self, group, pictures):
        ran.append((group.size, len(group.sizes), len(pictures)))
        return call(self, group, pictures)

    monkeypatch.setattr(Runner, "__call__", counting)
    assert predict_folder(model, paths, tmp_path / "out", overlay=False).written == 5
    # The last is smaller than what a program of any size takes.
    assert ran == [((80, 81), 4, 4), ((60, 90), 0, 1)]
    for path in paths[:2]:
        ids = np.asarray(Image.open(tmp_path / "out" / path.name))
        assert (ids == predict(model, path)).mean() > 0.999


def test_pictures_that_are_cut_share_no_canvas(model):
    options = {"scales": (1.0,), "flip": False, "top": None, "batch_size": None}
    runner = Runner(model, tile=100, devices=jax.devices()[:1], **options)
    same_size = {size: ["path"] for size in [(64, 70), (80, 66), (100, 100), (70, 101)]}
    groups = runner.groups(same_size)
    assert [group.sizes for group in groups] == [{(64, 70), (80, 66), (100, 100)}, set()]


def test_the_work_of_a_program_is_that_of_the_summary(model):
    program = program_of_any_size(model)
    rows = summarize(model, (512, 512))
    # Convolutions of the image-level pooling are of one pixel, and there is some rounding.
    assert program.work() == pytest.approx(sum(r.multiply_adds for r in rows) / 512**2, rel=0.01)


def test_the_more_a_pixel_takes_the_more_canvases_are_worth_compiling(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    sizes = [(200 + i % 440, 200 + 7 * i % 440) for i in range(0, 4400, 44)]
    counts = [len(shared_canvases(sizes, lambda _: True, work=w)) for w in (1e3, 1e5, 5e5)]
    assert counts[0] == 1 < counts[1] < counts[2]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(64, 900), st.integers(64, 900)), min_size=1, max_size=30),
    st.sampled_from([0, 1e5, 1e7, 1e12]),
)
def test_canvases_hold_the_images_and_are_few_where_compiling_is_slow(sizes, compiling):
    canvases = choose_canvases(sizes, compiling)
    assert set(canvases) == set(sizes)
    assert all(c[0] >= s[0] and c[1] >= s[1] for s, c in canvases.items())
    if compiling == 0:
        assert all(size == canvas for size, canvas in canvases.items())
    if compiling == 1e12:
        assert set(canvases.values()) == {tuple(np.max(sizes, axis=0).tolist())}


def test_a_thousand_sizes_are_chosen_among_quickly():
    sizes = [(100 + i, 2000 - i) for i in range(1000)]
    canvases = choose_canvases(sizes, 1e7)
    assert len(set(canvases.values())) < 200
