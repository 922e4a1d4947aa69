"""Messages between launcher and server."""

import json

import pytest

from melissa.exceptions import ProtocolError
from melissa.launcher import message
from melissa.launcher.message import (
    CancelClient,
    Failure,
    Finished,
    JobUpdate,
    Message,
    Ping,
    Progress,
    Register,
    State,
    Stop,
    SubmitClient,
    decode,
)

EXAMPLES = [
    Ping(),
    Register(["127.0.0.1:1", "127.0.0.1:2"], 4711, 2),
    SubmitClient(3, 1, "/some/client.3.sh", {"NAME": "välue"}),
    CancelClient(3, 1),
    Progress({"batches": 3, "losses": {"Loss/train": 0.5}}),
    Failure("ValueError", "in training_step", "Traceback ..."),
    Finished(0, {"batches": 3}),
    JobUpdate("3.1", State.FAILED, -9, "last lines"),
    JobUpdate("3.1", State.RUNNING),
    Stop("SIGINT"),
]


def test_there_is_an_example_of_every_message():
    assert {type(example).__name__ for example in EXAMPLES} == set(Message.known)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_messages_survive_the_channel(example):
    assert decode(example.encode()) == example
    assert decode(json.loads(json.dumps(example.to_dict()))) == example


def test_keys_that_a_message_does_not_have_are_left_out():
    assert decode(Stop("SIGINT").to_dict() | {"newer": 1}) == Stop("SIGINT")


def test_absent_fields_take_their_defaults():
    data = {"type": "JobUpdate", "job_id": "3.1", "job_state": "RUNNING"}
    assert decode(data) == JobUpdate("3.1", State.RUNNING)


def test_old_studies_name_states_and_updates_through_this_module():
    assert message.JobUpdate("7", message.State.TERMINATED).job_state is State.TERMINATED


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff", "not JSON"),
        (b"[]", "must be an object"),
        (b"{}", "unknown message None"),
        ({"type": ["Ping"]}, "unknown message"),
        ({"type": "Message"}, "unknown message 'Message'"),
        ({"type": "Register", "addresses": ["a"], "pid": 1}, "nb_ranks"),
        ({"type": "Register", "addresses": [1]}, "addresses must be a list of strings, but [1] came"),
        ({"type": "Finished", "status": True, "report": {}}, "Finished.status must be an integer"),
        ({"type": "Finished", "status": 0, "report": []}, "Finished.report must be an object"),
        ({"type": "SubmitClient", "environment": {"A": 1}}, "must be an object of strings"),
        ({"type": "JobUpdate", "job_id": "1.1", "job_state": "DEAD"}, "one of WAITING, RUNNING, TERMINATED"),
        ({"type": "JobUpdate", "exit_code": "1"}, "an integer or null"),
        ({"type": "Stop", "reason": None}, "Stop.reason must be a string, but None came"),
    ],
)
def test_what_is_no_message_is_told_with_what_was_expected(data, complaint):
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert complaint in str(caught.value)
