"""Where trials run: processes of our own, or anybody's executor. Results come as they are ready.

Both take trials with ``send`` and give (number, outcome) pairs from ``arrivals``; they never learn
what is searched.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import time
from collections import deque
from concurrent import futures
from contextlib import suppress
from multiprocessing import connection, get_context
from typing import Any, NamedTuple, Protocol

from fastopt.errors import DTypeError, FastoptError, TrialTimeout, WorkerDied
from fastopt.search.evaluation import Objective, Outcome, Portable, transportable
from fastopt.search.reporting import Leg, Stop

__all__ = ["Executor", "Inline", "Processes", "Workers"]

# Work in one message, so that sending it costs little beside it.
CHUNK_S = 0.05
# Finished trials are sent back at least this often.
REPLY_S = 0.01
# How often an idle worker looks whether its parent is still there.
ORPHAN_S = 2.0
# Processes in a row that end before they are ready, after which the search ends.
BAD_STARTS = 3
# Seconds without use of the processor after which a forked process is taken for stuck.
STUCK_S = 20.0
LOOKS = 4  # in that time

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


class _Pace:
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


class Executor:
    """Anybody's ``concurrent.futures.Executor``: processes, threads, loky, Dask, MPI.

    Raises
    ------
    WorkerDied
        The executor broke; what was finished before has arrived.
    """

    def __init__(self, objective: Objective, executor: Any) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise DTypeError(
                f"executor: expected a concurrent.futures.Executor, got {type(executor).__name__}"
            )
        self.executor = executor
        self.slots = _slots(executor)
        near = isinstance(executor, futures.ProcessPoolExecutor)
        objective.f = Portable(objective.f, far=not near)
        if near:
            objective.f.packed()  # refused here, where the user can see why
        self.many, self.dismiss = objective.many, objective.dismiss
        self.waiting: deque[Task] = deque()
        self.running: dict[Any, list[Task]] = {}
        self.pace = _Pace()

    def send(self, tasks: list[Task]) -> None:
        self.waiting.extend(tasks)
        self._feed()

    def arrivals(self, timeout: float | None) -> list[Arrival]:
        done = futures.wait(
            list(self.running), timeout=timeout, return_when=futures.FIRST_COMPLETED
        ).done
        arrived: list[Arrival] = []
        broken: BaseException | None = None
        for future in sorted(done, key=lambda d: self.running[d][0].number):
            tasks = self.running.pop(future)
            try:
                outcomes, seconds = future.result()
            except Exception as error:
                broken = error
                continue
            self.pace.take(seconds, len(tasks))
            arrived += zip([task.number for task in tasks], outcomes, strict=True)
        if broken is not None and not arrived:
            if isinstance(broken, FastoptError):
                raise broken
            raise WorkerDied(
                f"executor: {type(self.executor).__name__} broke: "
                f"{type(broken).__name__}: {broken}"
            ) from broken
        if broken is None:
            self._feed()
        else:  # what has arrived is recorded first
            failed: futures.Future[Any] = futures.Future()
            failed.set_exception(broken)
            self.running[failed] = tasks
        return arrived

    def close(self) -> None:
        self.waiting.clear()
        for future in self.running:
            future.cancel()

    def _feed(self) -> None:
        """Two messages per worker are out, so that none waits for this process."""
        while self.waiting and len(self.running) < 2 * self.slots:
            tasks = self.pace.chunk(self.waiting, self.slots)
            trials = [task.trial for task in tasks]
            try:
                future = self.executor.submit(self.many, trials, tasks[0].stop)
            except Exception as error:
                future = futures.Future()
                future.set_exception(error)
            self.running[future] = tasks


def _slots(executor: Any) -> int:
    """Workers of an executor, where it tells; else the processors here."""
    for name in ("_max_workers", "num_workers"):
        known = getattr(executor, name, None)
        if isinstance(known, int) and known > 0:
            return known
    with suppress(Exception):  # Dask
        return max(1, int(sum(executor._client.ncores().values())))
    return os.cpu_count() or 1


class _Process:
    """One worker process, seen from here."""

    def __init__(self, context: Any, payload: Any) -> None:
        self.pipe, theirs = context.Pipe()
        # Number of the trial in hand (-1: none) and when it began, on the machine's clock.
        self.now = context.RawArray("d", [-1.0, 0.0])
        self.process = context.Process(
            target=_serve, args=(theirs, payload, self.now, os.getpid()), daemon=False
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.tasks: dict[int, Task] = {}
        self.holds: set[int] = set()  # trials that wait there at a rung
        self.queue: deque[Task] = deque()  # those of them that are to go on
        self.used = 0.0  # seconds of the processor,
        self.seen = time.monotonic()  # when they were read,
        self.still = 0  # and how many times they had not changed

    def stuck(self, computes: bool) -> bool:
        """Whether it has work and has not used the processor for ``STUCK_S``.

        A forked process waits for ever for a lock that another thread of this process held at the
        fork. A trial may wait for something else, so it counts only where it ``computes``.
        """
        now = time.monotonic()
        if now - self.seen < STUCK_S / LOOKS:
            return False
        used = _processor_seconds(self.process.pid)
        works = bool(self.tasks) and (computes or self.now[0] < 0)
        self.still = self.still + 1 if works and used == self.used else 0
        self.used, self.seen = used, now
        return self.still >= LOOKS

    def overdue(self, timeout: float) -> float:
        """Seconds until the trial in hand has run for ``timeout``."""
        number, start = self.now
        return math.inf if number < 0 else start + timeout - time.monotonic()

    def end(self) -> None:
        with suppress(OSError):
            self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


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
        self.forks = self.context.get_start_method() == "fork" and sys.platform == "linux"
        if self.context.get_start_method() == "fork":
            self.payload: Any = objective
        else:
            objective.f = Portable(objective.f)
            objective.f.packed()
            self.payload = objective
        self.waiting: deque[Task] = deque()
        self.pool: list[_Process] = []
        self.deaths: dict[int, int] = {}
        self.bad_starts = 0
        self.pace = _Pace()

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
            if self.forks:
                wait = min(wait, STUCK_S / LOOKS)
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
                if self.forks and p.stuck(self.computes):
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
                idle = _Process(self.context, self.payload)
                self.pool.append(idle)
            self._give(idle, self.pace.chunk(self.waiting, self.slots))

    def _give(self, p: _Process, tasks: list[Task]) -> None:
        p.tasks.update({task.number: task for task in tasks})
        try:
            p.pipe.send((tasks[0].stop, [(task.number, task.trial) for task in tasks]))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died: seen at its sentinel
        except Exception as error:  # not picklable
            raise DTypeError(f"trial: cannot be sent to another process: {error}") from None

    def _read(self, p: _Process) -> list[Arrival]:
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

    def _died(self, p: _Process) -> list[Arrival]:
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

    def _too_long(self, p: _Process) -> list[Arrival]:
        number = int(p.now[0])
        task = p.tasks.pop(number, None)
        self._replace(p)
        if task is None:
            return []
        return [_failed(number, TrialTimeout(f"no result after timeout={self.timeout:g} s"))]

    def _replace(self, p: _Process) -> None:
        self.waiting.extendleft(reversed([*p.tasks.values(), *p.queue]))
        p.tasks.clear()
        self.pool.remove(p)
        p.end()


def _processor_seconds(pid: int) -> float:
    """What a process has used of the processor; on Linux its clock's number is made of its own."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended
        return math.nan


def _failed(number: int, error: Exception) -> Arrival:
    return number, Outcome(math.nan, (), f"{type(error).__name__}: {error}", error)


def _serve(pipe: Any, objective: Objective, now: Any, parent: int) -> None:
    """What a worker process does. Its parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monotonic = time.monotonic
    while True:
        while not pipe.poll(ORPHAN_S):
            if os.getppid() != parent:
                return
        try:
            stop, trials = pipe.recv()
        except (EOFError, OSError):
            return
        except Exception as error:
            pipe.send(("broken", f"{type(error).__name__}: {error}", 0.0))
            return
        if not trials:
            objective.dismiss(stop)
            continue
        done: list[Arrival] = []
        sent = begun = monotonic()
        results = objective.each((trial for _, trial in trials), stop)
        for number, _ in trials:
            now[1] = monotonic()
            now[0] = number
            outcome = transportable(next(results))
            now[0] = -1.0
            done.append((number, outcome))
            if monotonic() - sent >= REPLY_S:
                sent = monotonic()
                pipe.send(("done", done, sent - begun))
                done, begun = [], sent
        if done:
            pipe.send(("done", done, monotonic() - begun))
