"""The rules between keys of a configuration whose values are valid one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

from melissa.launcher.schema import DlConfig, LauncherConfig, StudyOptions, buffer_kind
from melissa.scheduler.factory import SCHEDULERS, nb_server_ranks

__all__ = ["Problem", "rule_problems"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration: where, and what.

    `unsupported` says that each value is valid, and what they ask for together cannot work.
    """

    path: str
    text: str
    unsupported: bool = False


def rule_problems(
    study_options: StudyOptions | None, dl_config: DlConfig | None, launcher_config: LauncherConfig | None
) -> Iterator[Problem]:
    """Yield what is wrong between keys. A section that is absent, or not valid by itself, is None."""
    if study_options is not None:
        yield from _field_problems(study_options)
    if dl_config is not None:
        yield from _buffer_problems(dl_config)
    nb_ranks = None if launcher_config is None else nb_server_ranks(launcher_config.model_dump())
    if launcher_config is not None:
        yield from _scheduler_problems(launcher_config, nb_ranks)
    if study_options is not None and dl_config is not None:
        if study_options.group_size > 1:
            yield Problem(
                "study_options.group_size",
                f"{study_options.group_size} given, beside a dl_config: deep learning needs groups of 1.",
                unsupported=True,
            )
        yield from _reach_problems(study_options, dl_config, nb_ranks)


def _scheduler_problems(launcher_config: LauncherConfig, nb_ranks: int | None) -> Iterator[Problem]:
    if launcher_config.scheduler not in SCHEDULERS:
        yield Problem(
            "launcher_config.scheduler",
            f'"{launcher_config.scheduler}" is not in this version yet; there is {", ".join(SCHEDULERS)}.',
            unsupported=True,
        )
    elif nb_ranks is None or nb_ranks < 1:
        yield Problem(
            "launcher_config.scheduler_arg_server",
            "the number of server ranks does not follow from "
            f"{[*launcher_config.scheduler_arg, *launcher_config.scheduler_arg_server]}: "
            'add it as a number, 1 or more, for instance ["-n", "2"].',
        )


def _field_problems(study_options: StudyOptions) -> Iterator[Problem]:
    names = study_options.field_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        yield Problem("study_options.field_names", f"{', '.join(repeated)}: more than once in the list.")


def _gathers_all_first(dl_config: DlConfig) -> bool:
    """Say whether training starts only when every expected sample is in the buffer."""
    return buffer_kind(dl_config.buffer) == "FIRO" and dl_config.pseudo_epochs > 1


def _buffer_problems(dl_config: DlConfig) -> Iterator[Problem]:
    kind, capacity, watermark = (
        buffer_kind(dl_config.buffer),
        dl_config.buffer_size,
        dl_config.per_server_watermark,
    )
    if kind == "SimPairedReservoir":
        yield Problem(
            "dl_config.buffer",
            f'"{kind}" is not in this version yet; the nearest that is: "Reservoir".',
            unsupported=True,
        )
        return
    if dl_config.pseudo_epochs > 1 and kind != "FIRO":
        yield Problem(
            "dl_config.pseudo_epochs",
            f'{dl_config.pseudo_epochs} given, and buffer is "{dl_config.buffer}": only "FIRO" delivers each '
            "sample a set number of times. Set buffer to FIRO, or pseudo_epochs to 1.",
            unsupported=True,
        )
    if kind == "BatchReservoir" and dl_config.batch_size > capacity:
        yield Problem(
            "dl_config.batch_size",
            f"{dl_config.batch_size} given, and buffer_size is {capacity}: a BatchReservoir draws batches "
            "without repeats, so batch_size <= buffer_size is needed.",
            unsupported=True,
        )
    if kind == "FIFO" or _gathers_all_first(dl_config):
        return
    if watermark is None:
        yield Problem(
            "dl_config.per_server_watermark",
            f"missing; a {kind} buffer needs it: a whole number, at least 0.",
        )
    elif kind == "FIRO" and watermark >= capacity:
        yield Problem(
            "dl_config.per_server_watermark",
            f"{watermark} given, and buffer_size is {capacity}: a FIRO buffer delivers while it holds more "
            "samples than the watermark, so per_server_watermark < buffer_size is needed.",
            unsupported=True,
        )
    elif watermark > capacity:
        yield Problem(
            "dl_config.per_server_watermark",
            f"{watermark} given, and buffer_size is {capacity}: a buffer cannot hold more than its size.",
            unsupported=True,
        )


def _reach_problems(
    study_options: StudyOptions, dl_config: DlConfig, nb_ranks: int | None
) -> Iterator[Problem]:
    """Yield what cannot happen with as many samples as will come.

    `nb_ranks` is None where only the scheduler's arguments would say it: a single rank is then the bound.
    """
    simulations, steps = study_options.parameter_sweep_size, study_options.nb_time_steps
    if steps is None:
        if _gathers_all_first(dl_config):
            yield Problem(
                "study_options.nb_time_steps",
                f"missing; with pseudo_epochs = {dl_config.pseudo_epochs} all samples are gathered before "
                "the first pass, and their number must be known.",
                unsupported=True,
            )
        return
    expected = -(-simulations * steps // (nb_ranks or 1))
    ranks = f", {nb_ranks} server ranks" if (nb_ranks or 1) > 1 else ""
    expected_text = f"{expected} samples come ({simulations} simulations x {steps} time steps{ranks})"
    watermark = dl_config.per_server_watermark
    if _gathers_all_first(dl_config):
        if nb_ranks is not None and expected > dl_config.buffer_size:
            yield Problem(
                "dl_config.buffer_size",
                f"{dl_config.buffer_size} given, and {expected_text}: with pseudo_epochs = "
                f"{dl_config.pseudo_epochs} the buffer must hold them all.",
                unsupported=True,
            )
    elif buffer_kind(dl_config.buffer) != "FIFO" and watermark is not None and watermark > expected:
        yield Problem(
            "dl_config.per_server_watermark",
            f"{watermark} given, and only {expected_text}: the watermark cannot be reached. "
            f"Set it to {expected} or less.",
            unsupported=True,
        )
