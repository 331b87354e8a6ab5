"""The families of backbones that presets, model folders and commands know.

Each family registers itself at the end of its own file, and so can a backbone of your own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

from deeplab_jax.backbones.base import BackboneConfig
from deeplab_jax.heads import (
    HEAD_CONFIGS,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    HeadConfig,
)

FEATURES = "features"
"""The kind of a model without a backbone, see `FeaturesConfig`."""

HEADS: Mapping[str, HeadConfig] = {
    "deeplabv3": DeepLabV3Config(),
    "deeplabv3plus": DeepLabV3PlusConfig(),
    "fcn": FCNConfig(),
}
"""The heads of a family's presets, by the first part of the preset's name."""

SEPARABLE_HEADS: Mapping[str, HeadConfig] = {
    **HEADS,
    "deeplabv3plus": DeepLabV3PlusConfig(separable=True, separable_decoder=True),
}
"""The same for backbones that are made of separable convolutions: v3+ with the paper's separable ASPP
and decoder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of backbones.

    Attributes:
      config: the type of its configs.
      presets: a config for each name, such as "resnet50".
      heads: the heads that its presets have, see `HEADS`.
    """

    config: type[BackboneConfig]
    presets: Mapping[str, BackboneConfig]
    heads: Mapping[str, HeadConfig]


_families: dict[str, Family] = {}


def families() -> dict[str, Family]:
    """Every registered family by its kind, in the order of their registration."""
    return dict(_families)


def register_backbone(
    config: type[BackboneConfig],
    *,
    presets: Mapping[str, BackboneConfig] | None = None,
    heads: Mapping[str, HeadConfig] = HEADS,
) -> None:
    """Makes a family of backbones known to `create`, `save`, `load` and the commands.

    The commands know a backbone of your own with `--plugin MODULE`, the module that registers it, or
    where your package has an entry point in the group `deeplab_jax.plugins`.

    Args:
      config: the type of its configs, see `BackboneConfig`.
      presets: names and configs, {"mynet_small": MyNetConfig("small")}. With each of `heads` they are
        named models: "deeplabv3plus_mynet_small".
      heads: the heads that they have, by the first part of the preset's name; `SEPARABLE_HEADS` suits
        backbones of separable convolutions.

    Raises:
      ValueError: listing all that is wrong with the config, or a kind or a name that another family has.
    """
    presets = presets or {}
    if problems := list(_problems(config, presets)):
        name = getattr(config, "__name__", repr(config))
        raise ValueError("\n  ".join([f"{name} cannot be registered:", *problems]))
    _families[config.kind] = Family(config, dict(presets), dict(heads))


def _problems(config: type[BackboneConfig], presets: Mapping[str, BackboneConfig]) -> Iterator[str]:
    if not _is_frozen_dataclass(config):
        yield "it must be a frozen dataclass: @dataclasses.dataclass(frozen=True)"
        return
    if not isinstance(kind := getattr(config, "kind", None), str):
        yield 'it must have a name for its kind: kind: ClassVar[str] = "mynet"'
        return
    fields = {field.name for field in dataclasses.fields(cast(Any, config))}
    for name in ("output_stride", "in_channels", "build"):
        if name not in fields and not hasattr(config, name):
            yield f"it must have {name}, see deeplab_jax.BackboneConfig"
    taken = {FEATURES: "features", **{head.kind: head.__name__ for head in HEAD_CONFIGS}}
    if kind in taken:
        yield f"the kind {kind!r} is taken by {taken[kind]}"
    if (taker := _families.get(kind)) is not None and not _same_class(taker.config, config):
        yield f"the kind {kind!r} is taken by {taker.config.__module__}.{taker.config.__name__}"
    for name, preset in presets.items():
        if not isinstance(preset, config):
            yield f"the preset {name!r} must be a {config.__name__}, got {preset!r}"
    for other, family in _families.items():
        if other != kind and (twice := sorted(family.presets.keys() & presets)):
            yield f"there are presets called {', '.join(twice)} already, of {other}"


def _is_frozen_dataclass(config: Any) -> bool:
    parameters = getattr(config, "__dataclass_params__", None)
    return isinstance(config, type) and parameters is not None and parameters.frozen


def _same_class(a: type, b: type) -> bool:
    """Whether `b` is `a`, or `a` once more: a notebook runs a cell twice."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)
