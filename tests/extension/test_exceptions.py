"""The exception tree is a contract: its shape, its second bases, its pickling."""

import inspect
import pickle
import re

import pytest

import melissa.exceptions as exceptions
from melissa.exceptions import MelissaError, StudyStopped

CLASSES = [cls for _, cls in inspect.getmembers(exceptions, inspect.isclass)]


def tree_in_the_docstring():
    """(class, parent, further base) of each line of the picture in the module's docstring."""
    parents = []
    for line in exceptions.__doc__.splitlines():
        match = re.match(r"^    ([ │├└─]*)(\w+)(?: \((\w+)\))?$", line)
        if not match:
            continue
        depth, name, other = len(match[1]) // 4, match[2], match[3]
        del parents[depth:]
        yield name, parents[-1] if parents else None, other
        parents.append(name)


def test_the_tree_is_the_one_that_the_docstring_draws():
    drawn = list(tree_in_the_docstring())
    assert {name for name, _, _ in drawn} == {cls.__name__ for cls in CLASSES}
    assert len(drawn) == len(CLASSES) == len(exceptions.__all__)
    for name, parent, other in drawn:
        bases = {base.__name__ for base in getattr(exceptions, name).__mro__}
        assert parent is None or parent in bases, name
        assert other is None or other in bases, name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_errors_have_words_and_survive_pickling(cls):
    assert inspect.getdoc(cls)
    error = pickle.loads(pickle.dumps(cls("what happened")))
    assert type(error) is cls
    assert str(error) == "what happened"


def test_only_a_stop_of_the_study_is_no_error():
    assert [cls for cls in CLASSES if not issubclass(cls, MelissaError)] == [StudyStopped]
    assert StudyStopped().code == 0
