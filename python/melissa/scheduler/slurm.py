"""The slurm scheduler: each job is a batch job, whose ranks ``srun`` starts.

In an allocation (``salloc``, or a launcher that is itself a batch job) jobs are steps of it instead, by
``srun`` alone: see `slurm_steps`.

The launcher's loop never waits for Slurm. Each of Slurm's programs has a thread of its own, which runs one
command after another and knows nothing of jobs (`slurm_commands`). What a command told is taken by `poll`, in
the launcher's thread, which alone touches jobs. `submit` queues (`slurm_submissions`), `ask` begins a
question for the states of all jobs, `cancel` begins to end them; `close` alone waits. The guard ends what a
launcher that is gone has left (`slurm_guard`).
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from melissa.scheduler.arguments import JobOptions, count_option, names_any
from melissa.scheduler.job import Job, JobKind, JobRequest, State
from melissa.scheduler.scheduler import Scheduler, SchedulerError
from melissa.scheduler.slurm_commands import Command, CommandError, Lanes, Patience
from melissa.scheduler.slurm_guard import Guard
from melissa.scheduler.slurm_submissions import NAME_WIDTH, Submission, Submissions
from melissa.utility.addresses import host_name

logger = logging.getLogger("melissa")

LAUNCHERS = ("srun", "mpiexec", "mpirun")
KILL_ON_BAD_EXIT = "--kill-on-bad-exit=1"
"""A rank that dies ends the others, as under mpiexec; one of the user's that comes later holds."""

YOUTH = 2.0
"""Seconds of a job's run in which its tasks are sent no signal: Slurm is just starting them.

A signal to them then hung the ``slurmstepd`` of Slurm 22.05 in up to one of five jobs, which `scancel` could
not end any more; the latest such signal came half a second after the start.
"""
_KILL_PAUSE = 10.0
_IMPATIENCE = 5.0
_CLOSE_PAUSE = 0.2
_TAIL_SIZE = 1 << 14
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
_LIVE = ("RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING")
_FINAL = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
)
_FORGOTTEN = "forgotten by Slurm"


class _Row(NamedTuple):
    """What Slurm says of a job: its state, its wait status, and the end of its name."""

    state: str
    status: int
    mark: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in _FINAL


def slurm_ranks(options: JobOptions) -> int | None:
    """Return the tasks that the arguments ask for: 1 where they are silent, None where they are not exact."""
    wrapper = options.wrapper if options.launched_by(LAUNCHERS, "srun")[1] == () else ()
    arguments = (*options.arguments, *wrapper)
    if (count := count_option(arguments, ("-n", "--ntasks", "-np", "--np"))) is not None:
        return count
    nodes = count_option(arguments, ("-N", "--nodes"))
    per_node = count_option(arguments, ("--ntasks-per-node",))
    if (nodes is None and names_any(arguments, ("-N", "--nodes"))) or (
        per_node is None and names_any(arguments, ("--ntasks-per-node", "--ntasks-per-gpu"))
    ):
        return None
    return (nodes or 1) * (per_node or 1)


def is_srun(launcher: Sequence[str]) -> bool:
    """Say whether the command that starts the ranks is ``srun``, under whatever path."""
    return launcher[0].rpartition("/")[2] == "srun"


def words(arguments: Iterable[str]) -> list[str]:
    """Return raw arguments as words: one may hold several, and may be written as a script has it."""
    return [word for text in arguments for word in shlex.split(text.removeprefix("#SBATCH"))]


