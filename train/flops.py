"""How much of its devices' arithmetic a training uses: model FLOP/s utilisation."""

import jax

from deeplab_jax.model import SegmentationModel
from deeplab_jax.summary import summarize

PEAKS = {
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA V100": 125e12,
    "NVIDIA T4": 65e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 (or, where there is none, float16) operations a second, of the makers' data sheets, by the
beginning of what JAX calls the device; the longest that fits counts."""


def peak_flops(device_kind: str) -> float | None:
    """What a device could do in a second, in bfloat16; None of one that is not in `PEAKS`."""
    kind = device_kind.replace("Tesla ", "NVIDIA ").replace("NVIDIA NVIDIA", "NVIDIA")
    fitting = [name for name in PEAKS if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAKS[max(fitting, key=len)] if fitting else None


def training_flops(
    model: SegmentationModel, crop: tuple[int, int], *, freeze_backbone: bool = False
) -> float:
    """Operations of a training step for one image: of the convolutions, forwards and both gradients.

    What is computed twice to save memory counts once, as is usual (Chowdhery et al. 2022, "PaLM", app. B).

    Args:
      crop: rows and columns.
      freeze_backbone: the backbone has no gradients.
    """
    backward = {False: 2, True: 0}
    return sum(
        2.0
        * row.multiply_adds
        * (1 + backward[freeze_backbone and row.stage.startswith("backbone")])
        for row in summarize(model, crop)
    )


def utilisation(flops_per_second: float, devices: list[jax.Device]) -> float | None:
    """The share of what the devices could do; None where that is not known."""
    peaks = [peak_flops(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return flops_per_second / sum(known) if known and len(known) == len(peaks) else None
