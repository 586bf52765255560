from typing import Any

from numpy import ndarray

_A = ndarray[Any, Any]

def product(
    y: _A, value: _A, index: _A, start: _A, x: _A, n: int, rows: int, threads: int
) -> None: ...
