"""Who waits for whom: which clients are cancelled, when, and how often."""

import pytest

from melissa.launcher.message import CancelClient
from melissa.server.client_watch import ClientWatch
from melissa.server.roster import Roster
from melissa.server.simulation import Simulation, SimulationStatus


class Watched:
    """A watch over one simulation, with a clock that the test reads off."""

    def __init__(self, monkeypatch, timeout=5.0):
        self.now, self.sent = 100.0, []
        monkeypatch.setattr("melissa.server.client_watch.time.monotonic", lambda: self.now)
        self.simulation = Simulation(0, attempt=1, has_job=True, job_is_running=True, job_since=self.now)
        roster = Roster()
        roster.simulations[0] = self.simulation
        self.watch = ClientWatch(roster, self, timeout, waits_for_connections=True)

    def send(self, message):
        self.sent.append(message)

    def becomes(self, status):
        self.simulation.status = status
        self.watch.has_changed(self.simulation)

    def look_in(self, seconds):
        self.now += seconds
        self.watch.look(self.now)


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def test_a_client_is_cancelled_once(watched):
    watched.becomes(SimulationStatus.SILENT)
    watched.becomes(SimulationStatus.SILENT)
    watched.watch.cancel(watched.simulation, "is not needed any more")
    assert watched.sent == [CancelClient(0, 1)]
    assert watched.simulation.cancelled_because == "sent nothing for 5 s (study_options.simulation_timeout)"


def test_what_comes_of_a_client_whose_job_has_ended_is_not_held_against_the_next(watched):
    watched.simulation.has_job = False
    watched.becomes(SimulationStatus.SILENT)
    assert watched.sent == []
    assert watched.simulation.cancelled_because == ""


def test_time_without_a_connection_counts_from_the_attempt_that_lost_it(watched):
    watched.becomes(SimulationStatus.DISCONNECTED)
    watched.look_in(4.0)
    watched.simulation.attempt = 2
    watched.watch.was_submitted(watched.simulation)
    watched.look_in(4.0)
    assert watched.sent == []
    watched.becomes(SimulationStatus.DISCONNECTED)
    watched.look_in(4.0)
    assert watched.sent == []
    watched.look_in(2.0)
    assert watched.sent == [CancelClient(0, 2)]


def test_a_launcher_that_does_not_end_a_cancelled_client_is_not_waited_for(watched, log):
    watched.becomes(SimulationStatus.RUNNING)
    watched.watch.stop(watched.now)
    watched.now += 3.0
    watched.watch.end_those_left(watched.now, 2.0)
    assert watched.sent == [CancelClient(0, 1)]
    watched.now += ClientWatch.CANCEL_GRACE + 1.0
    watched.watch.end_those_left(watched.now, 2.0)
    assert not watched.simulation.has_job
    assert "the launcher has not ended the client of simulation 0; left to it" in log.text


def test_a_stop_while_the_last_clients_are_waited_for_leaves_them_time_to_end(watched):
    watched.becomes(SimulationStatus.FINISHED)
    watched.watch.wait_for_the_last(watched.now)
    watched.now += 4.0
    assert not watched.watch.is_stopping
    watched.watch.stop(watched.now)
    watched.watch.end_those_left(watched.now + 1.0, 2.0)
    assert watched.sent == []
    watched.watch.end_those_left(watched.now + 3.0, 2.0)
    assert watched.sent == [CancelClient(0, 1)]
