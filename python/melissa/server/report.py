"""The report of a study: what became of every simulation and every time step."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melissa.exceptions import FatalError
from melissa.server.figures import RankFigures, sum_of

if TYPE_CHECKING:
    from melissa.server.control import StudyControl

__all__ = ["StudyReport"]


def _plain(value: Any) -> Any:
    """Make of a value that JSON has no form for, a tensor of one number say, one that it has."""
    return value.item() if callable(getattr(value, "item", None)) else str(value)


def _figures(ranks: Sequence[RankFigures]) -> dict[str, Any]:
    """Return the report's figures of one rank, or the sums over several; they train beside each other."""
    ledger = sum_of([each.ledger for each in ranks])
    counters = sum_of([each.counters for each in ranks])
    training_seconds = max(each.training_seconds for each in ranks)
    samples = sum(each.samples_delivered for each in ranks)
    return {
        "ledger": {
            "declared": ledger["declared"],
            "trained": ledger["trained"],
            "dropped": {
                "client_failed": ledger["dropped_client_failed"],
                "stopped_early": ledger["dropped_stopped_early"],
                "untrained": ledger["dropped_untrained"],
            },
            "duplicates_refused": ledger["duplicates_refused"],
        },
        "batches": sum(each.batches for each in ranks),
        "samples_received": int(counters["samples_received"]),
        "samples_delivered": samples,
        "samples_per_second": round(samples / training_seconds, 3) if training_seconds > 0 else 0.0,
        "waits": {
            "trainer_for_data_s": round(sum(each.trainer_wait_s for each in ranks), 3),
            "trainer_for_ranks_s": round(sum(each.rank_wait_s for each in ranks), 3),
            "receiver_for_room_s": round(counters.get("room_wait_s", 0.0), 3),
        },
        "seconds": round(max(each.seconds for each in ranks), 3),
    }


@dataclass(frozen=True)
class StudyReport:
    """The content of ``study_report.json``: `content` has its form (see docs of the report, design §7).

    `training_seconds` are those of all ranks together.
    """

    content: dict[str, Any]
    training_seconds: float

    @classmethod
    def of_study(
        cls,
        *,
        control: StudyControl,
        ranks: Sequence[RankFigures],
        validation: dict[str, Any] | None = None,
    ) -> StudyReport:
        """Put the figures of a study together, once the ledgers of its ranks are closed.

        `validation` is what the study's own class has to say, for instance how good its model is.
        """
        simulations = control.simulation_counts()
        content = {"simulations": simulations, **_figures(ranks)}
        if validation:
            content["validation"] = json.loads(json.dumps(validation, default=_plain))
        content["ranks"] = [{"rank": each.rank, **_figures([each])} for each in ranks]
        return cls(content, sum(each.training_seconds for each in ranks))

    def check(self) -> None:
        """Check that every declared time step is trained or dropped; else `FatalError` has the figures."""
        for place, figures in [
            ("the study", self.content),
            *((f"rank {r['rank']}", r) for r in self.content["ranks"]),
        ]:
            ledger = figures["ledger"]
            accounted = ledger["trained"] + sum(ledger["dropped"].values())
            if ledger["declared"] != accounted:
                raise FatalError(
                    f"the ledger of {place} does not balance: {ledger['declared']} time steps were "
                    f"declared, but {ledger['trained']} trained and {ledger['dropped']} dropped make "
                    f"{accounted}. This is a fault of melissa: please report it with study_report.json and "
                    "the server's log"
                )

    def write(self, path: Path) -> None:
        """Write the report as JSON; `FatalError` when that cannot be: the disk is full, say."""
        unfinished = path.with_suffix(".json.new")
        try:
            unfinished.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
            os.replace(unfinished, path)
        except OSError as error:
            raise FatalError(
                f"cannot write the study's report {path}: {error.strerror}; its figures stand in the log"
            ) from None

    def table(self) -> list[str]:
        """Return the report as the lines of a table."""
        content = self.content
        simulations, ledger = content["simulations"], content["ledger"]
        dropped = ledger["dropped"]
        rows = [
            ("simulations planned", simulations["planned"]),
            ("  finished", simulations["finished"]),
            ("  given up", simulations["failed"]),
            ("  resubmitted", simulations["resubmitted"]),
            ("time steps declared", ledger["declared"]),
            ("  trained", ledger["trained"]),
            ("  dropped, client failed", dropped["client_failed"]),
            ("  dropped, stopped early", dropped["stopped_early"]),
            ("  dropped, untrained", dropped["untrained"]),
            ("duplicates refused", ledger["duplicates_refused"]),
            ("samples received", content["samples_received"]),
            ("samples delivered", content["samples_delivered"]),
            ("batches", content["batches"]),
            ("samples per second", f"{content['samples_per_second']:.1f}"),
            ("seconds", f"{content['seconds']:.1f}"),
        ]
        width = max(len(str(value)) for _, value in rows)
        return [f"{name:<26} {value:>{width}}" for name, value in rows]

    def waits(self) -> str:
        """Say which share of the time training and receiver waited for each other.

        Of the trainer's time what counts is that since the watermark; the receiver's begins with the study.
        """
        waits = self.content["waits"]
        trainer = waits["trainer_for_data_s"] / max(self.training_seconds, 1e-9)
        of_all_ranks = self.content["seconds"] * len(self.content["ranks"])
        receiver = waits["receiver_for_room_s"] / max(of_all_ranks, 1e-9)
        text = (
            f"the trainer waited for data {trainer:.1%} of its time since the watermark; the receiver for "
            f"room {receiver:.1%} of the study"
        )
        if len(self.content["ranks"]) > 1:
            others = waits["trainer_for_ranks_s"] / max(self.training_seconds, 1e-9)
            text += f"; trainers waited for each other {others:.1%} of their time"
        return text
