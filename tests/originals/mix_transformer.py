"""The Mix Transformer of segmentation_models_pytorch."""

from deeplab_jax.backbones import MixTransformerConfig
from originals.case import Cases, smp_model

COMPARED: Cases = {
    f"smp-{name}-mit-b0-os{stride}": smp_model(
        model, "mit_b0", MixTransformerConfig("b0", stride, drop_path=0.1)
    )
    for name, model, stride in (("v3plus", "DeepLabV3Plus", 16), ("v3", "DeepLabV3", 8))
}
DEEPER: Cases = {}
