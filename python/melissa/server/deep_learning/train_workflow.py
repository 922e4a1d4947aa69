"""The hooks of training: what a user's class defines, and the wrappers through which each is called."""

# ruff: noqa: B027  # optional hooks are empty and not abstract

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["TrainingWorkflowMixin"]


class TrainingWorkflowMixin(ABC):
    """Provides a structure for overriding training, validation, and hook methods.

    Called in this order by the predefined loop; `batch_idx` counts from 1::

        on_train_start
            (wait for the watermark)
            on_batch_start(batch_idx)
                training_step(batch, batch_idx)
            on_batch_end(batch_idx)
            on_validation_start(batch_idx)              every nb_batches_update batches
                validation_step(batch, valid_batch_idx, batch_idx)
            on_validation_end(batch_idx)
            checkpoint(batch_idx)                       every checkpoint_interval batches
        on_train_end

    Each is called through a wrapper whose name has a leading underscore, which a class may call and override,
    too.
    """

    _has_started_training = False
    _has_ended_training = False

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int, **kwargs: Any) -> Any:
        """Defines the logic for a single training step.

        Parameters
        ----------
        batch
            A single batch of data: what `process_simulation_batch` returns, or what `process_simulation_data`
            returns per sample, put together.
        batch_idx
            The index of the batch, from 1.
        """

    def validation_step(
        self, batch: Any, valid_batch_idx: int, batch_idx: int, **kwargs: Any
    ) -> dict[str, Any]:
        """Defines the logic for a single validation step.

        Parameters
        ----------
        batch
            A single batch of validation data, as `valid_dataloader` yields it.
        valid_batch_idx
            The index of the validation batch, from 0.
        batch_idx
            The index of the training batch after which validation runs.

        Returns
        -------
        Output from the validation step.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has a valid_dataloader, so it needs validation_step(batch, "
            "valid_batch_idx, batch_idx)"
        )

    def on_train_start(self) -> None:
        """Hook called at the start of training, before the wait for the watermark."""

    def on_train_end(self) -> None:
        """Hook called at the end of training."""

    def on_batch_start(self, batch_idx: int) -> None:
        """Hook called at the start of batch iteration."""

    def on_batch_end(self, batch_idx: int) -> None:
        """Hook called at the end of batch iteration."""

    def on_validation_start(self, batch_idx: int) -> None:
        """Hook called at the start of validation."""

    def on_validation_end(self, batch_idx: int) -> None:
        """Hook called at the end of validation."""

    # The wrappers. The first two call their hook once per study: the server calls them around `train`, and a
    # train of the user's own may call them, too.

    def _on_train_start(self) -> None:
        """Call `on_train_start`, the first time."""
        if not self._has_started_training:
            self._has_started_training = True
            self.on_train_start()

    def _on_train_end(self) -> None:
        """Call `on_train_end`, the first time."""
        if not self._has_ended_training:
            self._has_ended_training = True
            self.on_train_end()

    def _on_batch_start(self, batch_idx: int) -> None:
        """Call `on_batch_start`."""
        self.on_batch_start(batch_idx)

    def _on_batch_end(self, batch_idx: int) -> None:
        """Call `on_batch_end`."""
        self.on_batch_end(batch_idx)

    def _on_validation_start(self, batch_idx: int) -> None:
        """Call `on_validation_start`."""
        self.on_validation_start(batch_idx)

    def _on_validation_end(self, batch_idx: int) -> None:
        """Call `on_validation_end`."""
        self.on_validation_end(batch_idx)

    def _training_step(self, batch: Any, batch_idx: int, **kwargs: Any) -> Any:
        """Call `training_step`."""
        return self.training_step(batch, batch_idx, **kwargs)

    def _validation_step(
        self, batch: Any, valid_batch_idx: int, batch_idx: int, **kwargs: Any
    ) -> dict[str, Any]:
        """Call `validation_step`."""
        return self.validation_step(batch, valid_batch_idx, batch_idx, **kwargs)
