"""Layers that every backbone and head is made of.

They compute in the dtype of their input: parameters stay float32 and are cast where they are used,
so that bfloat16 is a matter of what you feed. Batch norm computes in float32 whatever it is fed.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from deeplab_jax import ops

REMAT_SAVED = ("convolution", "statistics")
"""Names of the values that training with rematerialisation keeps: `jax.checkpoint` with the policy
`save_only_these_names(*REMAT_SAVED)` computes norms and activations, which are cheap, a second time."""


@jax.custom_vjp
def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), with its gradient read off its value, which the next layer keeps anyway."""
    return jnp.clip(x, 0, 6)


relu6.defvjp(
    lambda x: (relu6(x), relu6(x)),
    lambda y, cotangent: (jnp.where((y > 0) & (y < 6), cotangent, 0),),
)

Activation = Literal[
    "relu", "leaky_relu", "relu6", "hard_swish", "hard_sigmoid", "sigmoid", "silu", "none"
]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,  # of slope .01
    "relu6": relu6,
    "hard_swish": jax.nn.hard_swish,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "none": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initialiser: a normal distribution. Kept on the parameter, see `model.create`."""

    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if not isinstance(key, jax.core.Tracer):
            # By NumPy and `device_put`: jax.numpy, even `asarray`, compiles for every shape there is.
            return jax.device_put(self.draw(generator_of(key), shape))
        # Flat: of a small [3, 3, 8, 12] XLA takes up to 20 s to compile the draw on CPU.
        flat = jax.random.normal(key, (math.prod(shape),), jnp.float32)
        return self.std * flat.reshape(shape)

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Values from NumPy's generator."""
        return self.std * generator.standard_normal(shape, np.float32)


def generator_of(key: jax.Array) -> np.random.Generator:
    """NumPy's generator that a key of JAX seeds."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


@dataclasses.dataclass(frozen=True)
class Constant:
    """Initialiser: one value. Kept on the variable, see `model.create`."""

    value: float

    def __call__(self, shape: tuple[int, ...]) -> jax.Array:
        return jax.device_put(self.draw(shape))

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        """The value, by NumPy."""
        return np.full(shape, self.value, np.float32)


def check_rngs(rngs: nnx.Rngs | None) -> nnx.Rngs:
    """The same. Raises TypeError, saying what to write, for a seed in place of `nnx.Rngs`, or none."""
    if rngs is None or not hasattr(rngs, "params"):
        seed = rngs if isinstance(rngs, int) else 0
        found = rngs if isinstance(rngs, int) else type(rngs).__name__
        got = "" if rngs is None else f", got {found}"
        raise TypeError(f"random weights need rngs=nnx.Rngs({seed}) (from flax import nnx){got}")
    return rngs


class Conv(nnx.Module):
    """Convolution of `[B, H, W, in_channels]` with a kernel `[k, k, in_channels / groups, out]`.

    Args:
      dilation: the atrous rate.
      padding: zeros on each side, see `ops.Padding`; None keeps the size at stride 1, as
        `dilation * (kernel_size - 1) // 2` does in PyTorch.
      std: of the initial kernel; None is He's rule (He et al. 2015).
      fan: which of its two: "out" keeps the size of gradients, as torchvision's backbones do; "in" that
        of features, as DeepLab's heads do in PyTorch. A depthwise kernel's is that of one group.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: ops.Padding | None = None,
        groups: int = 1,
        bias: bool = False,
        std: float | None = None,
        fan: Literal["in", "out"] = "out",
        rngs: nnx.Rngs,
    ):
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.stride, self.dilation, self.padding, self.groups = (
            stride,
            dilation,
            padding,
            groups,
        )
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        channels = in_channels if fan == "in" else out_channels
        normal = Normal(std or math.sqrt(2 / (kernel_size**2 * channels / groups)))
        self.kernel = nnx.Param(normal(check_rngs(rngs).params(), shape), init=normal)
        zero = Constant(0.0)
        self.bias = nnx.Param(zero((out_channels,)), init=zero) if bias else None

    def __call__(self, x: jax.Array, uniform: jax.Array | None = None) -> jax.Array:
        """The convolution of `x` and, after its channels, those of `uniform`.

        Args:
          x: `[B, H, W, c]`.
          uniform: `[B, 1, 1, in_channels - c]`, channels that are the same at every pixel. A 1x1
            convolution of them is a bias for each image, and costs that of one pixel.
        """
        kernel = self.kernel[...].astype(x.dtype)
        bias = None
        if uniform is not None and kernel.shape[:2] == (1, 1):
            bias = ops.conv(uniform, kernel[:, :, x.shape[3] :])
            kernel = kernel[:, :, : x.shape[3]]
        elif uniform is not None:  # beside the padding they are not uniform
            uniform = jnp.broadcast_to(uniform, (*x.shape[:3], uniform.shape[3]))
            x = jnp.concatenate([x, uniform], axis=-1)
        y = ops.conv(
            x,
            kernel,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
            groups=self.groups,
        )
        y = checkpoint_name(y if bias is None else y + bias, "convolution")
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class SpatialLayer(NamedTuple):
    """What a convolution or pooling does to the receptive field, see `ops.receptive_field`."""

    path: str
    kernel_size: int
    stride: int | Fraction
    dilation: int


