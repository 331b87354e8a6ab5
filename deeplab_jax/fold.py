"""Batch norm folded into the convolutions before it, for inference."""

import jax
import numpy as np
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.layers import BatchNorm, Conv
from deeplab_jax.model import ModuleT


class Shift(nnx.Module):
    """What is left of a batch norm whose scale went into the kernel before it: `x + bias`."""

    def __init__(self, bias: jax.Array):
        self.bias = nnx.Param(bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.shift(x, self.bias[...])


def fold_batch_norm(model: ModuleT) -> ModuleT:
    """A copy of `model` for inference, equal to `model.eval()` up to rounding.

    Every batch norm that follows a convolution multiplies that convolution's kernel and leaves a `Shift`;
    others stay. Which convolution it follows, its name tells (`conv` and `bn`, `conv2` and `bn2`,
    `depthwise` and `depthwise_bn`, `pointwise` and `bn`), or the module that both are attributes of,
    where it has other names:

    >>> class Block(nnx.Module):
    ...     norm_follows = {"norm_a": "reduce", "norm_b": "expand"}

    A module that has a method `fold` does so itself first, as MobileOne's sums of convolutions.

    The copy has no statistics to train and is nothing to save as a model folder.
    """
    model = nnx.clone(model)
    model.eval()
    for _, module in list(nnx.iter_modules(model)):
        if callable(fold := getattr(module, "fold", None)):
            fold()
    for _, parent in list(nnx.iter_modules(model)):
        for name, norm in list(vars(parent).items()):
            conv = _conv_before(parent, name)
            if isinstance(norm, BatchNorm) and conv is not None:
                # By NumPy and `device_put`: jax.numpy, even `asarray`, compiles for every shape there is.
                scale, bias, mean, var = map(
                    np.asarray, (norm.scale[...], norm.bias[...], norm.mean[...], norm.var[...])
                )
                gain = scale / np.sqrt(var + np.float32(norm.epsilon))
                for variable in filter(None, (conv.kernel, conv.bias)):
                    variable[...] = jax.device_put(np.asarray(variable[...]) * gain)
                setattr(parent, name, Shift(jax.device_put(bias - mean * gain)))
    return model


def _conv_before(parent: nnx.Module, norm: str) -> Conv | None:
    names = [norm.removesuffix("_bn"), norm.replace("bn", "conv"), norm.replace("bn", "pointwise")]
    if (declared := getattr(parent, "norm_follows", None)) is not None:
        names = [declared[norm]] if norm in declared else []
    convs = (getattr(parent, name, None) for name in names)
    return next((conv for conv in convs if isinstance(conv, Conv)), None)
