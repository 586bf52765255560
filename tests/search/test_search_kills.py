"""Workers of ``minimize(workers=n)`` that somebody kills while a search runs."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children

import numpy as np
import pytest

from fastopt.search import Float, Int, Space, minimize
from fastopt.search.journal import read

SPACE = Space(x=Float(-2, 2), n=Int(1, 9))
EVALS = 150


def busy(x, n):
    """About a millisecond, so that a kill finds a trial in hand."""
    return (x - 0.5) ** 2 + abs(n - 4) + 0 * sum(range(40_000))


@pytest.mark.forks
@pytest.mark.parametrize("method", ["random", "genetic"])
def test_kill_9_of_workers_at_random_moments(tmp_path, method):
    rng = np.random.default_rng(0)
    killed: list[int] = []
    left = 5  # trials until the next kill

    def kill(progress):
        nonlocal left
        left -= 1
        children = active_children()
        if left <= 0 and children:
            child = children[rng.integers(len(children))]
            os.kill(child.pid, signal.SIGKILL)
            killed.append(child.pid)
            left = int(rng.integers(6, 16))

    plain = minimize(busy, SPACE, method=method, max_evals=EVALS, seed=1)
    path = tmp_path / "journal"
    options = {"method": method, "max_evals": EVALS, "seed": 1, "workers": 3, "storage": path}
    res = minimize(busy, SPACE, callback=kill, on_error="skip", **options)
    assert len(set(killed)) >= 5
    assert res.n_evals == EVALS
    assert sorted(read(path)[1]) == list(range(EVALS))
    assert len(path.read_bytes().splitlines()) == 1 + EVALS  # the header, and each trial once
    # A trial whose process was killed twice has failed; chance may have it so.
    assert all(e.startswith("WorkerDied: worker ended twice") for e in res.errors.values())
    if not res.errors:
        assert res.values.tobytes() == plain.values.tobytes()
        assert res.history.tobytes() == plain.history.tobytes()
    again = minimize(busy, SPACE, on_error="skip", **options)
    assert again.history.tobytes() == res.history.tobytes()
