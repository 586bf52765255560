"""Row 1: how many threads a call gets.

One rule: ``threads=None`` means as many as OpenMP would use now (CPU affinity, OMP_NUM_THREADS and
threadpoolctl all count), capped by the cgroup's CPU quota, and one below the size where threads
pay. A forked child runs everything on one thread, whatever was asked: libgomp's pool does not
survive a fork and a region there would hang.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from fastopt._kernels import openmp_threads
from fastopt._options import integer

__all__ = ["SERIAL_BELOW", "available_threads", "resolve"]

# Elements of streaming work (about 4 bytes each) below which a parallel region costs more than it
# saves on a busy two-core machine; kernels with more work per element pass a smaller figure.
SERIAL_BELOW = 1 << 16

# More threads than cores gain nothing, and OpenMP ends the process where it cannot start them all.
MOST = max(64, os.cpu_count() or 1)

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=1)
def _quota() -> int:
    """CPUs that the cgroup's quota allows, rounded up; a large number where there is none."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2
        if limit != "max":
            return max(1, -(-int(limit) // int(period)))
    except (OSError, ValueError):
        pass
    try:
        cpu = Path("/sys/fs/cgroup/cpu")  # cgroup v1
        micros = int((cpu / "cpu.cfs_quota_us").read_text())
        if micros > 0:
            return max(1, -(-micros // int((cpu / "cpu.cfs_period_us").read_text())))
    except (OSError, ValueError):
        pass
    return 1 << 30


def available_threads() -> int:
    """Threads that ``threads=None`` uses on large work."""
    return 1 if _forked else max(1, min(openmp_threads(), _quota(), MOST))


def resolve(threads: int | None, work: int, serial_below: int = SERIAL_BELOW) -> int:
    """Thread count for ``work`` units.

    Parameters
    ----------
    threads : int or None
        What the caller asked: a positive count is taken as given (up to ``MOST``, and except in
        a forked child), None applies the rule of this module.
    work : int
        Size of the job, in the unit of ``serial_below``.
    """
    if threads is not None:
        asked = integer(threads, "threads", low=1)
        return 1 if _forked else min(asked, MOST)
    return 1 if work < serial_below else available_threads()
