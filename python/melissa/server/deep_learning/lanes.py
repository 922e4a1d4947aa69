"""From the buffer to the batch that a training step gets: the fast lane and the view lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from melissa._melissa import Batch, CheckpointFile, Prefetcher, Sample
from melissa.server.deep_learning.reservoir import BaseQueue
from melissa.server.deep_learning.sample_source import PolledWait, SampleSource
from melissa.server.simulation import PartialSimulationData, Simulation, SimulationData

__all__ = ["BatchSource", "Delivery", "FastLane", "SampleChecks", "ViewLane"]


@dataclass(slots=True)
class Delivery:
    """One batch: what the training step gets, and whose samples it is made of."""

    batch: Any
    samples: Batch | Sequence[Sample]


class BatchSource(Protocol):
    """Where the training loop gets its batches from."""

    @property
    def wait_seconds(self) -> float:
        """Seconds that were waited for data since the first batch."""

    @property
    def prefetcher(self) -> Prefetcher | None:
        """What gathers batches ahead, if anything does."""

    def next(self) -> Delivery | None:
        """Return the next batch; None at the end of the data, or of the study."""

    def drawn(self) -> Sequence[Sample]:
        """Return the samples that the source has drawn and not yet delivered."""

    def stop(self) -> None:
        """Free what the source holds."""


class FastLane:
    """Whole batches, gathered ahead by the thread of the extension's `Prefetcher`.

    `transform` makes of each `melissa._melissa.Batch` what the training step gets. The batches that were
    drawn before a restart, in `restored`, come first.
    """

    def __init__(
        self,
        buffer: BaseQueue,
        batch_size: int,
        drop_last: bool,
        transform: Callable[[Batch], Any],
        wait: PolledWait,
        restored: CheckpointFile | None = None,
    ) -> None:
        self._prefetcher = Prefetcher(buffer.native, batch_size, drop_last=drop_last, restored=restored)
        self._transform = transform
        self._wait = wait

    @property
    def wait_seconds(self) -> float:
        """Seconds that were waited for data since the first batch."""
        return self._prefetcher.wait_seconds

    def next(self) -> Delivery | None:
        """Return the next batch; None at the end of the data, or of the study."""
        batch = self._wait.result_of(self._prefetcher.next)
        return None if batch is None else Delivery(self._transform(batch), batch)

    @property
    def prefetcher(self) -> Prefetcher | None:
        """What gathers batches ahead."""
        return self._prefetcher

    def drawn(self) -> Sequence[Sample]:
        """Return nothing: what is drawn is the prefetcher's."""
        return ()

    def stop(self) -> None:
        """End the prefetching thread."""
        self._prefetcher.stop()


class ViewLane:
    """Batches made in the training thread, sample by sample, of what `transform` makes of each view."""

    def __init__(
        self,
        source: SampleSource,
        batch_size: int,
        drop_last: bool,
        transform: Callable[[SimulationData], Any],
        collate: Callable[[list[Any]], Any],
    ) -> None:
        self._source = source
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._transform = transform
        self._collate = collate

    @property
    def wait_seconds(self) -> float:
        """Seconds that were waited for data since the first sample."""
        return self._source.wait_seconds

    def next(self) -> Delivery | None:
        """Return the next batch; None at the end of the data, or of the study."""
        samples: list[Sample] = []
        processed: list[Any] = []
        while len(samples) < self._batch_size:
            drawn = self._source.next()
            if drawn is None:
                break
            samples.append(drawn[0])
            processed.append(self._transform(drawn[1]))
        if not samples or (self._drop_last and len(samples) < self._batch_size):
            return None
        return Delivery(self._collate(processed), samples)

    @property
    def prefetcher(self) -> Prefetcher | None:
        """Nothing gathers batches ahead."""
        return None

    def drawn(self) -> Sequence[Sample]:
        """Return the samples that were drawn and not yet delivered."""
        return self._source.drawn()

    def stop(self) -> None:
        """Hold nothing."""


class SampleChecks:
    """Shows each sample, the first time that it is drawn, to the methods of a user's class that ask for it.

    `on_part` gets every field of it, `is_valid` the whole: a sample for which it returns False is not
    trained.
    """

    def __init__(
        self,
        is_valid: Callable[[SimulationData], Any] | None,
        on_part: Callable[[Simulation, PartialSimulationData], Any] | None,
        simulation: Callable[[int], Simulation],
    ) -> None:
        self._is_valid = is_valid
        self._on_part = on_part
        self._simulation = simulation
        self._verdicts: dict[tuple[int, int, int], bool] = {}
        self.nb_refused = 0

    def admit(self, sample: Sample, data: SimulationData) -> bool:
        """Say whether `data`, the view of `sample`, is to be trained."""
        key = (sample.simulation_id, sample.draw, sample.time_step)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = self._look(data)
            self.nb_refused += not verdict
        return verdict

    def _look(self, data: SimulationData) -> bool:
        if self._on_part is not None:
            simulation = self._simulation(data.simulation_id)
            for name, values in data.data.items():
                self._on_part(
                    simulation, PartialSimulationData(data.simulation_id, data.time_step, 0, name, values)
                )
        # A method that only raises on what it does not like returns None.
        return self._is_valid is None or self._is_valid(data) is not False
