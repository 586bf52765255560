from fastopt._arrays import Array

COLS: int

def feedback(
    code: Array,
    scale: Array,
    zero: Array,
    w: Array,
    panels: Array,
    order: Array,
    cost: Array,
    rows: int,
    n: int,
    size: int,
    early: bool,
    wide: Array,
    near: Array,
    symmetric: bool,
    steps: float,
    middle: float,
    qmin: float,
    qmax: float,
    threads: int,
) -> None: ...
