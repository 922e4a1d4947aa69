"""Finding the user's class, and what is said of the errors in the user's file."""

import sys

import pytest

from melissa.exceptions import ConfigurationFileError
from melissa.server.failure import user_traceback
from melissa.server.study_file import load_server_class

STUDY = """
from melissa.server.deep_learning.torch_server import TorchServer
from helper_of_this_study import NUMBER

class HeatServer(TorchServer):
    number = NUMBER

class Network: pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "helper_of_this_study.py").write_text("NUMBER = 17\n")
    (tmp_path / "study.py").write_text(STUDY)
    return tmp_path


def test_a_class_is_found_and_its_file_imports_its_siblings(folder):
    cls = load_server_class(folder / "study.py", "HeatServer")
    assert cls.number == 17
    assert sys.path[0] == str(folder)
    assert sys.modules["study"].HeatServer is cls


def test_a_missing_class_is_answered_with_those_that_exist(folder):
    with pytest.raises(
        ConfigurationFileError, match=r"no class HeatSever(.|\n)*HeatServer, Network; is HeatServer"
    ):
        load_server_class(folder / "study.py", "HeatSever")


def test_a_class_that_is_no_server_is_refused(folder):
    with pytest.raises(ConfigurationFileError, match=r"Network .*is no server class"):
        load_server_class(folder / "study.py", "Network")


def test_a_missing_file_is_named(folder):
    with pytest.raises(ConfigurationFileError, match=r"there is no file .*absent\.py"):
        load_server_class(folder / "absent.py", "HeatServer")


def test_a_file_with_the_name_of_a_loaded_module_does_not_hide_it(folder):
    (folder / "json.py").write_text(STUDY)
    cls = load_server_class(folder / "json.py", "HeatServer")
    assert cls.__module__ == "melissa_study_json"
    assert "dumps" in dir(sys.modules["json"])


def test_the_users_frames_stand_out_in_the_traceback(folder):
    (folder / "broken.py").write_text("def setup():\n    raise KeyError('of the user')\n\nsetup()\n")
    with pytest.raises(KeyError) as error:
        load_server_class(folder / "broken.py", "HeatServer")
    text = user_traceback(error.value)
    assert "broken.py" in text
    assert "in setup" in text
    assert "KeyError: 'of the user'" in text
    assert "server/study_file.py" not in text
    assert "importlib" not in text


def test_a_syntax_error_shows_its_line(folder):
    (folder / "wrong.py").write_text("def f(:\n    pass\n")
    with pytest.raises(SyntaxError) as error:
        load_server_class(folder / "wrong.py", "HeatServer")
    text = user_traceback(error.value)
    assert "def f(:" in text
    assert 'wrong.py", line 1' in text


def test_causes_are_shown():
    def fail():
        try:
            raise ValueError("first")
        except ValueError as error:
            raise RuntimeError("second") from error

    with pytest.raises(RuntimeError) as error:
        fail()
    text = user_traceback(error.value)
    assert text.index("ValueError: first") < text.index("direct cause") < text.index("RuntimeError: second")


def test_an_error_of_ours_that_says_all_has_no_traceback(folder):
    with pytest.raises(ConfigurationFileError) as error:
        load_server_class(folder / "absent.py", "HeatServer")
    error.value.__traceback__ = error.value.__traceback__.tb_next
    assert user_traceback(error.value) == ""