def spatial_layer(path: str, conv: Conv) -> SpatialLayer:
    """The convolution at `path` of a backbone."""
    return SpatialLayer(path, conv.kernel.shape[0], conv.stride, conv.dilation)


class BatchNorm(nnx.Module):
    """Batch normalisation of `[..., channels]` (Ioffe & Szegedy 2015), with PyTorch's conventions.

    `momentum` is the weight of the *new* value (0.1 here is 0.9 in Flax), and the running variance
    takes the unbiased estimate while the batch is normalised with the biased one: fine-tuning a
    ported model then moves its statistics exactly as PyTorch would. Under `jax.jit` over a mesh the
    statistics are those of the global batch ("synchronised batch norm").

    A batch that has one value per channel (the image-pooling branch at batch size 1) has no variance;
    it is normalised with the running statistics and leaves them alone.

    Attributes:
      use_running_average: what `model.train()` and `model.eval()` switch.
      frozen: True uses the running statistics in training too, see `freeze_batch_norm`.
      groups: parts of the batch that have statistics of their own, see `group_batch_norm`.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = False
        self.frozen = False
        self.groups = 1
        zero, one = Constant(0.0), Constant(1.0)
        self.scale = nnx.Param(one((channels,)), init=one)
        self.bias = nnx.Param(zero((channels,)), init=zero)
        self.mean = nnx.BatchStat(zero((channels,)), init=zero)
        self.var = nnx.BatchStat(one((channels,)), init=one)

    def __call__(self, x: jax.Array) -> jax.Array:
        count = x.size // x.shape[-1] // self.groups
        if self.use_running_average or self.frozen or count == 1:
            gain = self.scale[...] / jnp.sqrt(self.var[...] + self.epsilon)
            offset = self.bias[...] - self.mean[...] * gain
            return (x.astype(jnp.float32) * gain + offset).astype(x.dtype)
        shape = x.shape
        if self.groups > 1:  # [B, ...] -> [groups, B / groups, ...]: no shard of the batch is moved
            x = x.reshape(self.groups, -1, *shape[1:])
        axes = tuple(range(self.groups > 1, x.ndim - 1))
        moments = ops.moments(jax.lax.stop_gradient(x), axes, self.mean[...])
        mean, var = checkpoint_name(moments, "statistics")
        self._update(mean, var * (count / (count - 1)))
        y = ops.batch_norm(x, self.scale[...], self.bias[...], mean, var, axes, self.epsilon)
        return y.reshape(shape)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view(model, use_running_average=...)` calls on its copy."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _update(self, mean: jax.Array, var: jax.Array) -> None:
        for running, new in ((self.mean, mean), (self.var, var)):
            new = jax.lax.stop_gradient(new).reshape(-1, *running.shape).mean(0)  # of the groups
            # Not `running[...] = `, which reads a tracer's sharding, and that takes longer the more has
            # been traced: a network with 300 batch norms would take a minute.
            running.set_value((1 - self.momentum) * running[...] + self.momentum * new)


@dataclasses.dataclass(frozen=True)
class Norm:
    """What a backbone's batch norms have in common; PyTorch's defaults."""

    momentum: float = 0.1
    epsilon: float = 1e-5

    def __call__(self, channels: int) -> BatchNorm:
        return BatchNorm(channels, momentum=self.momentum, epsilon=self.epsilon)


class LayerNorm(nnx.Module):
    """Layer normalisation over the channels of `[..., channels]` (Ba et al. 2016), in float32."""

    def __init__(self, channels: int, *, epsilon: float = 1e-5):
        self.epsilon = epsilon
        zero, one = Constant(0.0), Constant(1.0)
        self.scale = nnx.Param(one((channels,)), init=one)
        self.bias = nnx.Param(zero((channels,)), init=zero)

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        var = jnp.square(centred).mean(-1, keepdims=True)
        y = centred / jnp.sqrt(var + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class LayerScale(nnx.Module):
    """A factor for each of the channels of `[..., channels]` (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, channels: int, initial: float):
        value = Constant(initial)
        self.gamma = nnx.Param(value((channels,)), init=value)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


