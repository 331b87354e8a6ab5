"""Fine-tuning after a port: `train`'s steps of SGD move everything as PyTorch's own steps do."""

import jax
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from flax import nnx
from references import randomise

import port
from deeplab_jax import build, normalize
from deeplab_jax.model import named_variables, with_values
from train.config import TrainConfig
from train.optim import OptimConfig, make_optimizer
from train.steps import initial_state, make_train_step

pytestmark = pytest.mark.filterwarnings(
    # smp's advice to those who begin a model; ours are about checkpoints that exist
    "ignore:`timm-` encoders are deprecated:DeprecationWarning"
)

# Small, as PyTorch's own float32 gradients are up to 2 % from its float64 ones in networks of random
# weights, and a step carries that on; the decay is large so that it weighs as much as they do.
LEARNING_RATE, DECAY = 2e-5, 0.5
STEPS, TOTAL = 3, 10
# Of two images, the pooled features are +1 and -1 in batch norm, whichever is larger by a rounding.
BATCH, SIZE = 4, (64, 96)
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


def with_small_residuals(module):
    """Residual branches that begin small, as trained ones do: gradients that explode are rounding."""
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.BatchNorm2d) and name.endswith("bn3"):
            part.weight.data.mul_(0.2)
    return module


def torch_steps(module, batches):
    """The losses, and the state_dict after the steps, in float64: the reference without roundings."""
    module = module.double().train()
    optimiser = torch.optim.SGD(
        module.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=DECAY
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=TOTAL, power=0.9)
    losses = []
    for x, labels in batches:
        optimiser.zero_grad()
        logits = module(torch.from_numpy(x.transpose(0, 3, 1, 2)).double())
        logits = logits["out"] if isinstance(logits, dict) else logits
        target = torch.from_numpy(labels.astype(np.int64))
        loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=255)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses, {name: value.numpy() for name, value in module.state_dict().items()}


def our_steps(model, batches):
    """The losses of the steps that `train` does; the model is left with what they made of it."""
    config = TrainConfig(
        optim=OptimConfig("sgd", learning_rate=LEARNING_RATE, weight_decay=DECAY, decay_all=True)
    )
    values = {name: v[...] for name, v in named_variables(model).items()}
    abstract = build(model.config)
    kinds = named_variables(abstract)
    params = {name: v for name, v in values.items() if isinstance(kinds[name], nnx.Param)}
    optimizer, schedule = make_optimizer(config.optim, params, TOTAL)
    stats = {name: v for name, v in values.items() if name not in params}
    state = initial_state(params, stats, optimizer, ema=False)
    step = jax.jit(make_train_step(abstract, optimizer, schedule, config))
    losses = []
    for image, labels in batches:
        state, metrics = step(state, {"image": image, "label": labels})
        losses.append(float(metrics["loss"]))
    return losses, with_values(model, state["params"] | state["stats"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long) if n == "torchvision" else n for n in MODELS],
)
def test_three_steps_equal_pytorchs(name):
    module = randomise(MODELS[name](), (BATCH, 3, *SIZE))
    module = with_small_residuals(without_dropout(module))
    before = {key: value.clone().numpy() for key, value in module.state_dict().items()}
    fields = {
        "torchvision": {"dropout": 0.0},
        "torchvision, momentum .01": {},  # LR-ASPP has none
        "smp": {"dropout": 0.0, "drop_path": 0.0},
    }[name]
    model = port.load_torch(module.state_dict(), **fields)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (STEPS, BATCH, *SIZE, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, (STEPS, BATCH, *SIZE)).astype(np.uint8)
    labels[:, :, :5] = 255
    seen = [np.array(normalize(p, model.config.preprocessing)) for p in pictures]
    expected_losses, expected = torch_steps(module, zip(seen, labels, strict=True))
    losses, model = our_steps(model, zip(pictures, labels, strict=True))
    # float32 against float64 through a whole network: the same 1e-4 as for its outputs
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    after = port.to_torch(model, "smp" if name == "smp" else "torchvision")
    for key, value in expected.items():
        if key.endswith("num_batches_tracked") or np.array_equal(value, before[key]):
            continue  # smp keeps the layer before ImageNet's classifier, and never uses it
        new = after[key].numpy()
        # By length, as a value near zero is rounding only. The second bound is of what moved: rounding
        # grows on the way back to the first layers, a wrong rule turns or stretches the whole step.
        off, size = np.linalg.norm(new - value), np.linalg.norm(value)
        assert off <= 1e-4 * size, key
        assert off <= 5e-2 * np.linalg.norm(value - before[key]) + 1e-6 * size, key