class SlurmScheduler(Scheduler):
    """Submits batch jobs by ``sbatch``, asks for their states by ``squeue``, ends them by ``scancel``."""

    name = "slurm"
    wants_arguments = True
    END_TIMEOUT = 90.0  # a cluster's KillWait is 30 s by default

    def __init__(self, options: Mapping[JobKind, JobOptions] | None = None) -> None:
        """Make a scheduler; nothing runs before `start`."""
        super().__init__(options)
        self._guard = Guard()
        self._is_started = False
        self._jobs: dict[str, Job] = {}  # by Slurm's number
        self._changed: dict[Job, None] = {}  # and not reported yet, in order
        self._running_since: dict[str, float] = {}  # when that was heard
        self._kill_at: dict[str, float] = {}
        self._scancels = 0  # begun, and not ended
        self._is_asking = False
        self._patience = Patience("Slurm does not tell the states of jobs")
        self._unknown_states: set[str] = set()
        self._stderr_start: dict[str, int] = {}  # bytes that earlier attempts left in the file

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Start the guard, and the threads that wait for Slurm."""
        self._guard.start(keep_open)
        self._lanes = Lanes("sbatch", "squeue", "scancel")
        self._submissions = Submissions(
            self._lanes,
            self._guard,
            taken=self._taken,
            ended=self._end,
            is_crowded=lambda: any(job.request.kind is JobKind.CLIENT for job in self._jobs.values()),
        )
        self._is_started = True

    def launcher_host(self) -> str:
        """Return this machine's name: jobs run on others."""
        return host_name()

    @classmethod
    def nb_ranks(cls, options: JobOptions) -> int | None:
        """Return the number of tasks."""
        return slurm_ranks(options)

    def submit(self, request: JobRequest) -> Job:
        """Queue a batch script for ``sbatch``."""
        job = Job(request)
        stderr = self._stderr(request)
        command = [
            "sbatch",
            "--parsable",
            "--no-requeue",  # a job that runs again by itself would be one attempt twice
            "--export=ALL",
            "--open-mode=append",
            f"--chdir={request.directory}",
            f"--output={_verbatim(request.stdout or os.devnull)}",
            f"--error={_verbatim(stderr)}",
            *words(self._options[request.kind].arguments),
        ]
        try:
            stderr.parent.mkdir(exist_ok=True)
            start = stderr.stat().st_size if stderr.exists() else 0
        except OSError as error:
            job.state, job.error = State.ERROR, f"cannot submit it: {error}"
            self._end(job)
            return job
        self._submissions.add(Submission(job, command, self._script(request), start))
        return job

    def _taken(self, submission: Submission, number: str) -> None:
        """Take note of the number that Slurm has given to a job."""
        job = submission.job
        job.number = number
        self._jobs[number] = job
        self._stderr_start[number] = submission.stderr_start
        logger.debug(f"{job.name} is submitted: job {number}")
        if submission.grace is not None:
            self.cancel([job], submission.grace)

    def _end(self, job: Job) -> None:
        """Have a job reported that has ended without Slurm's doing."""
        self._changed[job] = None
        self._lanes.wake()

    def _script(self, request: JobRequest) -> str:
        launcher, wrapper = self._options[request.kind].launched_by(LAUNCHERS, "srun")
        if is_srun(launcher):
            launcher = (launcher[0], KILL_ON_BAD_EXIT, *launcher[1:])
        return "\n".join(
            [
                "#!/bin/sh",
                *(f"export {name}={shlex.quote(value)}" for name, value in request.environment.items()),
                # Since 22.05 srun does not take this from the batch job.
                '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
                f"exec {shlex.join([*launcher, *wrapper, *request.command])}",
                "",
            ]
        )

    def _is_under_srun(self, job: Job) -> bool:
        return is_srun(self._options[job.request.kind].launched_by(LAUNCHERS, "srun")[0])

    def _stderr(self, request: JobRequest) -> Path:
        return request.stderr or request.directory / ".melissa" / f"{request.name}.err"

    def fileno(self) -> int | None:
        """Return the descriptor that says that a command has told something."""
        return self._lanes.fileno() if self._is_started else None

    def ask(self) -> None:
        """Begin to ask once for the states of all jobs, unless an answer is still to come."""
        if self._is_asking:
            return
        if not (self._jobs or self._submissions.unknown):
            self._patience.end()  # nobody is waited for
            return
        self._is_asking = True
        self._submissions.look()
        known = frozenset(self._jobs)
        columns = f"JobID:24,State:24,exit_code:24,Name:{NAME_WIDTH}"
        asked = Command(["squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-O", columns])
        self._lanes.run("squeue", asked.run, lambda told: self._told(told, known))

    def poll(self, jobs: Iterable[Job]) -> list[Job]:
        """Take what Slurm has told; return the jobs whose states have changed by that."""
        self._lanes.take()
        self._submissions.go_on()
        self._kill_late_ones()
        asked = set(jobs)
        changed, self._changed = self._changed, {}
        return [job for job in changed if job in asked]

    def _told(self, told: str | CommandError, known: frozenset[str]) -> None:
        """Take the answer of squeue; jobs in `known` were there when it was asked."""
        self._is_asking = False
        if isinstance(told, CommandError):
            self._patience.bear(told)
            return
        self._patience.end()
        found = _rows(told)
        # Of two jobs with one mark the live one is it.
        ended_first = sorted(found.items(), key=lambda item: not item[1].has_ended)
        self._submissions.seen({row.mark: number for number, row in ended_first})
        self._cancel_strays(found)
        for number, job in list(self._jobs.items()):
            if (row := found.get(number)) is not None:
                self._update(number, job, row)
        if forgotten := sorted(known & self._jobs.keys() - found.keys()):
            self._is_asking = True
            self._lanes.run("squeue", lambda: _accounted(forgotten), self._told_of_forgotten)

    def _told_of_forgotten(self, told: dict[str, _Row] | CommandError) -> None:
        """Take what accounting says of jobs that squeue does not know any more."""
        self._is_asking = False
        assert not isinstance(told, CommandError)
        for number, row in told.items():
            if (job := self._jobs.get(number)) is not None:
                self._update(number, job, row)

    def _cancel_strays(self, found: Mapping[str, _Row]) -> None:
        """End jobs of this launcher that nobody waits for: their sbatch was taken for failed."""
        unknown = self._submissions.unknown
        strays = {
            number
            for number, row in found.items()
            if self._submissions.is_ours(row.mark) and not row.has_ended and number not in self._jobs
            if unknown is None or row.mark != unknown.mark
        }
        for number in sorted(strays - self._kill_at.keys()):
            logger.warning(f"job {number} came late: nobody waits for it, it is cancelled")
            self._kill_at[number] = time.monotonic()
        for number in self._kill_at.keys() - self._jobs.keys() - strays:
            del self._kill_at[number]

    def _update(self, number: str, job: Job, found: _Row) -> None:
        """Bring a job up to date."""
        before = job.state
        name, status, _ = found
        if name in _WAITING:
            job.state = State.WAITING
            self._running_since.pop(number, None)
        elif name in _LIVE:
            job.state = State.RUNNING
            self._running_since.setdefault(number, time.monotonic())
        elif name not in (*_FINAL, _FORGOTTEN):
            # Running twice is worse than waiting: a state that a newer Slurm has is not the end.
            if name not in self._unknown_states:
                self._unknown_states.add(name)
                logger.warning(f"Slurm says that job {number} is {name}, which is not known: it may be alive")
        else:
            job.state = State.TERMINATED if name == "COMPLETED" else State.FAILED
            if name != "COMPLETED" and status == 0:
                job.exit_code = None  # it ended before it ran, or Slurm does not remember how
            else:
                job.exit_code = os.waitstatus_to_exitcode(status)
            why = "" if name in ("COMPLETED", "FAILED", "CANCELLED") else f"\nSlurm: {name.lower()}"
            job.error = self._tail(number, job) + why
            self._forget(number)
        if job.state is not before:
            self._changed[job] = None

    def _tail(self, number: str, job: Job) -> str:
        path = self._stderr(job.request)
        try:
            with path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(min(self._stderr_start.get(number, 0), end), end - _TAIL_SIZE))
                text = file.read(_TAIL_SIZE).decode(errors="replace")
            if job.request.stderr is None:
                path.unlink()
        except OSError as error:
            return f"(its stderr cannot be read from {path}: {error.strerror})"
        return text

    def _forget(self, number: str) -> None:
        del self._jobs[number]
        self._running_since.pop(number, None)
        self._kill_at.pop(number, None)
        self._stderr_start.pop(number, None)
        self._submissions.room()

    def cancel(self, jobs: Iterable[Job], grace: float) -> None:
        """End jobs; what a later `poll` finds alive after `grace` is killed."""
        wanted = set(jobs)
        self._submissions.cancel(wanted, grace)
        found = {number: job for number, job in self._jobs.items() if job in wanted}
        now = time.monotonic()
        due = now + grace
        for number in found:
            self._kill_at[number] = min(due, self._kill_at.get(number, due))
        running = {
            number: job for number, job in found.items() if now - self._running_since.get(number, now) > YOUTH
        }
        # One that runs is told first: plain scancel comes to SIGKILL only after the cluster's KillWait.
        self._scancel([number for number in found if number not in running])
        # An srun that gets SIGTERM kills its tasks at once: they are told by Slurm, and it is not. Other
        # launchers hand the signal on.
        under_srun = [number for number, job in running.items() if self._is_under_srun(job)]
        self._scancel(under_srun, "--signal=TERM")
        self._scancel([number for number in running if number not in under_srun], "--signal=TERM", "--full")

    def _kill_late_ones(self) -> None:
        if self._scancels:
            return  # Slurm does not even take what it was told before
        now = time.monotonic()
        late = [number for number, due in self._kill_at.items() if now >= due]
        self._scancel(late, "--signal=KILL", "--full")
        for number in late:
            self._kill_at[number] = now + _KILL_PAUSE

    def _scancel(self, numbers: Sequence[str], *options: str) -> None:
        if numbers:
            self._scancels += 1
            wanted = Command(["scancel", "--quiet", *options, *numbers])
            self._lanes.run("scancel", wanted.run, self._scancelled)

    def _scancelled(self, told: str | CommandError) -> None:
        self._scancels -= 1
        if isinstance(told, CommandError):
            # That a job has ended meanwhile is no failure, and one that goes on is told again.
            logger.debug(f"{told}")

    def close(self, grace: float) -> None:
        """Cancel every job that is left, and wait for their end; not for long when there is no grace."""
        if not self._is_started:
            self._guard.end()
            return
        deadline = time.monotonic() + (grace + self.END_TIMEOUT if grace > 0 else _IMPATIENCE)
        self._submissions.cancel_all(grace)
        self.cancel(list(self._jobs.values()), grace)
        while (self._jobs or self._submissions) and time.monotonic() < deadline:
            with suppress(SchedulerError):
                self.ask()
                self.poll([])
            self._lanes.wait(_CLOSE_PAUSE)
        if self._jobs:
            logger.error(f"these jobs have not ended yet: {', '.join(self._jobs)} (see squeue)")
        self._submissions.kill()
        self._is_started = False
        self._lanes.close()
        self._guard.end()


