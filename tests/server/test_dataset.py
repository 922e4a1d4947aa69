"""The buffer as a dataset for loops of a user's own."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.deep_learning.dataset import MelissaIterableDataset, make_dataloader, make_dataset
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.reservoir import FIFO
from melissa.server.deep_learning.sample_source import PolledWait
from melissa.server.ending import StudyEnding


@pytest.fixture
def buffer(make_sample):
    buffer = FIFO(50)
    for number in range(10):
        buffer.put(make_sample(number))
    buffer.native.close()
    return buffer


def transform(data, config):
    inputs = torch.tensor([*data.parameters, data.time_step], dtype=torch.float32) * config.get("scale", 1.0)
    return inputs, torch.from_numpy(data.data["u"].copy())


class KeptAccounting:
    def __init__(self):
        self.batches = []

    def trained(self, samples):
        self.batches.append([sample.simulation_id for sample in samples])

    def waited(self, seconds):
        pass


def test_torchs_dataloader_takes_it_as_iterable(buffer):
    dataset = MelissaIterableDataset(
        buffer=buffer, config={"scale": 2.0}, transform=transform, tb_logger=None
    )
    assert isinstance(dataset, IterableDataset)
    assert isinstance(dataset, MelissaIterableDataset)
    batches = list(DataLoader(dataset, batch_size=4, drop_last=True, num_workers=0))
    assert [inputs.shape for inputs, _ in batches] == [(4, 3), (4, 3)]
    np.testing.assert_allclose(batches[0][0][0], [0.5, 1.0, 0.0])


def test_single_samples_come_without_a_transform(buffer):
    samples = list(MelissaIterableDataset(buffer, config_dict={}))
    assert [data.simulation_id for data in samples] == list(range(10))
    assert samples[3].parameters == [0.25, 0.5]


def test_workers_are_refused_with_what_to_do(buffer):
    dataset = MelissaIterableDataset(buffer, transform=transform)
    with pytest.raises(Exception, match="num_workers=0"):
        next(iter(DataLoader(dataset, batch_size=2, num_workers=1)))
    with pytest.raises(UnsupportedConfiguration, match="num_workers=0"):
        make_dataloader(FrameworkType.TORCH, dataset, 2, num_workers=1)


def test_importing_it_does_not_import_torch():
    code = (
        "import sys, melissa.server.deep_learning.dataset as d, melissa.server.deep_learning.base_dl_server\n"
        "assert 'torch' not in sys.modules and 'mpi4py' not in sys.modules\n"
        "from melissa.server.deep_learning.reservoir import FIFO\n"
        "dataset = d.MelissaIterableDataset(FIFO(2))\n"
        "import torch.utils.data\n"
        "assert isinstance(dataset, torch.utils.data.IterableDataset)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_samples_count_as_trained_when_the_next_batch_is_asked_for(buffer):
    dataset, accounting = MelissaIterableDataset(buffer), KeptAccounting()
    dataset.join_study(PolledWait(StudyEnding()), accounting, batch_size=4)
    counts = [len(accounting.batches) for _ in dataset]
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert accounting.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dataset.has_ended


def test_a_stop_of_the_study_ends_the_iteration(buffer):
    ending = StudyEnding()
    dataset = MelissaIterableDataset(buffer)
    dataset.join_study(PolledWait(ending), KeptAccounting(), batch_size=2)
    seen = []
    for data in dataset:
        seen.append(data)
        if len(seen) == 3:
            ending.stop("enough")
    assert len(seen) == 3


def test_a_failure_elsewhere_is_raised_in_the_users_loop(buffer):
    ending = StudyEnding()
    dataset = MelissaIterableDataset(buffer)
    dataset.join_study(PolledWait(ending), KeptAccounting(), batch_size=2)
    iterator = iter(dataset)
    next(iterator)
    ending.fail(RuntimeError("control is dead"))
    with pytest.raises(RuntimeError, match="control is dead"):
        next(iterator)


def test_plain_batches_are_tuples_of_stacked_arrays(buffer):
    dataset = make_dataset(
        FrameworkType.DEFAULT, buffer, {}, lambda data, config: (data.data["u"], data.time_step)
    )
    batches = list(make_dataloader(FrameworkType.DEFAULT, dataset, 4))
    assert [fields.shape for fields, _ in batches] == [(4, 4), (4, 4), (2, 4)]
    assert batches[0][1] == [0, 0, 0, 0]
