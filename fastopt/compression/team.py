"""Who measures: this process, or processes of our own that each hold the whole job."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from fastopt.errors import FastoptError, UnsupportedError
from fastopt.search.evaluation import Outcome
from fastopt.search.processes import Processes
from fastopt.search.workers import Task

__all__ = ["Team", "check_workers"]

Q = TypeVar("Q")
A = TypeVar("A")


def check_workers(n: int) -> None:
    """UnsupportedError where a process cannot be forked: workers inherit the job's memory."""
    if n > 1 and "fork" not in multiprocessing.get_all_start_methods():
        raise UnsupportedError("workers: more than one needs processes that fork")


class Team:
    """Answers many questions of one kind, in their order, with ``n`` processes.

    Workers are forked when the first question comes, so they hold all that is known by then and
    a question is all that is sent. One that dies or is stuck is replaced and its question asked
    again; the answer to a question that kills two of them is the error.

    Parameters
    ----------
    n : int
        1: this process answers by itself.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def map(self, answer: Callable[[Q], A], questions: Sequence[Q]) -> Iterator[A | FastoptError]:
        """``answer(q)`` for each question."""
        if self.n == 1 or len(questions) < 2:
            yield from map(answer, questions)
            return
        n = min(self.n, len(questions))
        pool = Processes(_Answers(answer), n, None, method="fork", computes=True)
        try:
            pool.send([Task(k, {"question": q}, None) for k, q in enumerate(questions)])
            ready: dict[int, Any] = {}
            for k in range(len(questions)):
                while k not in ready:
                    ready.update(pool.arrivals(None))
                found = ready.pop(k)
                if not isinstance(found, Outcome):
                    yield found
                elif isinstance(found.error, FastoptError):
                    yield found.error
                else:
                    assert found.error is not None
                    raise found.error
        finally:
            pool.close()


class _Answers:
    """A function as a worker process evaluates it."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self._answer = answer

    def each(self, trials: Iterable[dict[str, Any]], stop: Any) -> Iterator[Any]:
        for trial in trials:
            try:
                found = self._answer(trial["question"])
            except Exception as error:
                found = Outcome(math.nan, (), f"{type(error).__name__}: {error}", error=error)
            yield found
