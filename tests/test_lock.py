"""One run at a time in a folder, whatever happened to the one before."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from train.lock import NAME, LockError, only_run_in

HOLD = """
import sys, time
from pathlib import Path
from train.lock import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that runs in the folder `run`."""
    arguments = [sys.executable, "-c", HOLD, tmp_path / "run"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def never(seconds):
    raise AssertionError("nothing to wait for")


def left_by_another_host(folder):
    folder.mkdir()
    owner = {"host": "elsewhere", "kernel": "other", "pid": 7, "since": "2026-01-01 10:00:00"}
    (folder / NAME).write_text(json.dumps(owner))
    os.utime(folder / NAME, (1, 1))


def test_the_folder_is_there_and_the_lock_gone_afterwards(tmp_path):
    run = tmp_path / "runs" / "mine"
    with only_run_in(run, sleep=never):
        (run / "something").touch()
        assert json.loads((run / NAME).read_text())["pid"] == os.getpid()
    assert [path.name for path in run.iterdir()] == ["something"]


def test_a_folder_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), only_run_in(tmp_path / "run", sleep=never):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()
    with only_run_in(tmp_path, sleep=never):  # was there before
        pass
    assert tmp_path.exists()


def test_a_second_run_is_told_whose_the_folder_is(tmp_path, holder):
    told = rf"process {holder.pid} on \S+, since 20.* `kill {holder.pid}` .* another --run"
    for _ in range(2):
        with pytest.raises(LockError, match=told), only_run_in(tmp_path / "run", sleep=never):
            pass


def test_the_lock_of_a_killed_run_is_nobodys(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / NAME).exists()
    with only_run_in(tmp_path / "run", sleep=never):
        pass


def test_a_lock_that_cannot_be_read_is_nobodys(tmp_path):
    for text in ("", "{", "[]", '{"host": 1}'):
        (tmp_path / NAME).write_text(text)
        with only_run_in(tmp_path, sleep=never):
            pass


def test_a_file_that_is_removed_while_it_is_locked_is_no_lock(tmp_path, monkeypatch):
    """As by a run that ends at this moment."""
    flock, times = fcntl.flock, []

    def remove_first(file, how):
        flock(file, how)
        if not times:
            (tmp_path / NAME).unlink()
        times.append(how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with only_run_in(tmp_path, sleep=never):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert len(times) == 2


def test_another_host_with_a_heartbeat_keeps_the_folder(tmp_path):
    """As where flock does not reach other hosts."""
    left_by_another_host(tmp_path / "run")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 4:
            os.utime(tmp_path / "run" / NAME)

    with (
        pytest.raises(LockError, match="process 7 on elsewhere, since 2026-01-01 10:00"),
        only_run_in(tmp_path / "run", sleep=sleep),
    ):
        pass
    assert len(waited) == 4
    assert json.loads((tmp_path / "run" / NAME).read_text())["host"] == "elsewhere"


def test_another_host_that_ends_meanwhile_leaves_no_lock_that_is_not_there(tmp_path):
    left_by_another_host(tmp_path / "run")

    def sleep(seconds):
        (tmp_path / "run" / NAME).unlink()

    with pytest.raises(LockError), only_run_in(tmp_path / "run", sleep=sleep):
        pass


def test_another_host_without_a_heartbeat_loses_it(tmp_path, caplog):
    left_by_another_host(tmp_path / "run")
    waited = []
    with only_run_in(tmp_path / "run", beat=30, sleep=waited.append):
        assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()
    assert 60 < sum(waited) < 90
    assert "is locked by process 7 on elsewhere: waiting 75 s for its heartbeat" in caplog.text
    assert "No heartbeat" in caplog.text


def test_a_run_has_a_heartbeat(tmp_path):
    with only_run_in(tmp_path, beat=0.01, sleep=never):
        os.utime(tmp_path / NAME, (1, 1))
        for _ in range(500):
            time.sleep(0.01)
            if (tmp_path / NAME).stat().st_mtime > 1:
                break
        assert (tmp_path / NAME).stat().st_mtime > 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_run_in(tmp_path, sleep=never):
        assert "without locks" in caplog.text
    assert not list(tmp_path.iterdir())
