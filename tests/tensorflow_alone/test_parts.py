"""Batches, checkpoints, logs and devices of TensorFlow, without a study."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from melissa._melissa import Prefetcher
from melissa.exceptions import CheckpointError, TrainingError, UnsupportedConfiguration
from melissa.launcher.defaults import merge_defaults
from melissa.server.communicator import SingleProcess
from melissa.server.deep_learning import tf_checkpoint
from melissa.server.deep_learning.collate import collate
from melissa.server.deep_learning.dataset import make_dataloader, make_dataset
from melissa.server.deep_learning.finite_loss import LossCheck
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.reservoir import FIFO
from melissa.server.deep_learning.tensorboard import TensorboardLogger, convert_tb_logs_to_df, make_tb_logger
from melissa.server.deep_learning.tf_batches import as_tf_tensors
from melissa.server.deep_learning.tf_ranks import TensorflowRanks, look_at_hardware, threads_beside_others
from melissa.server.deep_learning.tf_server import TFServer
from melissa.server.deep_learning.torch_places import Place
from melissa.server.link import install_link
from melissa.server.simulation import SimulationData


def configuration():
    config = {
        "study_options": {"field_names": ["u"], "parameter_sweep_size": 50, "nb_parameters": 1},
        "dl_config": {"batch_size": 4, "buffer_size": 20, "tensorboard": False},
        "client_config": {"executable_command": "true"},
    }
    merge_defaults(config)
    return config


@pytest.fixture
def buffer():
    buffer = FIFO(20)
    for number in range(10):
        buffer.put(SimulationData(number, 3, {"u": np.full(5, number, np.float32)}, [0.5 * number]))
    buffer.native.close()
    return buffer


# Batches.


def test_tensors_of_a_gathered_batch_share_its_memory(buffer):
    batch = Prefetcher(buffer.native, 4).next(1.0)
    inputs, fields = as_tf_tensors((batch.inputs, batch.fields["u"]))
    assert (inputs.shape, fields.shape) == ((4, 2), (4, 5))
    batch.fields["u"][2] = -1.0
    assert fields.numpy()[2].tolist() == [-1.0] * 5
    np.testing.assert_array_equal(tf.nn.relu(fields)[2], np.zeros(5))


@pytest.mark.parametrize("kind", ["read-only", "not aligned", "in columns", "of texts", "of truths", "empty"])
def test_arrays_that_tensorflow_cannot_share_are_copied(kind):
    memory = np.arange(65, dtype=np.float32)
    array = {
        "read-only": memory[:64],
        "not aligned": memory[1:] if memory.ctypes.data % 64 == 0 else memory[:64],
        "in columns": np.ones((3, 4), order="F"),
        "of texts": np.array(["a", "b"]),
        "of truths": np.array([True, False]),
        "empty": np.empty((0, 3)),
    }[kind]
    array.flags.writeable = kind != "read-only"
    tensor = as_tf_tensors({"array": array})["array"]
    assert tensor.shape == array.shape
    if kind not in ("of texts", "empty"):
        np.testing.assert_array_equal(tf.reduce_all(tensor == array), True)


def test_samples_are_put_together_to_tensors():
    samples = [
        ({"x": np.full(3, i, np.float32)}, tf.constant([i]), i, 0.5 * i, np.float64(i), f"sample {i}")
        for i in range(4)
    ]
    arrays, tensors, ints, floats, numbers, texts = collate(samples, FrameworkType.TENSORFLOW)
    assert (arrays["x"].shape, arrays["x"].dtype) == ((4, 3), tf.float32)
    assert arrays["x"].numpy()[2].tolist() == [2.0, 2.0, 2.0]
    assert tensors.numpy().tolist() == [[0], [1], [2], [3]]
    assert (ints.dtype, floats.dtype, numbers.dtype) == (tf.int32, tf.float32, tf.float64)
    assert texts == ["sample 0", "sample 1", "sample 2", "sample 3"]


def transform(data, config):
    return np.array([*data.parameters, data.time_step], np.float32), data.data["u"]


def test_a_dataloader_gives_batches_of_tensors(buffer):
    dataset = make_dataset(FrameworkType.TENSORFLOW, buffer, {}, transform)
    batches = list(make_dataloader(FrameworkType.TENSORFLOW, dataset, 4))
    assert [fields.shape for _, fields in batches] == [(4, 5), (4, 5), (2, 5)]
    assert all(tf.is_tensor(part) for batch in batches for part in batch)
    assert batches[0][0].numpy()[1].tolist() == [0.5, 3.0]


def test_tensorflows_own_pipelines_take_the_dataset(buffer):
    dataset = make_dataset(FrameworkType.TENSORFLOW, buffer, {}, transform)
    signature = (tf.TensorSpec((2,), tf.float32), tf.TensorSpec((5,), tf.float32))
    pipeline = tf.data.Dataset.from_generator(lambda: iter(dataset), output_signature=signature).batch(4)
    assert [fields.shape[0] for _, fields in pipeline] == [4, 4, 2]


# Checkpoints.


def network():
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
    )


def learn(model, optimizer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(tf.random.normal((8, 2)), training=True)))
    variables = model.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def values(model, optimizer):
    """All but the seeds of dropout, which are a rank's own."""
    variables = tf_checkpoint.model_variables(model) + tf_checkpoint.optimizer_variables(optimizer)
    variables = [variable for variable in variables if "seed_generator" not in variable.path]
    return [variable.numpy().tolist() for variable in variables]


