"""Scalars that are written a little later, by a thread of their own."""

import threading
import time

import pytest

from melissa.server.deep_learning.scalar_queue import ScalarQueue


class Written(list):
    """Notes what is written, and by which threads."""

    def __init__(self):
        self.threads = set()
        self.has_some = threading.Event()

    def __call__(self, tag, value, step, walltime):
        self.append((tag, value, step, walltime))
        self.threads.add(threading.current_thread().name)
        self.has_some.set()


def steps(written):
    return [step for _, _, step, _ in written]


def test_a_thread_writes_scalars_in_order_with_the_time_at_which_they_were_logged(monkeypatch):
    monkeypatch.setattr(ScalarQueue, "PERIOD", 0.05)
    written = Written()
    queue = ScalarQueue(written)
    before = time.time()
    for step in range(100):
        queue.put("Loss/train", 0.5, step)
    after = time.time()
    assert written.has_some.wait(10.0)
    queue.close()
    assert steps(written) == list(range(100))
    assert written.threads == {"melissa-scalars"}
    assert all(before <= walltime <= after for *_, walltime in written)


def test_closing_writes_what_is_left_and_ends_the_thread():
    written = Written()
    queue = ScalarQueue(written)
    for step in range(3):
        queue.put("Loss/train", 0.5, step)
    assert written == []
    queue.close()
    assert steps(written) == [0, 1, 2]
    assert "melissa-scalars" not in {thread.name for thread in threading.enumerate()}


def test_who_logs_more_than_may_wait_writes_it(monkeypatch):
    monkeypatch.setattr(ScalarQueue, "MOST", 10)
    written = Written()
    queue = ScalarQueue(written)
    for step in range(25):
        queue.put("Loss/train", 0.5, step)
    assert steps(written) == list(range(20))
    assert written.threads == {threading.current_thread().name}
    queue.close()


def test_scalars_are_written_once_and_in_order_whoever_asks(monkeypatch):
    monkeypatch.setattr(ScalarQueue, "PERIOD", 0.0005)
    written = Written()

    def write(*scalar):
        time.sleep(1e-6)  # others run here
        written(*scalar)

    queue = ScalarQueue(write)

    def log(name):
        for step in range(300):
            queue.put(name, 0.5, step)
            if step % 10 == 0:
                queue.write_out()

    threads = [threading.Thread(target=log, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close()
    for name in "abc":
        assert [step for tag, _, step, _ in written if tag == name] == list(range(300))


def test_what_a_writer_raises_in_the_thread_reaches_who_logs(monkeypatch):
    monkeypatch.setattr(ScalarQueue, "PERIOD", 0.01)

    def write(tag, value, step, walltime):
        raise TypeError(f"bad tag {tag!r}")

    queue = ScalarQueue(write)
    queue.put(7, 0.5, 0)
    queue._thread.join(10.0)
    with pytest.raises(TypeError, match="bad tag 7"):
        queue.put("Loss/train", 0.5, 1)
    with pytest.raises(TypeError, match="bad tag 7"):
        queue.close()
