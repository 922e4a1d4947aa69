"""The slurm scheduler: each job is a batch job, whose ranks ``srun`` starts.

In an allocation (``salloc``, or a launcher that is itself a batch job) jobs are steps of it instead, by
``srun`` alone: see `slurm_steps`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from melissa.scheduler.arguments import JobOptions, count_option, names_any
from melissa.scheduler.job import Job, JobKind, JobRequest, State
from melissa.scheduler.scheduler import Scheduler, SchedulerError
from melissa.utility.addresses import host_name

logger = logging.getLogger("melissa")

LAUNCHERS = ("srun", "mpiexec", "mpirun")
KILL_ON_BAD_EXIT = "--kill-on-bad-exit=1"
"""A rank that dies ends the others, as under mpiexec; one of the user's that comes later holds."""

_COMMAND_TIMEOUT = 60.0
_KILL_PAUSE = 10.0
_IMPATIENCE = 5.0
_SILENCE_LIMIT = 900.0
"""Seconds without an answer of Slurm's controller after which the study ends: it may be started anew."""
_WARNING_PERIOD = 60.0
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
# Ends all jobs whose numbers it was told when the launcher is gone, however that ended.
_GUARD = 'while read -r job; do jobs="$jobs $job"; done; [ -z "$jobs" ] || exec scancel --quiet $jobs'


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
    """Submits batch jobs by ``sbatch``, polls them by ``squeue``, ends them by ``scancel``."""

    name = "slurm"
    wants_arguments = True
    END_TIMEOUT = 90.0  # a cluster's KillWait is 30 s by default

    def __init__(self, options: Mapping[JobKind, JobOptions] | None = None) -> None:
        """Make a scheduler; nothing runs before `start`."""
        super().__init__(options)
        self._guard: subprocess.Popen[bytes] | None = None
        self._jobs: dict[str, Job] = {}  # by Slurm's number
        self._refused: list[Job] = []  # not submitted, and not reported yet
        self._kill_at: dict[str, float] = {}
        self._unknown_states: set[str] = set()
        self._stderr_start: dict[str, int] = {}  # bytes that earlier attempts left in the file
        self._heard = self._next_warning = time.monotonic()

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Start the guard, which cancels what is left when this process is gone."""
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )

    def launcher_host(self) -> str:
        """Return this machine's name: jobs run on others."""
        return host_name()

    @classmethod
    def nb_ranks(cls, options: JobOptions) -> int | None:
        """Return the number of tasks."""
        return slurm_ranks(options)

    def submit(self, request: JobRequest) -> Job:
        """Hand a batch script to ``sbatch``."""
        job = Job(request)
        stderr = self._stderr(request)
        command = [
            "sbatch",
            "--parsable",
            "--no-requeue",  # a job that runs again by itself would be one attempt twice
            "--export=ALL",
            "--open-mode=append",
            f"--job-name=melissa-{request.name}",
            f"--chdir={request.directory}",
            f"--output={_verbatim(request.stdout or os.devnull)}",
            f"--error={_verbatim(stderr)}",
            *words(self._options[request.kind].arguments),
        ]
        try:
            stderr.parent.mkdir(exist_ok=True)
            start = stderr.stat().st_size if stderr.exists() else 0
            told = run_command(command, stdin=self._script(request))
        except (OSError, CommandError) as error:
            job.state, job.error = State.ERROR, f"cannot submit it: {error}"
            self._refused.append(job)
            return job
        job.number = told.strip().partition(";")[0]
        self._jobs[job.number] = job
        self._stderr_start[job.number] = start
        self._tell_guard(job.number)
        return job

    def _tell_guard(self, number: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(f"{number}\n".encode())
            self._guard.stdin.flush()
        except OSError:
            logger.warning(f"nobody will cancel job {number} if the launcher is killed: its guard has died")

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

    def poll(self, jobs: Iterable[Job]) -> list[Job]:
        """Ask once for the states of all jobs."""
        changed, self._refused = self._refused, []
        if self._jobs:
            try:
                found = self._ask()
            except CommandError as error:
                self._bear_silence(error)
                return changed
            self._heard = time.monotonic()
            for number, job in list(self._jobs.items()):
                if self._update(number, job, found.get(number)):
                    changed.append(job)
            self._kill_late_ones()
        asked = set(jobs)
        return [job for job in changed if job in asked]

    def _bear_silence(self, error: CommandError) -> None:
        now = time.monotonic()
        silence = now - self._heard
        if silence > _SILENCE_LIMIT:
            raise SchedulerError(f"Slurm has not answered for {silence:.0f} s: {error}") from None
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_PERIOD
            logger.warning(f"Slurm does not tell the states of jobs, for {silence:.0f} s now: {error}")

    def _ask(self) -> dict[str, tuple[str, int]]:
        """Return state and wait status of every job of this user that Slurm remembers."""
        user = str(os.getuid())
        lines = run_command(["squeue", "-h", "-t", "all", "-u", user, "-O", "JobID:24,State:24,exit_code:24"])
        rows = [line.split() for line in lines.splitlines()]
        found = {row[0]: (row[1], int(row[2])) for row in rows if len(row) == 3 and row[2].isdecimal()}
        if forgotten := self._jobs.keys() - found.keys():
            found |= _accounted(forgotten)
        return found

    def _update(self, number: str, job: Job, found: tuple[str, int] | None) -> bool:
        """Bring a job up to date; say whether its state has changed."""
        before = job.state
        name, status = found or (_FORGOTTEN, 0)
        if name in _WAITING:
            job.state = State.WAITING
        elif name in _LIVE:
            job.state = State.RUNNING
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
            self._forget([job])
        return job.state is not before

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

    def _forget(self, jobs: Iterable[Job]) -> None:
        gone = set(jobs)
        for number in [number for number, job in self._jobs.items() if job in gone]:
            del self._jobs[number]
            self._kill_at.pop(number, None)
            self._stderr_start.pop(number, None)

    def cancel(self, jobs: Iterable[Job], grace: float) -> None:
        """End jobs; what a later `poll` finds alive after `grace` is killed."""
        wanted = set(jobs)
        found = {number: job for number, job in self._jobs.items() if job in wanted}
        due = time.monotonic() + grace
        for number in found:
            self._kill_at[number] = min(due, self._kill_at.get(number, due))
        # One that runs is told first: plain scancel comes to SIGKILL only after the cluster's KillWait.
        self._scancel([number for number, job in found.items() if job.state is State.WAITING])
        running = {number: job for number, job in found.items() if job.state is State.RUNNING}
        # An srun that gets SIGTERM kills its tasks at once: they are told by Slurm, and it is not. Other
        # launchers hand the signal on.
        under_srun = [number for number, job in running.items() if self._is_under_srun(job)]
        self._scancel(under_srun, "--signal=TERM")
        self._scancel([number for number in running if number not in under_srun], "--signal=TERM", "--full")

    def _kill_late_ones(self) -> None:
        now = time.monotonic()
        late = [number for number, due in self._kill_at.items() if now >= due]
        self._scancel(late, "--signal=KILL", "--full")
        for number in late:
            self._kill_at[number] = now + _KILL_PAUSE

    def _scancel(self, numbers: Sequence[str], *options: str) -> None:
        if numbers:
            # That a job has ended meanwhile is no failure, and one that goes on is seen by `poll`.
            with contextlib.suppress(CommandError):
                run_command(["scancel", "--quiet", *options, *numbers])

    def close(self, grace: float) -> None:
        """Cancel every job that is left, and wait for their end; not for long when there is no grace."""
        deadline = time.monotonic() + (grace + self.END_TIMEOUT if grace > 0 else _IMPATIENCE)
        self.cancel(list(self._jobs.values()), grace)
        while self._jobs and time.monotonic() < deadline:
            time.sleep(0.2)
            with contextlib.suppress(SchedulerError):
                self.poll([])
        if self._jobs:
            logger.error(f"these jobs have not ended yet: {', '.join(self._jobs)} (see squeue)")
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError):
                guard.stdin.close()
            try:
                guard.wait(_COMMAND_TIMEOUT)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()


