"""Shared fixtures: the levels of this machine, the sizes that find tails, guarded arrays."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest

from fastopt._kernels import levels

# A shell starts background jobs with SIGINT ignored, which interrupted processes would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SIZES = (*range(71), 1000)  # every tail of every vector width, and one size with full vectors
THREADS = (1, 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What forks goes first: before other libraries have started threads in this process."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest) -> str:
    """Each instruction-set level that this CPU runs."""
    return request.param


def kernel(name: str, level: str) -> ModuleType:
    """The kernel module ``name`` as built for ``level``; all levels live in one process."""
    return import_module(f"fastopt._kernels.{level}.{name}")


def special_values(dtype: str) -> np.ndarray:
    """NaN, infinities, signed zeros, the smallest denormal, the extremes."""
    info = np.finfo(dtype)
    values = [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        info.smallest_subnormal,
        -info.smallest_subnormal,
    ]
    return np.array([*values, info.tiny, info.max, info.min, 1.0, -1.0], dtype)


def sample(n: int, dtype: str, seed: int = 0, special: bool = False) -> np.ndarray:
    """n normal draws; with ``special`` every third one is replaced by a special value."""
    a = np.random.default_rng(seed + n).standard_normal(n).astype(dtype)
    if special and n:
        values = special_values(dtype)
        a[::3] = np.resize(values, a[::3].shape)
    return a


class Guarded:
    """An array of n elements with a canary on both sides; ``check`` sees any write outside."""

    def __init__(self, values: np.ndarray) -> None:
        self.pad = 64
        self.raw = np.full(values.nbytes + 2 * self.pad, 0xA5, np.uint8)
        self.array = self.raw[self.pad : self.pad + values.nbytes].view(values.dtype)
        self.array = self.array.reshape(values.shape)
        self.array[...] = values

    def check(self) -> None:
        assert (self.raw[: self.pad] == 0xA5).all()
        assert (self.raw[len(self.raw) - self.pad :] == 0xA5).all()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261124)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With FASTOPT_NO_SKIPS=1 (every optional package is installed) a skip is a failure."""
    if os.environ.get("FASTOPT_NO_SKIPS") != "1" or exitstatus != 0:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped:
        for report in skipped:
            reporter.write_line(
                f"skipped where nothing may be: {report.nodeid}: {report.longrepr}"
            )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
