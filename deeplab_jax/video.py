"""The classes of every pixel of a video, drawn over it; frames stream through the program of `folder`."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from deeplab_jax.beside import folder_beside, remove_leftovers
from deeplab_jax.digests import digest_of_file
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.folder import Predicted
from deeplab_jax.images import ImageError, write_image
from deeplab_jax.model import SegmentationModel
from deeplab_jax.predict import (
    Top,
    check_options,
    check_plain,
    config_of,
    evaluator,
    in_batches,
    make_plan,
)
from deeplab_jax.progress import progress as shown_progress
from deeplab_jax.results import KEY, ResultFiles, result_files
from deeplab_jax.visualize import overlay as drawn_over
from deeplab_jax.visualize import save_labels, with_legend

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
"""What counts as a video among the pictures that are named to `deeplab predict`."""

_QUALITY = "18"  # x264's: what it loses is not seen
_UNKNOWN_LENGTH = 10**6  # batches of a file that does not say how many frames it has are full
_COMMENT = "comment"  # what each container has a place for


class VideoError(ImageError):
    """A video that cannot be had: missing, not a video, damaged, or without PyAV."""


@dataclasses.dataclass(frozen=True)
class VideoResults:
    """The files that are written for a video.

    Attributes:
      target: `NAME` below, with the folder.
      overlay: `NAME_overlay.mp4`, and `NAME_overlay.jpg`, its first frame with the legend of the whole.
      masks: `NAME_masks/000000.png` and so on, the class ids of each frame.
    """

    target: Path
    overlay: bool
    masks: bool

    @property
    def video(self) -> Path:
        """The overlay."""
        return Path(f"{self.target}_overlay.mp4")

    @property
    def picture(self) -> Path:
        """Its first frame, with the legend."""
        return Path(f"{self.target}_overlay.jpg")

    @property
    def folder(self) -> Path:
        """The masks'."""
        return Path(f"{self.target}_masks")

    def are_there(self, key: str) -> bool:
        """Whether all are there, and of just this video, model and options."""
        found = [_key_of_video(self.video)] if self.overlay else []
        found += [_key_of_picture(self.folder / _mask(0))] if self.masks else []
        return set(found) == {key} and (not self.overlay or self.picture.is_file())

    def put(self, new: "VideoResults", old: Path) -> None:
        """Moves new results here; what was here of the folder of masks goes to the folder `old`."""
        if self.masks:
            if self.folder.exists():
                self.folder.rename(old / "old_masks")
            new.folder.rename(self.folder)
        if self.overlay:
            os.replace(new.picture, self.picture)
            os.replace(new.video, self.video)


def split_videos(paths: Sequence[str | os.PathLike]) -> tuple[list[Path], list[Path]]:
    """Those of the paths that are videos, by `SUFFIXES`, each once; and the others."""
    is_video = {
        path: path.suffix.lower() in SUFFIXES and not path.is_dir() for path in map(Path, paths)
    }
    videos = {path.resolve(): path for path, video in is_video.items() if video}
    return list(videos.values()), [path for path, video in is_video.items() if not video]


def check_videos(
    videos: Sequence[Path], *, overlay: bool, masks: bool, probabilities: Top = None
) -> None:
    """Raises ValueError where nothing, or what there is not, would be written of videos."""
    if not videos:
        return
    _pyav()
    if not (overlay or masks):
        raise ValueError("without overlay and frame masks there is nothing to write of a video")
    if probabilities is not None:
        raise ValueError(f"probabilities are written of pictures, not of videos: {videos[0]}")


def predict_videos(
    model: SegmentationModel, targets: Mapping[Path, Path], **options: Any
) -> Predicted:
    """Segments videos, see `predict_video`; those that cannot be read are left out, and named.

    Args:
      targets: of each video.
      options: for `predict_video`.
    """
    done = Predicted(0, 0, ())
    for video, target in targets.items():
        try:
            frames, notes = predict_video(model, video, target, **options)
        except VideoError as error:
            done += Predicted(0, 0, (error,))
        else:
            done += Predicted(int(frames > 0), int(frames == 0), (), tuple(notes))
    return done


