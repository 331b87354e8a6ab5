"""The named models: every registered backbone with each of its heads."""

import difflib
import functools
from collections.abc import Iterator, Mapping

from deeplab_jax.backbones.registry import HEADS, Family, families
from deeplab_jax.config import Config


class Presets(Mapping[str, Config]):
    """Config of each named model, "deeplabv3plus_resnet50"; grows with `register_backbone`."""

    def __getitem__(self, name: str) -> Config:
        return _configs(tuple(families().values()))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_configs(tuple(families().values())))

    def __len__(self) -> int:
        return len(_configs(tuple(families().values())))


PRESETS = Presets()


@functools.lru_cache(maxsize=1)
def _configs(known: tuple[Family, ...]) -> dict[str, Config]:
    heads = dict.fromkeys([*HEADS, *(head for family in known for head in family.heads)])
    return {
        f"{head}_{name}": Config(backbone, family.heads[head])
        for head in heads
        for family in known
        if head in family.heads
        for name, backbone in family.presets.items()
    }


def named_config(name: str) -> Config:
    """The config of a named model. Raises ValueError, with the names that are near, for another."""
    if name in PRESETS:
        return PRESETS[name]
    near = close_names(name)
    hint = f"Did you mean {near}? " if near else ""
    raise ValueError(
        f"no preset is called {name!r}. {hint}`deeplab list` prints all {len(PRESETS)}; those of a "
        "backbone of your own are known once the module that registers it is imported (in the commands by "
        "--plugin MODULE)"
    )


def close_names(name: str) -> str:
    """The presets that a misspelt name may mean, "a or b"; empty where none is near."""
    return " or ".join(difflib.get_close_matches(name, PRESETS, n=3))
