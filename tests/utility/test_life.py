"""Signs of life: that the other side hears them, also while this side's interpreter serves nobody."""

import os
import signal
import subprocess
import sys
import time

import pytest

from melissa.utility.channel import Listener
from melissa.utility.life import Life

KEY = bytes(range(32))
SOON = 60.0
"""Seconds within which everything that a test waits for must have come: a loaded machine is slow."""

OTHER = """
import ctypes, sys, time
from melissa.utility.channel import connect
from melissa.utility.life import Life
life = Life(connect(sys.argv[1], bytes(range(32)), 1, "life"))
print("connected", flush=True)
ctypes.PyDLL(None).sleep(4)  # holds the interpreter's lock
print("heard" if life.has_beaten() else "heard nothing", flush=True)
life.close()
sys.stdin.read()
"""


def wait_until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def listener():
    with Listener("127.0.0.1", KEY, 1) as listener:
        yield listener


def test_both_sides_hear_of_each_other_while_one_holds_the_interpreter(listener):
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, listener.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    life = Life(listener.accept(SOON))
    assert other.stdout.readline() == "connected\n"
    start = time.monotonic()
    beats = 0
    while beats < 3 and time.monotonic() - start < 3.5:
        beats += life.has_beaten()
        time.sleep(0.05)
    assert beats >= 3
    assert other.stdout.readline() == "heard\n"
    # Once it is closed there it is silent here.
    wait_until(lambda: not life.has_beaten())
    life.close()
    other.communicate(timeout=SOON)


def test_a_process_that_stands_still_is_not_heard(listener):
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, listener.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    life = Life(listener.accept(SOON))
    wait_until(life.has_beaten)
    os.kill(other.pid, signal.SIGSTOP)
    time.sleep(1.0)
    life.has_beaten()
    time.sleep(0.6)
    assert not life.has_beaten()
    other.kill()
    other.communicate(timeout=SOON)
    life.close()
