"""What a model is, as data: frozen, comparable, and the same after a trip through JSON."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from deeplab_jax.backbones.base import BackboneConfig
from deeplab_jax.backbones.registry import FEATURES, families
from deeplab_jax.heads import HEAD_CONFIGS, ASPPConfig, FCNConfig, HeadConfig
from deeplab_jax.preprocessing import Preprocessing

MOST_CLASSES = 2**16
"""What the ids of masks can tell apart."""


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """No backbone: the model is the head alone and is called with the features.

    Attributes:
      high, low: channels of the features.
      output_stride: of the backbone that they come from; it sets ASPP's rates.
    """

    kind: ClassVar[str] = FEATURES
    high: int = 2048
    low: int = 256
    output_stride: int = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """A segmentation model.

    Attributes:
      backbone: the dilated classification network, or features in place of one.
      head: what makes logits of its features.
      num_classes: channels of the logits.
      aux_head: a second head for training, on features at stride 16 as a rule; None for none.
      align_corners: corner rule of every resize, see `ops.resize_bilinear`.
      class_names: what the ids in a mask mean, in order. With one channel these are two, background
        and foreground, and the foreground's name alone will do.
      preprocessing: what images go through before the model. ImageNet's statistics are of RGB: for
        another number of channels the default only scales to [0, 1].
      activation: what makes probabilities of logits. "softmax" over the classes; or "sigmoid", of one
        channel, which is each pixel's probability of being foreground, or of each of several labels for
        itself, of which a pixel may then have any number. None is "sigmoid" for one channel alone.
      upsampling: logits are resized "to_image", whatever its size is; or enlarged "by_stride", by as much
        as they are smaller, and cropped to the image (detectron2). The two differ for images of sizes
        that are no multiples of the stride.
    """

    backbone: BackboneConfig | FeaturesConfig
    head: HeadConfig
    num_classes: int = 21
    aux_head: FCNConfig | None = None
    align_corners: bool = False
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing = Preprocessing()
    activation: Literal["softmax", "sigmoid"] | None = None
    upsampling: Literal["to_image", "by_stride"] = "to_image"

    def __post_init__(self):
        self._check_parts()
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.num_classes > MOST_CLASSES:
            raise ValueError(
                f"num_classes must be at most {MOST_CLASSES}, the ids that 16 bits hold, got "
                f"{self.num_classes}"
            )
        self._settle("num_classes", int(self.num_classes))
        self._settle("activation", self._fitting_activation())
        self._settle("class_names", self._fitting_names())
        self._settle("preprocessing", self._fitting_preprocessing())

    @property
    def in_channels(self) -> int | None:
        """Channels of the images; None for a model that is called with features."""
        return None if isinstance(self.backbone, FeaturesConfig) else self.backbone.in_channels

    @property
    def multilabel(self) -> bool:
        """Whether a pixel may have several labels at once, or none."""
        return self.activation == "sigmoid" and self.num_classes > 1

    def _check_parts(self) -> None:
        problems = []
        if not hasattr(self.backbone, "kind") or isinstance(self.backbone, HEAD_CONFIGS):
            problems.append(
                f"backbone must be a backbone's config, such as ResNetConfig(50), got {self.backbone!r}"
            )
        if not isinstance(self.head, HEAD_CONFIGS):
            problems.append(
                f"head must be a head's config, such as DeepLabV3PlusConfig(), got {self.head!r}"
            )
        if not isinstance(self.aux_head, FCNConfig | None):
            problems.append(f"aux_head must be a FCNConfig or None, got {self.aux_head!r}")
        if self.upsampling not in ("to_image", "by_stride"):
            problems.append(f"upsampling must be to_image or by_stride, got {self.upsampling!r}")
        elif self.upsampling == "by_stride" and not self._has_one_stride():
            problems.append(
                'upsampling="by_stride" is for heads of DeepLabv3 and v3+ without an auxiliary head, got '
                f"{self.head!r} and {self.aux_head!r}"
            )
        if not _is_whole(self.num_classes):
            problems.append(f"num_classes must be a whole number, got {self.num_classes!r}")
        if not problems and not (self.in_channels is None or _is_whole(self.in_channels)):
            problems.append(f"in_channels must be a whole number, got {self.in_channels!r}")
        if isinstance(self.class_names, str):
            problems.append(
                f"class_names must be a tuple with a name for each class, got {self.class_names!r}"
            )
        if problems:
            raise ValueError("\n".join(problems))

    def _has_one_stride(self) -> bool:
        """Whether all logits have the stride of `SegmentationModel.logits_stride`."""
        return isinstance(self.head, ASPPConfig) and self.aux_head is None

    def _settle(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)  # a frozen dataclass has no other way

    def _fitting_activation(self) -> str:
        if self.activation not in (None, "softmax", "sigmoid"):
            raise ValueError(f"activation must be softmax or sigmoid, got {self.activation!r}")
        if self.num_classes == 1 and self.activation == "softmax":
            raise ValueError(
                "activation must be 'sigmoid' for num_classes=1, got 'softmax': the softmax of one channel "
                "is 1 everywhere. Leave it out, and the fitting one is taken"
            )
        return self.activation or ("sigmoid" if self.num_classes == 1 else "softmax")

    def _fitting_names(self) -> tuple[str, ...] | None:
        names = self.class_names
        if self.num_classes == 1 and names is not None and len(names) == 1:
            return ("background", *names)
        classes = mask_classes(self.num_classes)
        if names is not None and len(names) != classes:
            raise ValueError(
                f"class_names must have a name for each of the {classes} classes, got {len(names)} names"
            )
        return names

    def _fitting_preprocessing(self) -> Preprocessing:
        given, channels = self.preprocessing, self.in_channels
        if channels is None or channels == len(given.mean):
            return given
        if (given.mean, given.std) != (Preprocessing.mean, Preprocessing.std):
            raise ValueError(
                f"preprocessing.mean and std must have a value for each of the backbone's {channels} "
                f"channels, got {given.mean} and {given.std}"
            )
        return dataclasses.replace(given, mean=(0.0,) * channels, std=(1.0,) * channels)

    def override(self, **fields: Any) -> "Config":
        """A copy with the named fields changed, here or in the backbone or the head.

        Lists, which JSON has for tuples, become tuples. Raises ValueError, listing what there is, for
        names that none of them has.
        """
        fields = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
        for part in fields.keys() & {"backbone", "head"}:
            if not dataclasses.is_dataclass(fields[part]):
                raise ValueError(f"{part} must be a config, got {fields[part]!r}")
        places = {"": self} | {p: fields.get(p, getattr(self, p)) for p in ("backbone", "head")}
        names = {p: [f.name for f in dataclasses.fields(part)] for p, part in places.items()}
        unknown = [f for f in fields if not any(f in known for known in names.values())]
        if unknown:
            raise ValueError(
                f"no such field: {', '.join(unknown)}. A model of {places['head'].kind} on "
                f"{places['backbone'].kind} has "
                + "; ".join(f"{p or 'model'}: {', '.join(known)}" for p, known in names.items())
            )
        changes = {p: {f: v for f, v in fields.items() if f in names[p]} for p in places}
        own = changes.pop("")
        if own.get("num_classes", self.num_classes) != self.num_classes:
            own = {"activation": None} | own  # the fitting one
        for place, change in changes.items():
            own[place] = dataclasses.replace(places[place], **change)
        return dataclasses.replace(self, **own)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def mask_classes(num_classes: int) -> int:
    """How many ids a mask has: one for each channel of the logits, but 0 and 1 for a single one."""
    return max(2, num_classes)


# ---------------------------------------------------------------------------- JSON


class UnknownKindError(ValueError):
    """A config names a kind of part that is not registered, as a backbone of somebody's own."""


