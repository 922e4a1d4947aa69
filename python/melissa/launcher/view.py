"""What the user sees of a running study: a live panel in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from melissa.launcher.figures import StudyFigures
from melissa.launcher.wording import count, duration, share, significant

__all__ = ["LinesView", "LiveView", "View", "make_view"]

_MAX_WIDTH = 96


class View(ABC):
    """Shows a running study; `refresh` is due at `next_refresh` (monotonic), and may come at any time."""

    _period: float

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self.next_refresh = time.monotonic()
        self._console = console
        self._figures = StudyFigures()
        self._is_shown = True

    @property
    def elapsed(self) -> float:
        """Seconds since the study was started."""
        return self._figures.elapsed

    def report(self, values: Mapping[str, Any]) -> None:
        """Take the values of a Progress message."""
        self._figures.report(values)

    def enter(self, phase: str) -> None:
        """Say what the study is doing, until the server says otherwise."""
        self._figures.phase = phase
        self.next_refresh = time.monotonic()
        self.refresh()

    def restart(self, number: int) -> None:
        """Say from now on that this is the server's restart of that number."""
        self._figures.restarts = number

    def refresh(self) -> None:
        """Show the newest figures, if it is time. A terminal that is gone ends the view and nothing else."""
        now = time.monotonic()
        if now < self.next_refresh:
            return
        self.next_refresh = now + self._period
        if self._is_shown:
            try:
                self._show()
            except OSError:
                self._is_shown = False

    def close(self, phase: str) -> None:
        """End the view, `phase` says how the study did; what is printed afterwards stands below it."""
        self._figures.phase = phase
        self._figures.is_over = True
        if self._is_shown:
            with contextlib.suppress(OSError):
                self._end()
            self._is_shown = False

    @abstractmethod
    def _show(self) -> None:
        """Draw."""

    @abstractmethod
    def _end(self) -> None:
        """Leave the terminal in order."""


class LinesView(View):
    """One line every few seconds, when something has changed: for logs and pipes."""

    _period = 5.0

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        super().__init__(console)
        self._last = ""

    def _show(self) -> None:
        text = self._text()
        if text != self._last:
            self._last = text
            line = f"{duration(self._figures.elapsed)} {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _end(self) -> None:
        self._show()

    def _text(self) -> str:
        figures = self._figures
        if not figures.values:
            return figures.standing
        simulations = _progress(figures.number("simulations_finished"), figures.number("simulations_planned"))
        states = _simulation_states(figures)
        parts = [f"{simulations} simulations" + (f" ({states})" if states else "")]
        if figures.receives_samples:
            parts += self._sample_parts()
        return f"{figures.standing}: {', '.join(parts)}"

    def _sample_parts(self) -> list[str]:
        figures = self._figures
        return [
            f"{count(figures.number('samples_received'))} samples received",
            f"{count(figures.number('samples_trained'))} trained",
            f"buffer {count(figures.number('population'))}/{count(figures.number('capacity'))}",
            f"batch {count(figures.number('batches'))} ({figures.rate('batches_per_second')})",
            *(f"{tag} {significant(value)}" for tag, value in figures.losses.items()),
        ]


