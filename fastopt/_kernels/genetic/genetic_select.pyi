from typing import Any

from numpy.typing import NDArray

def tournament(
    winners: NDArray[Any],
    fitness: NDArray[Any],
    size: int,
    key: int,
    generation: int,
    threads: int,
) -> None: ...
def uniform(x: NDArray[Any], first_row: int, key: int, generation: int, threads: int) -> None: ...
