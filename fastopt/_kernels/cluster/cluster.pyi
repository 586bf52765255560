from typing import Any

from numpy import ndarray

_A = ndarray[Any, Any]

def tally(
    count: _A, low: _A, x: _A, unit: float, centre: float, map: _A, threads: int
) -> None: ...
def partition(starts: _A, count: _A, total: _A, chosen: _A, layers: _A) -> None: ...
def assign(
    codes: _A,
    x: _A,
    unit: float,
    centre: float,
    map: _A,
    span: _A,
    middle: _A,
    threads: int,
) -> None: ...
