"""Segmentation heads: from a backbone's features to logits, usable in models of your own.

ASPP and Decoder are the parts of DeepLabv3 (Chen et al. 2017) and v3+ (Chen et al. 2018). Every head is
called with the features that its `taps` name, in that order, and gives logits `[B, h, w, classes]` at
the size of the finest of them. Dropout draws from the `rngs` of the call (`nnx.Rngs(dropout=key)`);
in eval mode none are needed.
"""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.layers import (
    ACTIVATIONS,
    Activation,
    Conv,
    ConvNormAct,
    LayerNorm,
    Norm,
    SeparableConvNormAct,
    global_mean,
)

_conv = functools.partial(ConvNormAct, fan="in")

# ---------------------------------------------------------------------------- configs


@dataclasses.dataclass(frozen=True)
class ASPPConfig:
    """What DeepLabv3 and v3+ have in common: ASPP, and habits of all the head's convolutions.

    Attributes:
      rates: atrous rates of ASPP; None is 6, 12, 18 at output stride 16, doubled at 8, halved at 32.
      channels: of ASPP and of what follows.
      separable: depthwise-separable atrous branches in ASPP.
      dropout: rate after ASPP's projection.
      norm_between: see `SeparableConvNormAct`.
      bias: convolutions have a bias although a batch norm follows (bubbliiiing).
      project_kernel: side of the kernel that fuses ASPP's branches: 1, or 3 in mmsegmentation.
      drop_channels: dropout takes whole channels of an image (PyTorch's Dropout2d: mmsegmentation,
        transformers), not single values.
      pool_norm: a batch norm follows the convolution of image pooling; without, it has a bias (detectron2).
      pool_window: rows and columns of the features that image pooling averages, at each of their places;
        None is the whole image. In detectron2 it is as large as the training crop.
      image_pooling: the branch of image pooling is there; in CoinCheung's code it is an option.
      pointwise_padding: zeros around what the 1x1 convolutions of image pooling and of the fusion see: 1 in
        CoinCheung's code, by mistake. ASPP's result then has two more rows and columns, and what becomes of
        the mean of the image fades towards the borders.
      nonlinearity: after every norm of the head.
    """

    rates: tuple[int, ...] | None = None
    channels: int = 256
    separable: bool = False
    dropout: float = 0.5
    norm_between: bool = False
    bias: bool = False
    project_kernel: int = 1
    drop_channels: bool = False
    pool_norm: bool = True
    pool_window: tuple[int, int] | None = None
    image_pooling: bool = True
    pointwise_padding: int = 0
    nonlinearity: Activation = "relu"

    def __post_init__(self):
        problems, window = [], self.pool_window
        if window is not None and not _is_size(window):
            problems.append(
                "pool_window must be rows and columns of the features, or None for the whole image, got "
                f"{window!r}"
            )
        if self.nonlinearity not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            problems.append(f"nonlinearity must be one of {known}, got {self.nonlinearity!r}")
        if self.nonlinearity != "relu" and self._has_separable():
            problems.append(
                f"nonlinearity {self.nonlinearity!r} is for dense convolutions: separable ones have a ReLU"
            )
        if problems:
            raise ValueError("\n".join(problems))

    def _has_separable(self) -> bool:
        return self.separable

    def build_aspp(
        self,
        in_channels: int,
        output_stride: int | None,
        *,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ) -> "ASPP":
        """The ASPP of this config, on features at `output_stride`.

        Raises ValueError where neither the config nor the backbone says what its rates are.
        """
        rates = self.rates
        if rates is None:
            if output_stride is None:
                raise ValueError(
                    "ASPP's atrous rates follow from the backbone's output stride, and this backbone has "
                    f"no attribute output_stride: add it, or give the rates, {type(self).__name__}"
                    "(rates=...)"
                )
            rates = rates_for(output_stride)
        return ASPP(
            in_channels,
            self.channels,
            rates=rates,
            separable=self.separable,
            dropout=self.dropout,
            norm_between=self.norm_between,
            bias=self.bias,
            project_kernel=self.project_kernel,
            drop_channels=self.drop_channels,
            pool_norm=self.pool_norm,
            pool_window=self.pool_window,
            image_pooling=self.image_pooling,
            pointwise_padding=self.pointwise_padding,
            activation=self.nonlinearity,
            align_corners=align_corners,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True)