def test_a_checkpoint_gives_model_and_optimizer_back_and_keras_reads_it(tmp_path):
    model, optimizer = network(), keras.optimizers.Adam(0.1)
    learn(model, optimizer)
    path = tmp_path / "checkpoints" / tf_checkpoint.MODEL_NAME
    tf_checkpoint.save_model(path, model, optimizer, 7)
    other, other_optimizer = network(), keras.optimizers.Adam(0.1)
    assert tf_checkpoint.load_model(path, other, other_optimizer) == 7
    assert values(other, other_optimizer) == values(model, optimizer)
    third = network()
    third.load_weights(path)
    assert values(third, None) == values(model, None)
    assert [file.name for file in path.parent.iterdir()] == [tf_checkpoint.MODEL_NAME]


def test_several_models_that_are_none_of_keras_can_be_saved(tmp_path):
    class Scale(tf.Module):
        def __init__(self, value):
            super().__init__()
            self.factor = tf.Variable(value)

    models = {"one": Scale(1.0), "other": Scale(2.0)}
    tf_checkpoint.save_model(tmp_path / "model.weights.h5", models, None, 1)
    loaded = {"one": Scale(0.0), "other": Scale(0.0)}
    tf_checkpoint.load_model(tmp_path / "model.weights.h5", loaded, None)
    assert [float(scale.factor) for scale in loaded.values()] == [1.0, 2.0]


def test_a_weight_that_is_nan_leaves_the_older_checkpoint(tmp_path):
    model, path = network(), tmp_path / tf_checkpoint.MODEL_NAME
    tf_checkpoint.save_model(path, model, None, 1)
    model.trainable_variables[0].assign(tf.fill((2, 4), np.nan))
    with pytest.raises(TrainingError, match=r"kernel' is NaN.*earlier batch is kept"):
        tf_checkpoint.save_model(path, model, None, 2)
    assert tf_checkpoint.load_model(path, network(), None) == 1


def test_a_disk_that_fails_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    model, path = network(), tmp_path / tf_checkpoint.MODEL_NAME
    tf_checkpoint.save_model(path, model, None, 1)

    def full(group, variables):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf_checkpoint, "_write", full)
    with pytest.raises(CheckpointError, match=r"model\.weights\.h5 cannot be written: .*No space left"):
        tf_checkpoint.save_model(path, model, None, 2)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert tf_checkpoint.load_model(path, network(), None) == 1


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / tf_checkpoint.MODEL_NAME
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        tf_checkpoint.load_model(path, network(), None)
    model, optimizer = network(), keras.optimizers.Adam(0.1)
    learn(model, optimizer)
    tf_checkpoint.save_model(path, model, optimizer, 1)
    wider = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
    for other, other_optimizer in ((wider, None), (network(), keras.optimizers.SGD(0.1))):
        with pytest.raises(TrainingError, match="is not of the model and the optimizer"):
            tf_checkpoint.load_model(path, other, other_optimizer)
    path.write_bytes(b"half of a file")
    with pytest.raises(TrainingError, match="is not of the model"):
        tf_checkpoint.load_model(path, model, optimizer)


