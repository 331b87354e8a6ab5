"""A process that loses another: the last words of JAX's client are not shown, and anybody else's are."""

import os
import signal
import subprocess
import sys

import pytest

from train.peers import LOST, PEER_LOST

FATAL = "F1127 14:30:16.981385     468 client.h:86] Terminating process because the JAX distributed"
STACK = "*** Check failure stack trace: ***\n    @     0x7efcfb8f81b4  SetError()\n"
ABORT = """
import os, sys
from train.peers import end_with_a_sentence
end_with_a_sentence()
print("ours", file=sys.stderr)
os.write(2, sys.argv[1].encode())
os.abort()
"""


def run(text: str, **variables: str) -> tuple[int, str]:
    command = [sys.executable, "-c", ABORT, text]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        (f"{FATAL} service\n{STACK}", PEER_LOST, f"ours\n{LOST}\n"),
        (f"F1127 14:30:16.98 1 a.cc:1] broken\n{STACK}", -signal.SIGABRT, STACK),
    ],
    ids=["a lost peer", "another cause"],
)
def test_only_the_loss_of_another_process_becomes_a_sentence(text, status, told):
    returncode, err = run(text)
    assert returncode == status, err
    assert err.endswith(told)
    assert err.startswith("ours\n") or status != PEER_LOST


def test_whoever_looks_for_a_bug_gets_the_stack_trace():
    assert run(f"{FATAL}\n{STACK}", DEEPLAB_DEBUG="1") == (
        -signal.SIGABRT,
        f"ours\n{FATAL}\n{STACK}",
    )
