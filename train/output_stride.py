"""A trained model at another output stride, for evaluation."""

from flax import nnx

from deeplab_jax import build
from deeplab_jax.heads import ASPPConfig
from deeplab_jax.layers import Conv
from deeplab_jax.model import named_values, with_values


def with_output_stride(model: nnx.Module, output_stride: int) -> nnx.Module:
    """The same weights in a model of another output stride: every layer reaches as far as in training.

    ASPP's rates change by the same factor, as the papers' do between training at 16 and evaluation at 8
    (Chen et al. 2017, sec. 4.1). A layer that loses its stride keeps its rate whatever the config's
    `first_block_dilation`: "same" would make it look twice as far as it was trained to.

    Raises:
      ValueError: the backbone cannot have that stride.
    """
    config, fields = model.config, {"output_stride": output_stride}
    if isinstance(config.head, ASPPConfig) and config.head.rates is not None:
        factor = config.backbone.output_stride / output_stride
        fields["rates"] = tuple(max(1, int(rate * factor)) for rate in config.head.rates)
    other = build(config.override(**fields), dtype=model.dtype)
    other = with_values(other, named_values(model))
    dilations = _dilations(model, output_stride)
    for path, conv in _convolutions(other).items():
        if conv.dilation != dilations[path]:
            conv.dilation = dilations[path]
            if conv.padding != "same":
                conv.padding = conv.dilation * (conv.kernel.shape[0] - 1) // 2
    return other


def _dilations(model: nnx.Module, output_stride: int) -> dict[tuple, int]:
    """The rate of each of the backbone's convolutions at another output stride, by its path."""
    here, stride = _convolutions(model), model.config.backbone.output_stride
    dilations = {path: conv.dilation for path, conv in here.items()}
    while stride != output_stride:
        stride = stride // 2 if output_stride < stride else stride * 2
        strided = _convolutions(build(model.config.override(output_stride=stride)))
        for path, conv in strided.items():
            # The one whose stride comes or goes reads pixels as far apart as before.
            if conv.stride == here[path].stride:
                dilations[path] = max(1, dilations[path] * conv.dilation // here[path].dilation)
        here = strided
    return dilations


def _convolutions(model: nnx.Module) -> dict[tuple, Conv]:
    """Of the backbone, by path; those of 1x1 have no rate."""
    parts = nnx.iter_modules(model.backbone)
    return {
        path: part for path, part in parts if isinstance(part, Conv) and part.kernel.shape[0] > 1
    }
