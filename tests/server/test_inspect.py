"""``melissa-inspect``: what it says of a checkpoint, whole or not."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from server_process import CONFIGURATION, ServerProcess

import melissa
from melissa.inspect.__main__ import main
from melissa.server.checkpoint.manifest import Manifest


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The output folder of a study of three simulations with checkpoints after batches 4 and 6."""
    folder = tmp_path_factory.mktemp("study")
    learning = CONFIGURATION["dl_config"] | {"checkpoint_interval": 4}
    server = ServerProcess(folder, dl_config=learning, pause=0.05)
    server.serve()
    assert server.end() == 0
    server.close()
    return folder / "out"


def said(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_prints_batch_ranks_buffer_ledger_simulations_and_sizes(output, capsys):
    status, text, _ = said(capsys, output / "checkpoints" / "melissa" / "00000004")
    assert status == 0, text
    for part in (
        "batches trained     4",
        "server ranks        1",
        "rank 0",
        "FIFO",
        "of 8 samples",
        "u (4 x float32) and 1 parameter",
        "8 trained",
        "asked for",
        "buffer.safetensors",
        "whole; every checksum is right",
    ):
        assert part in text, text


@pytest.mark.parametrize(
    "place", ["", "checkpoints", "checkpoints/melissa", "checkpoints/melissa/00000006/rank0"]
)
def test_of_a_folder_above_it_takes_the_newest(place, output, capsys):
    status, text, _ = said(capsys, "--json", output / place)
    found = json.loads(text)
    assert (status, found["batch"], found["problems"]) == (0, 6, [])
    (rank,) = found["ranks"]
    assert rank["ledger"]["trained"] == rank["ledger"]["declared"] == 12
    assert rank["buffer"]["population"] == 0
    assert found["simulations"]["statuses"] == {"finished": 3}
    assert found["bytes"] == sum(rank["files"].values())


def test_when_it_is_to_be_quick_it_says_what_it_left_out(output, capsys):
    status, text, _ = said(capsys, "--quick", output)
    assert status == 0
    assert "whole; checksums were not looked at" in text


def test_damage_is_found_and_named(output, capsys, tmp_path):
    copy = tmp_path / "00000004"
    subprocess.run(["cp", "-r", output / "checkpoints" / "melissa" / "00000004", copy], check=True)
    file = copy / "rank0" / "buffer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    status, text, _ = said(capsys, copy)
    assert status == 1
    assert "PROBLEM" in text
    assert "is damaged: the checksum" in text
    (copy / "rank0" / "manifest.json").write_text("{")
    status, text, _ = said(capsys, copy)
    assert status == 1
    assert "manifest.json is damaged: it is no JSON" in text


def test_a_checkpoint_that_was_not_finished_is_no_whole_one(capsys, tmp_path):
    (tmp_path / "00000008" / "rank0.new").mkdir(parents=True)
    status, text, _ = said(capsys, tmp_path)
    assert status == 1
    assert "no rank's part that is whole" in text


def test_where_there_is_none_it_says_what_was_expected(capsys, tmp_path):
    status, _, error = said(capsys, tmp_path)
    assert status == 2
    assert "checkpoints/melissa/00000300" in error
    status, _, error = said(capsys, tmp_path / "nowhere")
    assert status == 2
    assert "there is no" in error


def test_the_version_and_the_help_are_printed():
    command = [sys.executable, "-m", "melissa.inspect"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"melissa-inspect {melissa.__version__}"
    usage = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "CHECKPOINT" in usage.stdout
    assert "Exit status" in usage.stdout


def test_it_says_what_there_is_of_simulations_for_validation_and_what_is_lost(output, capsys, tmp_path):
    subprocess.run(["cp", "-r", output / "checkpoints" / "melissa", tmp_path], check=True)
    root = tmp_path / "melissa"
    part = root / "00000004" / "rank0"
    manifest = Manifest.read(part)
    (root / "validation").mkdir()
    shutil.copy(part / "buffer.safetensors", root / "validation" / "00000001.safetensors")
    records = [{"id": 3, "status": "finished"}, {"id": 4, "status": "running"}]
    files = {"00000001.safetensors": manifest.files["buffer.safetensors"]}
    study = manifest.study | {"validation": {"draws": [], "simulations": records, "files": files}}
    dataclasses.replace(manifest, study=study).write(part)
    status, text, _ = said(capsys, part)
    assert status == 0, text
    assert "for validation      2 asked for: 1 finished, 1 running; " in text
    assert "in 1 file beside the checkpoints" in text
    (root / "validation" / "00000001.safetensors").unlink()
    status, text, _ = said(capsys, part)
    assert status == 0, "a server goes on all the same"
    assert "LOST, and its simulations for validation run again: " in text
    assert "00000001.safetensors" in text
