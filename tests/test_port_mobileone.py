"""MobileOne against segmentation_models_pytorch, which dilates it, and timm, which forgets its rates.

Compared are whole networks whose branches are folded: as they are, XLA takes a minute to compile them.
"""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from originals.case import Case, smp_model, timm_classifier
from references import copied, images, nhwc, randomise, relative_error, run_torch, without_weights
from segmentation_models_pytorch.encoders.mobileone import reparameterize_model

from deeplab_jax import MobileOneConfig, compiler_options, fold_batch_norm
from port import LAYOUTS, load_torch, to_torch
from port.convert import convert

ROUNDING = 1e-4  # what PyTorch's own float32 may be away from its float64 is 5e-5
CASES: dict[str, Case] = {
    "smp-s0-os16": smp_model("DeepLabV3Plus", "mobileone_s0", MobileOneConfig("s0", 16)),
    "timm-s1-os8": timm_classifier("mobileone_s1", MobileOneConfig("s1", 8, atrous=False)),
    "smp-tu-s1-os16": smp_model(
        "DeepLabV3", "tu-mobileone_s1", MobileOneConfig("s1", 16, atrous=False)
    ),
    "smp-s4-os8": smp_model("DeepLabV3", "mobileone_s4", MobileOneConfig("s4", 8)),
}


def folded(model, x):
    """Logits of the model with all norms folded, before they are resized."""
    run = jax.jit(lambda model, x: model.with_aux(x)[0], compiler_options=compiler_options())
    return run(fold_batch_norm(model), x)


def there_and_back(case, state):
    """The model of a checkpoint, and what it is exported to, which has the checkpoint's bits."""
    conversion = convert(state, **case.options)
    model = conversion.model
    assert (conversion.layout.name, model.config.backbone) == (case.layout, case.backbone)
    exported = to_torch(model, case.layout)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[n], t) for n, t in state.items() if "num_batches" not in n)
    return model, exported


@pytest.mark.parametrize("name", [*CASES][:3])
def test_mobileone_is_read_computes_the_same_and_goes_back(name):
    case = CASES[name]
    (batch, height, width, channels), *_ = case.shapes
    module = randomise(without_weights(case.make), (batch, channels, height, width))
    state = copied(module.state_dict())
    model, exported = there_and_back(case, state)
    reference = without_weights(lambda: LAYOUTS[case.layout].reference(model.config))
    reference.load_state_dict(exported, strict=True, assign=True)
    x = images(*case.shapes[0])
    theirs, logits = run_torch(module, x), folded(model, x)
    if theirs.ndim == 2:
        assert relative_error(logits.mean((1, 2)), theirs.numpy()) < ROUNDING
    else:
        assert relative_error(model.resize(logits, (height, width)), nhwc(theirs)) < ROUNDING


def test_squeeze_excite_of_the_largest_mobileone_is_where_it_was():
    # Random weights of squeeze-excite make rounding as large as the features: names and bits alone.
    case = CASES["smp-s4-os8"]
    there_and_back(case, copied(randomise(without_weights(case.make)).state_dict()))


def test_a_reparameterised_mobileone_is_its_branches_folded():
    module = randomise(without_weights(CASES["smp-s0-os16"].make), (2, 3, 48, 80))
    state = reparameterize_model(module).state_dict()
    reparameterised, branches = load_torch(state), load_torch(module.state_dict())
    assert reparameterised.config.backbone == MobileOneConfig("s0", 16, reparameterised=True)
    ours, theirs = (
        {path: np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model))}
        for model in (fold_batch_norm(branches).backbone, reparameterised.backbone)
    )
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        assert relative_error(ours[path], value) < 1e-5, path