class DeepLabV3Config(ASPPConfig):
    """ASPP, a 3x3 convolution, the classifier.

    Attributes:
      convs: 3x3 convolutions between ASPP and the classifier: 1, or 0 in mmsegmentation and
        transformers.
      classifier_dropout: rate of a second dropout, of whole channels, before the classifier (MobileViT in
        transformers).
    """

    kind: ClassVar[str] = "deeplabv3"
    convs: int = 1
    classifier_dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class DeepLabV3PlusConfig(ASPPConfig):
    """ASPP and the decoder, which obeys `norm_between`, `bias` and `drop_channels` too.

    Attributes:
      refine: one more separable 3x3 convolution between ASPP and the decoder
        (segmentation_models_pytorch).
      low_channels: what the decoder's 1x1 makes of the low-level features.
      decoder_convs: 3x3 convolutions in the decoder: two in the paper, one in many code bases.
      separable_decoder: make them depthwise-separable.
      decoder_kernel: side of their kernels: 3, or 5 of the one separable convolution that detectron2 has in
        place of two.
      decoder_dropout: rate after each of them, none where it is shorter.
      classifier_bias: the classifier has a bias.
    """

    kind: ClassVar[str] = "deeplabv3plus"
    refine: bool = False
    low_channels: int = 48
    decoder_convs: int = 2
    separable_decoder: bool = False
    decoder_kernel: int = 3
    decoder_dropout: tuple[float, ...] = ()
    classifier_bias: bool = True

    def _has_separable(self) -> bool:
        return self.separable or self.separable_decoder or self.refine


@dataclasses.dataclass(frozen=True)
class DeepLabV2Config:
    """DeepLabv2's ASPP (Chen et al. 2018, arXiv 1606.00915): atrous classifiers, whose logits are added.

    Attributes:
      rates: atrous rate of each 3x3 classifier; (6, 12, 18, 24) is the paper's "ASPP-L", for output
        stride 8.
      summed: how many of them are added, the first ones; None is all. AdaptSegNet, and what was made of
        it, adds two of its four by mistake.
    """

    kind: ClassVar[str] = "deeplabv2"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    summed: int | None = None


@dataclasses.dataclass(frozen=True)
class FCNConfig:
    """A 3x3 convolution to `channels` (None: a quarter of the input's), dropout, the classifier.

    Attributes:
      tap: the features it reads: "high", or "aux" or "mid" for an auxiliary head.
      drop_channels: as in `ASPPConfig`.
    """

    kind: ClassVar[str] = "fcn"
    tap: str = "high"
    channels: int | None = None
    dropout: float = 0.1
    drop_channels: bool = False


@dataclasses.dataclass(frozen=True)
class LRASPPConfig:
    """Lite R-ASPP (Howard et al. 2019, sec. 6.4) with `channels` in its one branch."""

    kind: ClassVar[str] = "lraspp"
    channels: int = 128


@dataclasses.dataclass(frozen=True)
class SteppedLRASPPConfig:
    """Lite R-ASPP as mmsegmentation has it: up to stride 2, in two steps at which finer features join.

    Attributes:
      channels: of the gated features, and of what each step gives.
      branch_channels: of the features that join, at stride 4 and at stride 2.
      pool_window, pool_step: rows and columns of the features whose mean makes the gate, and between the
        places of this window; they were chosen for images of 512 x 1024.
      dropout: rate before the classifier, of whole channels.
      norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "stepped_lraspp"
    channels: int = 128
    branch_channels: tuple[int, int] = (64, 32)
    pool_window: tuple[int, int] = (49, 49)
    pool_step: tuple[int, int] = (16, 20)
    dropout: float = 0.1
    norm_epsilon: float = 1e-3


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The classifier of an image-classification network, applied at every pixel.

    Where that network takes the mean over the image before its one linear layer, the mean over pixels
    of these logits is exactly what it computes.

    Attributes:
      hidden: channels of a layer before the classifier (MobileNetV3: 1280), None for none.
      activation: of that layer.
      dropout: rate before the classifier.
      head_norm_epsilon: of a layer norm before all of them (ConvNeXt), None for none.
    """

    kind: ClassVar[str] = "classifier"
    hidden: int | None = None
    activation: Activation = "hard_swish"
    dropout: float = 0.2
    head_norm_epsilon: float | None = None


HeadConfig = (
    DeepLabV3Config
    | DeepLabV3PlusConfig
    | DeepLabV2Config
    | FCNConfig
    | LRASPPConfig
    | SteppedLRASPPConfig
    | ClassifierConfig
)
HEAD_CONFIGS: tuple[type[HeadConfig], ...] = typing.get_args(HeadConfig)


