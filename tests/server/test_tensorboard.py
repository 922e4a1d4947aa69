"""Event files, read back with TensorBoard's own reader."""

import os
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.tensorboard import (
    TensorboardLogger,
    TorchTensorboardLogger,
    convert_tb_logs_to_df,
    make_tb_logger,
)

LOGGERS = [TensorboardLogger, TorchTensorboardLogger]


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(params=LOGGERS)
def tb_logger(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.param(2)


def test_scalars_are_in_one_event_file_of_the_rank_as_simple_values(tb_logger, tmp_path):
    for step in range(3):
        tb_logger.log_scalar("Loss/train", 1.0 / (1 + step), step)
    tb_logger.log_scalars("Error", {"mean": 0.5, "max": 2.0}, step=7)
    tb_logger.close()
    folder = tmp_path / "tensorboard" / "gpu_2"
    assert len(list(folder.iterdir())) == 1
    read = events(folder)
    assert [(event.step, event.value) for event in read.Scalars("Loss/train")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]
    assert read.Scalars("Error/max")[0].step == 7


def test_histograms_and_figures_are_written(tb_logger, tmp_path):
    from matplotlib.figure import Figure

    tb_logger.log_histogram("weights", np.random.default_rng(0).normal(size=100), step=3)
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    tb_logger.log_figure("field", figure, step=4)
    tb_logger.close()
    read = events(tmp_path / "tensorboard" / "gpu_2")
    assert read.Histograms("weights")[0].histogram_value.num == 100
    (image,) = read.Images("field")
    assert image.step == 4
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_a_layout_of_charts_can_be_written(tb_logger, tmp_path):
    layout = {
        "Losses": {"both": ["Multiline", ["Loss/train", "Loss/valid"]], "band": ["Margin", ["m", "lo", "hi"]]}
    }
    tb_logger.writer.add_custom_scalars(layout)
    tb_logger._writer.add_custom_scalars(layout)
    tb_logger.close()
    read = events(tmp_path / "tensorboard" / "gpu_2")
    content = read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    written = layout_pb2.Layout.FromString(content)
    assert written.category[0].title == "Losses"
    assert list(written.category[0].chart[0].multiline.tag) == ["Loss/train", "Loss/valid"]
    assert written.category[0].chart[1].margin.series[0].upper == "hi"


def test_each_scalar_is_told_also_when_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tb_logger = TensorboardLogger(0, disable=True)
    told = []
    tb_logger.on_scalar = lambda tag, value: told.append((tag, value))
    tb_logger.log_scalar("Loss/train", np.float32(0.5), 1)
    tb_logger.log_histogram("weights", [1.0])
    # Studies write layouts and graphs without asking whether anything is written.
    tb_logger.writer.add_custom_scalars({"Losses": {"both": ["Multiline", ["Loss/train"]]}})
    assert not tb_logger.writer
    tb_logger.close()
    assert told == [("Loss/train", 0.5)]
    assert not (tmp_path / "tensorboard").exists()


def test_debug_scalars_are_written_on_demand_only(tmp_path):
    for debug in (False, True):
        tb_logger = TensorboardLogger(0, debug=debug, log_dir=tmp_path / str(debug))
        tb_logger.log_scalar_dbg("detail", 1.0, 0)
        tb_logger.close()
        assert ("detail" in events(tmp_path / str(debug) / "gpu_0").Tags()["scalars"]) == debug


def test_logging_after_close_does_nothing(tb_logger):
    tb_logger.close()
    tb_logger.log_scalar("Loss/train", 1.0, 1)
    tb_logger.close()


def test_a_folder_that_cannot_be_made_is_said_once_and_training_goes_on(tmp_path, log):
    (tmp_path / "tensorboard").write_text("a file")
    tb_logger = TensorboardLogger(0, log_dir=tmp_path / "tensorboard")
    tb_logger.log_scalar("Loss/train", 1.0, 1)
    tb_logger.log_scalar("Loss/train", 1.0, 2)
    warnings = [r.getMessage() for r in log.records if "TensorBoard" in r.getMessage()]
    assert len(warnings) == 1
    assert tb_logger.disable


def test_a_disk_that_fills_up_ends_the_logs_and_not_the_training(tmp_path):
    code = (
        "import logging, resource, signal, threading, time; logging.basicConfig()\n"
        "from melissa.server.deep_learning.tensorboard import TensorboardLogger\n"
        "tb_logger = TensorboardLogger(0)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "for step in range(5000): tb_logger.log_scalar('Loss/train', 1.0, step)\n"
        "tb_logger.flush(); tb_logger.close(); print('trained')\n"
        # TensorBoard's own thread writes a traceback to stderr: Python aborts if it ends in the midst of it.
        "for thread in threading.enumerate():\n"
        "    if thread is not threading.main_thread(): thread.join(10)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "trained"
    assert result.stderr.count("TensorBoard logs are written") == 1


def test_without_the_tensorboard_package_it_warns_once_with_what_to_install(tmp_path):
    code = (
        "import sys, logging; logging.basicConfig()\n"
        "sys.modules['tensorboard'] = None\n"
        "from melissa.server.deep_learning.tensorboard import TensorboardLogger\n"
        "logger = TensorboardLogger(0)\n"
        "logger.log_scalar('Loss/train', 1.0, 0); logger.log_scalar('Loss/train', 1.0, 1); logger.close()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stderr.count("pip install tensorboard") == 1


def test_without_torch_the_plain_logger_writes(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['tensorflow'] = None\n"
        "from melissa.server.deep_learning.tensorboard_logger import TensorboardLogger\n"
        "logger = TensorboardLogger(0); logger.log_scalar('Loss/train', 1.0, 0)\n"
        "logger.writer.add_custom_scalars({'a': {'b': ['Multiline', ['Loss/train']]}}); logger.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)
    assert events(tmp_path / "tensorboard" / "gpu_0").Scalars("Loss/train")


def test_each_framework_has_its_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(make_tb_logger(FrameworkType.DEFAULT, 0, disable=True)) is TensorboardLogger
    assert type(make_tb_logger(FrameworkType.TORCH, 0, disable=True)) is TorchTensorboardLogger


def test_converting_to_a_data_frame_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnsupportedConfiguration, match="pip install pandas"):
        convert_tb_logs_to_df(0, tmp_path)


@pytest.mark.parametrize("logger", ["TensorboardLogger", "TorchTensorboardLogger"])
def test_tensorflow_beside_it_is_not_loaded(logger, tmp_path):
    (tmp_path / "tensorflow.py").write_text('raise SystemExit("tensorflow was imported")')
    code = (
        f"from melissa.server.deep_learning.tensorboard import {logger}, convert_tb_logs_to_df\n"
        f"logger = {logger}(0)\n"
        "logger.log_scalar('Loss/train', 1.0, 1)\n"
        "logger.close()\n"
        "convert_tb_logs_to_df(0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=100)
    assert (tmp_path / "tensorboard" / "gpu_0" / "data.pkl").exists()