def predict_video(
    model: SegmentationModel,
    video: str | os.PathLike,
    target: str | os.PathLike,
    *,
    batch_size: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlay: bool = True,
    masks: bool = False,
    alpha: float = 0.5,
    redo: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> tuple[int, list[str]]:
    """Segments every frame of a video, each by itself.

    A batch or two of frames are in memory at a time. Frames keep their times; sound is dropped. A side of
    an odd number of pixels, which H.264 does not have, is one pixel longer in the overlay.

    Args:
      video: a file that FFmpeg reads.
      target: what `VideoResults` adds to; its folder is made if it is not there.
      batch_size, scales, flip, tile, alpha, redo, devices, progress: see `predict_folder`.
      overlay: write the overlay.
      masks: write the class ids of each frame.

    Returns:
      How many frames were segmented, none where the results were there; and notes on what is not as one
      may think.

    Raises:
      OSError: a result cannot be written.
      ValueError: for wrong options.
      VideoError: the video cannot be read, or not to its end; nothing is written then.
    """
    video, wanted = Path(video), VideoResults(Path(target), overlay, masks)
    config = config_of(model)
    check_options(scales=scales, tile=tile, batch_size=batch_size)
    check_videos([video], overlay=overlay, masks=masks)
    check_plain(config, "videos")
    results = result_files(
        model,
        overlay=overlay,
        alpha=alpha,
        top=None,
        scales=tuple(map(float, scales)),
        flip=flip,
        tile=tile,
    )
    devices = jax.local_devices() if devices is None else devices
    with _Source(video) as source:
        key = results.key(digest_of_file(video))
        if not redo and wanted.are_there(key):
            return 0, []
        length = source.length or _UNKNOWN_LENGTH
        folded = fold_batch_norm(model)
        run = evaluator(folded, scales, flip, devices=devices, images=length)
        plan = make_plan(
            length,
            source.size,
            config.num_classes,
            scales=scales,
            tile=tile,
            batch_size=batch_size,
            devices=len(devices),
        )
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with (
            folder_beside(wanted.target) as beside,
            shown_progress("predicting", source.length, unit="frames", shown=progress) as done,
        ):
            new = dataclasses.replace(wanted, target=beside / wanted.target.name)
            with _Sink(new, results, source, key) as sink:
                for frames in source.batches(plan.at_once):
                    made = in_batches(run, np.stack([frame.pixels for frame in frames]), plan)
                    sink.write(frames, made.ids)
                    done(source.read)
            wanted.put(new, beside)
        remove_leftovers(wanted.target)
        return source.read, list(source.notes())


# ---------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A frame's pixels, uint8 `[H, W, 3]`, RGB, upright; its time in units of the stream's time base."""

    pixels: np.ndarray
    time: int


class _Source:
    """A video that is open, and how far it was read; raises VideoError where it cannot be.

    Attributes:
      size: (H, W) of the frames.
      length: how many frames the file says it has; 0 where it does not say.
      read: how many were.
    """

    def __init__(self, path: Path):
        self._av, self.path, self.read = _pyav(), path, 0
        with self._named():
            self._container = self._av.open(str(path))
        try:
            self._open_stream()
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self) -> None:
        streams = self._container.streams
        if not streams.video:
            raise VideoError(f"{self.path}: has no video, only sound or other data")
        stream = streams.video[0]
        stream.thread_type = "AUTO"
        with self._named():
            self._decoded = self._container.decode(stream)
            first = next(self._decoded, None)
        if first is None:
            raise VideoError(f"{self.path}: has no frame")
        self._decoded = itertools.chain([first], self._decoded)
        self.size: tuple[int, int] = _upright(first).shape[:2]
        self.length: int = stream.frames
        self.has_sound = bool(streams.audio)
        self.time_base: Fraction = stream.time_base
        self.rate: Fraction = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.aspect: Fraction | None = stream.sample_aspect_ratio

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def batches(self, at_once: int) -> Iterator[list[_Frame]]:
        """All frames in their order, so many at a time."""
        frames = self._frames()
        while batch := list(itertools.islice(frames, at_once)):
            self.read += len(batch)
            yield batch

    def _frames(self) -> Iterator[_Frame]:
        last = -1
        while True:
            with self._named():
                frame = next(self._decoded, None)
            if frame is None:
                return
            pixels = _upright(frame)
            if pixels.shape[:2] != self.size:
                raise VideoError(
                    f"{self.path}: frames of two sizes, {self.size[1]} x {self.size[0]} and "
                    f"{pixels.shape[1]} x {pixels.shape[0]}; scale them to one with ffmpeg"
                )
            # A frame without a time, or with that of the one before, has the next that is free.
            last = max(last + 1, frame.pts or 0)
            yield _Frame(pixels, last)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What FFmpeg says of a file as a VideoError with its path."""
        try:
            yield
        except FileNotFoundError as error:
            raise VideoError(f"{self.path}: no such file") from error
        except self._av.FFmpegError as error:
            raise VideoError(
                f"{self.path}: not a video that FFmpeg reads, or damaged ({error.strerror})"
            ) from error

    def notes(self) -> Iterator[str]:
        """What the user should know, once all is read."""
        if self.has_sound:
            yield f"{self.path}: its sound is left out"
        if self.read < self.length:
            yield (
                f"{self.path}: {self.read} of its {self.length} frames could be read; it was cut off, or "
                "is damaged"
            )


def _upright(frame: Any) -> np.ndarray:
    """The pixels of a frame as players show it: phones turn the picture by a note in the file."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


