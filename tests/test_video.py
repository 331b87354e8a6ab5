"""Videos: every frame as `predict` does it, in its place and time; what cannot be read leaves nothing."""

import sys
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from deeplab_jax import Config, ResNetConfig, build, predict, save, video
from deeplab_jax import __main__ as deeplab
from deeplab_jax.folder import predict_folder
from deeplab_jax.heads import FCNConfig
from deeplab_jax.images import frames_of
from deeplab_jax.model import fill

SIZE = (49, 63)  # H.264 has no odd sides
TIMES = [0, 1, 2, 4, 7, 8, 9]  # of frames, in 1/25 s: the rate is not constant


@pytest.fixture(scope="module")
def model():
    config = Config(ResNetConfig(18, output_stride=32), FCNConfig(channels=8), 3)
    return fill(build(config), nnx.Rngs(0))


def write(path, *, sound=False, options=None):
    """A video without loss; of each frame a third is another colour."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264rgb", rate=25)
        stream.width, stream.height = SIZE[::-1]
        stream.pix_fmt, stream.options = "rgb24", {"qp": "0"}
        stream.codec_context.time_base = Fraction(1, 25)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number, time in enumerate(TIMES):
            pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
            pixels[: SIZE[0] // 3] = 30 * number
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate = 8000
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("videos") / "clip.mp4", sound=True)


def frames(path):
    with av.open(str(path)) as container:
        return [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(video=0)]


def masks(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def results(model, clip, tmp_path_factory):
    target = tmp_path_factory.mktemp("results") / "clip"
    count, notes = video.predict_video(model, clip, target, batch_size=3, masks=True)
    assert count == len(TIMES)
    assert notes == [f"{clip}: its sound is left out"]
    return target.parent


def test_each_frame_is_segmented_as_the_picture_would_be(model, clip, results):
    made = masks(results / "clip_masks")
    assert len(made) == len(TIMES)
    for ids, (pixels, _) in zip(made, frames(clip), strict=True):
        # Another number of pictures at once may round a tie to the other side.
        assert (ids == predict(model, pixels)).mean() > 0.999


def test_the_overlay_has_all_frames_at_their_times(clip, results):
    shown, source = frames(results / "clip_overlay.mp4"), frames(clip)
    assert [time for _, time in shown] == [time for _, time in source] == [t / 25 for t in TIMES]
    assert {pixels.shape for pixels, _ in shown} == {(50, 64, 3)}
    with av.open(str(results / "clip_overlay.mp4")) as container:
        assert not container.streams.audio


def test_the_overlay_is_the_picture_s(model, clip, results, tmp_path):
    (pixels, _), *_ = frames(clip)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    predict_folder(model, [tmp_path / "frame.png"], tmp_path / "out")
    expected = np.asarray(Image.open(tmp_path / "out" / "frame_overlay.jpg"))[:49, :63]
    (shown, _), *_ = frames(results / "clip_overlay.mp4")
    # In flat parts, for both halve the resolution of colour or blur noise.
    difference = np.abs(shown[2:14, 2:60].astype(int) - expected[2:14, 2:60])
    assert difference.mean() < 6  # BT.601's colours taken for BT.709's would be 10 and more away
    with Image.open(results / "clip_overlay.jpg") as first:
        assert first.height > 49  # the legend


def test_nothing_else_is_left(results):
    names = {"clip_masks", "clip_overlay.jpg", "clip_overlay.mp4"}
    assert {path.name for path in results.iterdir()} == names


def test_results_that_are_there_are_kept_and_others_replaced(model, clip, tmp_path):
    def done(**options):
        return video.predict_video(model, clip, tmp_path / "clip", batch_size=7, **options)[0]

    assert done(overlay=False, masks=True) == 7
    assert done(overlay=False, masks=True) == 0
    assert done(overlay=False, masks=True, flip=True) == 7
    assert done(masks=True, flip=True) == 7  # the overlay is missing
    assert done(masks=True, flip=True) == 0
    assert done(flip=True, redo=True) == 7
    assert len(masks(tmp_path / "clip_masks")) == 7
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"clip_masks", "clip_overlay.jpg", "clip_overlay.mp4"}


def test_a_video_is_read_a_batch_at_a_time(clip):
    with video._Source(clip) as source:
        batches = source.batches(3)
        assert len(next(batches)) == 3
        assert source.read == 3
        assert [len(batch) for batch in batches] == [3, 1]


def test_a_phone_s_video_is_turned_as_players_do():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    frame = SimpleNamespace(rotation=90, to_ndarray=lambda format: pixels)
    np.testing.assert_array_equal(video._upright(frame), np.rot90(pixels))


def test_a_video_that_was_cut_off_is_said_to_be(model, tmp_path):
    whole = write(tmp_path / "whole.mp4", options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    count, notes = video.predict_video(model, cut, tmp_path / "cut", batch_size=7)
    assert 0 < count < len(TIMES)
    assert notes == [f"{cut}: {count} of its 7 frames could be read; it was cut off, or is damaged"]


def test_what_is_no_video_is_named_and_the_rest_is_done(model, clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    targets = {
        path: tmp_path / "out" / path.stem
        for path in (tmp_path / "text.mp4", tmp_path / "missing.mp4", clip, tmp_path / "empty.mp4")
    }
    done = video.predict_videos(model, targets, batch_size=7, masks=True)
    assert (done.written, done.kept) == (1, 0)
    text, missing, empty = map(str, done.failures)
    assert text.startswith(f"{tmp_path}/text.mp4: not a video that FFmpeg reads, or damaged")
    assert missing == f"{tmp_path}/missing.mp4: no such file"
    assert "empty.mp4" in empty
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"clip_masks", "clip_overlay.jpg", "clip_overlay.mp4"}


def test_without_pyav_there_is_one_sentence(model, clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(video.VideoError, match=r"pip install 'deeplab-jax\[video\]'"):
        video.predict_video(model, clip, tmp_path / "clip")


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("a.gif", "GIF", 3), ("a.tif", "TIFF", 3), ("a.webp", "WEBP", 3), ("a.jpg", "MPO", 1)],
)
def test_frames_and_pages_of_a_picture_are_counted(tmp_path, name, kind, count):
    pages = [Image.new("RGB", (16, 16), (80 * i, 0, 0)) for i in range(3)]
    pages[0].save(tmp_path / name, kind, save_all=True, append_images=pages[1:])
    assert frames_of(tmp_path / name) == count


# ---- the command


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["deeplab", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        deeplab.main()
    return end.value.code


@pytest.fixture
def folder(model, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(model, "model.safetensors")
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    return tmp_path


def test_the_command_does_pictures_and_videos(folder, monkeypatch, capsys):
    pages = [Image.new("RGB", (40, 33), (i, 0, 0)) for i in range(3)]
    pages[0].save("clip.gif", save_all=True, append_images=pages[1:])
    assert run(monkeypatch, "model.safetensors", "clip.mp4", "clip.gif", "--out", "out") == 0
    said = capsys.readouterr().err
    assert "clip.gif: has 3 frames or pages, of which the first was taken" in said
    assert "clip.mp4: its sound is left out" in said
    assert "2 of 2 pictures and videos are in out" in said
    names = {path.name for path in (folder / "out").iterdir()}
    videos = {"clip.mp4_overlay.jpg", "clip.mp4_overlay.mp4"}
    assert names == videos | {"clip.gif.png", "clip.gif_overlay.jpg"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--probabilities", "3"), "of pictures, not of videos"),
        (("--no-overlay",), "nothing to write of a video"),
    ],
)
def test_options_that_are_not_for_videos_are_refused(folder, monkeypatch, capsys, options, message):
    assert run(monkeypatch, "model.safetensors", "clip.mp4", "--out", "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()
