from typing import Any

from numpy.typing import NDArray

def encode_affine(
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
    streamed: bool,
    threads: int,
) -> None: ...
def decode_affine(
    out: NDArray[Any],
    codes: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any],
    rows: bool,
    depth: int,
    width: int,
    group: int,
    streamed: bool,
    threads: int,
) -> None: ...
