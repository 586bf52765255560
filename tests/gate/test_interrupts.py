"""Ctrl-C: long calls end at once, steps are whole, outside the main thread nothing changes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

from fastopt import optim
from fastopt._interrupts import SHORT, interruptible, whole


@contextlib.contextmanager
def interrupt_after(seconds: float):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def test_a_long_call_is_left_and_runs_on_by_itself():
    gate = threading.Event()
    with interrupt_after(0.01), pytest.raises(KeyboardInterrupt):
        interruptible(SHORT, gate.wait)
    gate.set()


def test_results_errors_and_numpys_state_come_through():
    assert interruptible(SHORT, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        interruptible(SHORT, divmod, 7, 0)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        interruptible(SHORT, np.divide, np.ones(1), np.zeros(1))
    names: list[str] = []
    interruptible(SHORT - 1, lambda: names.append(threading.current_thread().name))
    assert names == [threading.main_thread().name]


def test_a_whole_block_ends_before_ctrl_c_comes():
    seen = []

    def block():
        with whole():
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(sum(range(1000)))

    with pytest.raises(KeyboardInterrupt):
        block()
    assert seen == [499500]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other = threading.Thread(target=block)  # where no signal is handled
    with contextlib.suppress(KeyboardInterrupt):
        other.start()
        other.join()
        time.sleep(0)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["Adam", "Muon"])
def test_a_step_is_whole_or_not_at_all(name):
    """Signals at many moments of a run: parameters and counters always belong together."""
    shape = (64, 96) if name == "Muon" else (100_000,)
    grad = np.ones(shape, "f4")
    grad[::2] = -0.5
    twin_p, torn = np.zeros(shape, "f4"), 0
    twin = getattr(optim, name)(twin_p, max_grad_norm=1.0, schedule=lambda t: 1.0 / (t + 1))
    after = [twin_p.copy()]
    for _ in range(101):
        twin.step(grad)
        after.append(twin_p.copy())
    for k in range(20):
        p = np.zeros(shape, "f4")
        opt = getattr(optim, name)(p, max_grad_norm=1.0, schedule=lambda t: 1.0 / (t + 1))
        with contextlib.suppress(KeyboardInterrupt), interrupt_after(0.0002 * k):
            for _ in range(100):
                opt.step(grad)
        torn += not np.array_equal(p, after[opt.n_steps])
        assert opt._plan.counts[0][0] == opt.n_steps
        opt.step(grad)  # not held
        np.testing.assert_array_equal(p, after[opt.n_steps])
    assert torn == 0
