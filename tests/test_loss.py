"""Losses against PyTorch's and against numpy written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_models_pytorch.losses as smp
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train import loss
from train.loss import LossConfig, dice_loss, lovasz_loss, segmentation_loss

CLASSES = 5
WEIGHTS = np.array([0.5, 2, 1, 0, 3], np.float32)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(2, 9, 7, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, 9, 7)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    return logits, labels


def loss_and_gradient(logits, labels, config, weights=None, *, single=False):
    def loss(logits):
        return segmentation_loss(logits, labels, config, weights, single=single)

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert value.dtype == gradient.dtype == jnp.float32
    return float(value), np.asarray(gradient)


def torch_loss_and_gradient(function, logits):
    x = torch.tensor(logits, dtype=torch.float64).requires_grad_()
    value = function(x)
    value.backward()
    return value.item(), x.grad.numpy()


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_cross_entropy_is_pytorch_s_in_value_and_gradient(batch, smoothing, weights):
    logits, labels = batch

    def reference(x):
        return torch.nn.functional.cross_entropy(
            x.permute(0, 3, 1, 2),
            torch.tensor(labels.astype(np.int64)),
            weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
            ignore_index=255,
            label_smoothing=smoothing,
        )

    value, gradient = torch_loss_and_gradient(reference, logits)
    config = LossConfig(label_smoothing=smoothing)
    ours, our_gradient = loss_and_gradient(
        logits, labels, config, None if weights is None else jnp.asarray(weights)
    )
    assert ours == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(our_gradient, gradient, atol=1e-8, rtol=1e-5)


def probability_of_label(x, labels):
    """Of the pixels that count `[N]`, from float64 logits."""
    kept = torch.tensor(labels != 255)
    index = torch.tensor(labels[labels != 255].astype(np.int64))[:, None]
    return x[kept].softmax(-1).gather(1, index)[:, 0]


@pytest.mark.parametrize("gamma", [0.5, 2])
def test_focal_loss_counts_pixels_by_what_they_miss(batch, gamma):
    logits, labels = batch

    def reference(x):
        p = probability_of_label(x, labels)
        return ((1 - p) ** gamma * -p.log()).mean()

    value, gradient = torch_loss_and_gradient(reference, logits)
    ours, our_gradient = loss_and_gradient(logits, labels, LossConfig(focal_gamma=gamma))
    assert ours == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(our_gradient, gradient, atol=1e-7, rtol=1e-4)


def test_a_focal_loss_has_a_gradient_where_the_model_is_sure():
    logits = np.array([[[[200, 0], [0, 200]]]], np.float32)
    _, gradient = loss_and_gradient(
        logits, np.zeros((1, 1, 2), np.uint8), LossConfig(focal_gamma=0.5)
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("threshold", "fraction"),
    [(0.5, 0.01), (1e-6, 0.25), (0.3, 0.5), (0.9, 1)],
    ids=["threshold decides", "fraction decides", "the larger set", "all"],
)
def test_hard_examples_are_those_below_the_threshold_and_at_least_a_fraction(
    batch, threshold, fraction
):
    logits, labels = batch

    def reference(x):
        p = probability_of_label(x, labels).sort()[0]
        hard = max((p < threshold).sum().item(), int(np.ceil(fraction * len(p))))
        return -p[:hard].log().mean()

    value, gradient = torch_loss_and_gradient(reference, logits)
    config = LossConfig(hard_threshold=threshold, hard_fraction=fraction)
    ours, our_gradient = loss_and_gradient(logits, labels, config)
    assert ours == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(our_gradient, gradient, atol=1e-8, rtol=1e-5)


def test_dice_is_the_mean_over_labelled_classes(batch):
    logits, labels = batch[0], np.where(batch[1] == 3, 255, batch[1])
    kept = labels != 255
    p = torch.tensor(logits[kept], dtype=torch.float64).softmax(-1).numpy()
    one_hot = labels[kept][:, None] == np.arange(CLASSES)
    dice = [
        2 * (p[:, c] * one_hot[:, c]).sum() / (p[:, c].sum() + one_hot[:, c].sum())
        for c in (0, 1, 2, 4)
    ]
    assert float(dice_loss(logits, labels)) == pytest.approx(1 - np.mean(dice), rel=1e-6)


def lovasz_by_the_book(p, labels):
    """Algorithm 1 of the paper for each class that is there: p [N, C] and labels [N], float64."""
    losses = []
    for c in np.unique(labels):
        foreground = labels == c
        errors = np.where(foreground, 1 - p[:, c], p[:, c])
        order = np.argsort(-errors)
        loss, previous = 0.0, 0.0
        for n, i in enumerate(order):
            wrong = np.zeros(len(labels), bool)
            wrong[order[: n + 1]] = True
            predicted = foreground ^ wrong
            jaccard = 1 - (foreground & predicted).sum() / (foreground | predicted).sum()
            loss += errors[i] * (jaccard - previous)
            previous = jaccard
        losses.append(loss)
    return np.mean(losses)


@pytest.fixture
def finely_counted(monkeypatch):
    """On CPU errors are counted in steps, of which none here has two then."""
    monkeypatch.setattr(loss, "_STEPS", 2**20)


@pytest.mark.usefixtures("finely_counted")
def test_lovasz_is_the_paper_s_in_value_and_gradient(batch):
    logits, labels = batch[0], np.where(batch[1] == 3, 255, batch[1])
    kept = labels != 255

    def by_the_book(logits):
        e = np.exp(logits[kept] - logits[kept].max(-1, keepdims=True))
        return lovasz_by_the_book(e / e.sum(-1, keepdims=True), labels[kept])

    ours, gradient = loss_and_gradient(logits, labels, LossConfig(cross_entropy=0, lovasz=1))
    logits = logits.astype(np.float64)
    assert ours == pytest.approx(by_the_book(logits), rel=1e-6)
    assert (gradient[~kept] == 0).all()
    rng = np.random.default_rng(1)
    direction = rng.normal(size=logits.shape)
    slope = (by_the_book(logits + 1e-7 * direction) - by_the_book(logits - 1e-7 * direction)) / 2e-7
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-4)


def test_lovasz_of_hard_decisions_is_one_minus_the_iou():
    labels = np.array([[[0, 0, 0, 1, 1, 2]]], np.uint8)
    decided = np.array([[[0, 1, 0, 1, 1, 2]]])
    logits = 1e3 * np.eye(3, dtype=np.float32)[decided]
    iou = np.mean([2 / 3, 2 / 3, 1])
    assert float(lovasz_loss(logits, labels)) == pytest.approx(1 - iou, abs=1e-6)


def test_lovasz_by_counting_is_near_that_by_sorting():
    rng = np.random.default_rng(0)
    foreground = rng.random((20_000, 3)) < (0.5, 0.1, 0.001)
    errors = rng.beta(0.5, 2, foreground.shape).astype(np.float32)
    counted, sorted_ = (
        np.asarray(jax.jit(form, static_argnums=2)(errors, foreground, ()))
        for form in (loss._slopes_by_counting, loss._slopes_by_sorting)
    )
    # All wrong, in any order, is an IoU of 0; float32 adds 20 000 slopes.
    np.testing.assert_allclose(counted.sum(0), 1, rtol=1e-4)
    np.testing.assert_allclose((errors * counted).sum(0), (errors * sorted_).sum(0), rtol=1e-4)
    # 5e-4 where each step has a few pixels of the class, 6e-3 of twenty, whose slopes are large.
    off = np.linalg.norm(counted - sorted_, axis=0) / np.linalg.norm(sorted_, axis=0)
    assert (off < 0.01).all()


EVERYTHING = LossConfig(
    label_smoothing=0.1, focal_gamma=2, hard_threshold=0.7, dice=0.5, lovasz=0.25
)


def test_terms_add_up_by_their_weights(batch):
    logits, labels = batch
    parts = [
        loss_and_gradient(logits, labels, LossConfig(cross_entropy=0, **{name: 1}))
        for name in ("dice", "lovasz")
    ]
    plain = loss_and_gradient(logits, labels, LossConfig())
    value, gradient = loss_and_gradient(
        logits, labels, LossConfig(cross_entropy=2, dice=0.5, lovasz=0.25)
    )
    assert value == pytest.approx(2 * plain[0] + 0.5 * parts[0][0] + 0.25 * parts[1][0], rel=1e-6)
    expected = 2 * plain[1] + 0.5 * parts[0][1] + 0.25 * parts[1][1]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_where_all_pixels_are_ignored_the_loss_and_its_gradient_are_zero(batch):
    logits, labels = batch
    value, gradient = loss_and_gradient(
        logits, np.full_like(labels, 255), EVERYTHING, jnp.asarray(WEIGHTS)
    )
    assert value == 0
    assert (gradient == 0).all()


def test_ignored_pixels_change_neither_loss_nor_gradient(batch):
    logits, labels = batch
    value, gradient = loss_and_gradient(logits, labels, EVERYTHING)
    ignored = labels == 255
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any(-1).mean() > 0.5
    other = np.where(ignored[..., None], 7 * logits[::-1], logits)
    assert loss_and_gradient(other, labels, EVERYTHING)[0] == pytest.approx(value, rel=1e-6)


def test_a_batch_on_four_devices_has_the_loss_of_one(batch):
    logits, labels = (np.concatenate([x, x[:, ::-1]]) for x in batch)
    value, gradient = loss_and_gradient(logits, labels, EVERYTHING)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    put = NamedSharding(mesh, P("data"))
    ours, our_gradient = loss_and_gradient(
        jax.device_put(logits, put), jax.device_put(labels, put), EVERYTHING
    )
    assert ours == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(our_gradient, gradient, atol=1e-7)


def test_bfloat16_logits_are_summed_in_float32(batch):
    logits, labels = jnp.asarray(batch[0], jnp.bfloat16), batch[1]
    value = segmentation_loss(logits, labels, LossConfig())
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(
        float(segmentation_loss(logits.astype(jnp.float32), labels, LossConfig()))
    )


def test_what_is_wrong_in_a_config_is_listed_together():
    with pytest.raises(ValueError, match=r"(?s)one of .* above 0.*label_smoothing.*hard_fraction"):
        LossConfig(cross_entropy=0, label_smoothing=1, hard_fraction=0)


# ---------------------------------------------------------------------------- sigmoids


def of_each_label(labels, count):
    """The target that smp takes `[B, labels, H, W]`: class 0 has no label, 255 is ignored."""
    there = labels[:, None] == np.arange(1, count + 1)[:, None, None]
    return torch.tensor(np.where(labels[:, None] == 255, 255, there).astype(np.float64))


POSITIVE = np.array([0.5, 3, 2], np.float32)
COUNTED = {"ignore_index": 255}


def bce(_, x, y, **options):
    """smp's sum by the number of pixels that count: its own mean counts those that are ignored too."""
    return smp.SoftBCEWithLogitsLoss(reduction="sum", **options, **COUNTED)(x, y) / (y < 255).sum()


