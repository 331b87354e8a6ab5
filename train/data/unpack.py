"""Unpacking archives of data sets: whole, inside their folder, and no larger than can be meant."""

import tarfile
import zipfile
from pathlib import Path
from typing import IO

MOST_TIMES = 100
"""An archive may unpack to so many times its own size. Photographs hardly shrink, and label maps, stored as
PNG, by a few times."""

ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that any archive may unpack to, whatever its own size."""

_BLOCK = 2**20  # bytes read at once


class ArchiveError(ValueError):
    """An archive that cannot be unpacked; the message is the reason alone."""


def unpack(source: Path, folder: Path) -> None:
    """Unpacks a zip archive (by its name), or a tar archive of any compression, into `folder`.

    Nothing is written outside of `folder`. All checksums that there are have been checked at the end.

    Raises:
      ArchiveError: it is not a whole archive, is encrypted, is compressed in a way that Python cannot undo,
        or unpacks to more than `MOST_TIMES` its size.
      OSError: the disk is full, or may not be written to.
    """
    budget = _Budget(source)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if source.suffix.lower() == ".zip":
            _unpack_zip(source, folder, budget)
        else:
            _unpack_tar(source, folder, budget)
    except ArchiveError:
        raise
    except Exception as error:  # a damaged archive makes its decoders raise nearly anything
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # of the disk, not of the archive
            raise
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ArchiveError(reason) from error


class _Budget:
    """How much an archive may still unpack to."""

    def __init__(self, source: Path):
        self._size = source.stat().st_size
        self._left = max(ALWAYS_ALLOWED, MOST_TIMES * self._size)

    def spend(self, count: int) -> None:
        """Raises ArchiveError where `count` bytes more are too many."""
        self._left -= count
        if self._left < 0:
            raise ArchiveError(
                f"an archive may unpack to {MOST_TIMES} times its size or {ALWAYS_ALLOWED >> 20} MiB, "
                f"whichever is more, this one of {self._size:,} bytes to more than that. If it is meant, "
                "unpack it yourself and pass the folder"
            )


def _unpack_zip(source: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        # What is read of a member ends at the size that it claims.
        budget.spend(sum(member.file_size for member in members))
        if encrypted := [member.filename for member in members if member.flag_bits & 1]:
            raise ArchiveError(
                f"it is encrypted ({encrypted[0]!r}): unpack it yourself and pass the folder"
            )
        for member in members:
            try:
                archive.extract(member, folder)
            except NotImplementedError as error:
                raise ArchiveError(
                    f"{member.filename!r} is compressed in a way that cannot be undone here ({error}): "
                    "unpack it yourself, with 7z for one, and pass the folder"
                ) from error


def _unpack_tar(source: Path, folder: Path, budget: _Budget) -> None:
    with tarfile.open(source, tarinfo=_WholeHeader) as archive:
        for member in archive:
            budget.spend(member.size)
            archive.extract(member, folder, filter="data")
        _read_to_the_end(archive.fileobj, budget)


def _read_to_the_end(file: IO[bytes], budget: _Budget) -> None:
    """Where the checksum of what is compressed stands, after the last member."""
    while rest := file.read(_BLOCK):
        budget.spend(len(rest))


class _WholeHeader(tarfile.TarInfo):
    """A member's header; a damaged one is an error, where tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_WholeHeader":
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"a header is damaged: {error}") from error
