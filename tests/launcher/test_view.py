"""What the user sees: the live panel, the plain lines, the table at the end."""

import io

import pytest
from rich.console import Console

from melissa.launcher.console import StudyConsole
from melissa.launcher.figures import StudyFigures
from melissa.launcher.summary import summary_table
from melissa.launcher.view import LinesView, LiveView, make_view
from melissa.launcher.wording import count, duration, share, significant

PROGRESS = {
    "simulations_planned": 100,
    "simulations_running": 10,
    "simulations_finished": 42,
    "simulations_failed": 1,
    "simulations_resubmitted": 2,
    "samples_received": 4200,
    "samples_trained": 3900,
    "samples_expected": 10000,
    "batches": 1234,
    "batches_expected": -1,
    "samples_per_second": 311.1,
    "batches_per_second": 31.11,
    "population": 350,
    "capacity": 500,
    "watermark": 300,
    "trainer_wait_s": 1.2,
    "receiver_wait_s": 0.0,
    "losses": {"Loss/train": 0.001234, "Loss/valid": float("nan")},
    "phase": "training",
}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def terminal(width=100, **options) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, **options)


def drawn(view: LiveView, width=100) -> list[str]:
    console = terminal(width)
    console.print(view.render())
    return console.file.getvalue().splitlines()


def test_the_panel_shows_every_figure(clock):
    view = LiveView(terminal(), "study.json")
    view.report(PROGRESS)
    clock.now += 83
    text = "\n".join(drawn(view))
    for figure in (
        "Melissa · study.json",
        "42/100  10 running, 1 failed, 2 resubmitted",
        "4,200/10,000  311/s, 3,900 trained",
        "350/500  watermark 300",
        "1,234  31.1/s",
        "Loss/train 0.00123   Loss/valid nan",
        "training · 01:23 elapsed",
    ):
        assert figure in text
    view.close("finished")


def test_a_restart_of_the_server_is_shown(clock):
    view = LiveView(terminal(), "study.json")
    view.report(PROGRESS)
    view.restart(2)
    assert any("training, restart 2 · " in line for line in drawn(view))
    view.close("finished")


def test_the_panel_says_who_waited_lately(clock):
    view = LiveView(terminal(), "study.json")
    view.report(PROGRESS)
    clock.now += 2.0
    view.report(PROGRESS | {"trainer_wait_s": 1.7, "receiver_wait_s": 0.001})
    assert any("trainer for data 25 %, receiver for room < 1 %" in line for line in drawn(view))
    view.close("finished")


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_the_panel_fits_its_terminal(clock, width):
    view = LiveView(terminal(width), "a rather long name of a configuration.json")
    view.report(PROGRESS)
    lines = drawn(view, width)
    assert {len(line) for line in lines} == {min(width, 96)}
    assert len(lines) == 8
    view.close("finished")


def test_the_watermark_stands_in_the_bar_of_the_buffer(clock):
    view = LiveView(terminal(), "study.json")
    view.report(PROGRESS)
    line = next(line for line in drawn(view) if "buffer" in line)
    bar = line.split()[2]
    assert bar.index("┃") / len(bar) == pytest.approx(300 / 500, abs=1 / len(bar))
    assert bar.count("━") / len(bar) == pytest.approx(350 / 500, abs=2 / len(bar))
    view.close("finished")


def test_a_terminal_without_unicode_gets_plain_bars(clock):
    console = StudyConsole(file=io.TextIOWrapper(io.BytesIO(), "ascii"), force_terminal=True, width=100)
    view = LiveView(console, "study.json")
    view.report(PROGRESS | {"losses": {"über": 1.0}})
    view.refresh()
    view.close("finished")
    console.file.flush()
    drawn = console.file.buffer.getvalue()
    assert b"####" in drawn
    assert b"?ber" in drawn
    assert drawn.count(b"?b") == drawn.count(b"?ber")


def test_figures_that_the_server_does_not_know_yet_leave_the_panel_whole(clock):
    view = LiveView(terminal(), "study.json")
    assert any("the server is on its way" in line for line in drawn(view))
    view.report({"phase": "starting", "samples_per_second": float("nan"), "losses": None, "batches": "many"})
    assert any("simulations" in line for line in drawn(view))
    view.close("finished")


