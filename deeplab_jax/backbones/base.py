"""What a backbone is: its config, and the module that the config builds."""

import abc
import typing
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import jax
from flax import nnx

from deeplab_jax.layers import SpatialLayer, check_rngs


class BackboneConfig(Protocol):
    """A frozen dataclass that says all there is to know of a backbone.

    `register_backbone` makes it known to model folders, presets and commands.

    Attributes:
      kind: the family's name in config.json, a `ClassVar`.
      output_stride: how many times smaller than the image the `high` features are; a field, or a
        `ClassVar` where the network has only one.
      in_channels: of the images.
    """

    kind: ClassVar[str]

    @property
    def output_stride(self) -> int: ...

    @property
    def in_channels(self) -> int: ...

    def build(self, *, rngs: nnx.Rngs) -> "Backbone[Any]":
        """The module of this config with random weights."""
        ...


ConfigT = TypeVar("ConfigT", bound=BackboneConfig)


class Backbone(nnx.Module, Generic[ConfigT]):
    """A dilated classification network: images `[B, H, W, in_channels]` -> a dict of features.

    `low`, `mid` and `aux` are at strides 4, 8 and 16 (those with a larger stride than the output stride
    keep its size) and `high` is at the output stride; heads read those that they need. What is random in
    training draws from the `rngs` of the call.

    Names have meaning in a few places:

    - `summarize` has a row for each part of the backbone, named as the attribute is. Parts called `stem`,
      `conv1` and `bn1` are the row `stem`, and each member of a list called `blocks` is a row. The stem
      comes first, then the order is that of `spatial_layers`, and what those do not have comes last.
    - `fold_batch_norm` multiplies a batch norm into the convolution that it follows by name, or by
      `norm_follows` of the module that both are attributes of.

    A subclass names the type of its config, `class MyNet(Backbone[MyNetConfig])`, and its `__init__`
    takes `(config, *, rngs)` and sets `self.config`.

    Attributes:
      config: what it was built from.
    """

    config: ConfigT

    def __new__(cls, *args: Any, **kwargs: Any) -> "Backbone[ConfigT]":
        if args or kwargs:  # copies and pickles make an empty one
            _check_arguments(cls, args, kwargs)
        return super().__new__(cls)

    @property
    def output_stride(self) -> int:
        """How many times smaller than the image the `high` features are; it sets ASPP's rates."""
        return self.config.output_stride

    @property
    @abc.abstractmethod
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""

    @abc.abstractmethod
    def __call__(
        self, images: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]: ...

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; shortcuts do not.

        None by default, and then a summary has no receptive fields.
        """
        return iter(())


def _check_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises TypeError, saying what to write, where there is no config or no `rngs`."""
    wanted = next(
        (
            parameter
            for base in getattr(cls, "__orig_bases__", ())
            for parameter in typing.get_args(base)
            if _is_backbone(typing.get_origin(base)) and isinstance(parameter, type)
        ),
        None,
    )
    if wanted is None:  # an __init__ of another form, perhaps
        return
    given = args[0] if args else kwargs.get("config")
    if not isinstance(given, wanted):
        inside = "" if given is None else f", got {given!r}"
        raise TypeError(
            f"{cls.__name__} takes its config first, as in {cls.__name__}({wanted.__name__}(), "
            f"rngs=nnx.Rngs(0)){inside}"
        )
    check_rngs(kwargs.get("rngs"))


def _is_backbone(base: Any) -> bool:
    return isinstance(base, type) and issubclass(base, Backbone)
