from typing import Any

from numpy import ndarray

_A = ndarray[Any, Any]

def compact(candidates: _A, x: _A, lo: int, hi: int, threads: int) -> tuple[int, int]: ...
def count_above(x: _A, limit: int, threads: int) -> int: ...
def find_equal(x: _A, value: int, nth: int) -> tuple[int, int]: ...
def histogram(counts: _A, x: _A, shift: int, width: int, prefix: int, threads: int) -> None: ...
def zero_below(
    out: _A,
    keep: _A | None,
    x: _A,
    limit: int,
    split: int,
    limit_after: int,
    streamed: bool,
    threads: int,
) -> None: ...
def keep_n_of_m(
    out: _A,
    keep: _A | None,
    x: _A,
    inner: int,
    n: int,
    m: int,
    streamed: bool,
    threads: int,
) -> int: ...
