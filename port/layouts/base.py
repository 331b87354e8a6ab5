"""What a layout is: the habits of one family of PyTorch code.

A layout recognises the names of its checkpoints, derives a model's `Config` from names and shapes, and
says what each of the model's modules is called over there; converting, checking and verifying follow
from that. To add a family, copy the file that is nearest to it and list it in `layouts/__init__.py`.
"""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deeplab_jax.config import Config

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape of every tensor in a checkpoint, wrappers and counters removed."""

Names = dict[str, str]
"""Path of each of our modules that owns weights -> name of the PyTorch module that owns the same."""


class Layout(abc.ABC):
    """One family of PyTorch code.

    Attributes:
      name: what `--layout` calls it.
      code: the code base, for people.
      models: what of it we read, for the README's table.
      choices: fields of the config that are options of the original code and leave no trace in the
        weights, so that `--output-stride` and the like must tell.
      linear: our modules whose 1x1 kernels are linear layers over there.
      apart: how the names of tensors begin that the logits do not depend on.
    """

    name: str
    code: str
    models: str
    choices: tuple[str, ...] = ("output_stride",)
    linear: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()

    @abc.abstractmethod
    def recognises(self, shapes: Shapes) -> bool:
        """Whether a checkpoint with these (canonical) names is this family's."""

    def canonical(self, name: str) -> str:
        """Today's name of a tensor that older versions of the code called otherwise."""
        return name

    @abc.abstractmethod
    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        """The model of a checkpoint that this layout recognises.

        Args:
          shapes: names and shapes of its tensors.
          output_stride: the user's choice; None is the original code's default.

        Raises:
          ValueError: when the names fit but the shapes are of no model that we know.
        """

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the config that the options saved beside the weights tell.

        They replace what `config` assumed where weights cannot tell; what the user says replaces them.

        Args:
          settings: the folder's config.json, never empty.

        Raises:
          ValueError: when they are another model's, or ask for what we cannot compute.
        """
        del settings
        return {}

    def options(self, config: Config) -> tuple[str, ...]:
        """Those of `choices` that the original code has for this model."""
        del config
        return self.choices

    @abc.abstractmethod
    def names(self, config: Config) -> Names:
        """What the original code calls each module of the model."""

    def aliases(self, config: Config) -> Names:
        """Name of a PyTorch module -> its second name, where the original code registers it twice.

        Its tensors are then in every checkpoint under both names. PyTorch loads the second name last,
        so that it is the one that counts.
        """
        del config
        return {}

    def rolls(self, config: Config) -> dict[str, int]:
        """Module -> by how many channels its *input* is rotated in the original code.

        Concatenating (a, b) where we concatenate (b, a) rotates channels: what is channel c for us is
        channel (c + roll) mod C over there. The output of a depthwise module or a norm rotates with it.
        """
        del config
        return {}

    def reference(self, config: Config) -> "torch.nn.Module | None":
        """The original model, without weights, where its code can be installed; else None.

        Raises ImportError when the package is not installed.
        """
        del config
        return None
