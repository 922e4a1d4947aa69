"""Finding out what a server derives from without importing it."""

import pytest

from melissa.server.study_source import derives_from

TF_SERVERS = {
    "from_the_page": "from melissa.server.deep_learning.tf_server import TFServer\nclass S(TFServer): pass",
    "from_the_package": "import melissa\nclass S(melissa.TFServer): pass",
    "by_another_name": "from melissa import TFServer as Base\nclass S(Base): pass",
    "through_a_class_between": "from melissa import TFServer\nclass A(TFServer): pass\nclass S(A): pass",
    "through_a_sibling": "from beside import Between\nclass S(Between): pass",
    "through_a_package": "import deeper.inside as inside\nclass S(inside.Between): pass",
    "made_by_a_call": "from melissa import TFServer\nS = type('S', (TFServer,), {})",
}
OTHERS = {
    "torch": "from melissa import TorchServer\nclass S(TorchServer): pass",
    "the_other_class_of_the_file": (
        "from melissa import TFServer, TorchServer\nclass T(TFServer): pass\nclass S(TorchServer): pass"
    ),
    "a_word_in_a_text": "from melissa import DeepMelissaServer\nclass S(DeepMelissaServer): 'TFServer'",
    "bases_in_a_circle": "class S(T): pass\nclass T(S): pass",
    "no_python": "class S(TFServer",
}


@pytest.fixture
def project(tmp_path):
    (tmp_path / "beside.py").write_text(
        "from melissa import TFServer\nimport server\nclass Between(TFServer): pass"
    )
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "inside.py").write_text(
        "from melissa import TFServer\nclass Between(TFServer): pass"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [(t, True) for t in TF_SERVERS.values()] + [(t, False) for t in OTHERS.values()],
    ids=[*TF_SERVERS, *OTHERS],
)
def test_a_class_is_known_by_its_bases(project, text, expected):
    (project / "server.py").write_text(text)
    assert derives_from(project / "server.py", "S", "TFServer") is expected


def test_a_file_that_is_not_there_derives_from_nothing(tmp_path):
    assert not derives_from(tmp_path / "server.py", "S", "TFServer")
