"""The simulations of a study as its server sees them: reception, control thread, report at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from melissa.server.control import StudyControl
from melissa.server.ending import StudyEnding
from melissa.server.figures import RankFigures
from melissa.server.report import StudyReport
from melissa.server.study_receiver import StudyReceiver

__all__ = ["CloseLedgers", "Ensemble"]

logger = logging.getLogger("melissa")

CloseLedgers = Callable[[str, float | None], Sequence[RankFigures]]


class Ensemble:
    """A running ensemble of simulations, from its first client to the report.

    The report is written to ``study_report.json`` in the working directory; what `validation` gives in the
    end stands in it under that name. ``close_ledgers(final_reason, timeout)`` closes the ledgers of all
    server ranks and returns the ranks' last figures; it waits for them no longer than a `timeout`.
    """

    ABORT_TIMEOUT = 2.0
    """Seconds to wait for the last figures of other ranks after a failure."""

    def __init__(
        self,
        receiver: StudyReceiver,
        control: StudyControl,
        ending: StudyEnding,
        close_ledgers: CloseLedgers,
        *,
        validation: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.receiver = receiver
        self.control = control
        self._ending = ending
        self._close_ledgers = close_ledgers
        self._validation = validation

    def finish(self, has_received_all: bool) -> StudyReport:
        """End the ensemble in order, once training has ended: wait for the clients, close the ledger.

        A training that has ended before all simulations have ends them early. Raises what failed meanwhile,
        and `FatalError` when the ledger does not balance.
        """
        if not has_received_all:
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
            report = self._close_ledger("stopped_early", self.ABORT_TIMEOUT)

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

    def _close_ledger(self, final_reason: str, timeout: float | None = None) -> StudyReport:
        """Close the ledgers, and log the report's table."""
        report = StudyReport.of_study(
            control=self.control,
            ranks=self._close_ledgers(final_reason, timeout),
            validation=self._validation(),
        )
        for line in report.table():
            logger.info(line)
        logger.info(report.waits())
        return report

    @staticmethod
    def _write(report: StudyReport) -> None:
        report.write(Path(os.getcwd()) / "study_report.json")