def weighted_bce(mode, x, y):
    weights = torch.tensor(POSITIVE[: x.shape[1], None, None], dtype=torch.float64)
    return bce(mode, x, y, pos_weight=weights)


def lovasz_of_each(_, x, y):
    """The mean over the labels; smp's for several takes them for one, of which each is a part."""
    x, hinge = x.float(), smp.LovaszLoss("binary", **COUNTED)  # which knows no float64
    return sum(hinge(x[:, i], y[:, i]) for i in range(x.shape[1])) / x.shape[1]


TERMS = {
    "cross-entropy": (LossConfig(), bce),
    # Of what is spread, half goes to the other answer.
    "smoothed": (
        LossConfig(label_smoothing=0.1),
        lambda mode, x, y: bce(mode, x, y, smooth_factor=0.05),
    ),
    "weighted": (LossConfig(), weighted_bce),
    "focal": (
        LossConfig(focal_gamma=2),
        # "multilabel" fails on what is ignored (0.6.0), and "binary" takes any shape.
        lambda _, x, y: smp.FocalLoss("binary", gamma=2, **COUNTED)(x, y),
    ),
    "dice": (
        LossConfig(cross_entropy=0, dice=1),
        lambda mode, x, y: smp.DiceLoss(mode, **COUNTED)(x, y),
    ),
    "lovasz": (LossConfig(cross_entropy=0, lovasz=1), lovasz_of_each),
}


