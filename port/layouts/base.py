"""What a layout is: the habits of one family of PyTorch code.

A layout recognises the names of its checkpoints, derives a model's `Config` from names and shapes, and
says what each of the model's modules is called in the original; converting, checking and verifying follow
from that. What the backbone is called is no part of it: a layout says where backbones are and by which
rules they are dilated, and `port.backbones` has the rest. To add a family of code, copy the file that is
nearest to it and list it in `layouts/__init__.py`.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.preprocessing import Preprocessing
from port.backbones import NAMINGS, Naming
from port.naming import Names, Shapes, under, within

if TYPE_CHECKING:
    import torch


class Place(NamedTuple):
    """Where a checkpoint's backbone is.

    Attributes:
      prefix: what stands before all its names, "backbone." or the like.
      naming: how it is named behind that.
    """

    prefix: str
    naming: Naming


class Layout(abc.ABC):
    """One family of PyTorch code.

    Attributes:
      name: what `--layout` calls it.
      code: the code base, for people.
      models: what of it we read, for the README's table.
      choices: fields of the config that are options of the original code and leave no trace in the
        weights, so that `--output-stride` and the like must tell.
      prefixes: what may stand before the names of a backbone.
      takes_others: whether its heads may stand on backbones of other code too.
      rules: fields of the backbone's config that are its code's habits, by the type of the config, or by
        that of the naming where one family has several there.
      rule: the same for backbones that its code has not got.
      linear_head: our modules outside of the backbone whose 1x1 kernels are linear layers in the original.
      absolute_gains: its batch norms multiply by |weight| + epsilon, as in-place activated batch norm does.
      apart: how the names of tensors begin that the logits do not depend on.
      to_verify: what to do where there is no package to compare with.
    """

    name: str
    code: str
    models: str
    choices: tuple[str, ...] = ("output_stride",)
    prefixes: tuple[str, ...] = ("backbone.",)
    takes_others: bool = True
    rules: ClassVar[Mapping[type, Mapping[str, Any]]] = {}
    rule: ClassVar[Mapping[str, Any]] = {"first_block_dilation": "same"}
    linear_head: tuple[str, ...] = ()
    absolute_gains: bool = False
    apart: tuple[str, ...] = ()
    to_verify: str = "Name a function that builds the original with --against module:factory."

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

    def preprocessing(self, config: Config, source: Mapping[str, np.ndarray]) -> Preprocessing:
        """What its code does to images for such a model, where neither a file nor the user says.

        Args:
          source: the network's tensors, of which a code may keep some for this.
        """
        del source
        return config.preprocessing

    def choices_for(self, config: Config) -> tuple[str, ...]:
        """Those of `choices` that the original code has for this model."""
        del config
        return self.choices

    @abc.abstractmethod
    def names(self, config: Config, place: Place | None = None) -> Names:
        """What the original code calls each module of the model.

        Args:
          place: of the backbone in a checkpoint; None is where the original code has it.
        """

    def aliases(self, config: Config, place: Place | None = None) -> Names:
        """Name of a PyTorch module -> its second name, where the original code registers it twice.

        Its tensors are then in every checkpoint under both names. PyTorch loads the second name last,
        so that it is the one that counts.
        """
        del config, place
        return {}

    def rolls(self, config: Config) -> dict[str, int]:
        """Module -> by how many channels its *input* is rotated in the original code.

        Concatenating (a, b) where we concatenate (b, a) rotates channels: what is channel c for us is
        channel (c + roll) mod C there. The output of a depthwise module or a norm rotates with it.
        """
        del config
        return {}

    def reference(self, config: Config, place: Place | None = None) -> "torch.nn.Module | None":
        """The original model, without weights, where its code can be installed; else None.

        Args:
          place: of the backbone in a checkpoint; None is where the original code has it.

        Raises ImportError when the package is not installed.
        """
        del config, place
        return None

    # ---- the backbone, by composition ----

    def find_place(self, shapes: Shapes) -> Place | None:
        """Where a checkpoint's backbone is; None where there is none that we know."""
        for prefix in self.prefixes:
            inner = within(shapes, prefix)
            for naming in self._namings():
                if naming.recognises(inner):
                    return Place(prefix, naming)
        return None

    def _namings(self) -> list[Naming]:
        """All that a backbone may have, the original code's own first."""
        own = [naming for naming in NAMINGS if self.name in naming.layouts]
        others = [naming for naming in NAMINGS if naming not in own]
        return own + (others if self.takes_others else [])

    def place(self, config: Config) -> Place:
        """Where the original code has such a backbone.

        Raises ValueError for one that has no names in PyTorch.
        """
        for naming in self._namings():
            if naming.family is type(config.backbone):
                return Place(self.prefixes[0], naming)
        raise ValueError(f"{self.code} has no {config.backbone.kind}")

    def fields(self, place: Place) -> Mapping[str, Any]:
        """The habits of the original code for a backbone, as fields of its config."""
        family = place.naming.family
        known = {field.name for field in dataclasses.fields(family)}
        rule = self.rules.get(family, {n: v for n, v in self.rule.items() if n in known})
        return self.rules.get(type(place.naming), rule)

    def backbone(self, shapes: Shapes, output_stride: int) -> Any:
        """The backbone's config.

        Raises ValueError, listing those there are, for a backbone that we do not know.
        """
        place = self.find_place(shapes)
        if place is None:
            known = ", ".join(dict.fromkeys(naming.known for naming in self._namings()))
            inner = next((names for p in self.prefixes if (names := within(shapes, p))), shapes)
            some = ", ".join(list(inner)[:3])
            raise ValueError(
                f"the backbone is {_seen(shapes)}not one that we know: {known} are. Its tensors are called "
                f"{some}, ..."
            )
        fields = dict(self.fields(place))
        if "output_stride" in {field.name for field in dataclasses.fields(place.naming.family)}:
            fields["output_stride"] = output_stride
        return place.naming.config(within(shapes, place.prefix), **fields)

    def backbone_names(self, config: Config, place: Place | None) -> Names:
        """What the modules of the backbone are called."""
        prefix, naming = place or self.place(config)
        return under("backbone", prefix.removesuffix("."), naming.names(config.backbone))

    def linear(self, config: Config, place: Place | None = None) -> tuple[str, ...]:
        """Our modules whose 1x1 kernels are linear layers in the original."""
        if isinstance(config.backbone, FeaturesConfig):
            return self.linear_head
        _, naming = place or self.place(config)
        return (*(f"backbone.{path}" for path in naming.linear(config.backbone)), *self.linear_head)

    def reshaped(self, config: Config, place: Place | None = None) -> dict[str, tuple[int, ...]]:
        """Our variables whose tensor has another shape in the original, with the same numbers in order."""
        if isinstance(config.backbone, FeaturesConfig):
            return {}
        _, naming = place or self.place(config)
        return {
            f"backbone.{path}": shape for path, shape in naming.reshaped(config.backbone).items()
        }

    def channels_last(self, config: Config, place: Place | None = None) -> tuple[str, ...]:
        """Our modules whose output in the original is `[B, H, W, C]`."""
        if isinstance(config.backbone, FeaturesConfig):
            return ()
        _, naming = place or self.place(config)
        return tuple(f"backbone.{path}" for path in naming.channels_last(config.backbone))


