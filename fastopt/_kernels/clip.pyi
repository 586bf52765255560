from fastopt._arrays import Array

def candidate_errors(
    error: Array,
    x: Array,
    weight: Array | None,
    scale: Array,
    zero: Array,
    rows: int,
    n: int,
    weight_rows: int,
    qmin: float,
    qmax: float,
    threads: int,
) -> None: ...