@pytest.mark.usefixtures("finely_counted")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("term", TERMS)
def test_each_term_of_a_sigmoid_is_smps_in_value_and_gradient(batch, term, count):
    logits = batch[0][..., :count]
    labels = np.where((batch[1] > count) & (batch[1] != 255), 0, batch[1])
    config, theirs = TERMS[term]
    mode = "binary" if count == 1 else "multilabel"
    target = of_each_label(labels, count)
    value, gradient = torch_loss_and_gradient(
        lambda x: theirs(mode, x.permute(0, 3, 1, 2), target), logits
    )
    weights = jnp.asarray(POSITIVE[:count]) if term == "weighted" else None
    ours, our_gradient = loss_and_gradient(logits, labels, config, weights, single=True)
    # float32 against float64
    assert ours == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(our_gradient, gradient, atol=1e-7, rtol=1e-4)
    assert (our_gradient[labels == 255] == 0).all()


def test_a_sigmoid_s_cross_entropy_is_that_of_two_classes_whatever_refines_it(batch):
    """Of which one has the logit 0: the focal loss, smoothing and hard examples mean the same."""
    logits, labels = batch[0][..., :1], np.where(batch[1] == 255, 255, batch[1] % 2)
    config = LossConfig(label_smoothing=0.1, focal_gamma=0.5, hard_threshold=0.6, hard_fraction=0.3)
    both = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    value, gradient = loss_and_gradient(both, labels, config)
    ours, our_gradient = loss_and_gradient(logits, labels, config, single=True)
    assert ours == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(our_gradient, gradient[..., 1:], atol=1e-8, rtol=1e-5)


