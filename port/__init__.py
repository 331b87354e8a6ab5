"""PyTorch DeepLab checkpoints to Flax models, and back."""

from port.backbones import Naming, register_naming
from port.convert import load_torch, to_module, to_torch
from port.layouts import LAYOUTS
from port.read import CheckpointError
from port.verify import Outcome, Report, verify

__all__ = [
    "LAYOUTS",
    "CheckpointError",
    "Naming",
    "Outcome",
    "Report",
    "load_torch",
    "register_naming",
    "to_module",
    "to_torch",
    "verify",
]
