"""Ranks that train one model with TensorFlow: how they meet, where each trains, how gradients are averaged.

See docs/decisions/0010-tensorflow-ranks.md for what was tried, and why it is done so.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import socket
import threading
import zlib
from collections.abc import Iterable
from typing import Any

from melissa.exceptions import TrainingError
from melissa.server.communicator import Communicator
from melissa.server.deep_learning.torch_places import Place, RankHardware, choose_places
from melissa.utility.addresses import LOOPBACK

__all__ = ["TensorflowRanks", "look_at_hardware", "tensorflow_ranks", "threads_beside_others"]

logger = logging.getLogger("melissa")


def look_at_hardware() -> RankHardware:
    """Look at what this rank sees, without starting a device."""
    import tensorflow as tf

    # Where Slurm binds one GPU to each task, all of them are number 0 to their tasks.
    names = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND")
    is_bound = any(os.environ.get(name) for name in names)
    where = os.environ.get("SLURM_PROCID") if is_bound else os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = tuple(f"{where}:{index}" for index, _ in enumerate(tf.config.list_physical_devices("GPU")))
    return RankHardware(platform.node(), gpus, frozenset(os.sched_getaffinity(0)))


def threads_beside_others(config: dict[str, Any], place: Place) -> int | None:
    """Return how many threads an operation may use where solvers or other ranks share the cores.

    None for as many as there are cores: where nobody does, or where the environment says a number.
    """
    is_shared = config["launcher_config"]["scheduler"] == "local"
    is_said = {"OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"} & set(os.environ)
    if is_said or (not is_shared and place.nb_sharing == 1):
        return None
    most = min(config["launcher_config"]["job_limit"] - 1, config["study_options"]["parameter_sweep_size"])
    solvers = most if is_shared else 0
    return max(1, (len(os.sched_getaffinity(0)) - solvers) // place.nb_sharing)


def _hold_port() -> socket.socket:
    """Return a socket on a free port that TensorFlow's server can have beside it, and nobody else.

    It does not listen, so that all connections are TensorFlow's.
    """
    os.environ["TF_GRPC_REUSE_PORT"] = "1"
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("", 0))
    return held


class TensorflowRanks:
    """The server's ranks, as TensorFlow sees them; made before TensorFlow does anything else.

    Parameters
    ----------
    comm
        The server's ranks. Every rank makes this object.
    config
        The study's configuration, its defaults included.

    Attributes
    ----------
    strategy
        TensorFlow's ``MultiWorkerMirroredStrategy`` over all ranks; of one rank its default strategy.
    device : str
        "GPU:0" or "CPU:0": where this rank trains.

    Raises
    ------
    TrainingError
        TensorFlow is in use already, so that the ranks can no more be connected, or cannot connect them.
    """

    def __init__(self, comm: Communicator, config: dict[str, Any]) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        import tensorflow as tf

        self._tf = tf
        self.comm = comm
        hardware = comm.allgather(look_at_hardware())
        places, reason = choose_places(hardware)
        place = places[comm.rank]
        self.device = "CPU:0" if place.gpu is None else "GPU:0"
        if place.gpu is None and any(seen.gpus for seen in hardware):
            logger.warning(f"training runs on the CPU although there are GPUs: {reason}")
        try:
            self._choose_devices(place.gpu)
            threads = threads_beside_others(config, place)
            if threads is not None:
                tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError as error:
            logger.warning(f"TensorFlow was used before the server could choose devices and threads: {error}")
        host = LOOPBACK if place.is_one_node else platform.node()
        self.strategy = tf.distribute.get_strategy() if comm.size == 1 else self._connect(host)
        self._average = tf.function(self._average_in_graph, reduce_retracing=True)
        logger.info(f"TensorFlow {tf.__version__} trains on {self.device}, with {comm.size} rank(s)")

    def _choose_devices(self, gpu: int | None) -> None:
        """Make one GPU visible, or none, and let its memory grow, for others may use it, too."""
        gpus = self._tf.config.list_physical_devices("GPU")
        visible = [] if gpu is None else [gpus[gpu]]
        self._tf.config.set_visible_devices(visible, "GPU")
        for device in visible:
            self._tf.config.experimental.set_memory_growth(device, True)

    def _connect(self, host: str) -> Any:
        """Make the strategy: TensorFlow's own servers, one per rank, find each other by ``TF_CONFIG``."""
        with _hold_port() as held:
            address = f"{host}:{held.getsockname()[1]}"
            workers = self.comm.allgather(address)
            task = {"type": "worker", "index": self.comm.rank}
            os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
            try:
                strategy = self._tf.distribute.MultiWorkerMirroredStrategy()
            except RuntimeError as error:
                raise TrainingError(
                    f"TensorFlow cannot connect the {self.comm.size} server ranks any more, for it was used "
                    f"before ({error}). melissa-server connects them before it imports the study's file, if "
                    "it sees there that server_class derives from TFServer: name that class, or one of a "
                    "module beside the file, in the bases of the class"
                ) from error
            except self._tf.errors.OpError as error:
                raise TrainingError(
                    f"TensorFlow cannot connect server rank {self.comm.rank}, which is to listen at "
                    f"{address}, to the others, at {', '.join(workers)}: {error.message}. Its own lines on "
                    "stderr say more: look there whether it could listen, and whether the ranks' machines "
                    "reach each other at these addresses"
                ) from error
        if threading.current_thread() is threading.main_thread():
            # TensorFlow has taken SIGTERM for itself, as a word of preemption that nobody here asks for.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        return strategy

    # What a study's own code of training needs.

    @property
    def is_in_replica(self) -> bool:
        """Whether this is called inside of ``strategy.run``, where TensorFlow sums gradients by itself."""
        distribute = self._tf.distribute
        return bool(distribute.has_strategy() and not distribute.in_cross_replica_context())

    def average(self, gradients: Iterable[Any]) -> list[Any]:
        """Return the mean of each gradient over all ranks; every rank calls it, with the same ones present.

        It works inside of a ``tf.function`` and outside. None stays None.
        """
        gradients = list(gradients)
        present = [gradient for gradient in gradients if gradient is not None]
        if self.comm.size == 1 or not present:
            return gradients
        averaged = iter(self._average([self._tf.convert_to_tensor(gradient) for gradient in present]))
        return [None if gradient is None else next(averaged) for gradient in gradients]

    def _average_in_graph(self, gradients: list[Any]) -> Any:
        def all_reduce(*tensors: Any) -> Any:
            context = self._tf.distribute.get_replica_context()
            # The copies have a device, which the reduction needs to know, and arguments of a graph have not.
            copies = [self._tf.identity(tensor) for tensor in tensors]
            return context.all_reduce(self._tf.distribute.ReduceOp.MEAN, copies)

        return self.strategy.run(all_reduce, args=tuple(gradients))

    def share(self, variables: Iterable[Any]) -> None:
        """Give the variables of every rank the values of rank 0."""
        if self.comm.size > 1:
            for variable in variables:
                values = self.comm.bcast(variable.numpy() if self.comm.rank == 0 else None)
                variable.assign(values)

    def differing(self, variables: Iterable[Any]) -> list[int]:
        """Return the ranks whose variables are not, bit for bit, those of rank 0; every rank calls it."""
        if self.comm.size == 1:
            return []
        digest = 0
        for variable in variables:
            digest = zlib.crc32(variable.numpy().tobytes(), digest)
        digests = self.comm.allgather(digest)
        return [rank for rank, other in enumerate(digests) if other != digests[0]]


_ranks: TensorflowRanks | None = None


def tensorflow_ranks(comm: Communicator, config: dict[str, Any]) -> TensorflowRanks:
    """Return the ranks as TensorFlow sees them: they are connected once in a process, at the first call."""
    global _ranks
    if _ranks is None:
        _ranks = TensorflowRanks(comm, config)
    return _ranks
