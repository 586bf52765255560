from typing import Any

from numpy.typing import NDArray

def sgd_epoch(
    slab: NDArray[Any],
    steps: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    weights: NDArray[Any] | None,
    order: NDArray[Any],
    lr: NDArray[Any],
    k: int,
    group: int,
    size: int,
    sync: int,
    loss: int,
    targets: int,
    epsilon: float,
    intercept: bool,
    kind: int,
    l2: float,
    l1: float,
    momentum: float,
    beta2: float,
    eps: float,
    average: bool,
    threads: int,
) -> tuple[float, float, int]: ...
def loss_gradient(
    grad: NDArray[Any],
    weight: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    weights: NDArray[Any] | None,
    k: int,
    loss: int,
    targets: int,
    epsilon: float,
    intercept: bool,
    threads: int,
) -> tuple[float, float, int]: ...
def number_two(
    codes: NDArray[Any], labels: NDArray[Any], few: NDArray[Any], threads: int
) -> bool: ...
def shuffle(order: NDArray[Any], key: int, epoch_number: int) -> None: ...
