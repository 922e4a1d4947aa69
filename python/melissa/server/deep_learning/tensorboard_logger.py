"""The older path of `melissa.server.deep_learning.tensorboard`."""

from melissa.server.deep_learning.tensorboard import (
    TensorboardLogger,
    TorchTensorboardLogger,
    convert_tb_logs_to_df,
    make_tb_logger,
)

__all__ = ["TensorboardLogger", "TorchTensorboardLogger", "convert_tb_logs_to_df", "make_tb_logger"]
