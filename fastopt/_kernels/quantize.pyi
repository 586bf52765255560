from typing import Any

from numpy.typing import NDArray

def encode(
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
    join: int,
    times: bool,
    wrap: bool,
    check: bool,
    key: int,
    streamed: bool,
    threads: int,
) -> bool: ...
def fake(
    out: NDArray[Any],
    mask: NDArray[Any] | None,
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
    join: int,
    times: bool,
    check: bool,
    key: int,
    streamed: bool,
    threads: int,
) -> bool: ...