def rates_for(output_stride: int) -> tuple[int, ...]:
    """The papers' atrous rates: 6, 12, 18 at output stride 16, doubled at 8, halved at 32."""
    return tuple(rate * 16 // output_stride for rate in (6, 12, 18))


# ---------------------------------------------------------------------------- parts


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: `[B, h, w, in_channels]` -> `[B, h, w, channels]`.

    A 1x1 convolution, a 3x3 convolution per atrous rate and the mean of the image through a 1x1
    convolution, side by side (in that order), then fused by a 1x1 convolution and dropout
    (Chen et al. 2017, sec. 3.3).

    >>> aspp = ASPP(2048, rates=(6, 12, 18), rngs=nnx.Rngs(0))
    >>> aspp(features, rngs=nnx.Rngs(dropout=1)).shape[-1]
    256

    Args:
      in_channels: of the features.
      channels: of every branch and of the result.
      rates: atrous rates of the 3x3 branches; (6, 12, 18) fits output stride 16, see `rates_for`.
      separable: each 3x3 as depthwise and pointwise.
      dropout: rate after the fusion.
      norm_between, bias, project_kernel, drop_channels, pool_norm, pool_window, image_pooling,
        pointwise_padding: see `ASPPConfig`.
      activation: after every norm.
      align_corners: corner rule of what image pooling gives, where that is more than one pixel.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        *,
        rates: Sequence[int] = (6, 12, 18),
        separable: bool = False,
        dropout: float = 0.5,
        norm_between: bool = False,
        bias: bool = False,
        project_kernel: int = 1,
        drop_channels: bool = False,
        pool_norm: bool = True,
        pool_window: tuple[int, int] | None = None,
        image_pooling: bool = True,
        pointwise_padding: int = 0,
        activation: Activation = "relu",
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        self.pool_window, self.align_corners = pool_window, align_corners
        self.uniform = pool_window is None and pointwise_padding == 0
        self.activation = activation
        dense: dict[str, Any] = {"bias": bias, "activation": activation, "rngs": rngs}
        self.branches: nnx.List[ConvNormAct | SeparableConvNormAct]
        self.branches = nnx.List([_conv(in_channels, channels, **dense)])
        for rate in rates:
            self.branches.append(
                SeparableConvNormAct(
                    in_channels, channels, dilation=rate, norm_between=norm_between, rngs=rngs
                )
                if separable
                else _conv(in_channels, channels, 3, dilation=rate, **dense)
            )
        padding = pointwise_padding or None
        pool: ConvNormAct | Conv | None = None
        if image_pooling and pool_norm:
            pool = _conv(in_channels, channels, padding=padding, **dense)
        elif image_pooling:
            pool = Conv(in_channels, channels, padding=padding, bias=True, fan="in", rngs=rngs)
        self.pool = pool
        branches = len(rates) + (2 if image_pooling else 1)
        self.project = _conv(
            branches * channels, channels, project_kernel, padding=padding, **dense
        )
        self.dropout = _dropout(dropout, drop_channels)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        seen = jnp.concatenate([branch(x) for branch in self.branches], axis=-1)
        if self.pool is None:
            y = self.project(seen)
        elif self.uniform:
            y = self.project(seen, self._pooled(self.pool, x))
        else:
            image = ops.resize_bilinear(
                self._pooled(self.pool, x),
                (x.shape[1], x.shape[2]),
                align_corners=self.align_corners,
            )
            y = self.project(jnp.concatenate([seen, image], axis=-1))
        return self.dropout(y, rngs=rngs)

    def _pooled(self, pool: ConvNormAct | Conv, x: jax.Array) -> jax.Array:
        """What image pooling makes of the features, at the size that it has by itself."""
        window = self.pool_window
        y = pool(global_mean(x) if window is None else ops.window_mean(x, window))
        return y if isinstance(pool, ConvNormAct) else ACTIVATIONS[self.activation](y)


class Decoder(nnx.Module):
    """DeepLabv3+'s decoder: brings low-level detail back and classifies.

    Low-level features through a 1x1 convolution, ASPP's output resized to their size, both side by side
    (low-level first) through 3x3 convolutions and the classifier (Chen et al. 2018, sec. 3.1).

    >>> decoder = Decoder(256, num_classes=21, rngs=nnx.Rngs(0))
    >>> logits = decoder(aspp_output, low_level_features)     # at the size of the latter

    Args:
      low_level_channels: of the low-level features (stride 4).
      num_classes: of the logits.
      in_channels: of ASPP's output.
      low_channels: what the 1x1 makes of the low-level features.
      channels: of the 3x3 convolutions.
      convs: how many of them.
      separable: each 3x3 as depthwise and pointwise.
      kernel_size: of each 3x3, where it is not 3.
      norm_between, bias, drop_channels: see `ASPPConfig`.
      activation: after every norm.
      classifier_bias: the classifier has a bias.
      dropout: rate after each of the 3x3 convolutions, none where it is shorter.
      align_corners: corner rule of the resize, see `ops.resize_bilinear`.
    """

    def __init__(
        self,
        low_level_channels: int,
        num_classes: int,
        *,
        in_channels: int = 256,
        low_channels: int = 48,
        channels: int = 256,
        convs: int = 2,
        separable: bool = False,
        kernel_size: int = 3,
        norm_between: bool = False,
        bias: bool = False,
        dropout: Sequence[float] = (),
        drop_channels: bool = False,
        activation: Activation = "relu",
        classifier_bias: bool = True,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        self.align_corners = align_corners
        dense: dict[str, Any] = {"bias": bias, "activation": activation, "rngs": rngs}
        self.low = _conv(low_level_channels, low_channels, **dense)
        self.convs: nnx.List[ConvNormAct | SeparableConvNormAct] = nnx.List()
        for i in range(convs):
            width = low_channels + in_channels if i == 0 else channels
            self.convs.append(
                SeparableConvNormAct(
                    width, channels, kernel_size, norm_between=norm_between, rngs=rngs
                )
                if separable
                else _conv(width, channels, kernel_size, **dense)
            )
        self.dropouts = nnx.List(_dropout(rate, drop_channels) for rate in dropout)
        self.classifier = _classifier(channels, num_classes, rngs, bias=classifier_bias)

    def __call__(
        self, x: jax.Array, low_level: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        low = self.low(low_level)
        x = ops.resize_bilinear(x, (low.shape[1], low.shape[2]), align_corners=self.align_corners)
        x = ops.concatenate(low, x)
        for conv, dropout in itertools.zip_longest(self.convs, self.dropouts):
            x = conv(x)
            x = x if dropout is None else dropout(x, rngs=rngs)
        return self.classifier(x)


# ---------------------------------------------------------------------------- heads


class DeepLabV3Head(nnx.Module):
    """ASPP, 3x3 convolution, classifier: `[B, h, w, in_channels]` -> `[B, h, w, classes]`."""

    taps = ("high",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        config: DeepLabV3Config = DeepLabV3Config(),
        output_stride: int | None = 16,
        *,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        width = config.channels
        self.aspp = config.build_aspp(
            in_channels, output_stride, align_corners=align_corners, rngs=rngs
        )
        self.convs = nnx.List(
            _conv(width, width, 3, bias=config.bias, activation=config.nonlinearity, rngs=rngs)
            for _ in range(config.convs)
        )
        self.dropout = _dropout(config.classifier_dropout, drop_channels=True)
        self.classifier = _classifier(width, num_classes, rngs)

    def __call__(self, high: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.aspp(high, rngs=rngs)
        for conv in self.convs:
            x = conv(x)
        return self.classifier(self.dropout(x, rngs=rngs))


class DeepLabV3PlusHead(nnx.Module):
    """ASPP and decoder: high `[B, h, w, C]`, low `[B, H, W, c]` -> `[B, H, W, classes]`."""

    taps = ("high", "low")

    def __init__(
        self,
        in_channels: int,
        low_level_channels: int,
        num_classes: int,
        config: DeepLabV3PlusConfig = DeepLabV3PlusConfig(),
        output_stride: int | None = 16,
        *,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        width = config.channels
        self.aspp = config.build_aspp(
            in_channels, output_stride, align_corners=align_corners, rngs=rngs
        )
        self.refine = SeparableConvNormAct(width, width, rngs=rngs) if config.refine else None
        self.decoder = Decoder(
            low_level_channels,
            num_classes,
            in_channels=width,
            low_channels=config.low_channels,
            channels=width,
            convs=config.decoder_convs,
            separable=config.separable_decoder,
            kernel_size=config.decoder_kernel,
            norm_between=config.norm_between,
            bias=config.bias,
            dropout=config.decoder_dropout,
            drop_channels=config.drop_channels,
            activation=config.nonlinearity,
            classifier_bias=config.classifier_bias,
            align_corners=align_corners,
            rngs=rngs,
        )

    def __call__(
        self, high: jax.Array, low: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        x = self.aspp(high, rngs=rngs)
        x = x if self.refine is None else self.refine(x)
        return self.decoder(x, low, rngs=rngs)


class DeepLabV2Head(nnx.Module):
    """Atrous classifiers side by side, added: `[B, h, w, in_channels]` -> `[B, h, w, classes]`."""

    taps = ("high",)

    def __init__(
        self, in_channels: int, num_classes: int, config: DeepLabV2Config, *, rngs: nnx.Rngs
    ):
        self.summed = config.summed
        self.classifiers = nnx.List(
            Conv(in_channels, num_classes, 3, dilation=rate, bias=True, std=0.01, rngs=rngs)
            for rate in config.rates
        )

    def __call__(self, high: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs  # nothing is random
        first, *others = self.classifiers[: self.summed]
        logits = first(high)
        for classifier in others:
            logits += classifier(high)
        return logits


class FCNHead(nnx.Module):
    """3x3 convolution, dropout, classifier (Long et al. 2015, as torchvision has it)."""

    def __init__(
        self, in_channels: int, num_classes: int, config: FCNConfig = FCNConfig(), *, rngs: nnx.Rngs
    ):
        self.taps = (config.tap,)
        width = config.channels or in_channels // 4
        self.conv = _conv(in_channels, width, 3, rngs=rngs)
        self.dropout = _dropout(config.dropout, config.drop_channels)
        self.classifier = _classifier(width, num_classes, rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.classifier(self.dropout(self.conv(x), rngs=rngs))


class LRASPPHead(nnx.Module):
    """Lite R-ASPP: high features gated by their mean, added to mid-level (stride 8) ones as logits."""

    taps = ("high", "mid")

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        num_classes: int,
        config: LRASPPConfig = LRASPPConfig(),
        *,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        self.align_corners = align_corners
        self.cbr = _conv(in_channels, config.channels, rngs=rngs)
        self.scale = Conv(in_channels, config.channels, fan="in", rngs=rngs)
        self.mid_classifier = _classifier(mid_channels, num_classes, rngs)
        self.high_classifier = _classifier(config.channels, num_classes, rngs)

    def __call__(
        self, high: jax.Array, mid: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        del rngs  # no dropout
        x = self.cbr(high) * jax.nn.sigmoid(self.scale(global_mean(high)))
        x = ops.resize_bilinear(x, (mid.shape[1], mid.shape[2]), align_corners=self.align_corners)
        return self.high_classifier(x) + self.mid_classifier(mid)


class SteppedLRASPPHead(nnx.Module):
    """Gated features, brought to stride 4 and then 2: see `SteppedLRASPPConfig`."""

    taps = ("high", "low", "half")

    def __init__(
        self,
        in_channels: int,
        low_channels: int,
        half_channels: int,
        num_classes: int,
        config: SteppedLRASPPConfig = SteppedLRASPPConfig(),
        *,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        self.align_corners = align_corners
        self.pool_window, self.pool_step = config.pool_window, config.pool_step
        width = config.channels
        normed: dict[str, Any] = {"norm": Norm(epsilon=config.norm_epsilon), "rngs": rngs}
        self.cbr = _conv(in_channels, width, **normed)
        self.scale = Conv(in_channels, width, fan="in", rngs=rngs)
        self.gated = Conv(width, width, bias=True, fan="in", rngs=rngs)
        self.branches, self.convs = nnx.List[Conv](), nnx.List[ConvNormAct]()
        sizes = zip((low_channels, half_channels), config.branch_channels, strict=True)
        for channels, branch in sizes:
            self.branches.append(Conv(channels, branch, fan="in", rngs=rngs))
            self.convs.append(_conv(width + branch, width, **normed))
        self.dropout = _dropout(config.dropout, drop_channels=True)
        self.classifier = _classifier(width, num_classes, rngs)

    def __call__(
        self, high: jax.Array, low: jax.Array, half: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        means = ops.window_mean(high, self.pool_window, self.pool_step)
        x = self.gated(self.cbr(high) * self._as_large(jax.nn.sigmoid(self.scale(means)), high))
        for finer, branch, conv in zip((low, half), self.branches, self.convs, strict=True):
            x = conv(jnp.concatenate([self._as_large(x, finer), branch(finer)], axis=-1))
        return self.classifier(self.dropout(x, rngs=rngs))

    def _as_large(self, x: jax.Array, other: jax.Array) -> jax.Array:
        size = (other.shape[1], other.shape[2])
        return ops.resize_bilinear(x, size, align_corners=self.align_corners)


class ClassifierHead(nnx.Module):
    """The layers of an image classifier as 1x1 convolutions, see `ClassifierConfig`."""

    taps = ("high",)

    def __init__(
        self, in_channels: int, num_classes: int, config: ClassifierConfig, *, rngs: nnx.Rngs
    ):
        self.activation = config.activation
        width = config.hidden or in_channels
        epsilon = config.head_norm_epsilon
        self.norm = None if epsilon is None else LayerNorm(in_channels, epsilon=epsilon)
        self.hidden = (
            Conv(in_channels, width, bias=True, fan="in", rngs=rngs) if config.hidden else None
        )
        self.dropout = nnx.Dropout(config.dropout)
        self.classifier = _classifier(width, num_classes, rngs)

    def __call__(self, high: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = high if self.norm is None else self.norm(high)
        x = x if self.hidden is None else ACTIVATIONS[self.activation](self.hidden(x))
        return self.classifier(self.dropout(x, rngs=rngs))


Head = (
    DeepLabV3Head
    | DeepLabV3PlusHead
    | DeepLabV2Head
    | FCNHead
    | LRASPPHead
    | SteppedLRASPPHead
    | ClassifierHead
)


def is_classifier(path: str) -> bool:
    """Whether a module of a model, by its path, has the classes as its channels."""
    return any(part.endswith(("classifier", "classifiers")) for part in path.split("."))


def _classifier(channels: int, num_classes: int, rngs: nnx.Rngs, *, bias: bool = True) -> Conv:
    """The 1x1 that makes logits; its first weights are by Glorot's rule, as no ReLU follows.

    With a deviation of .01, which others take, CamVid's rare classes were lost (mIoU .54 instead of .63).
    """
    std = math.sqrt(2 / (channels + num_classes))
    return Conv(channels, num_classes, bias=bias, std=std, rngs=rngs)


def _is_size(value: Any) -> bool:
    """Whether it is rows and columns."""
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and all(isinstance(side, int) and side > 0 for side in value)


def _dropout(rate: float, drop_channels: bool) -> nnx.Dropout:
    return nnx.Dropout(rate, broadcast_dims=(1, 2) if drop_channels else ())


def build_head(
    config: HeadConfig,
    channels: Mapping[str, int],
    num_classes: int,
    *,
    output_stride: int | None,
    align_corners: bool,
    rngs: nnx.Rngs,
) -> Head:
    """The head of a config.

    Args:
      config: of any kind.
      channels: of each of the backbone's features.
      num_classes: channels of the logits.
      output_stride: of the high features; it sets ASPP's rates where the config does not. None where it
        is not known, and then the config has to.
      align_corners: corner rule of the heads that resize.

    Raises ValueError where the backbone lacks features that the head reads.
    """

    def width(tap: str) -> int:
        if tap not in channels:
            raise ValueError(
                f"{type(config).__name__} reads the features {tap!r}, and the backbone has only "
                f"{', '.join(channels)}"
            )
        return channels[tap]

    resize: dict[str, Any] = {"align_corners": align_corners, "rngs": rngs}
    match config:
        case DeepLabV3Config():
            return DeepLabV3Head(width("high"), num_classes, config, output_stride, **resize)
        case DeepLabV3PlusConfig():
            high, low = width("high"), width("low")
            return DeepLabV3PlusHead(high, low, num_classes, config, output_stride, **resize)
        case DeepLabV2Config():
            return DeepLabV2Head(width("high"), num_classes, config, rngs=rngs)
        case FCNConfig():
            return FCNHead(width(config.tap), num_classes, config, rngs=rngs)
        case LRASPPConfig():
            return LRASPPHead(width("high"), width("mid"), num_classes, config, **resize)
        case SteppedLRASPPConfig():
            high, low, half = (width(tap) for tap in SteppedLRASPPHead.taps)
            return SteppedLRASPPHead(high, low, half, num_classes, config, **resize)
        case ClassifierConfig():
            return ClassifierHead(width("high"), num_classes, config, rngs=rngs)
