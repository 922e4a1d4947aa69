"""The output folder: who may use it, and what is removed of an earlier study."""

import errno
import json
import os
import subprocess
import sys

import pytest

from melissa.exceptions import FatalError
from melissa.launcher import study_folder
from melissa.launcher.study_folder import StudyFolder
from melissa.utility.study_key import read_study_key

OWN = [
    "melissa_launcher.log",
    "melissa_server_0.log",
    "melissa_server_12.log",
    "study_report.json",
    "stdout/server.out",
    "stdout/server.err",
    "stdout/simulation0.out",
    "stdout/simulation11.err",
    "client_scripts/client.7.sh",
    "tensorboard/gpu_0/events.out.tfevents.1700000000.host.1.0",
    "tensorboard/gpu_0/data.pkl",
    ".melissa/server.sh",
    "checkpoints/melissa/00000010/rank0/buffer.safetensors",
]
USERS = [
    "notes.txt",
    "melissa_server_0_my_notes.log",
    "stdout/analysis.txt",
    "client_scripts/client.7.sh.orig",
    "tensorboard/gpu_0/profile/mine",
    "tensorboard/other/events.out.tfevents.1",
    "checkpoints/model.ckpt",
    "loss.png",
    "model.pt",
]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "project" / "study.json"
    path.parent.mkdir()
    path.write_text('{"first": 1} // comment')
    return path


@pytest.fixture
def folder(tmp_path):
    folder = StudyFolder(tmp_path / "deep" / "output")
    yield folder
    folder.close()


def fill(folder, names):
    for name in names:
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def run_a_study(folder, config, state="finished", reason="", **options):
    folder.open(config, **({"overwrite": False} | options))
    folder.conclude(state, reason)
    folder.close()


def test_the_folder_is_made_and_the_configuration_copied_verbatim(folder, config):
    folder.open(config, overwrite=False)
    assert (folder.path / "study.json").read_bytes() == config.read_bytes()
    assert folder.stdout.is_dir()
    assert folder.client_scripts.is_dir()


def test_the_folder_may_be_the_configurations_own(config):
    folder = StudyFolder(config.parent)
    run_a_study(folder, config)
    assert config.read_text() == '{"first": 1} // comment'
    run_a_study(folder, config, overwrite=True)
    assert config.read_text() == '{"first": 1} // comment'


def test_a_folder_with_a_users_files_is_welcome(folder, config):
    fill(folder, USERS)
    folder.open(config, overwrite=False)
    assert all((folder.path / name).read_text() == name for name in USERS)


def test_a_live_study_keeps_others_out_whatever_they_want(folder, config):
    folder.open(config, overwrite=False)
    other = StudyFolder(folder.path)
    for overwrite in (False, True):
        with pytest.raises(FatalError) as caught:
            other.open(config, overwrite=overwrite)
        for detail in (str(folder.path), f"process {os.getpid()}", os.uname().nodename, "since 20"):
            assert detail in str(caught.value)
    folder.close()
    other.open(config, overwrite=False)
    other.close()


