"""The server of the example: trains a network of plain JAX on the rods that are being simulated.

`DeepMelissaServer` knows no framework, so this class says everything itself: how samples become batches, what
a training step is, how a network is saved. Whatever trains in Python can stand in the place of JAX.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from rod import COLDEST, HOTTEST, NB_CELLS, NB_TIME_STEPS, PARAMETER_NAMES, solve

from melissa import DeepMelissaServer, ParameterSamplerType, SimulationData, UnsupportedConfiguration

FIRST_LEARNING_RATE, LAST_LEARNING_RATE = 3e-3, 1e-4
HIDDEN = 128
NB_VALIDATION_RODS, VALIDATION_SEED = 10, 20_000
MIDDLE, SCALE = (COLDEST + HOTTEST) / 2, (HOTTEST - COLDEST) / 2  # K

Network = list[tuple[jax.Array, jax.Array]]  # weights and biases, layer by layer


def make_network(seed: int) -> Network:
    """Make a network, not yet trained: from three temperatures and the time step to a field."""
    sizes = [len(PARAMETER_NAMES) + 1, HIDDEN, HIDDEN, NB_CELLS]
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        (jax.random.normal(key, (inputs, outputs)) / math.sqrt(inputs), jnp.zeros(outputs))
        for key, inputs, outputs in zip(keys, sizes, sizes[1:], strict=False)
    ]


def predict(network: Network, inputs: jax.Array) -> jax.Array:
    """Return the fields of n samples in K; the inputs are (n, 4): temperatures in K, and the time step."""
    log_time = 2.0 * jnp.log(inputs[:, 3:] + 1.0) / math.log(NB_TIME_STEPS) - 1.0  # from -1 to 1
    values = jnp.concatenate([(inputs[:, :3] - MIDDLE) / SCALE, log_time], axis=1)
    for weights, biases in network[:-1]:
        values = jax.nn.silu(values @ weights + biases)
    weights, biases = network[-1]
    return MIDDLE + SCALE * (values @ weights + biases)


@jax.jit
def mean_squared_error(network: Network, inputs: jax.Array, fields: jax.Array) -> jax.Array:
    """Return the error of the predicted fields, in K2."""
    return jnp.mean((predict(network, inputs) - fields) ** 2)


@jax.jit
def train(
    network: Network,
    moments: tuple[Network, Network],
    batch_idx: int,
    learning_rate: float,
    inputs: jax.Array,
    fields: jax.Array,
) -> tuple[Network, tuple[Network, Network], jax.Array]:
    """Return the network after one step of Adam, the moments of its gradients, and the loss before it."""
    loss, gradients = jax.value_and_grad(mean_squared_error)(network, inputs, fields)
    first = jax.tree.map(lambda moment, g: 0.9 * moment + 0.1 * g, moments[0], gradients)
    second = jax.tree.map(lambda moment, g: 0.999 * moment + 0.001 * g**2, moments[1], gradients)
    unbiased, squared = 1.0 - 0.9**batch_idx, 1.0 - 0.999**batch_idx

    def step(weights: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
        return weights - learning_rate * (mean / unbiased) / (jnp.sqrt(square / squared) + 1e-8)

    return jax.tree.map(step, network, first, second), (first, second), loss


class RodServer(DeepMelissaServer):
    """Draws temperatures, trains on what the solvers send, and says how good the surrogate is."""

    def __init__(self, config_dict: dict[str, Any]) -> None:
        """Choose how the temperatures are drawn: evenly spread over their range."""
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.HALTON, l_bounds=[COLDEST], u_bounds=[HOTTEST])
        self.squared_errors: list[float] = []  # of the last validation, one for each rod, in K2

    def prepare_training_attributes(self) -> tuple[Network, tuple[Network, Network]]:
        """Make what is trained, ``self.model``, and what its training needs to know, ``self.optimizer``."""
        network = make_network(self.study_options["seed"])
        nothing = jax.tree.map(jnp.zeros_like, network)
        return network, (nothing, nothing)

    def process_simulation_data(
        self, data: SimulationData, config_dict: dict[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what a batch needs of one time step; arrays of several are stacked to a batch."""
        return np.array([*data.parameters, data.time_step], np.float32), data.data["temperature"]

    def on_train_start(self) -> None:
        """Simulate rods for validation, while the first clients fill the buffer up to its watermark."""
        rng = np.random.default_rng(VALIDATION_SEED)
        steps = np.arange(NB_TIME_STEPS)[:, None]
        self.valid_dataloader = [
            (np.hstack([np.tile(rod, (NB_TIME_STEPS, 1)), steps]), np.array(list(solve(rod))))
            for rod in rng.uniform(COLDEST, HOTTEST, (NB_VALIDATION_RODS, len(PARAMETER_NAMES)))
        ]

    def training_step(self, batch: tuple[NDArray[Any], NDArray[Any]], batch_idx: int, **kwargs: Any) -> None:
        """Improve the network by one batch."""
        # From the first learning rate to the last one, while the study progresses from 0 to 1.
        rate = FIRST_LEARNING_RATE * (LAST_LEARNING_RATE / FIRST_LEARNING_RATE) ** self.progress
        self.model, self.optimizer, loss = train(self.model, self.optimizer, batch_idx, rate, *batch)
        if batch_idx % 10 == 0:
            self.tb_logger.log_scalar("Loss/train", math.sqrt(loss), batch_idx)  # in K

    def on_validation_start(self, batch_idx: int) -> None:
        """Forget the last validation."""
        self.squared_errors.clear()

    def validation_step(
        self, batch: tuple[NDArray[Any], NDArray[Any]], valid_batch_idx: int, batch_idx: int, **kwargs: Any
    ) -> dict[str, float]:
        """Compare the prediction of one rod with what was simulated."""
        squared_error = float(mean_squared_error(self.model, *batch))
        self.squared_errors.append(squared_error)
        return {"squared_error": squared_error}

    def on_validation_end(self, batch_idx: int) -> None:
        """Take note of the root mean square error over all validation rods, in K."""
        error = math.sqrt(np.mean(self.squared_errors))
        self.tb_logger.log_scalar("Loss/valid", error, batch_idx)
        # For study_report.json and for the table that the launcher prints.
        self.report_extra = {"error_K": error}

    def on_train_end(self) -> None:
        """Validate and save the final network."""
        self.validation(self.nb_batches_update)
        self.checkpoint(0, ".")

    def checkpoint(self, batch_idx: int, path: str = "checkpoints") -> None:
        """Save network and moments as plain arrays."""
        Path(path).mkdir(exist_ok=True)
        arrays = jax.tree.leaves((self.model, self.optimizer))
        np.savez(Path(path) / "network.npz", *arrays, batch=batch_idx)

    def _load_model_from_checkpoint(self) -> None:
        """Go on with what `checkpoint` has saved; called where the launcher has restarted the server."""
        with np.load("checkpoints/network.npz") as content:
            arrays = [jnp.asarray(content[f"arr_{index}"]) for index in range(len(content.files) - 1)]
        structure = jax.tree.structure((self.model, self.optimizer))
        self.model, self.optimizer = jax.tree.unflatten(structure, arrays)

    def _setup_environment_slurm(self) -> None:
        """Refuse: this example trains on one rank."""
        raise UnsupportedConfiguration(
            "this example trains on one rank: set dl_config.setup_slurm_ddp to false"
        )
