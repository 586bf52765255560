"""One line on a terminal that says how far a search is."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

__all__ = ["Line", "duration"]

EVERY_S = 0.1


class Line:
    """Evaluations, rate, best value, time left; nothing where ``stream`` is no terminal.

    Parameters
    ----------
    max_evals : int, optional
    max_time : float, optional
        Budgets, for the time left.
    stream : text file
        stderr by default.
    """

    def __init__(
        self,
        max_evals: int | None = None,
        max_time: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.shown = self.stream.isatty()
        self.max_evals, self.max_time = max_evals, max_time
        self.start = time.monotonic()
        self.last = 0.0
        self.width = 0

    def show(self, n: int, fun: float) -> None:
        """Say that n evaluations are done; at most ten times a second."""
        now = time.monotonic()
        if self.shown and now - self.last >= EVERY_S:
            self.last = now
            self._write("\r" + self.text(n, fun, now - self.start).ljust(self.width))

    def end(self) -> None:
        """Leave the last line and go to the next."""
        if self.shown and self.width:
            self._write("\n")

    def text(self, n: int, fun: float, elapsed: float) -> str:
        """The line itself."""
        rate = n / elapsed if elapsed > 0 else 0.0
        left = math.inf
        if self.max_evals is not None and rate > 0:
            left = (self.max_evals - n) / rate
        if self.max_time is not None:
            left = min(left, self.max_time - elapsed)
        parts = [
            f"{n}/{self.max_evals}" if self.max_evals is not None else str(n),
            f"{rate:.3g}/s",
            f"best {fun:.6g}",
        ]
        if left < math.inf:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _write(self, text: str) -> None:
        self.width = max(self.width, len(text) - 1)
        self.stream.write(text)
        self.stream.flush()


def duration(seconds: float) -> str:
    """``h:mm:ss`` or ``m:ss``."""
    s = max(0, round(seconds))
    return f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}" if s >= 3600 else f"{s // 60}:{s % 60:02}"
