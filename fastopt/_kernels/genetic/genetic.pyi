from typing import Any

from numpy.typing import NDArray

def outside(x: NDArray[Any], low: NDArray[Any], high: NDArray[Any], threads: int) -> bool: ...
def breed(
    child: NDArray[Any],
    parents: NDArray[Any],
    mates: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    crossover: int,
    rate: float,
    gene_rate: float,
    eta: float,
    mutation: int,
    mutation_rate: float,
    mutation_scale: float,
    key: int,
    generation: int,
    threads: int,
) -> None: ...
def mutate(
    x: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    mutation: int,
    mutation_rate: float,
    mutation_scale: float,
    key: int,
    generation: int,
    threads: int,
) -> None: ...