# ---------------------------------------------------------------------------- writing


class _Sink:
    """The results of a video while they are written."""

    def __init__(self, results: VideoResults, files: ResultFiles, source: _Source, key: str):
        self._av, self._results, self._files, self._key = _pyav(), results, files, key
        self._size, self._time_base = source.size, source.time_base
        self._areas = np.zeros(max(256, len(files.colors)), np.int64)
        self._first: Image.Image | None = None
        self._count = 0
        self._threads = ThreadPoolExecutor()
        if results.masks:
            results.folder.mkdir()
        if results.overlay:
            self._open_video(source)

    def _open_video(self, source: _Source) -> None:
        height, width = source.size
        self._container = self._av.open(str(self._results.video), "w")
        self._container.metadata[_COMMENT] = self._key
        stream = self._container.add_stream("libx264", rate=source.rate)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt, stream.options = "yuv420p", {"crf": _QUALITY}
        stream.codec_context.time_base = source.time_base
        if source.aspect:
            stream.codec_context.sample_aspect_ratio = source.aspect
        # What players take a file without a mark for depends on its size.
        stream.codec_context.colorspace = self._av.video.reformatter.Colorspace.ITU709
        self._stream = stream

    def __enter__(self) -> "_Sink":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        if not self._results.overlay:
            return
        if kind is None:
            self._container.mux(self._stream.encode(None))
            self._write_picture()
        self._container.close()

    def write(self, frames: Sequence[_Frame], ids: np.ndarray) -> None:
        """Adds frames, and the classes of their pixels, `[B, H, W]`."""
        if self._results.masks:
            numbers = itertools.count(self._count)
            list(self._threads.map(self._write_mask, numbers, ids))
        if self._results.overlay:
            for frame, drawn in zip(
                frames, self._threads.map(self._draw, frames, ids), strict=True
            ):
                self._encode(drawn, frame.time)
                self._first = self._first or drawn
            self._areas += np.bincount(ids.reshape(-1), minlength=len(self._areas))
        self._count += len(frames)

    def _write_mask(self, number: int, ids: np.ndarray) -> None:
        path = self._results.folder / _mask(number)
        save_labels(path, ids, self._files.colors, texts={KEY: self._key})

    def _draw(self, frame: _Frame, ids: np.ndarray) -> Image.Image:
        files = self._files
        return drawn_over(frame.pixels, ids, files.colors, alpha=files.alpha, legend=False)

    def _encode(self, drawn: Image.Image, time: int) -> None:
        pixels = np.asarray(drawn)
        odd = (
            (0, self._stream.height - pixels.shape[0]),
            (0, self._stream.width - pixels.shape[1]),
        )
        frame = self._av.VideoFrame.from_ndarray(np.pad(pixels, (*odd, (0, 0)), "edge"), "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def _write_picture(self) -> None:
        files = self._files
        assert self._first is not None  # a source has a frame
        shown = with_legend(self._first, self._areas, files.colors, files.class_names)
        write_image(self._results.picture, shown, quality=92, subsampling=0)


def _mask(number: int) -> str:
    return f"{number:06}.png"


def _key_of_video(path: Path) -> str | None:
    """The key in a video that was written here; None where there is none."""
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            return container.metadata.get(_COMMENT)
    except (OSError, av.FFmpegError):  # missing or damaged: it is written once more
        return None


def _key_of_picture(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(KEY)
    except (OSError, SyntaxError):
        return None


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise VideoError("videos are read by PyAV: pip install 'deeplab-jax[video]'") from error
    return av
