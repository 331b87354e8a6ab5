"""The models of the original code bases that the port is held against, a file per code base or backbone.

`COMPARED` are representatives of each path through the code. `DEEPER` are the same paths, only longer,
wider or with other options of the same kind: what they export has the bits of the checkpoint, and their
layers are compared in the long tests only. To add one, add a file with both and list it here.
"""

from originals import (
    convnext,
    detectron2,
    dpn,
    efficientnet_lite_pytorch,
    inverted_residuals,
    mix_transformer,
    mmseg,
    regnet,
    resnets,
    segmentation_models,
    standalone,
    timm_mobile,
    torchvision_classification,
    torchvision_segmentation,
    vainf,
    xception,
)
from originals.case import Case, Cases

__all__ = ["COMPARED", "DEEPER", "Case", "Cases"]

_FILES = (
    torchvision_segmentation,
    segmentation_models,
    torchvision_classification,
    resnets,
    regnet,
    dpn,
    timm_mobile,
    mix_transformer,
    convnext,
    xception,
    efficientnet_lite_pytorch,
    inverted_residuals,
    vainf,
    mmseg,
    detectron2,
    standalone,
)

COMPARED: Cases = {name: case for file in _FILES for name, case in file.COMPARED.items()}
DEEPER: Cases = {name: case for file in _FILES for name, case in file.DEEPER.items()}
