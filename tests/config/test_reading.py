"""Finding a configuration and reading it: names, comments, and errors that show the place."""

import json
from pathlib import Path

import pytest
import rapidjson

from melissa.exceptions import ConfigurationFileError
from melissa.launcher.config import load_config
from melissa.launcher.schema import CONFIG_PARSE_MODE


def test_a_configuration_is_found_with_and_without_its_suffix_and_from_its_project(
    write, project, monkeypatch
):
    file = write()
    assert load_config(file)[1:] == (file, project)
    assert load_config(project / "study")[1:] == (file, project)
    assert load_config("study", project)[1:] == (file, project)
    monkeypatch.chdir(project)
    assert load_config("study.json")[1:] == (file, project)
    monkeypatch.chdir(project.parent)
    assert load_config("project/study.json", "project")[1:] == (file, project)


def test_a_missing_configuration_is_named_with_the_nearest_one_there(write, project):
    write()
    with pytest.raises(ConfigurationFileError, match=r'"studie".*Is "study\.json" meant'):
        load_config("studie", project)
    with pytest.raises(ConfigurationFileError, match=r"no folder .*nowhere"):
        load_config(project / "nowhere" / "study")


def test_an_unreadable_file_says_why(project):
    (project / "study.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigurationFileError, match=r"byte 7 is not UTF-8"):
        load_config("study", project)
    (project / "list.json").write_text("[1, 2]")
    with pytest.raises(ConfigurationFileError, match="one JSON object"):
        load_config("list", project)


def test_comments_and_trailing_commas_are_read_as_existing_studies_write_them(write, project):
    file = write()
    text = file.read_text()
    file.write_text("// a study\n" + text[:-1] + ", /* more */ }\n")
    assert load_config(file)[0]["server_class"] == "Server"
    with file.open() as stream:
        assert rapidjson.load(stream, parse_mode=CONFIG_PARSE_MODE)["server_class"] == "Server"


def test_a_byte_order_mark_is_no_error(write):
    file = write()
    file.write_text(file.read_text(), encoding="utf-8-sig")
    load_config(file)


def test_a_syntax_error_has_line_and_column_and_the_line(project):
    (project / "study.json").write_text('{\n  // größe\n  "größe": 1\n  "server_class": "A"\n}\n')
    with pytest.raises(ConfigurationFileError) as caught:
        load_config("study", project)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("study.json, line 4, column 3: Missing a comma or '}' after an object member.")
    assert lines[1:3] == ['     3 |   "größe": 1', '     4 |   "server_class": "A"']
    assert lines[3].index("^") == lines[2].index('"server_class"')


def test_an_empty_file_is_an_error_with_its_place(project):
    (project / "study.json").touch()
    with pytest.raises(ConfigurationFileError, match="line 1, column 1: The document is empty"):
        load_config("study", project)


def test_a_key_that_stands_twice_is_warned_of(write, caplog):
    file = write()
    text = file.read_text()
    file.write_text(text.replace('"batch_size": 5', '"batch_size": 5, "batch_size": 7'))
    config, _, _ = load_config(file)
    assert config["dl_config"]["batch_size"] == 7
    assert '"batch_size" twice in one object' in caplog.text


def test_the_result_is_a_plain_dictionary_that_may_be_changed(write):
    first, _, _ = load_config(write())
    first["launcher_config"]["scheduler_arg"].append("--changed")
    first["study_options"]["mine"] = {"a": 1}
    second, _, _ = load_config(write())
    assert second["launcher_config"]["scheduler_arg"] == []
    assert json.loads(json.dumps(second)) == second
    assert type(second) is dict
    assert type(second["study_options"]) is dict


def test_relative_paths_start_at_the_project(write, project, tmp_path):
    file = write()
    elsewhere = tmp_path / "configurations"
    elsewhere.mkdir()
    moved = file.rename(elsewhere / "study.json")
    config, config_path, project_dir = load_config(moved, project)
    assert (config_path, project_dir) == (moved, project)
    assert config["server_filename"] == str(project / "server.py")
    assert Path(config["output_dir"]) == project / "results"
