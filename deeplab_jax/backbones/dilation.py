"""Turning a classification network into a dilated one.

A backbone that would shrink its image further than the output stride keeps the resolution instead,
and its later convolutions look further apart by the stride that they lost (Chen et al. 2017, sec. 3).
"""

from collections.abc import Iterable
from typing import Literal

OutputStride = Literal[8, 16, 32]
FirstBlockDilation = Literal["previous", "same"]
"""The atrous rate of the block that lost its stride: that of the stage before it ("previous": the
rule of TensorFlow and torchvision, where a block computes at the rate of its *input*), or already
that of its own stage ("same": segmentation_models_pytorch and others)."""


def check_output_stride(output_stride: int) -> None:
    """Raises ValueError for a stride that no backbone can be dilated to."""
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")


def dilate(
    strides: Iterable[int],
    output_stride: int,
    *,
    start: int,
    first_block: FirstBlockDilation,
) -> list[tuple[int, int]]:
    """(stride, dilation) of each block, given the strides of the classification network.

    Args:
      strides: of the blocks, in order.
      output_stride: the most that the whole network may shrink its input.
      start: what the stem has shrunk it by already.
      first_block: see `FirstBlockDilation`.
    """
    plan, current, dilation = [], start, 1
    for stride in strides:
        previous = dilation
        if current * stride > output_stride:
            dilation, stride = dilation * stride, 1
        current *= stride
        plan.append((stride, previous if first_block == "previous" else dilation))
    return plan
