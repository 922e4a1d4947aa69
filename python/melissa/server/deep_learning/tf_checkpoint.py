"""What a checkpoint has of a TensorFlow model: one file of model and optimizer, and what each rank has alone.

The first is an HDF5 file, which ``load_weights`` of a Keras model of the same layers reads, too: beside the
weights it has a group "melissa". The second are NumPy arrays. No file holds code, and no GPU is needed.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from melissa.exceptions import CheckpointError, TrainingError
from melissa.server.deep_learning.tf_optimizer import leaves

__all__ = [
    "MODEL_NAME",
    "load_model",
    "load_states",
    "local_variables",
    "model_variables",
    "optimizer_variables",
    "save_model",
    "save_states",
    "states_name",
    "trainable_variables",
]

logger = logging.getLogger("melissa")

MODEL_NAME = "model.weights.h5"
GROUP = "melissa"


def states_name(rank: int) -> str:
    """Return the name of the file of what a rank has alone."""
    return f"states_{rank}.npz"


def _variables(things: Any, name: str) -> list[Any]:
    found: list[Any] = []
    for thing in leaves(things):
        variables = getattr(thing, name, ())
        found += variables() if callable(variables) else variables
    return found


def model_variables(model: Any) -> list[Any]:
    """Return the variables of a model, or of several in a tuple, list or dictionary."""
    return _variables(model, "variables")


def trainable_variables(model: Any) -> list[Any]:
    """Return those variables that gradients change: they are the same on all ranks."""
    return _variables(model, "trainable_variables")


def local_variables(model: Any) -> list[Any]:
    """Return the others: moving means and seeds, which each rank has of its own."""
    return _variables(model, "non_trainable_variables")


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Return the variables of an optimizer, or of several."""
    return _variables(optimizer, "variables")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what stands there afterwards takes the place of `path` at once.

    `CheckpointError` when the disk does not take it.
    """
    # Keras asks for the end of the name.
    unfinished = path.with_name(f".new.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        # HDF5 says RuntimeError where it finds the disk full as it closes the file.
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{path.absolute()} cannot be written: {error}") from error


def _is_keras_model(model: Any) -> bool:
    import keras

    return isinstance(model, keras.Model)


def save_model(path: Path, model: Any, optimizer: Any, batch: int) -> None:
    """Write model and optimizer after `batch` batches.

    `TrainingError` where a weight is NaN: the older file, if there is one, is worth more. `CheckpointError`
    when the disk does not take the file.
    """
    import h5py

    for variable in trainable_variables(model):
        if np.isnan(variable.numpy()).any():
            older = f"{path} of an earlier batch is kept" if path.is_file() else "no checkpoint is written"
            raise TrainingError(
                f"at batch {batch} the model's variable {_name(variable)!r} is NaN: training has diverged; "
                f"{older}. Look at the loss; a smaller learning rate, scaled inputs or clipped gradients help"
            )
    with _replacing(path) as unfinished:
        unfinished.unlink(missing_ok=True)
        if _is_keras_model(model):
            model.save_weights(unfinished)
        with h5py.File(unfinished, "a") as file:
            group = file.create_group(GROUP)
            group.attrs["batch"] = batch
            _write(group.create_group("optimizer"), optimizer_variables(optimizer))
            if not _is_keras_model(model):
                _write(group.create_group("model"), model_variables(model))


def _name(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name))


def _write(group: Any, variables: list[Any]) -> None:
    for index, variable in enumerate(variables):
        group.create_dataset(str(index), data=variable.numpy())


def load_model(path: Path, model: Any, optimizer: Any) -> int:
    """Load what `save_model` wrote; return the number of batches.

    `TrainingError` when there is no such file, or when it is of another model or of another optimizer.
    """
    import h5py

    if not path.is_file():
        raise TrainingError(f"there is no checkpoint {path.absolute()}")
    try:
        if _is_keras_model(model):
            model.load_weights(path)
        with h5py.File(path) as file:
            group = file[GROUP]
            if not _is_keras_model(model):
                _read(group["model"], model_variables(model), "model")
            if optimizer is not None and len(group["optimizer"]):
                build_optimizer(model, optimizer)
                _read(group["optimizer"], optimizer_variables(optimizer), "optimizer")
            return int(group.attrs["batch"])
    except (ValueError, KeyError, OSError) as error:
        raise TrainingError(
            f"the checkpoint {path.absolute()} is not of the model and the optimizer that "
            f"prepare_training_attributes returns: {error}"
        ) from error


def build_optimizer(model: Any, optimizer: Any) -> None:
    """Make an optimizer's variables, which otherwise are made when it is used first.

    Of several optimizers each must have been built by the study's class.
    """
    optimizers = list(leaves(optimizer))
    if len(optimizers) == 1 and hasattr(optimizers[0], "build") and not optimizers[0].built:
        optimizers[0].build(trainable_variables(model))


def _read(group: Any, variables: list[Any], what: str) -> None:
    if len(group) != len(variables):
        raise ValueError(
            f"it has {len(group)} variables of the {what}, which has {len(variables)}; are they made when "
            "it is used first? Then build it in prepare_training_attributes"
        )
    for index, variable in enumerate(variables):
        variable.assign(group[str(index)][()])


def save_states(path: Path, model: Any) -> None:
    """Write what this rank has alone: random states of Python, NumPy and TensorFlow, and moving means."""
    # First: a generator that is not there yet takes its seed from Python's.
    generators = _generator_states()
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": np.asarray(numbers, np.int64),
        "python_version": np.asarray(version),
        "python_gauss": np.asarray(np.nan if gauss is None else gauss),
        "numpy_kind": np.asarray(str(kind)),
        "numpy": np.asarray(keys),
        "numpy_position": np.asarray([position, has_gauss]),
        "numpy_cached": np.asarray(cached),
    }
    states |= {f"generator_{index}": state.numpy() for index, state in enumerate(generators)}
    states |= {f"local_{index}": v.numpy() for index, v in enumerate(local_variables(model))}
    with _replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **states)  # type: ignore[arg-type]


def _generator_states() -> list[Any]:
    """Return the states of the generators that TensorFlow and Keras share among all who bring none."""
    import keras
    import tensorflow as tf

    # An operation of Keras without a seed takes the next one of this layer's kind of generator.
    shared = keras.src.random.seed_generator.global_seed_generator()
    return [tf.random.get_global_generator().state, shared.state]


def load_states(path: Path, model: Any) -> None:
    """Go on with what `save_states` wrote; without such a file it is said that random numbers start anew."""
    if not path.is_file():
        logger.warning(f"there is no {path}: random numbers of this rank start anew")
        return
    with np.load(path, allow_pickle=False) as states:
        generators = _generator_states()
        gauss = float(states["python_gauss"])
        numbers = tuple(states["python"].tolist())
        random.setstate((int(states["python_version"]), numbers, None if np.isnan(gauss) else gauss))
        position, has_gauss = states["numpy_position"].tolist()
        kind, cached = str(states["numpy_kind"]), float(states["numpy_cached"])
        np.random.set_state((kind, states["numpy"], position, has_gauss, cached))
        for index, state in enumerate(generators):
            state.assign(states[f"generator_{index}"])
        for index, variable in enumerate(local_variables(model)):
            variable.assign(states[f"local_{index}"])
