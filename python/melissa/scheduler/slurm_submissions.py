"""Jobs on their way to Slurm: handed over one by one, again where Slurm cannot take them now, never twice.

Each job's name ends in a mark that no other job has. An ``sbatch`` that got no answer may have left a job
all the same. So before such a job is handed over again, ``squeue`` is asked for the mark: a job that has it
is the one, and only an answer without it allows another ``sbatch``. Should the first request be obeyed after
that, there are two jobs of one name: the second waits for the end of the first (``--dependency=singleton``),
which is cancelled when it is seen, as nobody waits for it.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from melissa.scheduler.arguments import names_any
from melissa.scheduler.job import Job, State
from melissa.scheduler.slurm_commands import Command, CommandError, Lanes, Patience
from melissa.scheduler.slurm_guard import Guard

__all__ = ["Submission", "Submissions"]

logger = logging.getLogger("melissa")

LANE = "sbatch"
FIRST_PAUSE = 2.0
"""Seconds after an sbatch that was refused for a passing reason; each further one doubles them."""
LONGEST_PAUSE = 60.0
NAME_WIDTH = 80
"""Characters of a job's name that ``squeue`` must tell, so that the mark is among them."""
_OWN_NAME_WIDTH = 40
# What cannot stand in a name, separates several, or is wider for squeue than it looks.
_NO_NAME = re.compile(r"(?:[^!-~]|,)+")


@dataclass(eq=False)
class Submission:
    """A job that Slurm has not taken yet.

    `command` is its ``sbatch`` without name and dependency, `script` what that reads. `stderr_start` counts
    the bytes that earlier attempts have left in the file of its stderr. `grace` is that of `cancel` for a job
    that was cancelled meanwhile.
    """

    job: Job
    command: Sequence[str]
    script: str
    stderr_start: int = 0
    mark: str = ""
    name: str = field(init=False, default="")
    grace: float | None = None
    is_unknown: bool = False  # an sbatch of it has ended, and may have left a job
    was_unknown: bool = False