def test_a_folder_that_could_not_be_opened_is_not_kept_locked(folder, config, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(study_folder.os, "pwrite", fail)
        with pytest.raises(FatalError, match="no space left"):
            folder.open(config, overwrite=False)
    other = StudyFolder(folder.path)
    other.open(config, overwrite=False)
    other.close()


HOLD = """
import os, sys, time
from pathlib import Path
from melissa.launcher.study_folder import StudyFolder
folder = StudyFolder(Path(sys.argv[1]))
folder.open(Path(sys.argv[2]), overwrite=False)
if os.fork() == 0:
    time.sleep(1000)
print(os.getpid(), flush=True)
os._exit(0)
"""


def test_a_study_whose_launcher_died_keeps_others_out_until_its_processes_are_gone(folder, config):
    command = [sys.executable, "-c", HOLD, str(folder.path), str(config)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    holder.wait(10)
    try:
        with pytest.raises(FatalError, match="Try again in a few seconds"):
            folder.open(config, overwrite=True)
    finally:
        os.killpg(holder.pid, 9)
        holder.stdout.close()


def test_a_finished_study_is_refused_with_what_to_do(folder, config):
    run_a_study(folder, config)
    with pytest.raises(FatalError) as caught:
        folder.open(config, overwrite=False)
    state = json.loads((folder.own / "study.json").read_text())
    for detail in (str(folder.path), state["started"], state["ended"], "finished", "--overwrite"):
        assert detail in str(caught.value)


def test_a_failed_study_goes_on_in_its_next_epoch_and_keeps_its_files(folder, config):
    run_a_study(folder, config, "failed", "the server died")
    assert folder.resumed is None
    fill(folder, OWN)
    folder.open(config, overwrite=False)
    assert folder.epoch == 2
    assert "start 2 of the study" in folder.resumed
    assert "failed (the server died)" in folder.resumed
    assert all((folder.path / name).exists() for name in OWN)
    assert json.loads((folder.own / "study.json").read_text())["state"] == "running"


def test_a_study_without_an_end_goes_on(folder, config):
    folder.open(config, overwrite=False)
    folder.close()
    again = StudyFolder(folder.path)
    again.open(config, overwrite=False)
    assert again.epoch == 2
    assert "did not end properly" in again.resumed
    again.close()


def test_each_start_of_the_server_is_an_epoch_that_is_written_down(folder, config):
    folder.open(config, overwrite=False)
    assert folder.begin_epoch() == 2
    assert json.loads((folder.own / "study.json").read_text())["epoch"] == 2


def test_an_unfinished_study_goes_on_with_its_own_configuration_alone(folder, config):
    run_a_study(folder, config, "failed", "the server died")
    config.write_text('{"first": 1, "launcher_config": {"job_limit": 7}}')
    run_a_study(folder, config, "failed", "the server died")
    config.write_text('{"first": 2}')
    with pytest.raises(FatalError, match=r"unfinished study.*differs from .* in first: .*--overwrite"):
        folder.open(config, overwrite=False)
    folder.open(config, overwrite=True)
    assert folder.epoch == 1


def test_a_study_whose_state_is_damaged_is_refused(folder, config):
    run_a_study(folder, config)
    (folder.own / "study.json").write_text('{"sta')
    with pytest.raises(FatalError, match="cannot be resumed"):
        folder.open(config, overwrite=False)
    folder.open(config, overwrite=True)


def test_a_refusal_touches_nothing(folder, config):
    run_a_study(folder, config)
    fill(folder, OWN + USERS)
    with pytest.raises(FatalError):
        folder.open(config, overwrite=False)
    assert all((folder.path / name).read_text() == name for name in OWN + USERS)


def test_overwrite_removes_the_studys_own_files_and_no_others(folder, config):
    run_a_study(folder, config)
    fill(folder, OWN + USERS)
    folder.open(config, overwrite=True)
    assert [name for name in OWN if (folder.path / name).exists()] == []
    assert [name for name in USERS if not (folder.path / name).exists()] == []


def test_overwrite_replaces_the_copy_of_the_configuration(folder, config):
    run_a_study(folder, config)
    config.write_text('{"second": 2}')
    run_a_study(folder, config, overwrite=True)
    assert (folder.path / "study.json").read_text() == '{"second": 2}'
    other = config.with_name("other.json")
    other.write_text("{}")
    run_a_study(folder, other, overwrite=True)
    assert not (folder.path / "study.json").exists()


def test_a_study_may_be_started_from_the_copy_of_an_earlier_one(folder, config):
    run_a_study(folder, config)
    copy = folder.path / "study.json"
    run_a_study(folder, copy, overwrite=True)
    assert copy.read_bytes() == config.read_bytes()


def test_a_users_file_with_the_configurations_name_is_not_replaced(folder, config):
    fill(folder, ["study.json"])
    with pytest.raises(FatalError, match=r"study\.json is there already, differs"):
        folder.open(config, overwrite=True)
    assert (folder.path / "study.json").read_text() == "study.json"


def test_overwrite_without_an_earlier_study_removes_nothing(folder, config):
    fill(folder, OWN + USERS)
    folder.open(config, overwrite=True)
    assert all((folder.path / name).exists() for name in OWN + USERS)


def test_the_key_is_there_while_the_study_runs(folder, config):
    folder.open(config, overwrite=False)
    assert folder.create_key() == read_study_key(folder.key)
    folder.conclude("finished")
    assert not folder.key.exists()


def test_a_folder_that_cannot_be_made_says_why(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match=r"cannot use the output folder .*file/output.*Not a directory"):
        StudyFolder(tmp_path / "file" / "output").open(config, overwrite=False)


def test_a_full_disk_at_the_end_is_no_error(folder, config):
    folder.open(config, overwrite=False)
    (folder.own / "study.json.new").symlink_to("/dev/full")
    folder.conclude("finished")
    assert json.loads((folder.own / "study.json").read_text())["state"] == "running"
