"""A file is written whole or not at all, by everything that writes one."""

import os
import stat

import pytest

from deeplab_jax.whole_file import write_file


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "notes.txt"
    write_file(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_file(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("call", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("old")

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, disk_full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'$"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