def test_what_a_rank_has_alone_goes_on(tmp_path):
    model = network()
    learn(model, keras.optimizers.SGD(0.1))
    path = tmp_path / tf_checkpoint.states_name(1)
    tf_checkpoint.save_states(path, model)

    def draws():
        learn(model, keras.optimizers.SGD(0.0))
        shared = tf.random.get_global_generator().normal(())
        numbers = [random.random(), np.random.normal(), float(keras.random.normal(())), float(shared)]
        return numbers, model(tf.ones((2, 2)), training=True).numpy().tolist()

    before = draws()[0]
    tf_checkpoint.load_states(path, model)
    assert draws()[0] == before


# Logs, losses, devices.


def test_tensors_are_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tb_logger = make_tb_logger(FrameworkType.TENSORFLOW, 0)
    assert type(tb_logger) is TensorboardLogger
    tb_logger.log_scalar("Loss/train", tf.constant(0.5), 1)
    tb_logger.log_scalars("errors", {"mean": tf.constant(1.0), "max": 2.0}, step=1)
    tb_logger.log_histogram("weights", tf.random.normal((50,)), step=1)
    tb_logger.writer.add_custom_scalars({"all": {"losses": ["Multiline", ["Loss/train"]]}})
    tb_logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "gpu_0"))
    events.Reload()
    assert events.Scalars("Loss/train")[0].value == 0.5
    assert events.Histograms("weights")[0].histogram_value.num == 50
    import pandas

    frame = pandas.read_pickle(convert_tb_logs_to_df(0))
    assert sorted(frame["name"]) == ["Loss/train", "errors/max", "errors/mean"]


def test_a_loss_that_is_nan_ends_training():
    check = LossCheck()
    check.returned(tf.constant([np.nan, 1.0]), 1, 10)
    check.returned({"loss": tf.constant(1.0)}, 1, 10)
    for loss in (tf.constant(np.nan), {"loss": tf.constant([np.inf])}):
        with pytest.raises(TrainingError, match="at batch 3"):
            check.returned(loss, 3, 10)


def test_one_rank_averages_nothing_and_trains_in_the_default_strategy():
    ranks = TensorflowRanks(SingleProcess(), configuration())
    assert ranks.strategy is tf.distribute.get_strategy()
    gradients = [tf.constant(1.0), None]
    assert ranks.average(gradients) == gradients
    assert ranks.differing([tf.Variable(1.0)]) == []


def test_gpus_are_told_apart_by_the_task_that_slurm_has_bound_them_to(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert look_at_hardware().gpus == ("0:0",)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert look_at_hardware().gpus == ("3:0",)


def test_threads_are_left_to_solvers_and_to_other_ranks(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    config = configuration()
    config["launcher_config"] |= {"scheduler": "local", "job_limit": 5}
    alone, shared = Place(None, 0, True, 1), Place(None, 0, True, 2)
    assert threads_beside_others(config, alone) == 4
    config["launcher_config"]["scheduler"] = "slurm"
    assert threads_beside_others(config, alone) is None
    assert threads_beside_others(config, shared) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_beside_others(config, shared) is None


def test_ranks_must_be_slurms_tasks(monkeypatch):
    monkeypatch.delenv("MELISSA_LAUNCHER_ADDRESS", raising=False)
    install_link(None)
    server = TFServer(configuration())
    with pytest.raises(UnsupportedConfiguration, match="no task of Slurm"):
        server._setup_environment_slurm()
    values = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "node1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    server._setup_environment_slurm()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UnsupportedConfiguration, match="task 0 of 2, but it is server rank 0 of 1"):
        server._setup_environment_slurm()
    assert server.device == "CPU:0"