def test_lines_come_when_something_has_changed_and_not_too_often(clock):
    console = Console(file=io.StringIO(), width=40)
    view = LinesView(console)
    view.enter("starting the server")
    view.report(PROGRESS)
    view.refresh()
    assert len(console.file.getvalue().splitlines()) == 1
    clock.now += 5.0
    view.refresh()
    clock.now += 5.0
    view.refresh()
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1] == (
        "00:05 training: 42/100 simulations (10 running, 1 failed, 2 resubmitted), 4,200 samples received, "
        "3,900 trained, buffer 350/500, batch 1,234 (31.1/s), Loss/train 0.00123, Loss/valid nan"
    )
    view.report(PROGRESS | {"simulations_finished": 43})
    view.close("finished")
    assert console.file.getvalue().splitlines()[2].startswith("00:10 finished: 43/100")


def test_the_view_fits_what_stdout_is():
    assert isinstance(make_view(Console(file=io.StringIO()), "study.json"), LinesView)
    live = make_view(terminal(), "study.json")
    assert isinstance(live, LiveView)
    live.close("finished")


def test_a_console_that_is_lost_falls_silent():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    console = StudyConsole(file=Full())
    console.print("nobody sees this")
    assert console.quiet
    console.print("nor this")


def test_the_time_that_is_left_follows_from_the_work_done(clock):
    figures = StudyFigures()
    assert figures.left is None
    figures.report(PROGRESS | {"samples_received": 1})
    clock.now += 60
    figures.report(PROGRESS | {"samples_received": 2500})
    assert figures.left == pytest.approx(180)
    figures.report(PROGRESS | {"batches_expected": 2468})
    assert figures.left == pytest.approx(60)
    figures.is_over = True
    assert figures.left is None


def test_numbers_are_written_for_people():
    assert count(1234567.0) == "1,234,567"
    durations = [duration(seconds) for seconds in (-1, 83.9, 3723, 90061)]
    assert durations == ["00:00", "01:23", "1:02:03", "1 d 01:01:01"]
    assert [significant(value) for value in (0, 311.1, 31.11, 0.0012345, 1.2e-7, 12345.6, float("inf"))] == [
        "0",
        "311",
        "31.1",
        "0.00123",
        "1.2e-07",
        "12,346",
        "inf",
    ]
    assert [share(part) for part in (0, 0.001, 0.25)] == ["0 %", "< 1 %", "25 %"]


def test_the_table_shows_what_the_report_has_and_nothing_else():
    def table(report):
        console = Console(file=io.StringIO(), width=100)
        console.print(summary_table(report, "study"))
        return console.file.getvalue()

    whole = table(
        {
            "simulations": {"planned": 100, "finished": 98, "failed": 2, "resubmitted": 3},
            "ledger": {
                "declared": 10000,
                "trained": 9900,
                "dropped": {"client_failed": 60, "stopped_early": 0, "untrained": 40},
                "duplicates_refused": 5,
            },
            "batches": 5210,
            "samples_delivered": 52100,
            "samples_per_second": 311.04,
            "waits": {"trainer_for_data_s": 1.2, "receiver_for_room_s": 0.0},
            "seconds": 167.4,
            "ranks": [{}],
            "validation": {"root mean square error": 0.0123, "best_constant": 0.13},
            "note": "plain",
        }
    )
    for words in (
        "98",
        "of 100, 2 failed, 3 resubmitted",
        "10,000",
        "9,900",
        "100 │ 60 client failed, 40 untrained",
        "5,210 │ 52,100 samples",
        "311",
        "1.2 s │ for data, < 1 %",
        "02:47",
        "validation best constant",
        "0.13",
        "plain",
    ):
        assert words in whole
    assert "ranks" not in whole
    assert "samples" not in table({"simulations": {"finished": 1}})
    table({})


def test_a_study_that_receives_nothing_shows_its_simulations_alone():
    values = {name: value for name, value in PROGRESS.items() if name.startswith("simulations")}
    for make in (LinesView, lambda console: LiveView(console, "study.json")):
        console = Console(file=io.StringIO(), width=100)
        view = make(console)
        view.report(values | {"phase": "running simulations"})
        view.close("finished")
        shown = console.file.getvalue()
        assert "42/100" in shown
        assert "10 running, 1 failed, 2 resubmitted" in shown
        for word in ("samples", "buffer", "batch", "waiting"):
            assert word not in shown