class ConvNormAct(nnx.Module):
    """Convolution, batch norm, activation: `[B, H, W, in]` -> `[B, H', W', out]`.

    Keyword arguments that are not named here go to `Conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        activation: Activation = "relu",
        norm: Norm = Norm(),
        rngs: nnx.Rngs,
        **conv,
    ):
        self.conv = Conv(in_channels, out_channels, kernel_size, rngs=rngs, **conv)
        self.bn = norm(out_channels)
        self.activation = activation

    def __call__(self, x: jax.Array, uniform: jax.Array | None = None) -> jax.Array:
        return ACTIVATIONS[self.activation](self.bn(self.conv(x, uniform)))


class SeparableConvNormAct(nnx.Module):
    """Depthwise (at an atrous rate) and pointwise 1x1; then batch norm and ReLU.

    The "atrous separable convolution" of DeepLabv3+ (Chen et al. 2018, sec. 3.1).

    Args:
      norm_between: batch norm and ReLU after the depthwise convolution too, as in TensorFlow's code
        and mmsegmentation; without, nothing is between.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        dilation: int = 1,
        norm_between: bool = False,
        rngs: nnx.Rngs,
    ):
        self.depthwise = Conv(
            in_channels,
            in_channels,
            kernel_size,
            dilation=dilation,
            groups=in_channels,
            rngs=rngs,
        )
        self.depthwise_bn = BatchNorm(in_channels) if norm_between else None
        self.pointwise = Conv(in_channels, out_channels, fan="in", rngs=rngs)
        self.bn = BatchNorm(out_channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.depthwise(x)
        x = x if self.depthwise_bn is None else jax.nn.relu(self.depthwise_bn(x))
        return jax.nn.relu(self.bn(self.pointwise(x)))


class SqueezeExcite(nnx.Module):
    """Channel attention (Hu et al. 2018): mean, 1x1, activation, 1x1, gate.

    Args:
      gate: "sigmoid" in the paper, "hard_sigmoid" in MobileNetV3.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        activation: Activation = "relu",
        gate: Activation = "hard_sigmoid",
        rngs: nnx.Rngs,
    ):
        self.fc1 = Conv(channels, squeezed, bias=True, rngs=rngs)
        self.fc2 = Conv(squeezed, channels, bias=True, rngs=rngs)
        self.activation, self.gate = activation, gate

    def __call__(self, x: jax.Array) -> jax.Array:
        squeezed = ACTIVATIONS[self.activation](self.fc1(global_mean(x)))
        return x * ACTIVATIONS[self.gate](self.fc2(squeezed))


def global_mean(x: jax.Array) -> jax.Array:
    """Mean over the image: `[B, H, W, C]` -> `[B, 1, 1, C]`, summed in float32."""
    return x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


def make_divisible(channels: float, divisor: int = 8, *, least: float = 0.9) -> int:
    """The MobileNets' rounding of channel counts: to a multiple, never below the share `least` of them."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < least * channels else rounded
