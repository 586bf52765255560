from typing import Any

from numpy.typing import NDArray

def decode(
    out: NDArray[Any],
    codes: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any],
    rows: bool,
    depth: int,
    width: int,
    group: int,
    packed: bool,
    streamed: bool,
    threads: int,
) -> None: ...
def widen(
    out: NDArray[Any],
    codes: NDArray[Any],
    scale: NDArray[Any],
    rows: bool,
    depth: int,
    width: int,
    group: int,
    bits: int,
    man: int,
    bias: int,
    max_code: int,
    over: int,
    nan: int,
    streamed: bool,
    threads: int,
) -> None: ...
