"""Row 1: how many threads a call gets.

Strongest first: ``threads=`` of the call, :func:`set_num_threads`, an active
``threadpoolctl.threadpool_limits``, the variables FASTOPT_NUM_THREADS and OMP_NUM_THREADS, and
last the processors that the thread may use (CPU affinity and the cgroup's quota). Work below the
size where threads pay gets one, unless ``threads=`` says otherwise. A forked child begins with one
thread, since N forked workers with all processors each are slower than serial; it gets more where
it asks for them by any of the first three.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from fastopt._arrays import Array
from fastopt._kernels.shared import pool
from fastopt._options import integer
from fastopt.errors import OptionError

__all__ = [
    "SERIAL_BELOW",
    "STREAM_FROM",
    "get_num_threads",
    "resolve",
    "set_num_threads",
    "streams",
]

# Elements of streaming work (about 4 bytes each) below which a second thread saves less than it
# costs to wake it on a busy two-core machine; kernels with more work per element pass a smaller
# figure.
SERIAL_BELOW = 1 << 16

# Bytes read and written from which kernels write past the caches: a result of such a pass has left
# them before anybody reads it, and fetching its lines first wastes bandwidth.
STREAM_FROM = 32 << 20

MOST = min(pool.MOST, max(64, os.cpu_count() or 1))  # more threads than that gain nothing

_asked: int | None = None  # by set_num_threads
_limit: int | None = None  # by threadpoolctl
_forked = False


def _after_fork() -> None:
    global _asked, _limit, _forked
    _asked, _limit, _forked = None, None, True


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


def _default() -> int:
    """What the environment and the machine say."""
    if _forked:
        return 1
    own = os.environ.get("FASTOPT_NUM_THREADS")
    if own:
        if not own.strip().isdecimal() or int(own) == 0:
            raise OptionError(f"FASTOPT_NUM_THREADS: expected an integer >= 1, got {own!r}")
        return min(int(own), MOST)
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # outermost level
    if openmp.isdecimal() and int(openmp) > 0:
        return min(int(openmp), MOST)
    return max(1, min(pool.cpus(), _quota(), MOST))


def get_num_threads() -> int:
    """Threads that large work gets with ``threads=None``.

    Returns
    -------
    int
        What was last set by :func:`set_num_threads`, else an active limit of threadpoolctl, else
        FASTOPT_NUM_THREADS, else OMP_NUM_THREADS, else the processors that this thread may run on,
        no more than the cgroup's CPU quota; one in a forked child that has not asked for more.

    Raises
    ------
    OptionError
        FASTOPT_NUM_THREADS is not a positive integer.

    See Also
    --------
    set_num_threads : Set it for the process.

    Examples
    --------
    >>> import fastopt
    >>> fastopt.get_num_threads() >= 1
    True
    """
    if _asked is not None:
        return _asked
    return _default() if _limit is None else _limit


def set_num_threads(threads: int | None) -> None:
    """Set how many threads large work gets with ``threads=None``, in this process.

    It is stronger than threadpoolctl and the environment, weaker than ``threads=`` of a call. A
    forked child begins without it. Results do not depend on the number of threads.

    Parameters
    ----------
    threads : int or None
        A positive number; None goes back to the default. A number above both 64 and the number
        of processors (above 256 in any case) counts as that.

    Raises
    ------
    DTypeError
        ``threads`` is not an integer.
    OptionError
        ``threads`` is below one.

    See Also
    --------
    get_num_threads : What is in force.

    Examples
    --------
    >>> import fastopt
    >>> fastopt.set_num_threads(1)
    >>> fastopt.get_num_threads()
    1
    >>> fastopt.set_num_threads(None)
    """
    global _asked
    _asked = None if threads is None else min(integer(threads, "threads", low=1), MOST)


def streams(x: Array, out: Array, fresh: bool) -> bool:
    """Whether the pass from x to out writes past the caches; not into what was just allocated
    (``fresh``): the first touch of its pages brings them into the caches."""
    return not fresh and x.nbytes + out.nbytes >= STREAM_FROM


def resolve(threads: int | None, work: int, serial_below: int = SERIAL_BELOW) -> int:
    """Thread count for ``work`` units.

    Parameters
    ----------
    threads : int or None
        What the caller asked: a positive count is taken as given (up to ``MOST``), None applies
        the rule of this module.
    work : int
        Size of the job, in the unit of ``serial_below``.
    """
    if threads is not None:
        if type(threads) is int and 1 <= threads <= MOST:  # at every step of an optimizer
            return threads
        return min(integer(threads, "threads", low=1), MOST)
    return 1 if work < serial_below else get_num_threads()


# --- threadpoolctl ----------------------------------------------------------------------------


def _register(threadpoolctl: ModuleType) -> None:
    """Make the pool one of the libraries that threadpoolctl governs, as ``user_api="fastopt"``."""
    if not hasattr(threadpoolctl, "register"):  # before 3.2
        return

    class FastoptController(threadpoolctl.LibController):  # type: ignore[misc, name-defined]
        user_api = internal_api = "fastopt"
        filename_prefixes = ("pool.",)  # the file that owns the pool,
        check_symbols = ("fastopt_pool",)  # and no other of that name

        def get_num_threads(self) -> int:
            return _default() if _limit is None else _limit

        def set_num_threads(self, num_threads: int) -> None:
            global _limit  # a limit that ends is set back to what was there before: to none
            count = max(1, min(int(num_threads), MOST))
            _limit = None if count == _default() else count

        def get_version(self) -> str:
            from fastopt import __version__

            return __version__

    threadpoolctl.register(FastoptController)


class _Watch(MetaPathFinder):
    """Registers the pool at the moment that threadpoolctl is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "threadpoolctl" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "threadpoolctl" in sys.modules:
    _register(sys.modules["threadpoolctl"])
else:
    sys.meta_path.insert(0, _Watch())
