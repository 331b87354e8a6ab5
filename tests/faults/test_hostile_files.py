"""Files that somebody made to do harm: no code runs, and time and memory are bounded by the file."""

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judge import REFUSED, SAME, judge
from PIL import Image
from safetensors.numpy import save_file

from deeplab_jax import load
from deeplab_jax.images import image_size, read_image
from port.read import read as read_checkpoint
from train.data import unpack

Make = Callable[[Path], Path]


def written(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


# ---------------------------------------------------------------------------- checkpoints


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> tuple:
        return self._call


def calling(function: Any, *arguments: str) -> Make:
    """A checkpoint that calls a function; of its arguments, MADE is a file that must not be there."""

    def make(folder: Path) -> Path:
        given = [argument.replace("MADE", str(folder / "made")) for argument in arguments]
        tree = {"weight": torch.zeros(2), "x": Calls(function, *given)}
        torch.save(tree, folder / "a.pth")
        return folder / "a.pth"

    return make


def saved(tree: Any) -> Make:
    def make(folder: Path) -> Path:
        torch.save(tree, folder / "a.pth")
        return folder / "a.pth"

    return make


def opcodes(*parts: bytes) -> Make:
    return written("a.pth", b"\x80\x04" + b"".join(parts) + b".")


def many_zeros_in_a_zip(folder: Path) -> Path:
    """512 MB that are 512 KB."""
    with zipfile.ZipFile(folder / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a/data.pkl", "w", force_zip64=True) as file:
            for _ in range(512):
                file.write(bytes(2**20))
        archive.writestr("a/version", "3")
    return folder / "a.pth"


def a_header_that_claims(length: int) -> Make:
    return written("a.safetensors", struct.pack("<Q", length) + b"{}")


def tensors_that_claim(shape: list[int], end: int) -> Make:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return written("a.safetensors", struct.pack("<Q", len(header)) + header + bytes(8))


def an_index_of_itself(folder: Path) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    return path


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.pth")
    return folder / "a.pth"


SHELL = "touch MADE"
PYTHON = "open('MADE', 'w').close()"
CHECKPOINTS: dict[str, Make] = {
    "os.system": calling(os.system, SHELL),
    "os.popen": calling(os.popen, SHELL),
    "eval": calling(eval, PYTHON),
    "exec": calling(exec, PYTHON),
    "open": calling(open, "MADE", "w"),
    "getattr": calling(getattr, "MADE", "upper"),
    "Path.touch": calling(Path.touch, "MADE"),
    "torch.load": calling(torch.load, "MADE"),
    "torch.hub": calling(torch.hub.load_state_dict_from_url, "http://localhost:1/MADE"),
    "numpy.load": calling(np.load, "MADE"),
    "a memo of 2^31 places": opcodes(b"}r\xff\xff\xff\x7f"),
    "bytes of 2^60": opcodes(b"\x8e" + struct.pack("<Q", 2**60)),
    "a bytearray of 2^60": opcodes(b"\x96" + struct.pack("<Q", 2**60)),
    "a bytearray of 3 GB": opcodes(b"\x96" + struct.pack("<Q", 3 * 10**9)),
    "a frame of 2^60": opcodes(b"\x95" + struct.pack("<Q", 2**60)),
    "a whole number of 2^31 bytes": opcodes(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "a string of 2^32": opcodes(b"X" + struct.pack("<I", 2**32 - 1)),
    "100,000 lists in lists": opcodes(100_000 * b"]", 99_999 * b"a"),
    "100,000 marks": opcodes(100_000 * b"("),
    "a dict in itself": opcodes(b"}\x94\x8c\x05model\x94h\x00s"),
    "stack underflow": opcodes(b"0" * 50),
    "a stride of 0": saved({"a": torch.zeros(1).expand(10**5, 10**6)}),
    "3000 strides of 0": saved({str(n): torch.zeros(1).expand(2**18) for n in range(3000)}),
    "1500 tensors of one storage": saved(
        dict.fromkeys(map(str, range(1500)), torch.zeros(2**19, dtype=torch.half))
    ),
    "a tensor without data": saved({"a": torch.zeros(3, device="meta")}),
    "zeros in a zip": many_zeros_in_a_zip,
    "no tensors": saved({"a": 1}),
    "control characters": saved({"\x1b]0;title\x07\x1b[31m": torch.zeros(1)}),
    "a name of 10 MB": saved({"x" * 10**7: torch.zeros(1)}),
    "a header of 2^60": a_header_that_claims(2**60),
    "a header of 2^26": a_header_that_claims(2**26),
    "a shape of 2^60": tensors_that_claim([2**30, 2**30], 8),
    "offsets beyond the file": tensors_that_claim([2**40], 2**42),
    "200,000 brackets": written("a.safetensors", struct.pack("<Q", 200_000) + b"[" * 200_000),
    "an index of itself": an_index_of_itself,
    "a pipe": a_pipe,
    "a device": lambda folder: Path("/dev/zero"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_hostile_checkpoint_runs_nothing_and_is_one_sentence(kind, tmp_path, capfd, tally):
    path = CHECKPOINTS[kind](tmp_path)
    outcome = judge(lambda: list(read_checkpoint(path).tensors), ["weight"], capfd)
    assert not (tmp_path / "made").exists()
    tally("hostile checkpoints", outcome)


# ---------------------------------------------------------------------------- models


def model_with(config: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "model" / "weights").mkdir(parents=True)
        (folder / "model" / "config.json").write_bytes(config)
        return folder / "model"

    return make


def a_file_with(config: str) -> Make:
    def make(folder: Path) -> Path:
        arrays = {"a": np.zeros(1, np.float32)}
        save_file(arrays, folder / "a.safetensors", metadata={"deeplab_jax": config})
        return folder / "a.safetensors"

    return make


FCN = {"format": 1, "config": {"backbone": {"kind": "resnet"}, "head": {"kind": "fcn"}}}


def fcn(**fields: Any) -> str:
    return json.dumps(FCN | {"config": FCN["config"] | fields})


MODELS: dict[str, Make] = {
    "200,000 brackets": model_with(b"[" * 200_000),
    "200,000 objects": model_with(b'{"a":' * 200_000),
    "NaN classes": model_with(fcn(num_classes=float("nan")).encode()),
    "10^12 classes": model_with(fcn(num_classes=10**12).encode()),
    "10^12 channels": model_with(fcn(backbone={"kind": "resnet", "in_channels": 10**12}).encode()),
    "a number of 10,000 digits": model_with(b'{"format": ' + b"9" * 10_000 + b"}"),
    "weights elsewhere": model_with(json.dumps(FCN | {"weights": "../.."}).encode()),
    "a kind that is a path": a_file_with(fcn(backbone={"kind": "../../x"})),
    "another kind's fields": a_file_with(fcn(backbone={"kind": "resnet", "__class__": "os"})),
    "control characters": a_file_with(fcn(backbone={"kind": "\x1b]0;title\x07"})),
    "10^12 classes in a file": a_file_with(fcn(num_classes=10**12)),
    "no arrays of it": a_file_with(fcn()),
    "a pipe": a_pipe,
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_hostile_model_is_one_sentence(kind, tmp_path, capfd, tally):
    path = MODELS[kind](tmp_path)
    assert judge(lambda: load(path), None, capfd) == REFUSED
    tally("hostile models", REFUSED)


# ---------------------------------------------------------------------------- pictures


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size >> 20)) + packer.flush()


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height)]
    tags += [(279, width * height % 2**32)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + bytes(4)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(MADE) (w) file closefile\nshowpage\n"
PICTURES: dict[str, Make] = {
    "a PNG of 60,000 x 60,000": written("a.png", png(60_000, 60_000, 8, 2)),
    "a PNG of 9000 x 9000 without pixels": written("a.png", png(9000, 9000, 8, 2)),
    "a PNG of 2^31": written("a.png", png(2**31 - 1, 2**31 - 1, 1, 0)),
    "a PNG of 0 x 0": written("a.png", png(0, 0, 8, 2)),
    "a text of 1 GB in a PNG": written(
        "a.png", png(1, 1, 8, 0, chunk(b"zTXt", b"a\0\0" + zeros(2**30)), chunk(b"IDAT", b""))
    ),
    "a chunk of 2^31 in a PNG": written("a.png", png(9, 9, 8, 2)[:33] + b"\x7f\xff\xff\xffIDAT"),
    "a TIFF of 2^31": written("a.tif", tiff(2**31 - 1, 2**31 - 1)),
    "a GIF of 65,535 x 65,535": written("a.gif", b"GIF89a\xff\xff\xff\xff\x00\x00\x00;"),
    "a BMP of 2^31": written(
        "a.bmp", b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, -1, 1, 24, *[0] * 6)
    ),
    "a PPM of 10^9": written("a.ppm", b"P6 1000000000 1000000000 255\n"),
    "EPS named PNG": written("a.png", EPS),
    "a folder": lambda folder: folder,
    "a device": lambda folder: Path("/dev/zero"),
    "a name in a loop": lambda folder: (folder / "a.png").symlink_to("a.png") or folder / "a.png",
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_hostile_picture_is_one_sentence(kind, tmp_path, capfd, tally):
    path = PICTURES[kind](tmp_path)
    assert judge(lambda: read_image(path), None, capfd) == REFUSED
    judge(lambda: image_size(path) and None, None, capfd)  # a header alone may be read
    assert not (tmp_path / "MADE").exists()
    tally("hostile pictures", REFUSED)


def test_pixels_of_one_bit_take_what_they_are_and_not_more(tmp_path, capfd, tally):
    path = tmp_path / "a.png"
    Image.new("1", (13_000, 13_000)).save(path)

    def read() -> tuple[int, ...]:
        return read_image(path).shape

    assert judge(read, (13_000, 13_000, 3), capfd) == SAME
    tally("hostile pictures", SAME)


# ---------------------------------------------------------------------------- archives


def tar_of(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member in members:
            archive.addfile(member)
    return file.getvalue()


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


LINK = {"type": tarfile.SYMTYPE, "linkname": "../outside"}
ARCHIVES: dict[str, tuple[str, bytes]] = {
    "a parent in a tar": ("a.tar", tar_of(member("../outside/made"))),
    "parents in a tar": ("a.tar", tar_of(member("a/../../outside/made"))),
    "a link in a tar": ("a.tar", tar_of(member("link", **LINK))),
    "through a link in a tar": ("a.tar", tar_of(member("link", **LINK), member("link/made"))),
    "a hard link": (
        "a.tar",
        tar_of(member("link", type=tarfile.LNKTYPE, linkname="../outside/theirs")),
    ),
    "a device": ("a.tar", tar_of(member("made", type=tarfile.CHRTYPE, devmajor=1, devminor=3))),
    "a pipe": ("a.tar", tar_of(member("made", type=tarfile.FIFOTYPE))),
    "a size of 2^60": ("a.tar", tar_of(member("made"))[:124] + b"\x80\0\0\0\x10" + bytes(395)),
    "a parent in a zip": ("a.zip", zip_of(**{"../outside/made": b"x"})),
    "an absolute path in a zip": ("a.zip", zip_of(**{"/outside/made": b"x"})),
    "zeros in a zip": ("a.zip", zip_of(made=bytes(2**27))),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_writes_nothing_outside(kind, tmp_path, capfd, tally):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "theirs").write_text("theirs")
    name, data = ARCHIVES[kind]
    (tmp_path / name).write_bytes(data)
    into = tmp_path / "into"
    outcome = judge(lambda: unpack.unpack(tmp_path / name, into), None, capfd)
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["theirs"]
    assert (tmp_path / "outside" / "theirs").stat().st_nlink == 1
    assert all(path.is_dir() or path.is_file() for path in into.rglob("*"))
    assert not any(path.is_symlink() for path in into.rglob("*"))
    tally("hostile archives", outcome)
