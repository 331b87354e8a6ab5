"""The table of planted bugs: each is still where it says, and its test is there."""

import re
from pathlib import Path

import pytest
from mutations import BUGS, ROOT, Bug, main

TESTS = Path(__file__).parent


def test_every_bug_can_still_be_planted_and_its_test_is_there():
    assert len(BUGS) >= 40
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        text = (ROOT / bug.file).read_text()
        assert bug.planted(text) != text
        file, _, name = bug.test.partition("[")[0].partition("::")
        text = (TESTS / file).read_text()
        assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), bug.test


def test_a_row_whose_text_is_gone_or_there_twice_is_stale():
    bug = Bug("a.py", "x", "y", "test_a.py")
    for text in ("", "xx"):
        with pytest.raises(ValueError, match=r"a\.py has 'x' [02] times"):
            bug.planted(text)


def test_a_bug_is_caught_and_a_change_of_nothing_is_not(monkeypatch, capsys):
    test = "test_whole_file.py::test_text_and_bytes_replace_what_was_there"
    file, old = "deeplab_jax/whole_file.py", "partial.write_bytes(data)"
    changes = ("partial.write_bytes(data[1:])", "partial.write_bytes(bytes(data))")
    monkeypatch.setattr("mutations.BUGS", [Bug(file, old, new, test) for new in changes])
    assert main([]) == 1
    caught, survived, counts = capsys.readouterr().out.splitlines()
    assert caught.startswith("caught ")
    assert survived.startswith("SURVIVED ")
    assert counts == "2 bugs, 1 caught, 1 not"
