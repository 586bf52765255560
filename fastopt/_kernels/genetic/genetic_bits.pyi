from typing import Any

from numpy.typing import NDArray

def breed_bits(
    child: NDArray[Any],
    parents: NDArray[Any],
    mates: NDArray[Any],
    d: int,
    crossover: int,
    rate: float,
    gene_rate: float,
    mutation_rate: float,
    key: int,
    generation: int,
    threads: int,
) -> None: ...
def flip(
    x: NDArray[Any], d: int, mutation_rate: float, key: int, generation: int, threads: int
) -> None: ...
def distances(out: NDArray[Any], x: NDArray[Any], y: NDArray[Any], threads: int) -> None: ...
