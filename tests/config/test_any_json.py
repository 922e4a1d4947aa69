"""Whatever JSON stands at a key: the configuration is read, or refused with the key's path."""

import copy
import json
import os

import pytest
import rapidjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melissa.exceptions import ConfigurationFileError
from melissa.launcher.config import load_config
from melissa.launcher.options import options

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["FIFO", "FIRO", "$HOME", "~", "~nobody-here/x", "%Y/%!", ".", "", "a\0b", "'", "local"]
    ),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=4,
)
PATHS = st.sampled_from([option.path for option in options()])


@given(st.lists(st.tuples(PATHS, VALUES), min_size=1, max_size=3))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_is_taken_or_refused_with_its_path(project, valid, changes):
    study = copy.deepcopy(valid)
    for path, value in changes:
        section, _, key = path.rpartition(".")
        target = study.setdefault(section, {}) if section else study
        if isinstance(target, dict):
            target[key] = value
    file = project / "study.json"
    file.write_text(rapidjson.dumps(study))
    try:
        config, _, _ = load_config(file)
    except ConfigurationFileError as error:
        text = str(error)
        assert text.startswith(f"{file}: ")
        assert any(path.partition(".")[0] in text for path, _ in changes), text
    else:
        assert os.path.isabs(config["output_dir"])
        json.dumps(config)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_text_is_refused_with_its_file(project, text):
    file = project / "study.json"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file))
