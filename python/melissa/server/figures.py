"""The figures of one server rank at one moment, of which progress, report and rank 0's decisions are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melissa.server.progress import StudyProgress
    from melissa.server.study_receiver import StudyReceiver

__all__ = ["RankFigures", "study_figures", "sum_of"]


@dataclass(frozen=True)
class RankFigures:
    """Training, reception and ledger of a rank; `counters` and `ledger` are its receiver's.

    `batches_expected` is -1 where it is not known. Seconds of waits count from the start of training or
    reception.
    """

    rank: int
    phase: str = "starting"
    is_saving: bool = False
    saves_when_stopped: bool = False
    batches: int = 0
    batches_expected: int = -1
    samples_delivered: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    trainer_wait_s: float = 0.0
    waits_for_data: bool = False
    rank_wait_s: float = 0.0
    watermark: int = 0
    population: int = 0
    capacity: int = 0
    reception_over: bool = False
    losses: dict[str, float] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rank: int,
        progress: StudyProgress,
        receiver: StudyReceiver,
        *,
        population: int = 0,
        capacity: int = 0,
        final_reason: str | None = None,
    ) -> RankFigures:
        """Collect the figures of a rank; a `final_reason` closes its ledger."""
        return cls(
            rank=rank,
            training_seconds=progress.training_seconds,
            seconds=progress.seconds,
            watermark=progress.watermark,
            population=population,
            capacity=capacity,
            # Asked for first: counters that are read later are not older than it.
            reception_over=receiver.reception_over,
            counters=dict(receiver.counters()),
            ledger=dict(receiver.ledger() if final_reason is None else receiver.ledger(final_reason)),
            **progress.snapshot(),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RankFigures:
        """Make the figures of what `to_dict` gave."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a dictionary of plain values."""
        return dataclasses.asdict(self)


def sum_of(dictionaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of each key over `dictionaries`; a key that some lacks counts as 0 there."""
    names = dict.fromkeys(name for values in dictionaries for name in values)
    return {name: sum(values.get(name, 0) for values in dictionaries) for name in names}


def study_figures(ranks: list[RankFigures]) -> dict[str, Any]:
    """Return what a `melissa.launcher.message.Progress` says of reception and training on all ranks.

    Figures are sums; losses are those of the lowest rank that logs them.
    """
    expected = [int(each.counters.get("expected_samples", -1)) for each in ranks]
    batches_expected = [each.batches_expected for each in ranks]
    losses: dict[str, float] = {}
    for each in ranks:
        losses = each.losses | losses
    return {
        "samples_received": sum(int(each.counters.get("samples_received", 0)) for each in ranks),
        "samples_trained": sum(each.ledger.get("trained", 0) for each in ranks),
        "samples_delivered": sum(each.samples_delivered for each in ranks),
        "samples_expected": -1 if min(expected) < 0 else sum(expected),
        "batches": sum(each.batches for each in ranks),
        "batches_expected": -1 if min(batches_expected) < 0 else sum(batches_expected),
        "population": sum(each.population for each in ranks),
        "capacity": sum(each.capacity for each in ranks),
        "watermark": sum(each.watermark for each in ranks),
        "populations": [each.population for each in ranks],
        "trainer_wait_s": sum(each.trainer_wait_s for each in ranks),
        "receiver_wait_s": sum(each.counters.get("room_wait_s", 0.0) for each in ranks),
        "is_saving": any(each.is_saving for each in ranks),
        "saves_when_stopped": any(each.saves_when_stopped for each in ranks),
        "losses": losses,
    }
