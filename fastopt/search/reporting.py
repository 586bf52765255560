"""Values on the way of a trial: called back or yielded, and where a trial stops or waits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from fastopt._options import integer
from fastopt.errors import OptionError, TrialStopped
from fastopt.search.numbers import real

__all__ = ["Course", "Leg", "Reporter", "Reports", "Stop"]

Reports = tuple[tuple[int, float], ...]
# Says after each report whether the trial is to end: gets all its reports so far.
Stop = Callable[[Reports], bool]


@dataclass(frozen=True)
class Leg:
    """The rule of a trial that waits at a rung, and goes on later; None: it runs to its end."""

    number: int
    rung: int | None

    def __call__(self, reports: Reports) -> bool:
        return self.rung is not None and reports[-1][0] >= self.rung


class Reporter:
    """What an objective gets as ``report``: call it with a step and the value reached there."""

    def __init__(self, sign: float, stop: Stop | None = None) -> None:
        self.sign = sign
        self.stop = stop
        self.seen: list[tuple[int, float]] = []

    def __call__(self, step: int, value: float) -> None:
        """Report ``value`` after ``step``; raises TrialStopped if the trial is to end."""
        step = integer(step, "report: step", low=0)
        if self.seen and step <= self.seen[-1][0]:
            raise OptionError(f"report: step {step} comes after step {self.seen[-1][0]}")
        self.seen.append((step, self.sign * real(value)))
        if self.stop is not None and self.stop(tuple(self.seen)):
            raise TrialStopped(f"stopped after step {step}")


class Course:
    """An objective that yields, and can be left between two values."""

    def __init__(self, items: Generator[Any, Any, Any], reporter: Reporter) -> None:
        self.items, self.reporter = items, reporter
        self._step, self._last = 0, None

    @property
    def alive(self) -> bool:
        """Whether the generator waits, rather than has ended by itself."""
        return inspect.getgeneratorstate(self.items) == inspect.GEN_SUSPENDED

    def run(self) -> Any:
        """Report what is yielded, values or (step, value) pairs; the result is what the objective
        returns, else the last value."""
        while True:
            try:
                item = next(self.items)
            except StopIteration as end:
                return self._last if end.value is None else end.value
            pair = item if isinstance(item, tuple) else (self._step + 1, item)
            self._step, self._last = pair
            self.reporter(self._step, pair[1])
