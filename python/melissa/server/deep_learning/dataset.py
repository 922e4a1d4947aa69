"""The buffer as a dataset: what a training loop of the user's own iterates over."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.deep_learning.collate import collate
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.sample_source import PolledWait, SampleSource
from melissa.server.ending import StudyEnding

if TYPE_CHECKING:
    from melissa._melissa import CheckpointFile, Sample
    from melissa.server.deep_learning.accounting import TrainedAccounting
    from melissa.server.deep_learning.reservoir import BaseQueue
    from melissa.server.simulation import SimulationData

__all__ = ["BatchLoader", "MelissaIterableDataset", "make_dataloader", "make_dataset"]


@functools.cache
def _torch_class() -> type:
    """Return a class that is a `MelissaIterableDataset` and an `IterableDataset` of torch."""
    from torch.utils.data import IterableDataset

    return type("TorchMelissaIterableDataset", (MelissaIterableDataset, IterableDataset), {})


class MelissaIterableDataset:
    """Yields the samples of a training buffer, one by one, until reception is over and the buffer is drained.

    For torch it is an ``IterableDataset``: give it to a ``torch.utils.data.DataLoader`` with
    ``num_workers=0``. Samples count as trained when the next batch is asked for, in batches of the server's
    batch size. A short batch at the end counts as untrained: nothing shows whether a loop of the user's own
    has dropped it.

    Parameters
    ----------
    buffer
        The training buffer.
    tb_logger
        Logger that `transform` may want; kept as an attribute.
    config, config_dict
        The configuration, second argument of `transform`: two names of one thing.
    transform
        Called as ``transform(sample, config)`` with a `SimulationData`; what it returns is yielded. Without
        it the `SimulationData` is.
    """

    def __init__(
        self,
        buffer: BaseQueue,
        tb_logger: Any = None,
        config: dict[str, Any] | None = None,
        transform: Callable[[SimulationData, dict[str, Any]], Any] | None = None,
        *,
        config_dict: dict[str, Any] | None = None,
    ) -> None:
        self.buffer = buffer
        self.tb_logger = tb_logger
        self.config_dict: dict[str, Any] = (config if config is not None else config_dict) or {}
        self.transform = transform
        self.has_ended = False
        """Whether the last iteration has come to the end of the data."""
        self._wait = PolledWait(StudyEnding())
        self._accounting: TrainedAccounting | None = None
        self._batch_size = 1
        self._admit: Callable[[Sample, SimulationData], bool] | None = None
        self._take_restored: Callable[[], CheckpointFile | None] = lambda: None
        self._source: SampleSource | None = None
        self._handed: list[Sample] = []  # yielded and not yet counted

    # A DataLoader asks isinstance(). Inheriting from torch's class would make torch a requirement of this
    # module; so the class is given as a heir of it from the moment on that torch is imported.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return _torch_class() if "torch" in sys.modules else MelissaIterableDataset

    @property
    def config(self) -> dict[str, Any]:
        """The same as `config_dict`."""
        return self.config_dict

    def join_study(
        self,
        wait: PolledWait,
        accounting: TrainedAccounting,
        batch_size: int,
        admit: Callable[[Sample, SimulationData], bool] | None = None,
        take_restored: Callable[[], CheckpointFile | None] = lambda: None,
    ) -> None:
        """Become the dataset of a study: its waits, its accounting, and its checks of single samples.

        `take_restored` gives the checkpoint whose drawn samples come first, once.
        """
        self._wait, self._accounting, self._batch_size, self._admit = wait, accounting, batch_size, admit
        self._take_restored = take_restored

    def at_checkpoint(self) -> list[Sample]:
        """Count the batch that was yielded as trained, and return the samples that are drawn and not trained.

        To be called in the loop after a training step: a whole batch that was yielded by then is trained.
        """
        if len(self._handed) == self._batch_size:
            self._count_handed()
        return [*self._handed, *([] if self._source is None else self._source.drawn())]

    def __iter__(self) -> Iterator[Any]:
        self._refuse_workers()
        self.has_ended = False
        restored = self._take_restored()
        source = self._source = SampleSource(
            self.buffer,
            self._batch_size,
            self._wait,
            self._admit,
            by_batches=False,
            restored=[] if restored is None else restored.pending_samples(),
        )
        self._handed = []
        while True:
            if len(self._handed) == self._batch_size:
                # The next batch is asked for: the training step on this one has returned.
                self._count_handed()
            drawn = source.next()
            if drawn is None:
                self.has_ended = True
                return
            sample, data = drawn
            self._handed.append(sample)
            yield data if self.transform is None else self.transform(data, self.config_dict)
            del sample, data, drawn

    def _count_handed(self) -> None:
        batch, self._handed = self._handed, []
        if self._accounting is not None:
            self._accounting.trained(batch)
            self._accounting.waited(self.buffer.data_wait_seconds)

    def _refuse_workers(self) -> None:
        torch_data = sys.modules.get("torch.utils.data")
        if torch_data is not None and torch_data.get_worker_info() is not None:
            raise UnsupportedConfiguration(_NO_WORKERS)

    def __reduce__(self) -> Any:
        raise UnsupportedConfiguration(_NO_WORKERS)


_NO_WORKERS = (
    "a MelissaIterableDataset reads a buffer that lives in the server's process, so a DataLoader of it can "
    "have no worker processes: set num_workers=0 (the extension's threads do the work that workers would)"
)


class BatchLoader:
    """Batches of a dataset: tuples of stacked arrays, or tensors of TensorFlow; see `collate`."""

    def __init__(
        self,
        dataset: MelissaIterableDataset,
        batch_size: int,
        drop_last: bool = False,
        framework_t: FrameworkType = FrameworkType.DEFAULT,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.framework_t = framework_t

    def __iter__(self) -> Iterator[Any]:
        samples: list[Any] = []
        for sample in self.dataset:
            samples.append(sample)
            if len(samples) == self.batch_size:
                yield collate(samples, self.framework_t)
                samples = []
        if samples and not self.drop_last:
            yield collate(samples, self.framework_t)


def make_dataset(
    framework_t: FrameworkType,
    buffer: BaseQueue,
    config_dict: dict[str, Any] | None = None,
    transform: Callable[[SimulationData, dict[str, Any]], Any] | None = None,
    tb_logger: Any = None,
) -> MelissaIterableDataset:
    """Make the dataset of a buffer; it is of one kind for all frameworks.

    For TensorFlow it can be the generator of a ``tf.data.Dataset.from_generator``.
    """
    return MelissaIterableDataset(buffer, tb_logger=tb_logger, config=config_dict, transform=transform)


def make_dataloader(
    framework_t: FrameworkType,
    dataset: MelissaIterableDataset,
    batch_size: int,
    drop_last: bool = False,
    num_workers: int = 0,
) -> Any:
    """Make an iterable of batches: torch's ``DataLoader`` for TORCH, else a `BatchLoader`.

    `UnsupportedConfiguration` for workers.
    """
    if num_workers:
        raise UnsupportedConfiguration(_NO_WORKERS)
    if framework_t is FrameworkType.TORCH:
        from torch.utils.data import DataLoader

        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, num_workers=0)
    return BatchLoader(dataset, batch_size, drop_last, framework_t)