def _accounted(numbers: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return state and wait status of jobs from Slurm's accounting; of none where a cluster keeps none."""
    try:
        lines = run_command(["sacct", "-nXP", "-o", "JobID,State,ExitCode", "-j", ",".join(sorted(numbers))])
    except CommandError:
        return {}
    found = {}
    for number, state, code in (line.split("|") for line in lines.splitlines() if line.count("|") == 2):
        status, _, signal_number = code.partition(":")
        if status.isdecimal() and signal_number.isdecimal() and state:
            found[number] = state.split()[0], int(status) << 8 | int(signal_number)
    return found


def _verbatim(path: Path | str) -> str:
    """Return the name of a file as sbatch, to which ``%`` means something, has it."""
    return str(path).replace("%", "%%")


class CommandError(Exception):
    """A command of Slurm that failed; the text is what it said."""


def run_command(command: Sequence[str], stdin: str = "") -> str:
    """Return what a command of Slurm prints; `CommandError` where it fails or does not answer."""
    try:
        told = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
        )
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"{command[0]} has not answered within {_COMMAND_TIMEOUT:g} s") from None
    if told.returncode != 0:
        said = told.stderr.strip() or f"ended with status {told.returncode}"
        raise CommandError(f"{command[0]}: {said}")
    return told.stdout
