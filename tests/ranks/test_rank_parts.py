"""Rank 0 and another rank in one process: what they say to each other, and what follows."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from melissa.exceptions import FatalError, ProtocolError, RankLostError
from melissa.launcher.message import Failure, decode
from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.failure import OtherRankFailed, failure_of, report_failure, user_traceback
from melissa.server.figures import RankFigures
from melissa.server.parameter_registry import ParameterRegistry
from melissa.server.progress import StudyProgress
from melissa.server.ranks.agent import LocalReception, RankAgent
from melissa.server.ranks.balance import RankBalance
from melissa.server.ranks.deadline import LastResort
from melissa.server.ranks.hub import RankHub
from melissa.server.ranks.merge import MergedStates
from melissa.server.ranks.message import (
    Alive,
    Done,
    Joined,
    Leaving,
    RankMessage,
    RegisterAttempt,
    Settle,
    StateChange,
)
from melissa.server.ranks.receivers import RankedReceivers
from melissa.server.roll_call import RankWait
from melissa.utility.channel import Listener, connect

KEY = bytes(range(32))


def state(simulation_id, status, attempt=1, steps=0, error=""):
    return SimpleNamespace(
        simulation_id=simulation_id, attempt=attempt, draw=0, status=status, steps_complete=steps,
        host="there", error=error,
    )  # fmt: skip


class PlayedReceiver:
    """Reports the states that the test gives it and keeps what it is told."""

    def __init__(self):
        self.states, self.told, self.samples, self.reception_over = [], [], 0, False

    def changes(self, timeout):
        states, self.states = self.states, []
        return states

    def register(self, *attempt):
        self.told.append(("register", *attempt))

    def confirm(self, simulation_id):
        self.told.append(("confirm", simulation_id))

    def finish(self, simulation_id, reason):
        self.told.append(("finish", simulation_id, reason))

    def abandon_attempt(self, simulation_id):
        self.told.append(("abandon", simulation_id))

    def stop(self):
        self.told.append(("stop",))

    def refusals(self):
        return []

    def counters(self):
        return {"samples_received": self.samples, "expected_samples": -1, "room_wait_s": 0.5}

    def ledger(self, final_reason=None):
        if final_reason:
            self.told.append(("ledger", final_reason))
        return {"declared": self.samples, "trained": self.samples}

    def close(self):
        pass


class PlayedLink:
    def __init__(self):
        self.failure_told, self.sent = False, []

    def send(self, message):
        self.sent.append(message)


class Side:
    """One rank."""

    def __init__(self):
        self.ending, self.receiver, self.registry = StudyEnding(), PlayedReceiver(), ParameterRegistry()
        self.progress, self.finished = StudyProgress(), []
        self.buffer = SimpleNamespace(population=3, capacity=10, lifted=0)
        self.buffer.lift_watermark = self.lift

    def lift(self):
        self.buffer.lifted += 1


@pytest.fixture
def team(monkeypatch):
    """Rank 0 and rank 1 of a study, with receivers that the test plays."""
    monkeypatch.setattr(RankHub, "FIRST_FAILURE_WAIT", 0.2)
    monkeypatch.setattr(RankAgent, "FAREWELL_TIMEOUT", 0.5)
    monkeypatch.setattr(LastResort, "set", lambda self: None)
    link, zero, one = PlayedLink(), Side(), Side()
    with Listener("127.0.0.1", KEY, 1) as listener:
        hub = RankHub(listener, 2, link)
        waiting = threading.Thread(target=hub.wait_for_ranks)
        waiting.start()
        channel = connect(listener.address, KEY, 1, "rank")
        channel.send(Joined(1, 4321, "node1").to_dict())
        agent = RankAgent(channel, 1)
        waiting.join()
    agent.start()
    hub.attach(zero.ending, None, lambda: None)
    agent.attach(one.ending, None, lambda: None)
    agent.receive_with(
        LocalReception(one.receiver, one.buffer, one.registry, one.progress, one.finished.append)
    )
    receivers = RankedReceivers(
        hub, zero.receiver, zero.buffer, zero.registry,
        lambda reason=None: RankFigures.of(0, zero.progress, zero.receiver, final_reason=reason),
    )  # fmt: skip
    yield SimpleNamespace(
        hub=hub, agent=agent, link=link, zero=zero, one=one, receivers=receivers, channel=channel
    )
    hub.end()
    agent.end()


def soon(condition):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Simulations.


def test_an_attempt_is_known_on_every_rank_with_its_parameters_before_its_client_is_asked_for(team):
    team.zero.registry.record(3, 0, ["--nu", 0.5, 7])
    team.receivers.register(3, 1, 0, [0.5, 7.0])
    assert team.one.receiver.told == [("register", 3, 1, 0, [0.5, 7.0])]
    assert team.zero.receiver.told == [("register", 3, 1, 0, [0.5, 7.0])]
    assert team.one.registry.parameters(3, 0) == ["--nu", 0.5, 7]


def test_numbers_that_are_none_travel_too(team):
    team.zero.registry.record(0, 0, ["cold"])
    team.receivers.register(0, 1, 0, [float("nan")])
    (*_, (number,)) = team.one.receiver.told[0]
    assert number != number


def test_parameters_that_cannot_travel_are_an_error(team):
    team.zero.registry.record(3, 0, [object()])
    with pytest.raises(FatalError, match="cannot travel to the other server ranks"):
        team.receivers.register(3, 1, 0, [0.5])


def test_a_simulation_is_confirmed_on_all_ranks_when_all_have_it_finished(team):
    team.receivers.register(0, 1, 0, [])
    team.zero.receiver.states.append(state(0, "finished", steps=3))
    assert [each.status for each in team.receivers.changes(0.0)] == ["running"]
    assert ("confirm", 0) not in team.zero.receiver.told

    team.one.receiver.states.append(state(0, "finished", steps=2))
    team.receivers.settle()
    (merged,) = team.receivers.changes(0.0)
    assert (merged.status, merged.steps_complete) == ("finished", 5)
    assert ("confirm", 0) in team.zero.receiver.told
    soon(lambda: ("confirm", 0) in team.one.receiver.told)
    soon(lambda: team.one.finished)
    assert team.one.finished[0].steps_complete == 5


def test_what_another_rank_knows_is_known_here_after_settle(team):
    team.receivers.register(0, 1, 0, [])
    for steps in range(1, 50):
        team.one.receiver.states.append(state(0, "running", steps=steps))
        team.one.receiver.samples = steps
        team.receivers.settle()
        (merged,) = team.receivers.changes(0.0)
        assert merged.steps_complete == steps
        assert team.receivers.counters()["samples_received"] == steps


def test_what_rank_0_decides_happens_on_all_ranks(team):
    team.receivers.abandon_attempt(4)
    team.receivers.finish(4, "client_failed")
    team.receivers.lift_watermark()
    team.zero.ending.stop("enough", status=3)
    team.receivers.stop()
    soon(lambda: ("stop",) in team.one.receiver.told)
    assert ("abandon", 4) in team.one.receiver.told
    assert ("finish", 4, "client_failed") in team.one.receiver.told
    assert team.one.buffer.lifted == team.zero.buffer.lifted == 1
    assert (team.one.ending.stop_reason, team.one.ending.stop_status) == ("enough", 3)


def test_a_stop_that_another_rank_was_asked_for_stops_all(team):
    team.one.ending.stop("SIGTERM came", status=143)
    soon(lambda: team.zero.ending.stop_reason)
    assert team.zero.ending.stop_reason == "SIGTERM came (server rank 1)"
    assert team.zero.ending.stop_status == 143


def test_requests_of_several_threads_reach_a_rank_in_the_order_of_their_numbers(team, monkeypatch):
    told, tell = [], team.hub.tell

    def slow_at_first(message):
        time.sleep(0.2 if message.request == 1 else 0.0)
        told.append(message.request)
        tell(message)

    monkeypatch.setattr(team.hub, "tell", slow_at_first)
    asking = [threading.Thread(target=team.hub.ask, args=(Settle,)) for _ in range(3)]
    for thread in asking:
        thread.start()
        time.sleep(0.05)
    for thread in asking:
        thread.join(5.0)
    assert told == [1, 2, 3]
    team.hub.wait_for(3)
    # A late word about an older request takes nothing back.
    team.hub._take(1, Done(2))
    assert team.hub.wait_shortly_for(3, timeout=0.0)


def test_figures_are_those_of_all_ranks_and_ledgers_are_closed_on_all(team):
    team.zero.receiver.samples, team.one.receiver.samples = 5, 4
    zero, one = team.receivers.close_ledgers("untrained")
    assert (zero.rank, one.rank) == (0, 1)
    assert one.population == 3
    assert one.ledger["declared"] == 4
    assert ("ledger", "untrained") in team.one.receiver.told
    assert team.receivers.ledger()["declared"] == 9
    assert team.receivers.counters()["expected_samples"] == -1
    assert team.receivers.counters()["room_wait_s"] == 1.0


def test_reception_is_over_when_it_is_on_all_ranks(team):
    team.zero.receiver.reception_over = True
    team.receivers.settle()
    assert not team.receivers.reception_over
    team.one.receiver.reception_over = True
    soon(lambda: team.receivers.reception_over)


# Failures.


def fail(error):
    try:
        raise error
    except Exception as raised:
        return raised


def test_a_failure_of_another_rank_reaches_the_launcher_and_ends_rank_0(team):
    report_failure(fail(ValueError("no such boundary")), None, team.agent)
    soon(lambda: team.zero.ending.error)
    (told,) = team.link.sent
    assert (told.kind, told.message) == ("ValueError", "no such boundary (server rank 1)")
    assert "raise error" in told.traceback
    assert not told.is_death
    assert isinstance(team.zero.ending.error, OtherRankFailed)
    assert str(team.zero.ending.error) == "server rank 1 has failed: ValueError: no such boundary"


def test_a_failure_of_another_rank_stands_in_its_log_once(team, log):
    error = fail(ValueError("no such boundary"))
    for _ in range(2):  # where it is caught, and where the process ends
        report_failure(error, None, team.agent)
    assert [record.message for record in log.records if record.levelname == "ERROR"].count(
        f"the server fails: ValueError: no such boundary\n{user_traceback(error)}".rstrip()
    ) == 1


def test_a_failure_of_rank_0_ends_the_others(team):
    report_failure(fail(ValueError("no such boundary")), team.link, team.hub)
    soon(lambda: team.one.ending.error)
    assert [type(message) for message in team.link.sent] == [Failure]
    assert str(team.one.ending.error) == "server rank 0 has failed: ValueError: no such boundary"


def test_what_fails_because_another_rank_has_failed_is_not_told(team):
    report_failure(fail(ValueError("the first")), None, team.agent)
    report_failure(fail(RuntimeError("connection closed by peer")), team.link, team.hub)
    assert [message.message for message in team.link.sent] == ["the first (server rank 1)"]


def test_what_fails_because_another_rank_has_died_is_not_told(team):
    threading.Timer(0.05, team.channel._connection.shutdown, [socket.SHUT_RDWR]).start()
    report_failure(fail(RuntimeError("connection closed by peer")), team.link, team.hub)
    (told,) = team.link.sent
    assert told.kind == RankLostError.__name__


def test_a_rank_that_dies_is_named(team):
    team.channel._connection.shutdown(socket.SHUT_RDWR)
    soon(lambda: team.zero.ending.error and team.one.ending.error)
    (told,) = team.link.sent
    assert told.kind == RankLostError.__name__
    assert told.is_death
    assert "server rank 1 (process 4321 on node1) is gone" in told.message
    assert "server rank 0 has failed: RankLostError: server rank 0 is gone" in str(team.one.ending.error)


def test_a_rank_that_says_nothing_for_long_is_lost(team):
    team.hub.attach(team.zero.ending, 0.2, lambda: None)
    team.agent._channel.send = lambda message: None
    soon(lambda: team.zero.ending.error)
    assert "has said nothing for" in str(team.zero.ending.error)


def test_a_wait_for_another_rank_ends_with_its_failure(team):
    team.agent._obey = lambda message: None
    threading.Timer(0.1, team.agent.fail, [ValueError("in the middle")]).start()
    with pytest.raises(OtherRankFailed, match="in the middle"):
        team.receivers.settle()


def test_after_the_end_a_closed_channel_is_no_failure(team):
    team.hub.end()
    team.agent.wait_for_end()
    team.agent.end()
    assert team.zero.ending.error is team.one.ending.error is None
    assert team.link.sent == []


# How they join.


@pytest.fixture
def joining(monkeypatch):
    """Rank 0, which waits for two others; `result()` is what ended its wait."""
    monkeypatch.setattr(RankHub, "FIRST_FAILURE_WAIT", 0.0)
    monkeypatch.setattr(LastResort, "set", lambda self: None)
    link, errors, channels = PlayedLink(), [], []
    with Listener("127.0.0.1", KEY, 1) as listener:
        hub = RankHub(listener, 3, link)

        def wait_for_ranks():
            try:
                hub.wait_for_ranks()
            except BaseException as error:
                errors.append(error)

        waiting = threading.Thread(target=wait_for_ranks)

        def join(role, rank=1):
            channels.append(connect(listener.address, KEY, 1, role))
            channels[-1].send(Joined(rank, 4321, "node1").to_dict())
            return channels[-1]

        def result():
            waiting.join(10.0)
            return errors[0]

        waiting.start()
        yield SimpleNamespace(hub=hub, link=link, join=join, result=result)
        hub._ending.fail(RuntimeError("the test is over"))
        waiting.join()
    for channel in [*channels, *hub._channels.values()]:
        channel.close()


def test_ranks_that_do_not_come_are_named(joining, monkeypatch, log):
    monkeypatch.setattr(RankWait, "REMINDER_PERIOD", 0.05)
    there = joining.join("rank")
    soon(lambda: "server rank 2 has not come for" in log.text)
    monkeypatch.setattr(RankWait, "LIMIT", 0.1)
    assert str(joining.result()).startswith(
        "server rank 2 has not come within 0.1 s: rank 0 expects them at "
    )
    assert isinstance(joining.result(), RankLostError)
    told = there.recv(5.0)
    while (message := decode(told, RankMessage)) == Alive():
        told = there.recv(5.0)
    assert "server rank 2 has not come" in message.message, "who is there learns of it"


@pytest.mark.parametrize("role", ["rank-life", "rank"])
def test_a_rank_that_dies_before_all_have_joined_is_named(joining, role):
    channel = joining.join(role)
    soon(lambda: joining.hub._lives if role == "rank-life" else joining.hub._channels)
    channel.close()
    assert "server rank 1 (process 4321 on node1) is gone" in str(joining.result())
    (told,) = joining.link.sent
    assert told.is_death


def test_what_a_rank_fails_of_before_all_have_joined_is_told(joining):
    joining.join("rank").send(failure_of(fail(ValueError("no such file")), rank=1).to_dict())
    assert str(joining.result()) == "server rank 1 has failed: ValueError: no such file"
    assert [message.message for message in joining.link.sent] == ["no such file (server rank 1)"]


def test_a_rank_that_was_interrupted_before_all_have_joined_interrupts_the_others(joining):
    joining.join("rank").send(Leaving("SIGTERM came", 143).to_dict())
    assert isinstance(joining.result(), StudyInterrupted)
    assert joining.result().status == 143


def test_a_rank_that_dies_before_it_has_said_who_it_is_is_one_of_the_missing(joining):
    joining.join("rank", rank=2)
    soon(lambda: joining.hub._channels)
    connect(joining.hub._listener.address, KEY, 1, "rank-life").close()
    assert ", of server rank 1, is gone before it has said who it is" in str(joining.result())


# Messages.


def test_messages_between_ranks_are_a_family_of_their_own():
    message = RegisterAttempt(1, 2, 3, 0, [0.5], ["a", 1])
    assert decode(message.to_dict(), RankMessage) == message
    with pytest.raises(ProtocolError, match="unknown message 'RegisterAttempt'"):
        decode(message.to_dict())
    with pytest.raises(ProtocolError, match="unknown message 'JobUpdate'"):
        decode({"type": "JobUpdate"}, RankMessage)
    with pytest.raises(ProtocolError, match=r"Done.request must be an integer"):
        decode({"type": "Done", "request": "first"}, RankMessage)
    assert decode(Done(3).to_dict(), RankMessage) == Done(3)


# States.


@pytest.mark.parametrize(
    ("statuses", "merged"),
    [
        (("finished", "finished"), "finished"),
        (("finished", "running"), "running"),
        (("finished", "planned"), "running"),
        (("silent", "silent"), "silent"),
        (("silent", "finished"), "silent"),
        (("silent", "running"), "running"),
        (("silent", "planned"), "silent"),
        (("silent", "connected", "planned"), "connected"),
        (("silent", "planned", "finished"), "silent"),
        (("connected", "silent"), "silent"),
        (("silent", "connected", "silent"), "silent"),
        (("connected", "connected"), "connected"),
        (("connected", "planned"), "connected"),
        (("disconnected", "planned"), "disconnected"),
        (("planned", "planned"), "planned"),
        (("dropped", "finished"), "dropped"),
    ],
)
def test_a_simulation_has_one_status_on_all_ranks(statuses, merged):
    states = MergedStates(len(statuses))
    states.register(0, 1, 0)
    for rank, status in enumerate(statuses):
        together = states.update(rank, StateChange(0, 1, 0, status, 1))
    assert together.status == merged


def test_steps_of_a_draw_count_on_in_its_next_attempt_and_not_in_the_next_draws():
    states = MergedStates(2)
    states.register(0, 1, 0)
    states.update(0, StateChange(0, 1, 0, "running", 3))
    states.update(1, StateChange(0, 1, 0, "running", 2))
    states.register(0, 2, 0)
    assert states.update(0, StateChange(0, 1, 0, "finished", 9)) is None
    assert states.update(0, StateChange(0, 2, 0, "running", 4)).steps_complete == 6
    states.register(0, 3, 1)
    assert states.update(1, StateChange(0, 3, 1, "running", 1)).steps_complete == 1


# Ranks that wait for each other.


def rank(number, population, waiting=0, waits=False, phase="training", watermark=0, batches=0):
    return RankFigures(
        number, phase=phase, batches=batches, population=population, capacity=10, watermark=watermark,
        waits_for_data=waits, counters={"samples_waiting": waiting, "samples_received": 10},
    )  # fmt: skip


@pytest.fixture
def balance(monkeypatch):
    monkeypatch.setattr(RankBalance, "SETTLED", 0.05)
    lifted = []
    balance = RankBalance(lambda: lifted.append(True), batch_size=4, patience=0.3)
    balance.lifted = lifted
    return balance


def look_for(balance, seconds, ranks, live):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        balance.look(ranks, live)
        time.sleep(0.01)


LIVE = [object(), object()]


def test_the_watermark_is_lifted_when_clients_wait_at_a_full_rank_and_another_is_below_it(balance, log):
    waiting = "waiting for the watermark"
    ranks = [rank(0, 10, 2, phase=waiting, watermark=8), rank(1, 5, phase=waiting, watermark=8)]
    look_for(balance, 0.2, ranks, LIVE)
    assert balance.lifted == [True]
    assert "server rank 0 is full (10 samples)" in log.text
    assert "rank 1 has 5 samples, and its watermark is 8" in log.text


def test_a_rank_that_can_form_no_batch_while_every_client_waits_at_a_full_one_ends_the_study(balance):
    ranks = [rank(0, 10, 2), rank(1, 1, waits=True)]
    with pytest.raises(
        FatalError, match=r"rank 0 is full.*rank 1 has 1, too few for a batch of 4.*buffer_size"
    ):
        look_for(balance, 2.0, ranks, LIVE)


def test_a_client_that_does_not_wait_for_room_may_yet_feed_the_empty_rank(balance):
    ranks = [rank(0, 10, 1), rank(1, 1, waits=True)]
    look_for(balance, 0.2, ranks, LIVE)
    with pytest.raises(FatalError, match="wait for each other"):
        look_for(balance, 2.0, ranks, LIVE)


def test_a_full_rank_beside_one_that_trains_is_as_it_should_be(balance):
    look_for(balance, 0.5, [rank(0, 10, 2), rank(1, 6, waits=False)], LIVE)
    balance.SETTLED = 5.0
    for batches in range(20):
        look_for(balance, 0.02, [rank(0, 10, 2, batches=batches), rank(1, 0, waits=True)], LIVE)
    assert balance.lifted == []
