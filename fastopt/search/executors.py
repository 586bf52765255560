"""Trials on anybody's executor: processes, threads, loky, Dask, MPI."""

from __future__ import annotations

import os
from collections import deque
from concurrent import futures
from contextlib import suppress
from typing import Any

from fastopt.errors import DTypeError, FastoptError, WorkerDied
from fastopt.search.evaluation import Objective, Portable
from fastopt.search.workers import Arrival, Pace, Task

__all__ = ["Executor"]


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
        self.pace = Pace()

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
