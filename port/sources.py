"""Checkpoints by name: `torchvision:NAME`, `timm:NAME` and `hf://ORG/MODEL`.

The package that publishes a checkpoint downloads it, by its own code and into its own cache, so that a
second time needs no network.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax.preprocessing import Preprocessing

FORMS = "torchvision:NAME, timm:NAME or hf://ORG/MODEL"
HF_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.json")


class Fetched(NamedTuple):
    """A checkpoint that was fetched.

    Attributes:
      source: its folder, or its tensors by name.
      settings: what would be in the config.json beside it.
      known: fields of the model's config that its publisher tells.
    """

    source: Path | Mapping[str, Any]
    settings: Mapping[str, Any] = {}
    known: Mapping[str, Any] = {}


def fetch(name: str) -> Fetched | None:
    """The checkpoint of a name; None for what is no such name but a path.

    Raises:
      ImportError: its package is not installed.
      ValueError: there is no such checkpoint, or it cannot be downloaded.
    """
    for prefix, fetcher in FETCHERS.items():
        if name.startswith(prefix):
            try:
                return fetcher(name.removeprefix(prefix))
            except ImportError:
                raise
            except Exception as error:  # of the network, of a hub, of a name: dozens of types
                cause = str(error).strip().splitlines() or [type(error).__name__]
                raise ValueError(
                    f"{name} cannot be fetched: {cause[0]}. Check the name and the network, or download "
                    "the file elsewhere and pass its path"
                ) from error
    return None


def _torchvision(name: str) -> Fetched:
    """Weights such as `DeepLabV3_ResNet50_Weights.DEFAULT`, or a model's best, `deeplabv3_resnet50`."""
    from torchvision import models

    one = "." in name  # rather than a model, of which there may be several
    weights = models.get_weight(name) if one else models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    known = {
        "preprocessing": Preprocessing(tuple(transforms.mean), tuple(transforms.std)),
        "class_names": tuple(weights.meta["categories"]),
    }
    return Fetched(weights.get_state_dict(progress=True, check_hash=True), known=known)


def _timm(name: str) -> Fetched:
    """A pretrained network such as `resnet50.a1_in1k`."""
    import timm

    model = timm.create_model(name, pretrained=True)
    settings = {
        "architecture": name.partition(".")[0],
        "pretrained_cfg": {key: model.pretrained_cfg[key] for key in ("mean", "std")},
    }
    return Fetched(model.state_dict(), settings)


def _hugging_face(name: str) -> Fetched:
    """A model of the hub, `ORG/MODEL` or `ORG/MODEL@REVISION`."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    folder = snapshot_download(repository, revision=revision or None, allow_patterns=list(HF_FILES))
    return Fetched(Path(folder))


FETCHERS: dict[str, Callable[[str], Fetched]] = {
    "torchvision:": _torchvision,
    "timm:": _timm,
    "hf://": _hugging_face,
}
