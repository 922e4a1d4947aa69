"""The file of the study key."""

import os
import stat

import pytest

from melissa.exceptions import AuthenticationError
from melissa.utility.study_key import create_study_key, read_study_key


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_key_is_read_back_and_nobody_else_can_read_it(tmp_path, no_umask):
    path = tmp_path / "key"
    key = create_study_key(path)
    assert len(key) == 32
    assert read_study_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_key_replaces_what_stood_there_and_follows_no_link(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    path = tmp_path / "key"
    path.symlink_to(target)
    first = create_study_key(path)
    assert target.read_text() == "mine"
    assert create_study_key(path) != first


@pytest.mark.parametrize("content", [b"", b"abcd", b"x" * 64, b"\xff" * 64, b"ab" * 33])
def test_a_file_without_a_key_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(AuthenticationError, match=str(path)):
        read_study_key(path)
