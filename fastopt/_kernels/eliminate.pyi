from typing import Any

from numpy import ndarray

_A = ndarray[Any, Any]

def eliminate(order: _A, loss: _A, hinv: _A, weight: _A, threads: int) -> None: ...
