"""Who evaluates trials: what the driver asks of workers, and this process as one of them.

Workers take trials with ``send`` and give (number, outcome) pairs from ``arrivals``, as they are
ready; they never learn what is searched. Processes of our own are in processes.py, anybody's
executor in executors.py.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple, Protocol

from fastopt.search.evaluation import Objective, Outcome
from fastopt.search.reporting import Stop

__all__ = ["Arrival", "Inline", "Pace", "Task", "Workers"]

# Work in one message, so that sending it costs little beside it.
CHUNK_S = 0.05

Arrival = tuple[int, "float | Outcome"]


class Task(NamedTuple):
    """One trial on its way."""

    number: int
    trial: dict[str, Any]
    stop: Stop | None


class Workers(Protocol):
    """Somebody who evaluates trials."""

    slots: int  # trials that can run at the same time

    def send(self, tasks: list[Task]) -> None:
        """Take trials; returns at once."""

    def arrivals(self, timeout: float | None) -> list[Arrival]:
        """Wait until trials are finished, or for ``timeout`` seconds: then an empty list."""

    def dismiss(self, numbers: list[int]) -> None:
        """Close trials that wait at a rung: they will not go on."""

    def close(self) -> None:
        """End, with whatever still runs."""


class Inline:
    """This process, one trial at a time, in the order in which they were sent."""

    slots = 1

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.waiting: deque[Task] = deque()

    def send(self, tasks: list[Task]) -> None:
        self.waiting.extend(tasks)

    def arrivals(self, timeout: float | None) -> list[Arrival]:
        if not self.waiting:
            return []
        task = self.waiting.popleft()
        return [(task.number, self.objective(task.trial, task.stop))]

    def dismiss(self, numbers: list[int]) -> None:
        self.objective.dismiss(numbers)

    def close(self) -> None:
        self.waiting.clear()


class Pace:
    """How many trials to put into one message."""

    def __init__(self) -> None:
        self.seconds, self.counted = 0.0, 0

    def take(self, seconds: float, trials: int) -> None:
        self.seconds += seconds
        self.counted += trials

    def chunk(self, waiting: deque[Task], slots: int) -> list[Task]:
        """The next trials: about 50 ms of work, less towards the end so that all end together."""
        each = self.seconds / self.counted if self.counted else math.inf
        k = max(1, min(int(CHUNK_S / max(each, 1e-7)), math.ceil(len(waiting) / (2 * slots))))
        stop = waiting[0].stop
        tasks: list[Task] = []
        while waiting and len(tasks) < k and waiting[0].stop is stop:
            tasks.append(waiting.popleft())
        return tasks
