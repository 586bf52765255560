from fastopt._arrays import Array

def likelihood(
    gradient: Array,
    x: Array,
    t: Array,
    weights: Array,
    scale_of: Array,
    noise: float,
    firm: float,
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
    firm: float,
    work: Array,
) -> float: ...
def gain(
    out: Array,
    points: Array,
    rows: Array,
    weights: Array,
    inverse: Array,
    alpha: Array,
    variance: float,
    mean: float,
    best: float,
    threads: int,
) -> None: ...
