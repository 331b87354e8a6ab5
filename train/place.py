"""Where a run is kept: in a folder, or in a bucket, for which a folder on this machine stands meanwhile."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from deeplab_jax import buckets
from deeplab_jax.checkpoint import RUN_CHECKPOINTS, RUN_MODEL, save
from deeplab_jax.model import SegmentationModel

KEPT = (
    "config.json",
    "model.json",
    "environment.json",
    "log.txt",
    "metrics.jsonl",
    "tracking.json",
)
"""What a resumed run goes on with, besides its checkpoints."""


@dataclasses.dataclass
class Place:
    """Where a run is kept.

    Attributes:
      name: as a person knows it, a path or a URL.
      folder: on this machine; what is written there gets to the bucket with `upload`.
      checkpoints: where checkpoints are, which Orbax writes to a bucket itself.
    """

    name: str
    folder: Path
    checkpoints: epath.Path
    _url: str | None = None
    _uploaded: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def upload(self) -> None:
        """Copies to the bucket what is new or has changed; of a folder on this machine, nothing.

        Raises:
          BucketError: the bucket cannot be reached.
        """
        if self._url is None:
            return
        found = self._marks()
        changed = [name for name, mark in found.items() if self._uploaded.get(name) != mark]
        buckets.upload(self.folder, self._url, changed)
        self._uploaded = found

    def _marks(self) -> dict[str, tuple[int, int]]:
        """What changes when a file of the folder does, by its name."""
        return {
            str(path.relative_to(self.folder)): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def save_model(self, model: SegmentationModel, name: str = RUN_MODEL) -> None:
        """Writes a model into the run's folder, in the place of one that is there."""
        save(model, Path(f"{self._url or self.folder}/{name}"), overwrite=True)


@contextlib.contextmanager
def place_of(run: Path, *, writes: bool = True) -> Iterator[Place]:
    """The place of a run, new or old.

    Args:
      writes: whether this process is the one that writes there.

    Raises:
      BucketError: the bucket cannot be reached.
      ValueError: a bucket in which no checkpoints can be written.
    """
    if (url := buckets.url_of(run)) is None:
        yield Place(str(run), run, epath.Path((run / RUN_CHECKPOINTS).absolute()))
        return
    if why := why_no_run(url):
        raise ValueError(why)
    with tempfile.TemporaryDirectory(prefix="deeplab_run_", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / url.rpartition("/")[2]
        place.mkdir()
        for name in KEPT:
            if (text := buckets.read_text(f"{url}/{name}")) is not None:
                (place / name).write_text(text)
        kept = Place(url, place, epath.Path(url) / RUN_CHECKPOINTS, url)
        kept._uploaded = kept._marks()
        try:
            yield kept
        finally:
            if writes:
                kept.upload()


def why_no_run(path: str | Path) -> str | None:
    """Why a run cannot be kept at a path; None where it can."""
    url = buckets.url_of(path)
    if url is None or url.startswith("gs://"):
        return None
    return (
        f"run must be a folder or gs://BUCKET/..., got {url}: Orbax writes checkpoints to no other "
        "buckets. Mount it, and give the path where it is then"
    )


def as_path(path: Path) -> epath.Path:
    """A path that may be a URL, to read from."""
    return epath.Path(buckets.url_of(path) or path)