class Submissions:
    """Hands jobs to ``sbatch``, in order and one at a time.

    `taken` is called with a submission and the number that Slurm has given to it; `ended` with a job that
    was not submitted, and never will be. `is_crowded` says whether Slurm has jobs of this study by whose end
    there will be room for others.
    """

    def __init__(
        self,
        lanes: Lanes,
        guard: Guard,
        *,
        taken: Callable[[Submission, str], None],
        ended: Callable[[Job], None],
        is_crowded: Callable[[], bool],
    ) -> None:
        self._lanes = lanes
        self._guard = guard
        self._taken = taken
        self._ended = ended
        self._is_crowded = is_crowded
        self._queue: deque[Submission] = deque()
        self._running: Command | None = None
        self._is_looked_for = False
        self._pause = 0.0
        self._again_at = 0.0
        self._waits_for_room = False
        self._patience = Patience("Slurm takes no further job")
        self._tag = secrets.token_hex(5)
        self._marked = 0

    def __len__(self) -> int:
        """Return how many jobs Slurm has not taken yet, or not that it is known."""
        return len(self._queue)

    @property
    def unknown(self) -> Submission | None:
        """The job that Slurm may have or not: its sbatch runs, or has not said."""
        head = self._queue[0] if self._queue else None
        return head if head is not None and (self._running or head.is_unknown) else None

    def is_ours(self, mark: str) -> bool:
        """Say whether a mark is one of these."""
        return mark.partition(".")[0] == self._tag

    def add(self, submission: Submission) -> None:
        """Queue a job, and hand it over if none is before it."""
        self._marked += 1
        submission.mark = f"{self._tag}.{self._marked}"
        own = _own_name(submission.command) or f"melissa-{submission.job.name}"
        submission.name = f"{_NO_NAME.sub('_', own)[:_OWN_NAME_WIDTH]}-{submission.mark}"
        self._queue.append(submission)
        self.go_on()

    def go_on(self) -> None:
        """Hand over the next job, if it is time for that and known that Slurm has not got it."""
        if self._running or not self._queue or time.monotonic() < self._again_at:
            return
        head = self._queue[0]
        if head.is_unknown:
            return
        # Behind the user's own arguments, of which the last one would hold.
        command = [*head.command, f"--job-name={head.name}"]
        if head.was_unknown and not names_any(command, ("-d", "--dependency")):
            command.append("--dependency=singleton")
        self._guard.tell("sent", head.name)
        running = self._running = Command(command, head.script)
        self._lanes.run(LANE, running.run, lambda told: self._answered(head, told))

    def _answered(self, head: Submission, told: str | CommandError) -> None:
        self._running = None
        if isinstance(told, str):
            number = told.strip().rpartition("\n")[2].partition(";")[0]
            if number.isdecimal():
                self._take(head, number)
                return
            told = CommandError(f"sbatch told no number of a job, but {told!r:.200}", is_open=True)
        if not told.is_passing:
            self._patience.end()  # Slurm works
            self._guard.tell("none")
            self._remove(head, State.ERROR, f"cannot submit it: {told}")
            self.go_on()
            return
        head.is_unknown = told.is_open
        head.was_unknown |= told.is_open
        self._waits_for_room = told.is_job_limit
        if not told.is_open:
            self._guard.tell("none")
        self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
        if head.grace is None:
            self._again_at = time.monotonic() + self._pause
        elif not told.is_open:
            self._remove(head, State.FAILED, "")
            self.go_on()
            return
        waits_for_own = told.is_job_limit and self._is_crowded()
        self._patience.bear(told, counts=not waits_for_own)

    def _take(self, head: Submission, number: str) -> None:
        self._queue.remove(head)
        self._pause = self._again_at = 0.0
        self._patience.end()
        self._guard.tell("job", number)
        self._taken(head, number)
        self.go_on()

    def _remove(self, head: Submission, state: State, error: str) -> None:
        """End a job that Slurm has not got."""
        self._queue.remove(head)
        if not self._queue:
            self._patience.end()  # nothing waits
        if head.grace is not None:
            state, error = State.FAILED, "cancelled before it was submitted"
        head.job.state, head.job.error = state, error
        self._ended(head.job)

    def room(self) -> None:
        """Take note that a job has ended: where Slurm would take no more, it may take one now."""
        if self._waits_for_room:
            self._again_at = 0.0

    # What squeue says of marks.

    def look(self) -> None:
        """Take note that squeue is asked now: what it will tell holds for an sbatch that has ended before."""
        head = self.unknown
        is_time = time.monotonic() >= self._again_at
        self._is_looked_for = head is not None and not self._running and is_time

    def seen(self, numbers: Mapping[str, str]) -> None:
        """Take squeue's answer since the last `look`: the numbers of jobs, by their marks."""
        head, is_looked_for = self.unknown, self._is_looked_for
        self._is_looked_for = False
        if head is None or self._running:
            return
        if (number := numbers.get(head.mark)) is not None:
            logger.info(f"Slurm has taken {head.job.name} as job {number}, which sbatch did not tell")
            self._take(head, number)
        elif is_looked_for:
            head.is_unknown = False
            if head.grace is not None:
                self._remove(head, State.FAILED, "")
            self.go_on()

    # The end.

    def cancel(self, jobs: Collection[Job], grace: float) -> None:
        """End those of the jobs that are here: at once, or as soon as it is known what Slurm has of them."""
        self._cancel([submission for submission in self._queue if submission.job in jobs], grace)

    def cancel_all(self, grace: float) -> None:
        """End all that are here in the same way."""
        self._cancel(list(self._queue), grace)

    def _cancel(self, submissions: list[Submission], grace: float) -> None:
        for submission in submissions:
            submission.grace = grace if submission.grace is None else min(grace, submission.grace)
            if submission is not self.unknown:
                self._remove(submission, State.FAILED, "")
            else:
                self._again_at = 0.0  # nothing is handed over again: look at once what there is

    def kill(self) -> None:
        """End the sbatch that runs: its job is the guard's affair."""
        if self._running is not None:
            self._running.kill()


def _own_name(command: Sequence[str]) -> str:
    """Return the name that the user's arguments give to a job; empty where they give none."""
    name = ""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word in ("-J", "--job-name"):
            name = following
        elif word.startswith("--job-name="):
            name = word.partition("=")[2]
        elif word.startswith("-J"):
            name = word[2:]
    return name
