"""Which hooks a user's class has: which class defines one, what is missing, which lane batches take."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from melissa.exceptions import TrainingError, UnsupportedConfiguration

__all__ = [
    "Lane",
    "check_hooks",
    "check_validation",
    "choose_lane",
    "defining_class",
    "is_overridden",
    "sample_checks",
    "train_takes_model",
]


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "melissa"


def defining_class(cls: type, name: str) -> type | None:
    """Return the user's class that defines `name` for `cls`: the first one in its method resolution order.

    None where only this package's classes do, or none.
    """
    for base in cls.__mro__:
        if name in base.__dict__:
            return None if _is_ours(base) else base
    return None


def is_overridden(cls: type, name: str) -> bool:
    """Say whether a class of the user's defines `name`."""
    return defining_class(cls, name) is not None


def train_takes_model(cls: Any) -> bool:
    """Say whether the class has a ``train(self, model)`` of 2023."""
    if not is_overridden(cls, "train"):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(cls.train).parameters.values())[1:]
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def check_hooks(cls: type) -> None:
    """Check that the class has one complete generation of hooks; `TrainingError` names what is missing."""
    has_attributes = is_overridden(cls, "prepare_training_attributes")
    has_model = is_overridden(cls, "set_model")
    missing = []
    if is_overridden(cls, "train"):
        if train_takes_model(cls) and not has_model and not has_attributes:
            missing.append("set_model() or prepare_training_attributes(): its train takes a model")
    else:
        if not has_attributes and not has_model:
            missing.append("prepare_training_attributes() -> (model, optimizer)")
        if not is_overridden(cls, "training_step"):
            missing.append("training_step(batch, batch_idx)")
    if missing:
        raise TrainingError(
            f"class {cls.__name__} ({_file(cls)}) lacks {' and '.join(missing)}; a class with a train() of "
            "its own needs none of the hooks of the predefined loop"
        )


def check_validation(cls: type, nb_simulations: int) -> None:
    """Check that the class can validate on simulations that are run for that; `TrainingError` otherwise."""
    if not is_overridden(cls, "validation_step") and not is_overridden(cls, "train"):
        raise TrainingError(
            f"study_options.validation_sweep_size is {nb_simulations}, but class {cls.__name__} "
            f"({_file(cls)}) lacks validation_step(batch, valid_batch_idx, batch_idx)"
        )


def _file(cls: type) -> str:
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):
        return f"module {cls.__module__}"


@dataclass(frozen=True)
class Lane:
    """The way of samples into a batch: fast (whole batches, gathered in Rust) or, if not, sample by sample.

    `reason` says why, for the log.
    """

    is_fast: bool
    reason: str


def sample_checks(cls: type) -> tuple[str, ...]:
    """Return the methods of the user's class that look at each sample."""
    names = ("_validate_data", "_process_partial_data_reception")
    return tuple(name for name in names if is_overridden(cls, name))


def choose_lane(cls: type, has_default_batch: bool) -> Lane:
    """Choose the lane of the predefined training loop for a class.

    The hook that is defined nearest to the class wins; of two in one class, `process_simulation_batch`. A
    class that looks at every sample (`_validate_data`, `_process_partial_data_reception`) gets them one by
    one. `has_default_batch` says that the server's framework has a form of batches where the class has
    neither hook.
    """
    mro = cls.__mro__
    batch_class = defining_class(cls, "process_simulation_batch")
    data_class = defining_class(cls, "process_simulation_data")
    checks = sample_checks(cls)
    if checks:
        if batch_class is not None and data_class is None:
            raise UnsupportedConfiguration(
                f"class {cls.__name__} ({_file(cls)}) has {' and '.join(checks)}, which look at single "
                "samples, and process_simulation_batch, which gets whole batches: define "
                "process_simulation_data instead of it"
            )
        return Lane(False, f"{' and '.join(checks)} of {cls.__name__} look at each sample, which is slow")
    if batch_class is not None and (data_class is None or mro.index(batch_class) <= mro.index(data_class)):
        beside = "" if data_class is None else " (its process_simulation_data serves loops of your own)"
        return Lane(True, f"{batch_class.__name__}.process_simulation_batch gets whole batches{beside}")
    if data_class is not None:
        return Lane(False, f"{data_class.__name__}.process_simulation_data is called for each sample")
    if not has_default_batch:
        raise TrainingError(
            f"class {cls.__name__} ({_file(cls)}) lacks process_simulation_data(data, config_dict), or "
            "process_simulation_batch(batch, config_dict)"
        )
    return Lane(
        True, "batches are (parameters and time step, fields), as no hook of the class says otherwise"
    )
