"""ImageNet classifiers, read as dilated networks: what the layouts of torchvision and of timm share."""

from deeplab_jax.config import Config
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes


class Classification(Layout):
    """A backbone at the top of a checkpoint and its classifier, both named by `port.backbones`."""

    linear_head = ("head.classifier",)
    takes_others = False  # a classifier is its backbone's own

    def recognises(self, shapes: Shapes) -> bool:
        place = self.find_place(shapes)
        return place is not None and bool(place.naming.classifier)

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 32)
        naming = self.find_place(shapes).naming
        classes = shapes.get(f"{naming.classifier['classifier']}.weight", (1000,))[0]
        return Config(backbone, naming.classifier_config(shapes), classes)

    def names(self, config: Config, place: Place | None = None) -> Names:
        naming = (place or self.place(config)).naming
        head = {f"head.{part}": name for part, name in naming.classifier.items()}
        return self.backbone_names(config, place) | head

    def place(self, config: Config) -> Place:
        naming = super().place(config).naming
        return Place(naming.classifier_prefix, naming)

    def reference(self, config: Config, place: Place | None = None):
        return (place or self.place(config)).naming.classifier_module(config)