def kinds() -> dict[str, type]:
    """The parts that a config can have, by their `kind`: registered backbones, features, heads."""
    backbones = {kind: family.config for kind, family in families().items()}
    others = {config.kind: config for config in (FeaturesConfig, *HEAD_CONFIGS)}
    return backbones | others


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain data for JSON; what may be one of several kinds says which in `kind`."""
    data = {"kind": config.kind} if hasattr(config, "kind") else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        data[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return data


def from_dict(data: Mapping[str, Any], config_type: type = Config) -> Any:
    """The config that `to_dict` made `data` of; fields left out take their defaults.

    Raises UnknownKindError for an unknown kind, and ValueError for unknown fields.
    """
    data = dict(data)
    if (kind := data.pop("kind", None)) is not None:
        known = kinds()
        if kind not in known:
            raise UnknownKindError(
                f"kind must be one of {', '.join(sorted(known))}, got {kind!r}. A backbone of your own "
                "is known once the module that calls `register_backbone` for it is imported: in Python "
                "by `import`, in the commands by `--plugin MODULE`"
            )
        config_type = known[kind]
    hints = typing.get_type_hints(config_type)
    fields = {field.name for field in dataclasses.fields(config_type)}
    if unknown := sorted(set(data) - fields):
        raise ValueError(
            f"{config_type.__name__} has no field {', '.join(unknown)}; it has "
            f"{', '.join(sorted(fields))}. Was this written by a newer version?"
        )
    return config_type(**{name: _decode(value, hints[name]) for name, value in data.items()})


def _decode(value: Any, hint: Any) -> Any:
    """JSON has no tuples, and does not say which dataclass a dict is."""
    if isinstance(value, Mapping):
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        configs: list[Any] = [option for option in options if dataclasses.is_dataclass(option)]
        if not configs:
            raise ValueError(f"a plain value is expected where {dict(value)} stands")
        if "kind" not in value and len([o for o in options if o is not types.NoneType]) > 1:
            raise ValueError(
                f"{dict(value)} must say its kind, one of {', '.join(sorted(kinds()))}"
            )
        return from_dict(value, configs[0])
    return tuple(value) if isinstance(value, list | tuple) else value
