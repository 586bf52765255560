from typing import Any

from numpy.typing import NDArray

def min_max(
    low: NDArray[Any],
    high: NDArray[Any],
    x: NDArray[Any],
    rows: bool,
    depth: int,
    width: int,
    group: int,
    threads: int,
) -> None: ...
