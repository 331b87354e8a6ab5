"""What all backbones have in common."""

from typing import Any

from flax import nnx


class Backbone(nnx.Module):
    """A dilated classification network: images `[B, H, W, C]` -> a dict of features.

    Attributes:
      config: what it was built from.
    """

    config: Any

    @property
    def output_stride(self) -> int:
        """How many times smaller than the image the `high` features are; it sets ASPP's rates."""
        return self.config.output_stride
