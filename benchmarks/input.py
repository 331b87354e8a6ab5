"""Reading, augmenting and batching pictures."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.measure import OURS, Case, check, difference, measure
from benchmarks.report import report
from train.data import AugmentConfig, Dataset, TrainBatches, open_dataset

BATCH = 8


def input(
    crop: int = 513,
    pictures: int = 160,
    rounds: int = 5,
    out: Path = Path("benchmarks/results"),
) -> int:
    """Time an epoch of random scale, crop and flip against PyTorch's DataLoader and transforms.v2.

    Args:
      crop: Rows and columns of the crops.
      pictures: Of 480 x 360 pixels, PNG, in the epoch.
      rounds: How often each contestant is timed.
      out: Folder of the JSON and the picture.
    """
    with TemporaryDirectory() as folder:
        _draw(Path(folder), pictures)
        dataset = open_dataset(f"folder:{folder}")
        return report("input", measure([_case(dataset, Path(folder), crop)], rounds=rounds), out)


def _draw(folder: Path, count: int) -> None:
    """Pictures with the detail of photographs: smooth noise, whose quarters are the classes."""
    rng = np.random.default_rng(0)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    for split, number in (("train", count), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(number):
            noise = rng.integers(0, 256, (45, 60, 3), np.uint8)
            picture = cv2.resize(noise, (480, 360), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / "images" / split / f"{i:04}.png"), picture)
            cv2.imwrite(str(folder / "labels" / split / f"{i:04}.png"), picture[..., 0] // 64)


def _case(dataset: Dataset, folder: Path, crop: int) -> Case:
    cores = len(os.sched_getaffinity(0))
    config = AugmentConfig(crop=(crop, crop))
    steps = len(dataset.train) // BATCH

    def ours() -> None:
        with TrainBatches(
            dataset.train, config, batch_size=BATCH, seed=0, threads=cores
        ) as batches:
            for _ in itertools.islice(batches.iterate(0), steps):
                pass

    pictures = Pictures(folder, config)
    loader = torch.utils.data.DataLoader(
        pictures,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def theirs() -> None:
        for _ in loader:
            pass

    image, _ = pictures.read(0)
    read = np.moveaxis(np.asarray(image), 0, -1).astype(np.float32)
    example = dataset.train[0]["image"].astype(np.float32)
    found = check("pictures", difference(example, read), 0)
    runs: dict[str, Callable[[], None]] = {OURS: ours, "PyTorch DataLoader": theirs}
    return Case(f"{steps} batches of {BATCH} x {crop} x {crop}", runs, found)


class Pictures(torch.utils.data.Dataset):
    """The same pictures and augmentation by torchvision, in uint8 as ours."""

    def __init__(self, folder: Path, config: AugmentConfig):
        self.files = sorted((folder / "images" / "train").iterdir())
        self.config = config

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        file = self.files[index]
        label = file.parents[2] / "labels" / "train" / file.name
        return (
            tv_tensors.Image(decode_image(str(file), ImageReadMode.RGB)),
            tv_tensors.Mask(decode_image(str(label), ImageReadMode.UNCHANGED)),
        )

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.read(index)
        crop = v2.Compose(
            [
                v2.ScaleJitter(tuple(image.shape[1:]), self.config.scale, antialias=False),
                v2.RandomCrop(
                    self.config.crop,
                    pad_if_needed=True,
                    fill={tv_tensors.Image: self.config.fill, tv_tensors.Mask: 255},
                ),
                v2.RandomHorizontalFlip(),
            ]
        )
        image, label = crop(image, label)
        return image, label[0]
