from typing import Any

from numpy.typing import NDArray

def encode_rounded(
    out: NDArray[Any],
    x: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any],
    rows: bool,
    depth: int,
    width: int,
    group: int,
    low: float,
    high: float,
    mode: int,
    wrap: bool,
    key: int,
    threads: int,
) -> None: ...
