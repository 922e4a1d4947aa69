"""The simulations of a study as its server sees them: reception, control thread, report at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melissa.server.control import StudyControl
from melissa.server.ending import StudyEnding
from melissa.server.extension_log import forward_extension_log
from melissa.server.progress import StudyProgress
from melissa.server.report import StudyReport

if TYPE_CHECKING:
    from melissa._melissa import Buffer, Receiver

__all__ = ["Ensemble"]

logger = logging.getLogger("melissa")


class Ensemble:
    """A running ensemble of `planned` simulations, from its first client to the report.

    The report is written to ``study_report.json`` in the working directory; what `validation` gives in the
    end stands in it under that name.
    """

    def __init__(
        self,
        buffer: Buffer,
        receiver: Receiver,
        control: StudyControl,
        progress: StudyProgress,
        ending: StudyEnding,
        *,
        planned: int,
        rank: int = 0,
        validation: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._buffer = buffer
        self.receiver = receiver
        self.control = control
        self._progress = progress
        self._ending = ending
        self._planned = planned
        self._rank = rank
        self._validation = validation

    def finish(self) -> StudyReport:
        """End the ensemble in order, once training has ended: wait for the clients, close the ledger.

        A training that has ended before all simulations have ends them early. Raises what failed meanwhile,
        and `FatalError` when the ledger does not balance.
        """
        # The receiver closes the buffer first, and says a moment later that reception is over.
        if not self._buffer.closed and not self.receiver.reception_over:
            self._ending.stop("training has ended before all simulations have")
        self.control.finish()
        report = self._close_ledger("untrained" if self._ending.stop_reason is None else "stopped_early")
        self._write(report)
        report.check()
        return report

    def abort(self) -> StudyReport | None:
        """End the ensemble without waiting for anybody; what goes wrong meanwhile is logged.

        None when no report could be made.
        """
        report: StudyReport | None = None

        def close_ledger() -> None:
            nonlocal report
            report = self._close_ledger("stopped_early")

        def write() -> None:
            if report is not None:
                self._write(report)

        steps: list[Callable[[], Any]] = [self.control.leave, self.receiver.stop, close_ledger, write]
        for step in steps:
            try:
                step()
            except Exception:
                logger.warning("while the study ended after a failure:", exc_info=True)
        return report

    def close(self) -> None:
        """End the thread that receives."""
        self.receiver.close()
        forward_extension_log()

    def _close_ledger(self, final_reason: str) -> StudyReport:
        """Close the ledger, and log the report's table."""
        report = StudyReport.of_study(
            planned=self._planned,
            control=self.control,
            ledger=self.receiver.ledger(final_reason),
            counters=self.receiver.counters(),
            progress=self._progress,
            rank=self._rank,
            validation=self._validation(),
        )
        for line in report.table():
            logger.info(line)
        logger.info(report.waits())
        return report

    @staticmethod
    def _write(report: StudyReport) -> None:
        report.write(Path(os.getcwd()) / "study_report.json")
