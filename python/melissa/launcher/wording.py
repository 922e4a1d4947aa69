"""How the launcher writes numbers: counts, durations, rates, losses."""

from __future__ import annotations

import math

__all__ = ["count", "duration", "share", "significant"]


def count(value: float) -> str:
    """Write a count with thousands apart: ``12,345``."""
    return f"{int(value):,}"


def duration(seconds: float) -> str:
    """Write a duration: ``01:23``, ``1:02:03`` from an hour on, ``2 d 01:02:03`` from a day on."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def significant(value: float) -> str:
    """Write a rate or a loss with three significant digits: ``311``, ``31.1``, ``0.00123``, ``1.23e-05``."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.2e}"
    return f"{value:.3g}"


def share(part: float) -> str:
    """Write a share of one in percent: ``12 %``; what is more than nothing does not become ``0 %``."""
    percent = 100 * part
    return "< 1 %" if 0 < percent < 1 else f"{percent:.0f} %"
