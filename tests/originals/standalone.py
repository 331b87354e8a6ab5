"""The two modules alone, re-created in references.py."""

from references import Standalone

from deeplab_jax.config import FeaturesConfig
from originals.case import V3PLUS, Case, Cases


def _standalone(stride: int) -> Case:
    return Case(
        "standalone",
        lambda: Standalone(160, 24, stride),
        FeaturesConfig(160, 24, stride),
        V3PLUS,
        options={"output_stride": stride},
        shapes=((2, 9, 13, 160), (2, 33, 49, 24)),
    )


COMPARED: Cases = {
    "standalone-os16": _standalone(16),
    "standalone-os8": _standalone(8),
}

DEEPER: Cases = {}
