from fastopt._arrays import Array

def best_range(
    low: Array,
    high: Array,
    x: Array,
    weight: Array | None,
    rows: int,
    n: int,
    weight_rows: int,
    wide: Array,
    near: Array,
    symmetric: bool,
    steps: float,
    zero: float,
    qmin: float,
    qmax: float,
    threads: int,
) -> None: ...
