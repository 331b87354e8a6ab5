"""Fine-tuning after a port: a step of SGD in training mode moves everything as PyTorch's own step does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from flax import nnx
from references import images, randomise

import port

pytestmark = pytest.mark.filterwarnings(
    # smp's advice to those who begin a model; ours are about checkpoints that exist
    "ignore:`timm-` encoders are deprecated:DeprecationWarning"
)

LEARNING_RATE = 0.05
CLASSES = 4

MODELS = {
    "torchvision": lambda: torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=CLASSES
    ),
    "torchvision, momentum .01": lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES
    ),
    "smp": lambda: smp.DeepLabV3Plus(
        "timm-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES
    ),
}


def without_dropout(module):
    """No draws: neither dropout nor timm's stochastic depth."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    return module


def torch_step(module, x, labels):
    """The loss, and the state_dict after one step in float64: the reference without roundings."""
    module = module.double().train()
    optimiser = torch.optim.SGD(module.parameters(), LEARNING_RATE)
    logits = module(torch.from_numpy(x.transpose(0, 3, 1, 2)).double())
    logits = logits["out"] if isinstance(logits, dict) else logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), ignore_index=255)
    loss.backward()
    optimiser.step()
    return loss.item(), {name: value.numpy() for name, value in module.state_dict().items()}


def jax_step(model, x, labels):
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    labels = labels.astype(np.int32)
    valid = labels != 255

    @jax.jit
    def step(params, rest):
        def loss(params):
            module = nnx.merge(graphdef, params, rest, copy=True)
            classes = jnp.where(valid, labels, 0)[..., None]
            losses = -jnp.take_along_axis(jax.nn.log_softmax(module(x)), classes, axis=-1)[..., 0]
            return losses.mean(where=valid), nnx.state(module, nnx.Not(nnx.Param))

        (value, rest_), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient), rest_

    value, params, rest = step(params, rest)
    nnx.update(model, params, rest)
    return float(value)


@pytest.mark.parametrize("name", MODELS)
def test_one_step_equals_pytorchs(name):
    module = without_dropout(randomise(MODELS[name](), (2, 3, 64, 96)))
    before = {key: value.clone().numpy() for key, value in module.state_dict().items()}
    fields = {} if "momentum" in name else {"dropout": 0.0}  # LR-ASPP has none
    model = port.load_torch(module.state_dict(), **fields)
    x = images(2, 64, 96, 3)
    labels = np.random.default_rng(0).integers(0, CLASSES, (2, 64, 96))
    labels[:, :5] = 255
    labels = labels.astype(np.int64)
    loss, expected = torch_step(module, x, labels)
    # float32 against float64 through a whole network: the same 1e-4 as for its outputs
    assert jax_step(model, x, labels) == pytest.approx(loss, rel=1e-4)
    after = port.to_torch(model, "smp" if name == "smp" else "torchvision")
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            continue
        new = after[key].numpy()
        if key.endswith(("running_mean", "running_var")):
            # A mean near zero is rounding only: the scale of its vector counts.
            scale = np.abs(value).max()
            np.testing.assert_allclose(new, value, rtol=0, atol=1e-4 * scale, err_msg=key)
        else:
            # By length: rounding grows on the way back to the first layers, to 7 % in single values of
            # ResNet-50's gradients; a wrong rule turns or stretches the whole step.
            moved = np.linalg.norm(value - before[key])
            rounding = 1e-6 * np.linalg.norm(value)
            assert np.linalg.norm(new - value) <= 5e-2 * moved + rounding, key
