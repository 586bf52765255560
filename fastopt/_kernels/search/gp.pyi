from fastopt._arrays import Array

def likelihood(
    gradient: Array,
    x: Array,
    t: Array,
    weights: Array,
    scale_of: Array,
    noise: float,
    work: Array,
) -> float: ...
def fit(
    inverse: Array,
    alpha: Array,
    rows: Array,
    x: Array,
    t: Array,
    weights: Array,
    noise: float,
    work: Array,
) -> bool: ...
def gain(
    out: Array,
    points: Array,
    rows: Array,
    weights: Array,
    inverse: Array,
    alpha: Array,
    variance: float,
    best: float,
    threads: int,
) -> None: ...
