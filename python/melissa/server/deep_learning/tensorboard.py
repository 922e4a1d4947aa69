"""Logs for TensorBoard, written with the ``tensorboard`` package alone or through torch."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.scalar_queue import ScalarQueue

__all__ = [
    "EventWriter",
    "SilentWriter",
    "TensorboardLogger",
    "TorchTensorboardLogger",
    "check_conversion",
    "convert_tb_logs_to_df",
    "make_tb_logger",
]

logger = logging.getLogger("melissa")

FLUSH_SECONDS = 10
"""A running study's logs are at most so old."""


def keep_tensorflow_out() -> None:
    """Make the ``tensorboard`` package write files by itself, where TensorFlow is installed but not in use.

    It would import TensorFlow for that: seconds and hundreds of megabytes, and beside torch the process is
    aborted when both load their LLVM. The name of the module is tensorboard's own switch.
    """
    if "tensorflow" not in sys.modules:
        name = "tensorboard.compat.notf"
        sys.modules.setdefault(name, ModuleType(name))


def session_start(step: int) -> Any:
    """Return the event with which TensorBoard forgets what earlier files of a run have from `step` on."""
    from tensorboard.compat.proto import event_pb2

    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(wall_time=time.time(), step=step, session_log=start)


class EventWriter:
    """Writes one event file; the methods have the names and arguments of torch's ``SummaryWriter``."""

    def __init__(self, log_dir: str | Path) -> None:
        keep_tensorflow_out()
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.log_dir = str(log_dir)
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._histogram = summary_pb2.HistogramProto
        self._metadata = summary_pb2.SummaryMetadata
        self._tensor = tensor_pb2.TensorProto
        self._shape = tensor_shape_pb2.TensorShapeProto
        self._file = EventFileWriter(self.log_dir, flush_secs=FLUSH_SECONDS)

    def _add(self, value: Any, step: int | None, walltime: float | None = None) -> None:
        event = self._event(
            wall_time=time.time() if walltime is None else walltime,
            step=int(step or 0),
            summary=self._summary(value=[value]),
        )
        self._file.add_event(event)

    def add_scalar(
        self, tag: str, scalar_value: float, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        """Write one number."""
        self._add(self._summary.Value(tag=tag, simple_value=float(scalar_value)), global_step, walltime)

    def add_histogram(
        self, tag: str, values: ArrayLike, global_step: int | None = None, bins: int = 30
    ) -> None:
        """Write how `values` are distributed; those that are not finite are left out."""
        array = np.asarray(values, dtype=np.float64).ravel()
        array = array[np.isfinite(array)]
        if array.size == 0:
            return
        counts, limits = np.histogram(array, bins=bins)
        histogram = self._histogram(
            min=array.min(),
            max=array.max(),
            num=array.size,
            sum=array.sum(),
            sum_squares=np.square(array).sum(),
            bucket_limit=limits[1:].tolist(),
            bucket=counts.tolist(),
        )
        self._add(self._summary.Value(tag=tag, histo=histogram), global_step)

    def add_figure(self, tag: str, figure: Any, global_step: int | None = None, close: bool = True) -> None:
        """Write a figure of matplotlib as an image; `close` closes it afterwards."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = figure.canvas.get_width_height()
        image = self._summary.Image(
            height=height, width=width, colorspace=4, encoded_image_string=png.getvalue()
        )
        self._add(self._summary.Value(tag=tag, image=image), global_step)
        if close:
            from matplotlib import pyplot

            pyplot.close(figure)

    def add_custom_scalars(self, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Write a layout of charts: category -> chart -> ("Multiline" | "Margin", tags)."""
        from tensorboard.plugins.custom_scalar import layout_pb2

        def chart(title: str, kind: str, tags: Sequence[str]) -> Any:
            if kind == "Margin":
                series = layout_pb2.MarginChartContent.Series(value=tags[0], lower=tags[1], upper=tags[2])
                return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))
            return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=list(tags)))

        categories = [
            layout_pb2.Category(
                title=title, chart=[chart(name, *content) for name, content in charts.items()]
            )
            for title, charts in layout.items()
        ]
        text = layout_pb2.Layout(category=categories).SerializeToString()
        tensor = self._tensor(dtype="DT_STRING", string_val=[text], tensor_shape=self._shape())
        metadata = self._metadata(plugin_data=self._metadata.PluginData(plugin_name="custom_scalars"))
        self._add(self._summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=metadata), None)

    def go_on_after(self, step: int) -> None:
        """Say that what older files have of later steps counts no more."""
        self._file.add_event(session_start(step + 1))

    def flush(self) -> None:
        """Write what is buffered to the file."""
        self._file.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._file.close()


