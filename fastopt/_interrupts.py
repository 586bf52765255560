"""Row 1: Ctrl-C ends long calls at once and short ones never half way.

Kernels look at signals themselves between chunks of work (shared/pool). What has no such place, a
call of LAPACK or one long row, goes through :func:`interruptible`; what must not be torn stands in
a block of :func:`whole`.
"""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

__all__ = ["interruptible", "whole"]

T = TypeVar("T")

# Floating-point operations below which a call ends before anybody would notice, about 0.1 s.
SHORT = 1 << 31


def interruptible(work: float, function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, left on Ctrl-C within about 50 ms.

    A call of much ``work`` (floating-point operations) runs in a thread of its own, while this one
    waits and looks at the signals. After Ctrl-C the call runs on by itself to its end and its
    result is dropped, so it may write only to arrays that nobody else sees. Outside the main
    thread, which alone gets signals, it is a plain call.
    """
    if work < SHORT or threading.current_thread() is not threading.main_thread():
        return function(*args)
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def call() -> None:
        try:
            results.append(function(*args))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    context = contextvars.copy_context()  # NumPy 2's errstate is the caller's
    state = np.geterr()  # and NumPy 1's, which is kept per thread

    def start() -> None:
        with np.errstate(**state):
            context.run(call)

    threading.Thread(target=start, daemon=True).start()
    while not done.wait(0.05):
        pass
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; about 5 us."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[Any] = []
    signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])
