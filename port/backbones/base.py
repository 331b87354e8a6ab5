"""What a naming is: the names that one code base gives the tensors of a family of backbones.

A family has a file, and in it a naming for each code base that wrote the family anew. A layout says where
in its checkpoints the backbone is, and has the rest from here, so that any layout may have any backbone.
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.naming import Names, Shapes

if TYPE_CHECKING:
    import torch


class Naming(abc.ABC):
    """The names of one family of backbones in one code base, without what stands before them.

    Attributes:
      family: our config of it.
      known: which of its networks we have, for messages.
      layouts: the layouts whose own code has it, by their names.
      classifier_prefix: what stands before it in a classifier of that code.
      classifier: what the layers of the ImageNet classifier behind it are called: those of our head ->
        theirs. Empty where there is none to be read.
    """

    family: ClassVar[type]
    known: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = ()
    classifier_prefix: ClassVar[str] = ""
    classifier: ClassVar[Names] = {}

    @abc.abstractmethod
    def recognises(self, shapes: Shapes) -> bool:
        """Whether these names are this naming's. No two namings recognise the same."""

    @abc.abstractmethod
    def config(self, shapes: Shapes, **fields: Any) -> Any:
        """The backbone of a checkpoint that this naming recognises.

        Args:
          shapes: names and shapes of its tensors.
          **fields: of the config, that weights do not tell.

        Raises:
          ValueError: when the shapes are of no network that we know.
          KeyError: a tensor is missing that tells.
        """

    @abc.abstractmethod
    def names(self, config: Any) -> Names:
        """What each module of the backbone is called."""

    def linear(self, config: Any) -> tuple[str, ...]:
        """The modules whose 1x1 kernels are linear layers in the original."""
        del config
        return ()

    def reshaped(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Variables whose tensor has another shape in the original, with the same numbers in order."""
        del config
        return {}

    def channels_last(self, config: Any) -> tuple[str, ...]:
        """The modules whose output has its channels on the last axis in the original, `[B, H, W, C]`."""
        del config
        return ()

    # ---- what packages call the network, to build the original ----

    def timm_name(self, config: Any) -> str | None:
        """timm's name of the network, None where it has none."""
        del config
        return None

    def smp_name(self, config: Any) -> str | None:
        """The name of segmentation_models_pytorch's own encoder of it, None where it has none."""
        del config
        return None

    # ---- the ImageNet classifier, where `classifier` names it ----

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        """The head of the classifier.

        Args:
          shapes: names and shapes of the whole network.
        """
        del shapes
        return ClassifierConfig()

    def classifier_module(self, config: Config) -> "torch.nn.Module | None":
        """The original classifier without weights, None where its code cannot be dilated so.

        timm's, unless a naming says otherwise.

        Raises ImportError when its package is not installed.
        """
        import timm

        name = self.timm_name(config.backbone)
        if name is None or not timm.is_model(name):
            return None
        stride = config.backbone.output_stride
        return timm.create_model(
            name,
            num_classes=config.num_classes,
            in_chans=config.backbone.in_channels,
            **({"output_stride": stride} if stride < 32 else {}),
        )


NAMINGS: list[Naming] = []
"""All namings, in the order of their registration; a layout's own come first where it is concerned."""


def register_naming(naming: Naming) -> None:
    """Makes the names of a family of backbones known to every layout.

    For a backbone of your own the command knows them with `--plugin MODULE`, the module that calls this.
    A naming of the same class is replaced, as where a notebook runs a cell twice.
    """
    same = [known for known in NAMINGS if type(known).__qualname__ == type(naming).__qualname__]
    for known in same:
        NAMINGS.remove(known)
    NAMINGS.append(naming)
