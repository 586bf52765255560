from typing import Any

from numpy.typing import NDArray

def encode(
    out: NDArray[Any],
    scale: NDArray[Any],
    x: NDArray[Any],
    bound: NDArray[Any],
    value: NDArray[Any],
    sign: bool,
    rows: bool,
    depth: int,
    width: int,
    group: int,
    deriving: bool,
    power: bool,
    peak: float,
    threads: int,
) -> bool: ...
def decode(
    out: NDArray[Any],
    codes: NDArray[Any],
    scale: NDArray[Any],
    bound: NDArray[Any],
    value: NDArray[Any],
    sign: bool,
    rows: bool,
    depth: int,
    width: int,
    group: int,
    streamed: bool,
    threads: int,
) -> None: ...
def ggml(
    blocks: NDArray[Any],
    value: NDArray[Any],
    scale: NDArray[Any],
    kind: int,
    way: int,
    threads: int,
) -> bool: ...