def of_bytes(
    mean: tuple[float, ...], channels: int, order: Literal["rgb", "bgr"] = "rgb"
) -> Preprocessing:
    """Images of 0 to 255 less a mean, which is of RGB: from other channels nothing is known to be taken."""
    if channels != len(mean):
        return Preprocessing((0.0,) * channels, (1 / 255,) * channels)
    scaled = tuple(value / 255 for value in mean)
    return Preprocessing(scaled, (1 / 255,) * channels, channel_order=order)


OTHERS = {"_kxk.conv.weight": "a GERNet or another of timm's ByobNets"}
"""Backbones that no naming recognises, by a part of a name that only they have."""


def _seen(shapes: Shapes) -> str:
    """Which of `OTHERS` the names are of, for a message."""
    seen = (network for part, network in OTHERS.items() if any(part in name for name in shapes))
    return next((f"{network}, " for network in seen), "")


def check_fixed(settings: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError, listing them, for options in a config.json that we cannot compute.

    Args:
      fixed: the values that we have for each; the first is the default.
    """
    other = [
        f"{name} is {settings[name]!r}, and we can only do {values[0]!r}"
        for name, values in fixed.items()
        if settings.get(name, values[0]) not in values
    ]
    if other:
        raise ValueError("; ".join(other))
