"""Recipes: a file each, whose docstring is its command and what was measured with it."""

from types import ModuleType

from train.configs import (
    ade20k,
    camvid,
    cityscapes,
    finetune,
    pets,
    quickstart,
    voc,
)

RECIPES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (quickstart, finetune, camvid, pets, voc, cityscapes, ade20k)
}