class LiveView(View):
    """A panel that is drawn again and again in the terminal, log lines above it."""

    _period = 0.25

    def __init__(self, console: Console, title: str) -> None:
        """Show on `console`, under the name of the study."""
        super().__init__(console)
        self._title = title
        self._is_unicode = console.encoding.startswith("utf")
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def _show(self) -> None:
        self._live.update(self.render(), refresh=True)

    def _end(self) -> None:
        self._show()
        self._live.stop()

    def render(self) -> RenderableType:
        """Draw the panel."""
        width = min(_MAX_WIDTH, self._console.width)
        left = self._figures.left
        times = f"{duration(self._figures.elapsed)} elapsed"
        if left is not None:
            times += f", about {duration(left)} left"
        dot = (" · " if self._is_unicode else " - ", "bright_black")
        return Panel(
            Group(*self._rows(width - 4)),
            title=Text.assemble(("Melissa", "bold"), dot, self._title),
            title_align="left",
            subtitle=Text.assemble((self._figures.standing, "bold cyan"), dot, times),
            subtitle_align="right",
            border_style="bright_black",
            width=width,
        )

    def _rows(self, width: int) -> Iterator[Text]:
        figures = self._figures
        if not figures.values:
            yield Text("the server is on its way")
            return
        finished, planned = figures.number("simulations_finished"), figures.number("simulations_planned")
        rows = [
            (
                "simulations",
                self._bar(width, finished, planned, "green"),
                _progress(finished, planned),
                Text(_simulation_states(figures)),
            )
        ]
        if figures.receives_samples:
            rows += self._sample_rows(width)
        figure_width = max(len(figure) for _, _, figure, _ in rows)
        for label, bar, figure, words in rows:
            yield _row(label, bar, Text(f"{figure:>{figure_width}}  "), words)
        if figures.receives_samples:
            yield _row("waiting", self._waits())
        if figures.losses:
            losses = (f"{tag} {significant(loss)}" for tag, loss in figures.losses.items())
            yield _row("losses", Text("   ".join(losses)))

    def _sample_rows(self, width: int) -> list[tuple[str, Text, str, Text]]:
        figures = self._figures
        number = figures.number
        expected, batches = number("samples_expected"), number("batches_expected")
        capacity, watermark = number("capacity"), number("watermark")
        return [
            (
                "samples",
                self._bar(width, number("samples_received"), expected, "blue"),
                _progress(number("samples_received"), expected),
                Text(f"{figures.rate('samples_per_second')}, {count(number('samples_trained'))} trained"),
            ),
            (
                "buffer",
                self._bar(width, number("population"), capacity, "magenta", mark=watermark),
                _progress(number("population"), capacity),
                Text(f"watermark {count(watermark)}" if watermark > 0 else ""),
            ),
            (
                "batches",
                self._bar(width, number("batches"), batches, "cyan"),
                _progress(number("batches"), batches),
                Text(figures.rate("batches_per_second")),
            ),
        ]

    def _bar(self, width: int, part: float, whole: float, style: str, mark: float = 0.0) -> Text:
        """Draw `part` of `whole`, empty while the whole is not known; `mark` is a level to be shown on it."""
        full, empty, marker = "━─┃" if self._is_unicode else "#-|"
        cells = max(6, min(24, width // 3 - 8))
        filled = min(cells, round(cells * part / whole)) if whole > 0 else 0
        bar = Text.assemble((full * filled, style), (empty * (cells - filled), "bright_black"), "  ")
        if whole > 0 and mark > 0:
            position = min(cells - 1, int(cells * mark / whole))
            return Text.assemble(bar[:position], (marker, "bold yellow"), bar[position + 1 :])
        return bar

    def _waits(self) -> Text:
        figures = self._figures
        return Text.assemble(
            "trainer for data ",
            (share(figures.trainer_wait), "bold red" if figures.trainer_wait > 0.1 else ""),
            ", receiver for room ",
            share(figures.receiver_wait),
        )


def _row(label: str, *parts: Text | None) -> Text:
    row = Text.assemble((f"{label:<13}", "bright_black"), *(part for part in parts if part is not None))
    row.no_wrap, row.overflow = True, "ellipsis"
    return row


def _progress(part: float, whole: float) -> str:
    return f"{count(part)}/{count(whole)}" if whole > 0 else count(part)


def _simulation_states(figures: StudyFigures) -> str:
    """Say in words what the simulations that have not finished do."""
    states = ("running", "failed", "resubmitted")
    known = [(figures.number(f"simulations_{state}"), state) for state in states]
    return ", ".join(f"{count(number)} {state}" for number, state in known if number > 0)


def make_view(console: Console, title: str) -> View:
    """Return the view that fits the terminal, or the lack of one."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, title)
    return LinesView(console)