def test_a_sigmoid_that_is_sure_loses_nothing():
    logits = np.array([[[[-200], [50], [200]]]], np.float32)
    right, wrong = np.array([[[0, 1, 1]]], np.uint8), np.array([[[1, 0, 0]]], np.uint8)
    value, _ = loss_and_gradient(logits, right, LossConfig(), single=True)
    assert value == pytest.approx(np.exp(-50.0) / 3, rel=1e-5)
    value, gradient = loss_and_gradient(logits, wrong, LossConfig(), single=True)
    assert value == pytest.approx(450 / 3)
    np.testing.assert_allclose(gradient.ravel(), np.array([-1, 1, 1]) / 3, rtol=1e-6)


def test_labels_that_are_not_in_the_batch_have_no_dice_and_no_lovasz(batch):
    """As with a softmax: what is left is the mean over those that are."""
    logits, labels = batch[0][..., :3], np.where(batch[1] == 1, 1, 0)
    for config in (LossConfig(cross_entropy=0, dice=1), LossConfig(cross_entropy=0, lovasz=1)):
        of_three, gradient = loss_and_gradient(logits, labels, config, single=True)
        of_one, _ = loss_and_gradient(logits[..., :1], labels, config, single=True)
        assert of_three == pytest.approx(of_one, rel=1e-6)
        assert (gradient[..., 1:] == 0).all()


def test_where_all_pixels_are_ignored_a_sigmoid_s_loss_and_gradient_are_zero(batch):
    logits, labels = batch[0][..., :3], np.full_like(batch[1], 255)
    value, gradient = loss_and_gradient(
        logits, labels, EVERYTHING, jnp.asarray(POSITIVE), single=True
    )
    assert value == 0
    assert (gradient == 0).all()
