"""ONNX in 8 bits: what convolutions take, and their kernels, as integers of 8 bits, by NNCF.

How far activations reach is learned from pictures that are shown. A bias then takes back what rounding
moves on the average.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

# Before it is imported, which otherwise tells its makers of each use.
os.environ.setdefault("NNCF_CI", "1")

import nncf
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    QuantizationParameters,
)


def quantize(source: Path, images: Sequence[np.ndarray], out: Path) -> None:
    """Writes an exported model anew, with integers and the operators that say how they are scaled.

    Weights have a scale for each channel. Activations have one for all channels, as onnxruntime wants it.

    Args:
      source: an ONNX file that `export` has made, in float32.
      images: what it is shown, each as the program takes it, with the axis of the batch. They are read one
        at a time, and more than once.
      out: the file to write.
    """
    shown = nncf.Dataset(range(len(images)), lambda index: {"images": images[index]})
    quantized = nncf.quantize(
        onnx.load(source),
        shown,
        preset=nncf.QuantizationPreset.MIXED,  # symmetric weights; activations from their least on
        subset_size=len(images),
        # Slower, and better: .2 in place of .4 points of mIoU were lost on CamVid.
        fast_bias_correction=False,
        advanced_parameters=AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(per_channel=False)
        ),
    )
    onnx.save(quantized, out)
