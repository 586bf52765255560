from typing import Any

from numpy.typing import NDArray

def narrow(
    out: NDArray[Any],
    x: NDArray[Any],
    bits: int,
    man: int,
    bias: int,
    max_code: int,
    over: int,
    nan: int,
    random: bool,
    key: int,
    streamed: bool,
    threads: int,
) -> None: ...
def widen(
    out: NDArray[Any],
    codes: NDArray[Any],
    bits: int,
    man: int,
    bias: int,
    max_code: int,
    over: int,
    nan: int,
    streamed: bool,
    threads: int,
) -> None: ...