def _rows(lines: str) -> dict[str, _Row]:
    """Return what squeue tells of each job of this user that Slurm remembers, by its number."""
    found = {}
    for line in lines.splitlines():
        number, state, status, name = (*line.split(None, 3), "", "", "", "")[:4]
        if status.isdecimal():
            found[number] = _Row(state, int(status), name.strip().rpartition("-")[2])
    return found


def _accounted(numbers: Sequence[str]) -> dict[str, _Row]:
    """Return what Slurm's accounting tells of jobs; where it knows nothing they are forgotten."""
    found = dict.fromkeys(numbers, _Row(_FORGOTTEN, 0))
    try:
        lines = Command(["sacct", "-nXP", "-o", "JobID,State,ExitCode", "-j", ",".join(numbers)]).run()
    except CommandError:
        return found  # a cluster may keep none
    for number, state, code in (line.split("|") for line in lines.splitlines() if line.count("|") == 2):
        status, _, signal_number = code.partition(":")
        if status.isdecimal() and signal_number.isdecimal() and state and number in found:
            found[number] = _Row(state.split()[0], int(status) << 8 | int(signal_number))
    return found


def _verbatim(path: Path | str) -> str:
    """Return the name of a file as sbatch, to which ``%`` means something, has it."""
    return str(path).replace("%", "%%")
