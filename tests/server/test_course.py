"""The course of a study: with which status it ends, and what is done on the way, whatever comes when."""

import threading
from types import SimpleNamespace

import pytest

from melissa.exceptions import TrainingError
from melissa.launcher.message import Finished
from melissa.server.communicator import Communicator, SingleProcess
from melissa.server.deep_learning import course
from melissa.server.deep_learning.course import run_study
from melissa.server.deep_learning.finalizing import Finalization, finalize
from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.progress import StudyProgress

TIMEOUT = 60.0


class Meeting:
    """Where ranks that are threads meet."""

    def __init__(self, nb_ranks):
        self.given = [None] * nb_ranks
        self.has_given = [threading.Event() for _ in range(nb_ranks)]
        self.barrier = threading.Barrier(nb_ranks)


class RankThread(Communicator):
    """The communicator of a rank that is a thread of the test."""

    def __init__(self, rank, meeting):
        self.rank, self.size, self._meeting = rank, len(meeting.given), meeting

    def allgather(self, value):
        meeting = self._meeting
        meeting.given[self.rank] = value
        meeting.has_given[self.rank].set()
        meeting.barrier.wait(TIMEOUT)
        values = list(meeting.given)
        meeting.barrier.wait(TIMEOUT)
        return values

    def bcast(self, value, root=0):
        return self.allgather(value)[root]

    def flags(self, mask, note=0.0):
        raise AssertionError("nothing is asked here")

    def barrier(self):
        self.allgather(None)


class Server:
    """What the course needs of a server; notes in `told` what is done with it."""

    def __init__(self, comm=None, online=lambda: None, ranks=None):
        self.comm = comm or SingleProcess()
        self._ranks = ranks
        self._ending = StudyEnding()
        self._server_online = online
        self.told = []

    def _report_failure(self, error):
        self.told.append(f"failed: {error}")

    def _server_finalize(self, exit_=0):
        self.told.append(exit_)


@pytest.fixture(autouse=True)
def _nothing_to_prepare(monkeypatch):
    monkeypatch.setattr(course, "prepare", lambda server: None)


def run_ranks(servers):
    """Run the course of each server in a thread of its own."""
    failures = []

    def run(server):
        try:
            run_study(server)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT)
    assert failures == []


@pytest.mark.parametrize("hearing", [0, 1])
def test_a_stop_that_one_rank_hears_of_at_the_end_is_every_ranks(hearing):
    meeting = Meeting(2)
    servers = [Server(RankThread(rank, meeting), ranks="others") for rank in range(2)]

    def hears_late():
        # The other rank has said by now that it knows of no stop.
        assert meeting.has_given[1 - hearing].wait(TIMEOUT)
        assert meeting.given[1 - hearing] == (None, 0)
        servers[hearing]._ending.stop("SIGTERM came", 143)

    servers[hearing]._server_online = hears_late
    run_ranks(servers)
    assert [server.told for server in servers] == [[143], [143]]
    for server in servers:
        assert (server._ending.stop_reason, server._ending.stop_status) == ("SIGTERM came", 143)
        assert server._ending.is_interrupted


def test_ranks_that_hear_of_different_stops_end_with_one_status():
    meeting = Meeting(3)
    servers = [Server(RankThread(rank, meeting), ranks="others") for rank in range(3)]
    servers[1]._ending.stop("SIGINT came", 130)
    servers[2]._ending.stop("SIGTERM came", 143)
    run_ranks(servers)
    assert [server.told for server in servers] == [[130], [130], [130]]


def test_training_that_ends_before_the_data_is_no_stop_that_changes_the_status():
    meeting = Meeting(2)
    servers = [Server(RankThread(rank, meeting), ranks="others") for rank in range(2)]
    servers[1]._ending.stop("training has ended before all simulations have", 0)
    run_ranks(servers)
    assert [server.told for server in servers] == [[0], [0]]
    assert servers[0]._ending.stop_reason is None


@pytest.mark.parametrize("error", [TrainingError("no"), SystemExit("no"), KeyboardInterrupt("no")])
def test_a_failure_is_told_before_the_server_ends_and_goes_on_to_the_caller(error):
    def fails():
        raise error

    server = Server(online=fails)
    with pytest.raises(type(error), match="no"):
        run_study(server)
    assert server.told == ["failed: no", 1]


def test_what_fails_while_a_server_ends_in_order_is_a_failure_too():
    server = Server()

    def finalize_badly(exit_=0):
        server.told.append(exit_)
        if exit_ != 1:
            raise TrainingError("the ledger does not balance")

    server._server_finalize = finalize_badly
    with pytest.raises(TrainingError):
        run_study(server)
    assert server.told == [0, "failed: the ledger does not balance", 1]


def test_an_interruption_before_data_are_received_ends_a_rank_in_order_and_several_at_once():
    def is_interrupted():
        raise StudyInterrupted("SIGINT came", 130)

    alone = Server(online=is_interrupted)
    run_study(alone)
    assert alone.told == [130]
    one_of_several = Server(online=is_interrupted, ranks="others")
    with pytest.raises(StudyInterrupted) as interruption:
        run_study(one_of_several)
    assert interruption.value.status == 130
    assert one_of_several.told == []


# The end.


def test_a_server_ends_once_and_again_only_if_it_has_not_come_to_its_end():
    finalization, attempts = Finalization(), []

    def attempt(fails):
        with finalization.once() as is_due:
            attempts.append(is_due)
            if fails:
                raise TrainingError("not yet")

    with pytest.raises(TrainingError):
        attempt(fails=True)
    attempt(fails=False)
    attempt(fails=False)
    assert attempts == [True, True, False]


def test_after_a_failure_each_step_of_the_end_is_taken_whatever_the_others_do(log):
    done = []

    def fails(what):
        done.append(what)
        raise OSError(f"{what}: no space left")

    report = SimpleNamespace(content={"ledger": {}})
    server = SimpleNamespace(
        _progress=StudyProgress(),
        _ensemble=SimpleNamespace(abort=lambda: report),
        _link=SimpleNamespace(send=lambda message: done.append(message)),
        _tb_logger=SimpleNamespace(close=lambda: fails("log"), disable=True),
        _receiver=SimpleNamespace(counters=dict, close=lambda: done.append("receiver")),
        _ranks=SimpleNamespace(end=lambda: fails("ranks")),
        _monitor_reception=lambda counters: None,
        _is_receiving=True,
        dl_config={"convert_log_to_df": False},
    )
    finalize(server, 1)
    assert done == ["log", Finished(1, report.content), "ranks", "receiver"]
    assert server.exit_status == 1
    assert not server._is_receiving
    assert "log: no space left" in log.text
    assert "ranks: no space left" in log.text


def test_a_checkpoint_that_is_never_written_does_not_hold_up_a_failure():
    ending = StudyEnding()
    server = SimpleNamespace(
        comm=SingleProcess(),
        _ending=ending,
        _progress=StudyProgress(),
        _receiver=None,
        _checkpoints=SimpleNamespace(
            is_busy=True, wait=lambda timeout: ending.fail(TrainingError("rank 1 died"))
        ),
    )
    with pytest.raises(TrainingError, match="rank 1 died"):
        finalize(server, 0)