class SilentWriter:
    """Takes the place of a writer where nothing is written: it has every method, and none does anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None

    def __bool__(self) -> bool:
        return False


class TensorboardLogger:
    """Logs of one server rank, in ``tensorboard/gpu_<rank>`` of the working directory.

    It needs the ``tensorboard`` package alone.
    Without the ``tensorboard`` package, or when its file cannot be written, it says so once and writes
    nothing: no study ends for its curves. Any thread may log.

    Parameters
    ----------
    rank
        Of the server.
    disable
        Write nothing.
    debug
        Whether `log_scalar_dbg` writes.
    log_dir
        Folder of the ranks' folders.
    """

    def __init__(
        self,
        rank: int = 0,
        disable: bool = False,
        debug: bool = False,
        *,
        log_dir: str | Path = "tensorboard",
    ) -> None:
        self.rank = rank
        self.debug = debug
        self.disable = disable
        self.log_dir = Path(log_dir) / f"gpu_{rank}"
        self.on_scalar: Callable[[str, float], None] | None = None
        """Called with tag and value of each scalar, also when nothing is written."""
        self._writer: Any = None
        self._scalars = ScalarQueue(self._write_scalar)
        if not disable:
            try:
                self._writer = self._make_writer()
            except ImportError as error:
                self._give_up(
                    f"{error.name or error} is not installed; pip install tensorboard, or set "
                    "dl_config.tensorboard to false"
                )
            except OSError as error:
                self._give_up(str(error))

    def _make_writer(self) -> Any:
        """Open the event file."""
        return EventWriter(self.log_dir)

    def _give_up(self, reason: str) -> None:
        self.disable = True
        self._writer = None
        logger.warning(f"no (further) TensorBoard logs are written to {self.log_dir}: {reason}")

    @property
    def writer(self) -> Any:
        """What writes the events: torch's ``SummaryWriter``, an `EventWriter`, or a `SilentWriter`."""
        return SilentWriter() if self._writer is None else self._writer

    def _write(self, action: Callable[[Any], None]) -> None:
        writer = self._writer
        if writer is None:
            return
        try:
            action(writer)
        except OSError as error:
            self._give_up(str(error))

    def log_scalar(self, tag: str, value: float, step: int) -> None:
        """Log one number (a float, or anything that ``float()`` takes, as a tensor of one element)."""
        number = float(value)
        if self.on_scalar is not None:
            self.on_scalar(tag, number)
        if self._writer is not None:
            self._scalars.put(tag, number, int(step or 0))

    def _write_scalar(self, tag: str, value: float, step: int, walltime: float) -> None:
        self._write(lambda writer: writer.add_scalar(tag, value, step, walltime))

    def go_on_after(self, step: int) -> None:
        """Go on in the run of before a restart: what it has of steps after `step` is shown no more."""
        self._write(lambda writer: writer.go_on_after(step))

    def log_scalar_dbg(self, tag: str, value: float, step: int) -> None:
        """Log one number if the logger was made with ``debug``."""
        if self.debug:
            self.log_scalar(tag, value, step)

    def log_scalars(self, tag: str, values: Mapping[str, float], step: int | None = None) -> None:
        """Log several numbers, each under ``tag/name``: they stay in one event file so."""
        for name, value in values.items():
            self.log_scalar(f"{tag}/{name}", value, step or 0)

    def log_histogram(self, tag: str, values: Any, step: int | None = None) -> None:
        """Log how `values` (an array or tensor) are distributed."""
        self._write(lambda writer: writer.add_histogram(tag, values, step))

    def log_figure(self, tag: str, fig: Any, step: int | None = None, close: bool = True) -> None:
        """Log a figure of matplotlib; `close` closes it afterwards."""
        self._write(lambda writer: writer.add_figure(tag, fig, step, close))

    def flush(self) -> None:
        """Write what is buffered to the file."""
        self._scalars.write_out()
        self._write(lambda writer: writer.flush())

    def close(self) -> None:
        """Write the rest and close the file; nothing is logged from then on."""
        self._scalars.close()
        self._write(lambda writer: writer.close())
        self._writer = None


class TorchTensorboardLogger(TensorboardLogger):
    """Logs through torch, whose writer takes tensors, graphs and whatever else torch has."""

    def _make_writer(self) -> Any:
        keep_tensorflow_out()
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.log_dir), flush_secs=FLUSH_SECONDS)

    def go_on_after(self, step: int) -> None:
        """Go on in the run of before a restart: what it has of steps after `step` is shown no more."""
        self._write(lambda writer: writer.file_writer.add_event(session_start(step + 1)))


def make_tb_logger(
    framework_t: FrameworkType, rank: int = 0, disable: bool = False, debug: bool = False
) -> TensorboardLogger:
    """Make the logger of a framework."""
    cls = TorchTensorboardLogger if framework_t is FrameworkType.TORCH else TensorboardLogger
    return cls(rank, disable=disable, debug=debug)


def check_conversion() -> None:
    """Check that `convert_tb_logs_to_df` can work; `UnsupportedConfiguration` says what to install."""
    for name in ("pandas", "tensorboard"):
        try:
            import_module(name)
        except ImportError as error:
            raise UnsupportedConfiguration(
                f"dl_config.convert_log_to_df needs {name}: pip install {name}, or set it to false"
            ) from error


def convert_tb_logs_to_df(rank: int = 0, log_dir: str | Path = "tensorboard") -> Path:
    """Write the scalars of a rank's logs beside them, as a pickled DataFrame, and return its path.

    Columns: wall_time, name, step, value. `UnsupportedConfiguration` when pandas or tensorboard is missing.
    """
    check_conversion()
    keep_tensorflow_out()
    import pandas
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(log_dir) / f"gpu_{rank}"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    rows = [
        (event.wall_time, tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]
    path = folder / "data.pkl"
    pandas.DataFrame(rows, columns=["wall_time", "name", "step", "value"]).to_pickle(path)
    return path
