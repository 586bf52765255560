"""Trials on processes of our own, which are replaced when they die, hang or are stuck."""

from __future__ import annotations

import math
import pickle
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from multiprocessing import connection, get_context
from typing import Any

from fastopt.errors import DTypeError, TrialTimeout, WorkerDied
from fastopt.search import process
from fastopt.search.evaluation import Outcome, Portable
from fastopt.search.process import Process
from fastopt.search.reporting import Leg
from fastopt.search.workers import Arrival, Pace, Task

__all__ = ["Processes"]

# Processes in a row that end before they are ready, after which the search ends.
BAD_STARTS = 3


class Processes:
    """``n`` processes of our own. One that dies is replaced, and so is one whose trial takes
    longer than ``timeout`` seconds.

    The trial that a process died of is tried once more; if that one dies, too, it is a failed
    trial with WorkerDied as its error. A forked process that is stuck before a trial begins is
    replaced in the same way.

    Parameters
    ----------
    objective : Objective
        Anything with ``each(trials, stop)`` where processes are forked.
    method : {"fork", "spawn", "forkserver"}, optional
        How processes start; None is Python's default.
    computes : bool, default=False
        Trials use the processor all the time, so one that does not is stuck, too.
    """

    def __init__(
        self,
        objective: Any,
        n: int,
        timeout: float | None,
        method: str | None = None,
        *,
        computes: bool = False,
    ) -> None:
        self.context = get_context(method)
        self.slots = n
        self.timeout = timeout
        self.computes = computes
        forks = self.context.get_start_method() == "fork"
        self.watched = forks and sys.platform == "linux"  # where a stuck process can be told
        if not forks:
            objective.f = Portable(objective.f)
            objective.f.packed()
        self.payload = objective
        self.waiting: deque[Task] = deque()
        self.pool: list[Process] = []
        self.deaths: dict[int, int] = {}
        self.bad_starts = 0
        self.pace = Pace()

    def send(self, tasks: list[Task]) -> None:
        for task in tasks:
            home = next((p for p in self.pool if task.number in p.holds), None)
            (self.waiting if home is None else home.queue).append(task)
        self._feed()

    def arrivals(self, timeout: float | None) -> list[Arrival]:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._feed()
            wait = until - time.monotonic()
            if self.timeout is not None:
                wait = min([wait, *(p.overdue(self.timeout) for p in self.pool)], default=wait)
            if self.watched:
                wait = min(wait, process.STUCK_S / process.LOOKS)
            handles: list[Any] = [p.pipe for p in self.pool]
            handles += [p.process.sentinel for p in self.pool]
            ready = connection.wait(handles, None if wait == math.inf else max(wait, 0.0))
            arrived: list[Arrival] = []
            for p in list(self.pool):
                if p.pipe in ready or p.process.sentinel in ready:
                    arrived += self._read(p)
            for p in list(self.pool):
                if self.timeout is not None and p.overdue(self.timeout) <= 0:
                    arrived += self._read(p)
                    if p in self.pool:
                        arrived += self._too_long(p)
            for p in self.pool:
                if self.watched and p.stuck(self.computes):
                    p.process.kill()  # it has died at the next look
            if arrived or time.monotonic() >= until or not (self.waiting or self._busy()):
                return arrived

    def dismiss(self, numbers: list[int]) -> None:
        for p in self.pool:
            gone = p.holds.intersection(numbers)
            p.holds -= gone
            if gone:
                with suppress(OSError):  # it died: what it held is gone
                    p.pipe.send((sorted(gone), []))

    def close(self) -> None:
        self.waiting.clear()
        while self.pool:
            self.pool.pop().end()

    # --- inside

    def _busy(self) -> bool:
        return any(p.tasks or p.queue for p in self.pool)

    def _feed(self) -> None:
        """Work for every process that has none: one that is sending would not read."""
        for p in self.pool:
            if p.queue and not p.tasks:
                self._give(p, [p.queue.popleft()])
        while self.waiting:
            idle = next((p for p in self.pool if not p.tasks), None)
            if idle is None:
                if len(self.pool) == self.slots:
                    return
                idle = Process(self.context, self.payload)
                self.pool.append(idle)
            self._give(idle, self.pace.chunk(self.waiting, self.slots))

    def _give(self, p: Process, tasks: list[Task]) -> None:
        p.tasks.update({task.number: task for task in tasks})
        try:
            p.pipe.send((tasks[0].stop, [(task.number, task.trial) for task in tasks]))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died: seen at its sentinel
        except Exception as error:  # not picklable
            raise DTypeError(f"trial: cannot be sent to another process: {error}") from None

    def _read(self, p: Process) -> list[Arrival]:
        """All that a process has sent; if it has died, its trials go on elsewhere."""
        arrived: list[Arrival] = []
        dead = not p.process.is_alive()  # looked at first: what it sent before is still read
        try:
            while p.pipe.poll():
                kind, content, seconds = p.pipe.recv()
                if kind == "broken":
                    raise DTypeError(f"objective: cannot be read in another process: {content}")
                p.ready, self.bad_starts = True, 0
                self.pace.take(seconds, len(content))
                for number, outcome in content:
                    task = p.tasks.pop(number, None)
                    rests = isinstance(outcome, Outcome) and outcome.stopped
                    p.holds.discard(number)
                    if rests and task is not None and isinstance(task.stop, Leg):
                        p.holds.add(number)
                    arrived.append((number, outcome))
        except (EOFError, OSError, pickle.UnpicklingError):
            dead = True
        if dead:
            arrived += self._died(p)
        return arrived

    def _died(self, p: Process) -> list[Arrival]:
        number = int(p.now[0])
        p.process.join()
        code = p.process.exitcode
        arrived: list[Arrival] = []
        if not p.ready and number < 0:
            self.bad_starts += 1
            if self.bad_starts >= BAD_STARTS:
                raise WorkerDied(f"workers: processes end before they are ready, exit code {code}")
        task = p.tasks.pop(number, None)
        if task is not None:
            deaths = self.deaths[number] = self.deaths.get(number, 0) + 1
            if deaths == 1:
                self.waiting.appendleft(task)
            else:
                what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                arrived.append(_failed(number, WorkerDied(f"worker ended twice, by {what}")))
        self._replace(p)
        return arrived

    def _too_long(self, p: Process) -> list[Arrival]:
        number = int(p.now[0])
        task = p.tasks.pop(number, None)
        self._replace(p)
        if task is None:
            return []
        return [_failed(number, TrialTimeout(f"no result after timeout={self.timeout:g} s"))]

    def _replace(self, p: Process) -> None:
        self.waiting.extendleft(reversed([*p.tasks.values(), *p.queue]))
        p.tasks.clear()
        self.pool.remove(p)
        p.end()


def _failed(number: int, error: Exception) -> Arrival:
    return number, Outcome(math.nan, (), f"{type(error).__name__}: {error}", error)
