"""One worker process: what its parent knows of it, and what it does."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from contextlib import suppress
from typing import Any

from fastopt.search.evaluation import Objective, transportable
from fastopt.search.workers import Arrival, Task

__all__ = ["LOOKS", "STUCK_S", "Process"]

# Finished trials are sent back at least this often.
REPLY_S = 0.01
# How often an idle worker looks whether its parent is still there.
ORPHAN_S = 2.0
# Seconds without use of the processor after which a forked process is taken for stuck.
STUCK_S = 20.0
LOOKS = 4  # in that time


class Process:
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


def _processor_seconds(pid: int) -> float:
    """What a process has used of the processor; on Linux its clock's number is made of its own."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended
        return math.nan


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
