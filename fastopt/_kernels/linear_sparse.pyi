from typing import Any

from numpy.typing import NDArray

def sgd_epoch(
    slab: NDArray[Any],
    steps: NDArray[Any],
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    d: int,
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
    lazy: bool,
    cap: float,
    threads: int,
) -> tuple[float, float, int]: ...
def loss_gradient(
    grad: NDArray[Any],
    weight: NDArray[Any],
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    d: int,
    y: NDArray[Any],
    weights: NDArray[Any] | None,
    k: int,
    loss: int,
    targets: int,
    epsilon: float,
    intercept: bool,
    threads: int,
) -> tuple[float, float, int]: ...
def product(
    out: NDArray[Any],
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    w: NDArray[Any],
    threads: int,
) -> None: ...
def check(indices: NDArray[Any], indptr: NDArray[Any], d: int) -> int: ...
