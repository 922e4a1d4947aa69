"""The server's side of a fast dev run: two batches and a validation, and what they and one client took."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from melissa.launcher.fast_dev_run import NB_BATCHES, is_fast_dev_run
from melissa.server.simulation import SimulationStatus

if TYPE_CHECKING:
    from melissa._melissa import Prefetcher, Sample
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
    from melissa.server.deep_learning.lanes import BatchSource, Delivery

__all__ = ["FastDevRun", "ShortSource", "fast_dev_run"]

SETTLE_TIMEOUT = 10.0
SETTLED_STEPS = 20
"""After the last batch the client may go on so long, or to so many time steps, for its speed to show."""
_POLL = 0.005


def fast_dev_run() -> FastDevRun | None:
    """Return what shortens this process's study; None where the study is to run as a whole."""
    return FastDevRun() if is_fast_dev_run() else None


class FastDevRun:
    """Shortens the training of a server rank, and measures."""

    def __init__(self) -> None:
        self._batch_began = self._validation_began = 0.0
        self._batches: list[float] = []
        self._validation: float | None = None
        self._prepared: list[float] = []
        self._first_step_at: float | None = None
        self._last_step_at = 0.0
        self._steps = 0
        self._finished_at: float | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def shorten(self, server: DeepMelissaServer) -> None:
        """Make the server's training a short one; what its class has set itself is overruled."""
        self._watermark = server.per_server_watermark
        steps = server.nb_time_steps // server.comm_size if server.nb_time_steps else server.batch_size
        if server.per_server_watermark is not None:
            server.per_server_watermark = min(server.per_server_watermark, server.batch_size, steps)
        server.nb_batches_update = server.checkpoint_interval = NB_BATCHES
        # The hooks' wrappers, whoever has overridden them.
        for name, note in (
            ("_on_batch_start", self._batch_starts),
            ("_on_batch_end", self._batch_ends),
            ("_on_validation_start", self._validation_starts),
            ("_on_validation_end", self._validation_ends),
        ):
            setattr(server, name, _noted(getattr(server, name), note))

    def limited(self, source: BatchSource) -> BatchSource:
        """Return the source of the first batches of `source`."""
        return ShortSource(source, self)

    def watch(self, server: DeepMelissaServer) -> None:
        """Look at the client from now on, on rank 0."""
        if server.rank == 0:
            self._thread = threading.Thread(
                target=self._look, args=(server,), name="melissa-fast-dev-run", daemon=True
            )
            self._thread.start()

    def settle(self) -> None:
        """Let the client show its speed, for a while; then it is not looked at any more."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            if self._steps >= SETTLED_STEPS and self._finished_at is None:
                break
            time.sleep(_POLL)
        self.end()

    def end(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def prepared(self, seconds: float) -> None:
        """Take note of how long the making of a batch took, waits for data left out."""
        self._prepared.append(seconds)

    def figures(self, server: DeepMelissaServer) -> dict[str, Any]:
        """Return what was measured; None is not known."""
        metrics = server.buffer.native.metrics()
        job_since = self._job_since(server)
        per_step = None
        if self._first_step_at is not None and self._steps > 1:
            # This rank has seen its share of the steps.
            per_step = (self._last_step_at - self._first_step_at) / (self._steps - 1) / server.comm_size
        finished = self._finished_at
        last = len(self._batches) - 1
        prepared = self._prepared[last] if 0 <= last < len(self._prepared) else 0.0
        return {
            "nb_ranks": server.comm_size,
            "nb_batches": len(self._batches),
            "batch_size": server.batch_size,
            "batch_seconds": self._batches[last] + prepared if self._batches else None,
            "validation_seconds": self._validation,
            "nb_time_steps": server.nb_time_steps or None,
            "step_seconds": per_step,
            "startup_seconds": max(0.0, (self._first_step_at or job_since) - job_since),
            "simulation_seconds": None if finished is None else finished - job_since,
            "buffer_size": server.buffer.maxsize,
            "sample_bytes": int(metrics["stride"]),
            "buffer_bytes": int(metrics["slab_bytes"]),
            "buffer_used": min(1.0, metrics["published"] / max(1, metrics["slots"])),
            "slots": int(metrics["slots"]),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "seconds": server._progress.seconds,
        }

    def _job_since(self, server: DeepMelissaServer) -> float:
        return server._simulation(0).job_since

    def _look(self, server: DeepMelissaServer) -> None:
        """Note when time steps come; not while the client waits for room, which says nothing of its speed."""
        while not self._over.wait(_POLL):
            receiver = server._receiver
            if receiver is None:
                continue
            counters = receiver.counters()
            received, now = int(counters["samples_received"]), time.monotonic()
            if received > self._steps and counters["room_wait_s"] == 0.0:
                self._first_step_at = self._first_step_at or now
                self._last_step_at, self._steps = now, received
            if server._simulation(0).status is SimulationStatus.FINISHED:
                self._finished_at = now if counters["room_wait_s"] == 0.0 else None
                return

    def _batch_starts(self) -> None:
        self._batch_began = time.monotonic()

    def _batch_ends(self) -> None:
        self._batches.append(time.monotonic() - self._batch_began)

    def _validation_starts(self) -> None:
        self._validation_began = time.monotonic()

    def _validation_ends(self) -> None:
        self._validation = time.monotonic() - self._validation_began


def _noted(hook: Any, note: Any) -> Any:
    """Return a hook that is noted down before it runs, when it starts something, or after it."""
    starts = note.__name__.endswith("_starts")

    def noted(batch_idx: int) -> Any:
        if starts:
            note()
        result = hook(batch_idx)
        if not starts:
            note()
        return result

    return noted


class ShortSource:
    """The first batches of a source; then it ends."""

    def __init__(self, source: BatchSource, run: FastDevRun) -> None:
        self._source = source
        self._run = run
        self._left = NB_BATCHES

    @property
    def wait_seconds(self) -> float:
        """Seconds that were waited for data since the first batch."""
        return self._source.wait_seconds

    def next(self) -> Delivery | None:
        """Return the next of the first batches; None after them, once the client has shown its speed."""
        if self._left == 0:
            self._run.settle()
            return None
        self._left -= 1
        began, waited = time.monotonic(), self._source.wait_seconds
        delivery = self._source.next()
        self._run.prepared(time.monotonic() - began - (self._source.wait_seconds - waited))
        return delivery

    @property
    def prefetcher(self) -> Prefetcher | None:
        """What gathers batches ahead, if anything does."""
        return self._source.prefetcher

    def drawn(self) -> Sequence[Sample]:
        """Return the samples that the source has drawn and not yet delivered."""
        return self._source.drawn()

    def stop(self) -> None:
        """Free what the source holds."""
        self._source.stop()
