from typing import Any

from numpy.typing import NDArray

def gram(
    out: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    weights: NDArray[Any] | None,
    shift: NDArray[Any],
    threads: int,
) -> None: ...
